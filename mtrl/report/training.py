"""The report on runs of reinforcement learning: scores at a common step, what was learned, how fast, at what cost."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtrl.errors import InputError
from mtrl.report import drawing, figures
from mtrl.report.comparison import Comparison, Method, baseline_first, named, runs_by_method, unscored_warnings
from mtrl.report.conflict_figures import conflict_pictures, plasticity_picture
from mtrl.report.drawing import Picture, Rows
from mtrl.report.learning_curve import NAMES
from mtrl.report.runs import Run
from mtrl.report.section import Section
from mtrl.report.statistics import (
    Array,
    Estimate,
    best_by_luck,
    interquartile_mean_over_seeds,
    interquartile_mean_over_tasks,
    mean_over_tasks,
)
from mtrl.report.tables import Cell, Table, configuration_table, cost_table, paired_table, runs_table
from mtrl.report.tuning import Trial, tune, tuning_warnings
from mtrl.run.record import GOALS, PREFIXES, goals_of

_POINTS = 100
_COLUMNS = 5


@dataclass(frozen=True)
class TrainingComparison(Comparison):
    """A comparison of runs of reinforcement learning.

    Attributes:
        metric: the key of the metric.
        step: where the methods are compared: the last evaluation that every compared run reached.
        last_k: over how many evaluations, up to this step, `Method.scores` are means; `Method.reached` holds ``[n, T]``
            the ``final`` scores at this step, and the ``best``: at the evaluation with the highest mean over tasks.
        trials: what methods were tuned among, where they were.
    """

    progress = drawing.VECTOR_STEPS
    interval = "10,000 updates"
    metric: str
    step: int
    last_k: int
    trials: Sequence[Trial]

    @property
    def parallel(self) -> int:
        """See `Comparison`."""
        return len(self.tasks)

    @property
    def where(self) -> str:
        """`step` in words."""
        environment_steps = f" ({self.step * self.parallel:,} environment steps)" if self.parallel > 1 else ""
        return f"at step {self.step:,}{environment_steps}"

    @property
    def elsewhere(self) -> dict[str, str]:
        """The keys of success rates on other goals that compared runs logged, each with what its goals are called."""
        logged = dict.fromkeys(key for run in self.compared for key in run.metrics.logged)
        return {key: GOALS[goals_of(key) or ""] for key in logged if key.endswith("success_mean")}


def compare_training(
    runs: Sequence[Run],
    *,
    metric: str,
    baseline: str,
    seed: int,
    last_k: int,
    tuning_seeds: Sequence[int] = (),
    left_out: Sequence[str] = (),
) -> TrainingComparison:
    """Compares the methods of runs of reinforcement learning of one benchmark and list of tasks.

    Where any run is finished, finished runs alone are scored; otherwise every run is. All are scored at the last
    evaluation that each of them reached, so that a longer run has no advantage. A run is not scored where a value of
    its last ``last_k`` evaluations by then is missing. The arguments become the `TrainingComparison`'s attributes;
    ``metric`` is what `Metrics.scores` holds. Where there are ``tuning_seeds``, these choose each method's options, and
    methods are compared by the other seeds: see `tune`.

    Raises:
        InputError: if no run can be scored, there is no such baseline, or tuning leaves nothing to compare.
    """
    evaluated = [run for run in runs if len(run.metrics.steps)]
    if not evaluated:
        raise InputError(f"none of the {len(runs)} runs has an evaluation ('{metric}') yet")
    candidates = [run for run in evaluated if run.summary is not None] or evaluated
    compared, step = _scorable(candidates, last_k)
    if not compared:
        raise InputError(f"no run can be scored: values of '{metric}' or of its tasks are missing in all of them")
    methods = {name: _method(name, own, compared, step, last_k) for name, own in runs_by_method(runs).items()}
    remarks = [
        *_scale_warnings(metric, runs[0].tasks),
        *_own_scale_warnings(methods.values()),
        *_run_warnings(runs, candidates, compared, step),
    ]
    trials: list[Trial] = []
    if tuning_seeds := sorted({*tuning_seeds}):
        methods, trials = tune(methods.values(), tuning_seeds)
        remarks = [*tuning_warnings(trials, tuning_seeds), *remarks]
        runs = [run for method in methods.values() for run in method.every]
        kept = {run.directory for run in runs}
        compared = [run for run in compared if run.directory in kept]
    return TrainingComparison(
        score=f"{_label(metric, runs)}, mean of the last {last_k} evaluations",
        seed=seed,
        baseline=baseline,
        methods=list(baseline_first(methods, baseline).values()),
        runs=runs,
        compared=compared,
        tuning_seeds=tuning_seeds,
        remarks=remarks,
        left_out=left_out,
        metric=metric,
        step=step,
        last_k=last_k,
        trials=trials,
    )


def _scorable(candidates: Sequence[Run], last_k: int) -> tuple[list[Run], int]:
    """The runs without a missing value in their scores, and the last evaluation that each of these reached."""
    compared, step = list(candidates), 0
    before = len(compared) + 1
    while len(compared) < before and compared:
        before, step = len(compared), int(min(run.metrics.steps[-1] for run in compared))
        whole = [run.metrics.whole[run.metrics.steps <= step][-last_k:] for run in compared]
        compared = [run for run, own in zip(compared, whole, strict=True) if len(own) and own.all()]
    return compared, step


def _label(metric: str, runs: Sequence[Run]) -> str:
    """What an axis calls a metric, with the goals that it is of.

    Runs of older versions do not say which they played: held-out ones, under the keys that are now training's.
    """
    goals = goals_of(metric) if runs[0].has_goals else None
    if goals == "training" and not any("goals" in run.config.get("eval", {}) for run in runs):
        goals = "held_out"
    prefix = PREFIXES.get(goals_of(metric) or "", "")
    name = NAMES.get(metric.removeprefix(prefix).removesuffix("_mean"), metric) if prefix else metric
    return f"{name}, {GOALS[goals]}" if goals else name


def _method(name: str, runs: list[Run], compared: list[Run], step: float, last_k: int) -> Method:
    rows: dict[int, list[Array]] = defaultdict(list)
    others: dict[str, dict[int, list[Array]]] = defaultdict(lambda: defaultdict(list))
    directories = {run.directory for run in compared}
    for run in runs:
        if run.directory in directories:
            until = int((run.metrics.steps <= step).sum())
            scores = run.metrics.task_scores[:until]
            means = np.where(run.metrics.whole[:until], run.metrics.scores[:until], -np.inf)
            rows[run.seed].append(np.stack([scores[-1], scores[-last_k:].mean(0), scores[means.argmax()]]))
            for key, values in run.metrics.logged.items():
                others[key][run.seed].append(values[:until][-last_k:].mean())
    seeds = sorted(rows)
    empty = np.zeros((3, 0, len(runs[0].tasks)))
    final, last, best = np.stack([np.mean(rows[seed], 0) for seed in seeds], 1) if seeds else empty
    elsewhere = {
        key: np.array([np.mean(own[seed]) if seed in own else np.nan for seed in seeds]) for key, own in others.items()
    }
    return Method(name, runs, seeds, last, {"final": final, "best": best} | elsewhere)


def _scale_warnings(metric: str, tasks: Sequence[str]) -> list[str]:
    if metric != "eval/return_mean" or len(tasks) < 2:
        return []
    return [
        "Returns are averaged over tasks as they are, so that one with larger rewards counts more; where those of "
        "a random policy and of an expert are given, they are normalised first (docs/environments.md)."
    ]


def _own_scale_warnings(methods: Iterable[Method]) -> list[str]:
    """Adam divides a method's scale out again, but not where L2 is added or norms are clipped."""
    own = []
    for method in methods:
        agent = method.every[0].config["agent"]
        decays = [agent.get(side, {}).get("weight_decay") for side in ("actor", "critic")]
        l2 = any(decays) and agent.get("weight_decay_mode", "coupled") == "coupled"
        if agent.get("rescale") is False and (l2 or agent.get("max_gradient_norm")):
            own.append(method.name)
    if not own:
        return []
    return [
        f"Weights are on the scale of the method's paper (agent.rescale=false) in {', '.join(own)}: beside L2 or "
        "clipping that is another regularisation for each method."
    ]


