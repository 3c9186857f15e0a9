"""The report on runs of reinforcement learning: scores at a common step, what was learned, how fast, at what cost."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtrl.errors import InputError
from mtrl.report import drawing, figures
from mtrl.report.comparison import (
    Comparison,
    Method,
    differences,
    named,
    runs_by_method,
    shared_warnings,
    unscored_warning,
)
from mtrl.report.conflict_figures import conflict_pictures
from mtrl.report.drawing import Picture, Rows
from mtrl.report.runs import Run
from mtrl.report.section import Section
from mtrl.report.statistics import Array, best_by_luck, interquartile_mean_over_seeds, mean_over_tasks
from mtrl.report.tables import Cell, Table, configuration_table, cost_table, paired_table, runs_table

_POINTS = 100


@dataclass(frozen=True)
class TrainedMethod(Method):
    """The runs of one way of training an agent; `scores` are means over the last evaluations up to the common step.

    Attributes:
        final: ``[n, T]``, scores at the step of comparison.
        best: ``[n, T]``, scores at the evaluation, up to that step, with the best mean over tasks.
    """

    final: Array
    best: Array


@dataclass(frozen=True)
class TrainingComparison(Comparison):
    """A comparison of runs of reinforcement learning.

    Attributes:
        metric: the key of the metric.
        step: where the methods are compared: the last evaluation that every compared run reached.
        last_k: over how many evaluations `Method.scores` are taken.
        evaluations: of how many evaluations the best is taken; the most of any run.
    """

    methods: Sequence[TrainedMethod]
    metric: str
    step: int
    last_k: int
    evaluations: int


def compare_training(
    runs: Sequence[Run],
    *,
    metric: str,
    baseline: str,
    seed: int,
    last_k: int,
    left_out: Sequence[str] = (),
) -> TrainingComparison:
    """Compares the methods of a set of runs of reinforcement learning.

    Where any run is finished, finished runs alone are scored; otherwise every run is. All are scored at the last
    evaluation that each of them reached, so that a longer run has no advantage.

    Args:
        runs: of one benchmark.
        metric: what `Metrics.scores` holds.
        baseline: the name of the method that the others are compared with.
        seed: of the resamples.
        last_k: how many evaluations count as the last.
        left_out: lines about what could not be read, for the reader.

    Raises:
        InputError: if no run has an evaluation, there is no such baseline, or the runs are of different tasks.
    """
    other = next((run for run in runs if run.tasks != runs[0].tasks), None)
    if other is not None:
        raise InputError(
            f"runs of different benchmarks cannot be compared (different tasks in {runs[0].directory} and "
            f"{other.directory}): compare them one by one"
        )
    evaluated = [run for run in runs if len(run.metrics.steps)]
    if not evaluated:
        raise InputError(f"none of the {len(runs)} runs has an evaluation ('{metric}') yet")
    compared = [run for run in evaluated if run.summary is not None] or evaluated
    step = int(min(run.metrics.steps[-1] for run in compared))
    by_name = runs_by_method(runs, baseline)
    methods = [_method(name, own, compared, step, last_k) for name, own in by_name.items()]
    configuration = differences(by_name)
    return TrainingComparison(
        score=f"{_label(metric)}, mean of the last {last_k} evaluations",
        progress="vector steps (one environment step in every task)",
        interval="10,000 updates",
        metric=metric,
        step=step,
        last_k=last_k,
        evaluations=max(int((run.metrics.steps <= step).sum()) for run in compared),
        seed=seed,
        baseline=baseline,
        methods=methods,
        runs=list(runs),
        compared=compared,
        configuration=configuration,
        warnings=[
            *_run_warnings(runs, compared, step),
            *shared_warnings(methods, baseline, configuration, runs),
            *left_out,
        ],
    )


def _label(metric: str) -> str:
    """What an axis calls a metric."""
    return "success rate" if metric == "eval/success_mean" else metric


def _method(name: str, runs: list[Run], compared: list[Run], step: float, last_k: int) -> TrainedMethod:
    rows: dict[int, list[Array]] = defaultdict(list)
    directories = {run.directory for run in compared}
    for run in runs:
        if run.directory in directories:
            until = int((run.metrics.steps <= step).sum())
            means, scores = run.metrics.scores[:until], run.metrics.task_scores[:until]
            rows[run.seed].append(np.stack([scores[-1], scores[-last_k:].mean(0), scores[means.argmax()]]))
    seeds = sorted(rows)
    empty = np.zeros((3, 0, len(runs[0].tasks)))
    final, last, best = np.stack([np.mean(rows[seed], 0) for seed in seeds], 1) if seeds else empty
    evaluated = [run for run in runs if len(run.metrics.steps)]
    return TrainedMethod(name, evaluated, seeds, scores=last, final=final, best=best)


def _run_warnings(runs: Sequence[Run], compared: Sequence[Run], step: int) -> list[str]:
    warnings = []
    unfinished = [run for run in runs if run.summary is None]
    unevaluated = [run for run in runs if not len(run.metrics.steps)]
    if len(compared) < len(runs) and len(unfinished) < len(runs):
        warnings.append(unscored_warning(runs))
    elif unfinished:
        warnings.append(f"No run is finished: all are scored at step {step:,}, the last that each of them reached.")
        if unevaluated:
            warnings.append(f"Runs without an evaluation yet: {named(unevaluated)}.")
    longest = max(run.metrics.steps[-1] for run in compared)
    if step < longest:
        shortest = [run for run in compared if run.metrics.steps[-1] == step]
        warnings.append(
            f"Compared runs have different lengths: all are scored at step {step:,}, the end of {named(shortest)}; "
            f"the longest goes on to {int(longest):,}."
        )
    return warnings


# ----------------------------------------------------------------------------------------------------- the section


def training_section(comparison: TrainingComparison) -> Section:
    """What the report says of a comparison."""
    last_k = comparison.last_k
    methods, *others = training_tables(comparison)
    with drawing.style():
        pictures = [
            _learning_curves(comparison),
            figures.intervals(comparison, f"At step {comparison.step:,}."),
            _task_curves(comparison),
            _wall_clock(comparison),
            figures.times(
                comparison, "update_time", "the intervals between log entries, stepping the simulators included"
            ),
            figures.memory(comparison, " Training process: without the processes that step the simulators."),
            *conflict_pictures(comparison),
        ]
    at_step = f"at step {comparison.step:,}"
    return Section(
        comparison,
        subject=comparison.benchmark,
        compared_by=f"{at_step} by {comparison.metric}, mean of the last {last_k} evaluations",
        pictures=[picture for picture in pictures if picture is not None],
        headline=methods.columns(
            f"{comparison.benchmark} {at_step}: {comparison.metric}", ["method", "seeds", f"last {last_k}", "best"]
        ),
        tables=[methods, *others],
    )


def bias_of_best(comparison: TrainingComparison) -> str | None:
    """How much of the best score over all updates may be luck; None where nothing is known of its noise."""
    evaluation = comparison.runs[0].config.get("eval")
    episodes = evaluation.get("episodes") if isinstance(evaluation, dict) else None
    if comparison.metric != "eval/success_mean" or not isinstance(episodes, int) or episodes < 1:
        return None
    scored = [method for method in comparison.methods if method.seeds]
    method = max(scored, key=lambda method: float(method.best.mean()))
    rates = np.clip(method.scores.mean(0), 0, 1)
    luck = best_by_luck(rates, episodes, comparison.evaluations, np.random.default_rng(comparison.seed))
    return (
        f"The best of {comparison.evaluations} evaluations flatters: it picks the luckiest. If every evaluation were "
        f"a fresh draw of {episodes} episodes per task at {method.name}'s mean rates of the last "
        f"{comparison.last_k} evaluations ({rates.mean():.3f}), the best would be about {luck:.3f} without any "
        f"progress; {method.name} shows {method.best.mean():.3f}."
    )


# ---------------------------------------------------------------------------------------------------------- tables


def training_tables(comparison: TrainingComparison) -> list[Table]:
    """Every table, that of the methods first."""
    return [
        _methods_table(comparison),
        paired_table(comparison),
        _tasks_table(comparison),
        cost_table(
            comparison,
            "Of each interval between two log entries, stepping the simulators included. Memory: the largest of any "
            "finished run; that of the training process, without simulator processes.",
        ),
        configuration_table(comparison),
        runs_table(
            comparison,
            {"combiner": lambda run: run.method},
            {
                "last evaluation at step": lambda metrics: int(metrics.steps[-1]),
                "score there": lambda metrics: float(metrics.scores[-1]),
            },
        ),
    ]


def _methods_table(comparison: TrainingComparison) -> Table:
    """Each method's final, last-k and best scores."""
    k = comparison.last_k
    rows: list[list[Cell]] = []
    for method in comparison.methods:
        estimates: list[Cell] = [None] * 5
        if method.seeds:
            whole = method.scores.mean(1)
            estimates = [
                comparison.estimate(method.scores, mean_over_tasks),
                comparison.estimate(whole),
                comparison.estimate(whole, interquartile_mean_over_seeds),
                comparison.estimate(method.final, mean_over_tasks),
                comparison.estimate(method.best, mean_over_tasks),
            ]
        rows.append([method.name, len(method.seeds), *estimates])
    note = (
        f"{comparison.metric} at step {comparison.step:,} with 95% intervals. last {k}: mean over the last {k} "
        "evaluations. Intervals of last, final and best resample seeds within each task (stratified bootstrap); "
        "those of whole seeds and of the interquartile mean (IQM) over seeds draw all tasks of a run together, "
        "because one network learned them all. best: the evaluation with the highest mean, chosen with "
        "hindsight for each run, and therefore too high."
    )
    return Table(
        "methods",
        "Methods",
        ["method", "seeds", f"last {k}", f"last {k}, whole seeds", f"IQM of last {k}", "final", "best"],
        rows,
        "\n\n".join(filter(None, [note, bias_of_best(comparison)])),
    )