def _run_warnings(runs: Sequence[Run], candidates: Sequence[Run], compared: Sequence[Run], step: int) -> list[str]:
    warnings = []
    finished = [run for run in runs if run.summary]
    if not finished:
        warnings.append(f"No run is finished: all are scored at step {step:,}, the last that each of them reached.")
    elif any(run.summary for run in candidates):
        warnings += unscored_warnings(runs, [run for run in runs if run.summary is None], "not finished")
    else:
        warnings.append(f"No finished run has an evaluation of this metric: all others are scored at step {step:,}.")
    if unevaluated := [run for run in finished or runs if not len(run.metrics.steps)]:
        lacks = "of this metric" if finished else "yet"
        warnings.append(f"Runs without an evaluation {lacks}: {named(unevaluated)}.")
    scored = {run.directory for run in compared}
    lacking = [run for run in candidates if run.directory not in scored]
    warnings += unscored_warnings(runs, lacking, f"without all values of the last evaluations up to step {step:,}")
    longest = max(run.metrics.steps[-1] for run in compared)
    if step < longest:
        shortest = [run for run in compared if run.metrics.steps[-1] == step]
        warnings.append(
            f"Compared runs have different lengths: all are scored at step {step:,}, the end of {named(shortest)}; "
            f"the longest goes on to {int(longest):,}."
        )
    return warnings


def training_section(comparison: TrainingComparison) -> Section:
    """What the report says of a comparison."""
    benchmark, label = comparison.runs[0].benchmark, _label(comparison.metric, comparison.runs)
    methods, *others = training_tables(comparison)
    return Section(
        comparison,
        subject=benchmark,
        compared_by=f"{comparison.where} by {label}, mean of the last {comparison.last_k} evaluations",
        pictures=drawing.drawn(_pictures(comparison)),
        headline=methods.columns(
            f"{benchmark} {comparison.where}: {label}",
            [name for name in methods.header if not name.endswith(("whole seeds", "over seeds", "final"))],
        ),
        tables=[methods, *others],
    )


def _pictures(comparison: TrainingComparison) -> Iterator[Picture | None]:
    yield Picture(
        "learning_curves",
        "Learning curves",
        f"Mean over tasks and seeds, with the 95% bootstrap interval over seeds. {drawing.READING}",
        drawing.over_training(
            _all_methods(comparison, _scores, _label(comparison.metric, comparison.runs)), comparison
        ),
    )
    for key, goals in comparison.elsewhere.items():
        yield Picture(
            goals_of(key) or "",
            f"Learning curves on the {goals}",
            f"As above, on other goals. {drawing.READING}",
            drawing.over_training(
                _all_methods(comparison, partial(_logged, key=key), f"success rate, {goals}"), comparison
            ),
        )
    yield figures.intervals(comparison, f"{comparison.where.capitalize()}.")
    yield _trials(comparison)
    yield _task_curves(comparison)
    yield _wall_clock(comparison)
    intervals = "the intervals between log entries, stepping the simulators included"
    yield figures.times(comparison, "update_time", intervals)
    yield figures.memory(comparison, " Training process: without the processes that step the simulators.")
    yield from conflict_pictures(comparison)
    yield plasticity_picture(comparison)


def bias_of_best(comparison: TrainingComparison) -> str | None:
    """How much of the best score over all updates may be luck; None where nothing is known of its noise."""
    evaluation = comparison.runs[0].config.get("eval")
    episodes = evaluation.get("episodes") if isinstance(evaluation, dict) else None
    if comparison.metric != "eval/success_mean" or not isinstance(episodes, int) or episodes < 1:
        return None
    best = {method.name: method.reached["best"].mean() for method in comparison.scored}
    method = max(comparison.scored, key=lambda method: best[method.name])
    rates = np.clip(method.scores.mean(0), 0, 1)
    evaluations = max(int((run.metrics.steps <= comparison.step).sum()) for run in comparison.compared)
    luck = best_by_luck(rates, episodes, evaluations, np.random.default_rng(comparison.seed))
    return (
        f"The best of {evaluations} evaluations flatters: it picks the luckiest. If every evaluation were "
        f"a fresh draw of {episodes} episodes per task at {method.name}'s mean rates of the last "
        f"{comparison.last_k} evaluations ({rates.mean():.3f}), the best would be about {luck:.3f} without any "
        f"progress; {method.name} shows {best[method.name]:.3f}."
    )


def training_tables(comparison: TrainingComparison) -> list[Table]:
    """Every table, that of the methods first."""
    return [
        _methods_table(comparison),
        paired_table(comparison),
        *([_trials_table(comparison)] if comparison.trials else []),
        *_tasks_tables(comparison),
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
                "environment steps": lambda metrics: int(metrics.steps[-1]) * comparison.parallel,
                "score there": lambda metrics: float(metrics.scores[-1]),
            },
        ),
    ]