def _tasks_table(comparison: TrainingComparison) -> Table:
    """Each method's score in every task."""
    return Table(
        "tasks",
        "Tasks",
        ["task", *(method.name for method in comparison.scored)],
        [
            [task, *(comparison.estimate(method.scores[:, index]) for method in comparison.scored)]
            for index, task in enumerate(comparison.tasks)
        ],
        f"Mean over seeds of the last {comparison.last_k} evaluations, with 95% intervals.",
    )


# --------------------------------------------------------------------------------------------------------- figures


def _learning_curves(comparison: TrainingComparison) -> Picture:
    curves = {method.name: _scores(method) for method in comparison.methods if method.runs}
    return Picture(
        "learning_curves",
        "Learning curves",
        f"Mean over tasks and seeds, with the 95% bootstrap interval over seeds. {drawing.READING}",
        drawing.over_training(_all_methods(comparison, curves), comparison),
    )


def _wall_clock(comparison: TrainingComparison) -> Picture:
    longest = max(run.metrics.seconds[-1] for method in comparison.methods for run in method.runs)
    unit, seconds = ("hours", 3600) if longest > 7200 else ("minutes", 60)
    curves = {}
    for method in comparison.methods:
        if method.runs:
            series = [(run.metrics.seconds / seconds, run.metrics.scores) for run in method.runs]
            first, last = min(x[0] for x, _ in series), max(x[-1] for x, _ in series)
            curves[method.name] = drawing.at(np.unique(np.linspace(first, last, _POINTS)), series)
    figure = _all_methods(comparison, curves)
    figure.supxlabel(f"{unit} of training", fontsize=10)
    return Picture(
        "wall_clock",
        "What the same time buys",
        "The learning curves against the wall-clock time of training, evaluations included. Comparable only between "
        f"runs on the same hardware under the same load. {drawing.READING}",
        figure,
    )