def _methods_table(comparison: TrainingComparison) -> Table:
    k, estimate = comparison.last_k, comparison.estimate
    note = (
        f"{_label(comparison.metric, comparison.runs)} {comparison.where} with 95% intervals. "
        f"last {k}: mean over the last {k} evaluations. IQM: interquartile mean, over all runs and tasks (Agarwal et "
        "al., 2021; 1 where three quarters of the scores are) or over the seeds' means. Intervals of whole seeds, of "
        "the IQM over seeds and on other goals draw all tasks of a run together, because one network learned them all; "
        "the others resample seeds within each task (stratified bootstrap). best: the evaluation with the highest "
        "mean, chosen with hindsight for each run, and therefore too high."
    )
    return Table.of(
        "methods",
        "Methods",
        comparison.methods,
        {
            "method": lambda method: method.name,
            "seeds": lambda method: len(method.seeds),
            f"last {k}": lambda method: estimate(method.scores, mean_over_tasks),
            f"IQM of last {k}": lambda method: estimate(method.scores, interquartile_mean_over_tasks),
            **{
                f"last {k}, {goals}": partial(_elsewhere, comparison, key)
                for key, goals in comparison.elsewhere.items()
            },
            f"last {k}, whole seeds": lambda method: estimate(method.scores.mean(1)),
            f"IQM of last {k}, over seeds": lambda method: estimate(
                method.scores.mean(1), interquartile_mean_over_seeds
            ),
            "final": lambda method: estimate(method.reached["final"], mean_over_tasks),
            "best": lambda method: estimate(method.reached["best"], mean_over_tasks),
        },
        "\n\n".join(filter(None, [note, bias_of_best(comparison)])),
    )


def _trials_table(comparison: TrainingComparison) -> Table:
    return Table.of(
        "trials",
        "Trials",
        comparison.trials,
        {
            "method": lambda trial: trial.method,
            "options": lambda trial: trial.configuration.removeprefix(trial.method).strip(),
            "seeds of tuning": lambda trial: len(trial.scores),
            f"last {comparison.last_k}": lambda trial: comparison.estimate(trial.scores),
            "chosen": lambda trial: "yes" if trial.chosen else "no",
        },
        f"By {comparison.score}, over the seeds of tuning, with 95% intervals that resample whole seeds. Methods are "
        "compared with the options that did best here, by all other seeds.",
    )


def _elsewhere(comparison: TrainingComparison, key: str, method: Method) -> Estimate:
    """A method's mean of what was logged under a key, which not all of its runs may have."""
    return comparison.estimate(method.reached[key]) if key in method.reached else Estimate()


def _tasks_tables(comparison: TrainingComparison) -> Iterator[Table]:
    """What each task reached, on each kind of goals."""
    header = ["task", *(method.name for method in comparison.scored)]
    note = f"Mean over seeds of the last {comparison.last_k} evaluations, with 95% intervals."
    rows: list[list[Cell]] = [
        [task, *(comparison.estimate(method.scores[:, index]) for method in comparison.scored)]
        for index, task in enumerate(comparison.tasks)
    ]
    yield Table("tasks", f"Tasks: {_label(comparison.metric, comparison.runs)}", header, rows, note)
    for key, goals in comparison.elsewhere.items():
        of_tasks = {task: f"{key.removesuffix('_mean')}/{task}" for task in comparison.tasks}
        rows = [
            [task, *(_elsewhere(comparison, own, method) for method in comparison.scored)]
            for task, own in of_tasks.items()
        ]
        yield Table(f"tasks_{goals_of(key)}", f"Tasks: success rate, {goals}", header, rows, note)


def _trials(comparison: TrainingComparison) -> Picture | None:
    if not comparison.trials:
        return None
    figure, axes = drawing.rows([trial.configuration for trial in comparison.trials])
    for row, trial in enumerate(comparison.trials):
        colour = drawing.look(comparison, trial.method)[0] if trial.chosen else drawing.GREY
        drawing.scores(axes, row, trial.scores, colour, 8, (comparison.estimate(trial.scores), 5))
    axes.set_xlabel(comparison.score)
    return Picture(
        "trials",
        "How options were chosen",
        "Each method with each of its options, over the seeds of tuning alone; in colour what is compared, by all "
        "other seeds. Circle: mean. Bar: 95% interval over seeds. Ticks below: one per seed.",
        figure,
    )


def _typical_end(method: Method) -> float:
    """The seconds after which half of a method's runs have ended."""
    return float(np.quantile([run.metrics.seconds[-1] for run in method.runs], 0.5, method="higher"))


def _wall_clock(comparison: TrainingComparison) -> Picture:
    longest = max(_typical_end(method) for method in comparison.methods if method.runs)
    unit, seconds = ("hours", 3600) if longest > 7200 else ("minutes", 60)

    def curve(method: Method) -> Rows | None:
        series = [(run.metrics.seconds / seconds, run.metrics.scores) for run in method.runs]
        first, last = min(x[0] for x, _ in series), _typical_end(method) / seconds
        return drawing.aligned(series, np.unique(np.linspace(first, last, _POINTS)))

    figure = _all_methods(comparison, curve, _label(comparison.metric, comparison.runs))
    figure.supxlabel(f"{unit} of training", fontsize=10)
    return Picture(
        "wall_clock",
        "What the same time buys",
        "The learning curves against the wall-clock time of training, evaluations included. Comparable only between "
        f"runs on the same hardware under the same load. {drawing.READING} A curve ends where half of the runs have.",
        figure,
    )


def _all_methods(comparison: TrainingComparison, rows_of: Callable[[Method], Rows | None], label: str) -> Figure:
    """All methods in one pair of axes, or a panel for each where they are many; the label is of what is drawn."""
    methods = {method.name: method for method in comparison.methods if method.runs}
    if len(methods) <= drawing.MOST:
        figure = Figure(figsize=(8, 4.5))
        axes = figure.add_subplot()
        drawing.curves(axes, comparison, "", rows_of)
        axes.set_ylabel(label)
        _limit(figure, comparison)
        figure.legend(loc="outside right upper")
        return figure

    def draw(axes: Axes, name: str) -> None:
        own = drawing.COLOURS[name != comparison.baseline]
        for method, colour, band in ((comparison.baseline, drawing.GREY, False), (name, own, True)):
            if method in methods and (rows := rows_of(methods[method])):
                drawing.curve(axes, rows, comparison.seed, colour, "-", band=band)

    figure = _small_panels(comparison, list(methods), draw)
    figure.supylabel(f"{label}; grey: {comparison.baseline}", fontsize=10)
    return figure


def _task_curves(comparison: TrainingComparison) -> Picture | None:
    if len(comparison.tasks) < 2:
        return None

    def draw(axes: Axes, task: str) -> None:
        index = comparison.tasks.index(task)
        drawing.curves(axes, comparison, task, lambda method: _scores(method, index))

    figure = _small_panels(comparison, comparison.tasks, draw)
    picture = drawing.picture_over_training(
        comparison,
        figure,
        "tasks",
        "Task by task",
        f"Mean over seeds in each task, with the 95% bootstrap interval over seeds. {drawing.READING}",
    )
    figure.supylabel(_label(comparison.metric, comparison.runs), fontsize=10)
    return picture


def _small_panels(comparison: Comparison, titles: Sequence[str], draw: Callable[[Axes, str], None]) -> Figure:
    """Panels with the same limits: shared axes take a drawing time that grows with the square of their number."""
    figure, grid, columns = drawing.panels(len(titles), _COLUMNS, (2.1, 1.7), (0, 0.9))
    for index, (title, axes) in enumerate(zip(titles, grid, strict=True)):
        draw(axes, title)
        axes.set_title(drawing.in_lines(title), fontsize=9)
        axes.tick_params(labelbottom=index >= len(titles) - columns, labelleft=index % columns == 0)
    left, right, bottom, top = zip(*((*axes.get_xlim(), *axes.get_ylim()) for axes in grid), strict=True)
    for axes in grid:
        axes.set(xlim=(min(left), max(right)), ylim=(min(bottom), max(top)))
    _limit(figure, comparison)
    return figure


def _scores(method: Method, task: int | None = None) -> Rows | None:
    """The runs' means over tasks, or their scores in one task."""
    runs = [run.metrics for run in method.runs]
    return drawing.aligned([(run.steps, run.scores if task is None else run.task_scores[:, task]) for run in runs])


def _logged(method: Method, key: str) -> Rows | None:
    """What the runs logged under a key, where they did."""
    runs = [run.metrics for run in method.runs if key in run.metrics.logged]
    return drawing.aligned([(run.steps, run.logged[key]) for run in runs])


def _limit(figure: Figure, comparison: Comparison) -> None:
    """Rates are shown on the whole of their scale."""
    if not any(((run.metrics.task_scores < 0) | (run.metrics.task_scores > 1)).any() for run in comparison.runs):
        for axes in figure.axes:
            axes.set_ylim(-0.03, 1.03)