def _all_methods(comparison: TrainingComparison, curves: Mapping[str, Rows]) -> Figure:
    """All methods in one pair of axes, or a panel for each where they are many."""
    if len(curves) <= drawing.MOST:
        figure = Figure(figsize=(8, 4.5))
        axes = figure.add_subplot()
        drawing.curves(axes, comparison, curves)
        axes.set_ylabel(_label(comparison.metric))
        _limit(axes, comparison)
        figure.legend(loc="outside right upper")
        return figure
    figure, grid = drawing.grid_of(len(curves))
    for (name, curve), axes in zip(curves.items(), grid, strict=True):
        if comparison.baseline in curves:
            drawing.curve(axes, curves[comparison.baseline], comparison.seed, drawing.GREY, "-", band=False)
        drawing.curve(axes, curve, comparison.seed, drawing.COLOURS[0 if name == comparison.baseline else 1], "-")
        axes.set_title(name, fontsize=9)
        _limit(axes, comparison)
    drawing.same_limits(grid)
    figure.supylabel(f"{_label(comparison.metric)}; grey: {comparison.baseline}", fontsize=10)
    return figure


def _task_curves(comparison: TrainingComparison) -> Picture | None:
    if len(comparison.tasks) < 2:
        return None
    figure, grid = drawing.grid_of(len(comparison.tasks))
    for index, (task, axes) in enumerate(zip(comparison.tasks, grid, strict=True)):
        curves = {method.name: _scores(method, index) for method in drawing.selected(comparison)}
        drawing.curves(axes, comparison, curves)
        axes.set_title(task, fontsize=9)
        _limit(axes, comparison)
    drawing.same_limits(grid)
    drawing.over_training(figure, comparison).supylabel(_label(comparison.metric), fontsize=10)
    drawing.legend_above(figure)
    return Picture(
        "tasks",
        "Task by task",
        "Mean over seeds in each task, with the 95% bootstrap interval over seeds. "
        f"{drawing.READING} {drawing.selection(comparison)}",
        figure,
    )


def _scores(method: Method, task: int | None = None) -> Rows:
    """The runs' means over tasks, or their scores in one task."""
    runs = [run.metrics for run in method.runs]
    return drawing.aligned([(run.steps, run.scores if task is None else run.task_scores[:, task]) for run in runs])


def _limit(axes: Axes, comparison: Comparison) -> None:
    """Rates are shown on the whole of their scale."""
    if all(((run.metrics.task_scores >= 0) & (run.metrics.task_scores <= 1)).all() for run in comparison.runs):
        axes.set_ylim(-0.03, 1.03)
