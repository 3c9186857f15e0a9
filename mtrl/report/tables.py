"""Tables of a comparison, as CSV with every digit and as Markdown for people."""

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mtrl.report.comparison import Comparison, Method, TrainingComparison
from mtrl.report.runs import Run
from mtrl.report.statistics import (
    Estimate,
    Floats,
    interquartile_mean_over_seeds,
    mean_of_present,
    mean_over_seeds,
    mean_over_tasks,
)
from mtrl.report.supervised import SINGLE, SupervisedComparison
from mtrl.supervised.measures import gain_statistics, mean_rank

Cell = str | int | float | Estimate | None


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: of its files.
        title: what a reader sees.
        header: the columns.
        rows: cells by row; None is an empty cell.
        note: how to read it.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[Cell]]
    note: str = ""

    def csv(self) -> str:
        """Comma-separated values; an estimate takes three columns: value, low and high."""
        wide = [any(isinstance(row[column], Estimate) for row in self.rows) for column in range(len(self.header))]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            cell
            for name, estimate in zip(self.header, wide, strict=True)
            for cell in ([name, f"{name} low", f"{name} high"] if estimate else [name])
        )
        for row in self.rows:
            writer.writerow(
                value
                for cell, estimate in zip(row, wide, strict=True)
                for value in (_values(cell) if estimate else [_number(cell)])
            )
        return file.getvalue()

    def markdown(self) -> str:
        """A Markdown table with its title and note."""
        lines = [self.header, ["---"] * len(self.header), *([text_of(cell) for cell in row] for row in self.rows)]
        table = "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)
        return f"## {self.title}\n\n{table}\n" + (f"\n{self.note}\n" if self.note else "")


def text_of(cell: Cell) -> str:
    """A cell for people: few digits, a dash where there is nothing."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "-"
    if isinstance(cell, Estimate):
        return "-" if math.isnan(cell.value) else str(cell)
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _values(cell: Cell) -> list[Cell]:
    if isinstance(cell, Estimate):
        return [_number(cell.value), _number(cell.low), _number(cell.high)]
    return [_number(cell), "", ""]


def _number(cell: Cell) -> Cell:
    return "" if cell is None or (isinstance(cell, float) and math.isnan(cell)) else cell


def _escaped(text: str) -> str:
    for character, escape in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("\n", " ")):
        text = text.replace(character, escape)
    return text


# -------------------------------------------------------------------------------------------- what is in a report


def tables(comparison: Comparison) -> list[Table]:
    """Every table of a report."""
    if isinstance(comparison, SupervisedComparison):
        first = [
            supervised_methods_table(comparison),
            paired_table(comparison),
            metrics_table(comparison),
            gains_table(comparison),
            alignment_table(comparison),
            distance_table(comparison),
        ]
    else:
        assert isinstance(comparison, TrainingComparison)
        first = [methods_table(comparison), paired_table(comparison), tasks_table(comparison)]
    return [*first, cost_table(comparison), configuration_table(comparison), runs_table(comparison)]


def methods_table(comparison: TrainingComparison) -> Table:
    """Each method's final, last-k and best scores."""

    def estimate(function: Callable[..., Estimate], values: object) -> Estimate:
        return function(values, np.random.default_rng(comparison.seed))

    k = comparison.last_k
    rows: list[list[Cell]] = []
    for method in comparison.methods:
        row: list[Cell] = [method.name, len(method.seeds)]
        if method.seeds:
            whole = method.scores.mean(1)
            row += [
                estimate(mean_over_tasks, method.scores),
                estimate(mean_over_seeds, whole),
                estimate(interquartile_mean_over_seeds, whole),
                estimate(mean_over_tasks, method.final),
                estimate(mean_over_tasks, method.best),
            ]
        rows.append(row + [None] * (7 - len(row)))
    return Table(
        "methods",
        "Methods",
        ["method", "seeds", f"last {k}", f"last {k}, whole seeds", f"IQM of last {k}", "final", "best"],
        rows,
        f"{comparison.metric} at step {comparison.step:,} with 95% intervals. last {k}: mean over the last {k} "
        "evaluations. Intervals of last, final and best resample seeds within each task (stratified bootstrap); "
        "those of whole seeds and of the interquartile mean (IQM) over seeds draw all tasks of a run together, "
        "because one network learned them all. best: the evaluation with the highest mean, chosen with "
        "hindsight for each run, and therefore too high.",
    )


def paired_table(comparison: Comparison) -> Table:
    """Each method against the baseline."""
    return Table(
        "paired_differences",
        f"Differences to {comparison.baseline}, paired by seed",
        ["method", "paired seeds", "difference", "p", "adjusted p", "probability of improvement", "verdict"],
        [
            [
                paired.method,
                paired.seeds,
                paired.difference,
                paired.p_value,
                paired.adjusted_p_value,
                paired.improvement,
                paired.verdict,
            ]
            for paired in comparison.paired
        ],
        f"Of the mean over tasks: {comparison.score}. p: two-sided sign-flip permutation "
        "test, exact up to 16 seeds; adjusted for the number of methods (Holm, 1979). Probability of improvement: how "
        f"often a run of the method beats a run of {comparison.baseline} on a task, a tie counting half. Intervals "
        "resample whole seeds.",
    )


def tasks_table(comparison: TrainingComparison) -> Table:
    """Each method's score in every task."""
    scored = [method for method in comparison.methods if method.seeds]
    rows: list[list[Cell]] = []
    for index, task in enumerate(comparison.tasks):
        generators = (np.random.default_rng(comparison.seed) for _ in scored)
        scores = (method.scores[:, index] for method in scored)
        rows.append([task, *(mean_over_seeds(own, rng) for own, rng in zip(scores, generators, strict=True))])
    return Table(
        "tasks",
        "Tasks",
        ["task", *(method.name for method in scored)],
        rows,
        f"Mean over seeds of the last {comparison.last_k} evaluations, with 95% intervals.",
    )


def cost_table(comparison: Comparison) -> Table:
    """What each method cost."""
    rows: list[list[Cell]] = []
    times = {method.name: durations(method) for method in comparison.methods}
    base = _quantile(times[comparison.baseline], 0.5)
    for method in comparison.methods:
        own = times[method.name]
        median = _quantile(own, 0.5)
        rows.append(
            [
                method.name,
                len(method.runs),
                median,
                _quantile(own, 0.25),
                _quantile(own, 0.75),
                median / base,
                peak_memory(method, "process_gib"),
                peak_memory(method, "gpu_gib"),
            ]
        )
    return Table(
        "cost",
        "Cost",
        [
            "method",
            "runs",
            f"seconds per {comparison.interval}, median",
            "lower quartile",
            "upper quartile",
            f"relative to {comparison.baseline}",
            "peak memory, GiB",
            "peak GPU memory, GiB",
        ],
        rows,
        f"Wall-clock time. {_COST_NOTE[isinstance(comparison, SupervisedComparison)]}",
    )


_COST_NOTE = {
    False: "Of each interval between two log entries, stepping the simulators included. Memory: the largest of any "
    "finished run; that of the training process, without simulator processes.",
    True: "Of each epoch's updates, without validation. Memory: the largest of any finished run.",
}


def configuration_table(comparison: Comparison) -> Table:
    """Every key in which runs differ, by method."""
    names = [method.name for method in comparison.methods]
    return Table(
        "configuration",
        "Differences in configuration",
        ["key", *names],
        [[key, *(values[name] for name in names)] for key, values in comparison.configuration.items()],
        "Every key in which two runs differ, other than the seed and where and how a run was computed.",
    )


def runs_table(comparison: Comparison) -> Table:
    """Every run."""
    scored = {run.directory for run in comparison.compared}
    supervised = isinstance(comparison, SupervisedComparison)
    return Table(
        "runs",
        "Runs",
        [
            "run",
            "tasks" if supervised else "combiner",
            *(["method"] if supervised else []),
            "seed",
            "state",
            "last evaluation at epoch" if supervised else "last evaluation at step",
            *([] if supervised else ["score there"]),
            "seconds",
            "scored",
        ],
        [
            [
                str(run.directory),
                *([", ".join(run.tasks)] if supervised else []),
                run.method,
                str(run.seed),
                "unfinished" if run.summary is None else "finished",
                *_last(run),
                "yes" if run.directory in scored else "no",
            ]
            for run in comparison.runs
        ],
    )


def durations(method: Method) -> Floats:
    """`Metrics.durations` of all runs of a method."""
    return np.concatenate([np.empty(0), *(run.metrics.durations for run in method.runs)])


def peak_memory(method: Method, key: str) -> float | None:
    """The largest peak memory in GiB of any finished run; None where there is none."""
    summaries = [run.summary for run in method.runs if run.summary]
    return max((summary["memory"][key] for summary in summaries if key in summary.get("memory", {})), default=None)


def _quantile(values: Floats, q: float) -> float:
    return float(np.quantile(values, q)) if len(values) else math.nan


def _last(run: Run) -> list[Cell]:
    metrics = run.metrics
    if not len(metrics.steps):
        return [None] * (2 if run.supervised else 3)
    score = [] if run.supervised else [float(metrics.scores[-1])]
    return [int(metrics.steps[-1]), *score, float(metrics.seconds[-1])]


# ------------------------------------------------------------------------------------------------ supervised runs


def supervised_methods_table(comparison: SupervisedComparison) -> Table:
    """Each method's gain, mean rank, and means over tasks that share a metric."""
    scored = [method for method in comparison.methods if method.seeds]
    reached = {method.name: {key: float(values.mean()) for key, values in method.test.items()} for method in scored}
    ranks = mean_rank(reached, comparison.higher_is_better)
    groups = list(comparison.means(scored[0].test))
    rows: list[list[Cell]] = [
        [
            method.name,
            len(method.seeds),
            _over_seeds(comparison, method.scores.mean(1)),
            ranks[method.name],
            *(_over_seeds(comparison, means.mean(1)) for means in comparison.means(method.test).values()),
        ]
        for method in scored
    ]
    for method in comparison.methods:
        if not method.seeds:
            rows.append([method.name, 0, *[None] * (2 + len(groups))])
    return Table(
        "methods",
        "Methods",
        ["method", "seeds", "gain, %", "mean rank", *(f"{name}, mean over tasks" for name in groups)],
        rows,
        f"On the test split, with 95% intervals that resample whole seeds. gain: {comparison.score}, the mean within a "
        "task, then over tasks (Gama and Grassi, 2025, equation 1). The reference is taken as it is, the mean over its "
        "seeds. mean rank: of the mean metrics of all methods, 1 is best (equation 2).",
    )


def metrics_table(comparison: SupervisedComparison) -> Table:
    """Each method's test metrics, and those of single-task training."""
    keys = list(comparison.metrics)
    tested = {method.name: method.test for method in comparison.methods if method.seeds}
    if comparison.single:
        tested = {SINGLE: comparison.single} | tested
    arrows = {key: "↑" if comparison.higher_is_better[key] else "↓" for key in keys}
    return Table(
        "metrics",
        "Test metrics",
        ["method", *(f"{comparison.metrics[key]} {arrows[key]}" for key in keys)],
        [[name, *(_over_seeds(comparison, test[key]) for key in keys)] for name, test in tested.items()],
        "Of the models selected by validation; mean over seeds with 95% intervals. ↑ higher is better, ↓ lower is.",
    )


def gains_table(comparison: SupervisedComparison) -> Table:
    """Each method's gain in each task, and how evenly the tasks gain."""
    rows: list[list[Cell]] = []
    for method in comparison.methods:
        if method.seeds:
            by_task = dict(zip(comparison.tasks, method.scores.mean(0).tolist(), strict=True))
            statistics = gain_statistics(by_task)
            gains = [_over_seeds(comparison, column) for column in method.scores.T]
            rows.append([method.name, *gains, *(statistics[key] for key in ("min", "max", "median", "std"))])
    return Table(
        "gains",
        "How evenly the tasks gain",
        ["method", *comparison.tasks, "min", "max", "median", "std"],
        rows,
        f"{comparison.score}: of each task with 95% intervals over seeds, and over the tasks' mean gains the smallest, "
        "the largest, the median and the (population) standard deviation (Gama and Grassi, 2025, table 5).",
    )


def alignment_table(comparison: SupervisedComparison) -> Table:
    """How well the tasks' gradients agree, and how long their sum is."""
    keys = [f"shared/cosine_to_average/{task}" for task in comparison.tasks]
    rows: list[list[Cell]] = []
    for method in comparison.methods:
        runs = [run.metrics.conflict for run in method.runs if all(key in run.metrics.conflict for key in keys)]
        if runs:
            cosines = np.array([[mean_of_present(run[key]) for key in keys] for run in runs])
            norms = np.array([mean_of_present(run["shared/summed_gradient_norm"]) for run in runs])
            rows.append(
                [
                    method.name,
                    *(_over_seeds(comparison, column) for column in cosines.T),
                    _over_seeds(comparison, cosines.mean(1)),
                    _over_seeds(comparison, norms),
                ]
            )
    return Table(
        "alignment",
        "Do the tasks' gradients agree?",
        ["method", *comparison.tasks, "mean over tasks", "norm of the summed gradient"],
        rows,
        "Cosine of each task's gradient of the shared parameters to the average of all (Gama and Grassi, 2025, figures "
        "3a and 7), and the norm of their sum (Kurin et al., 2022, section 5.3): means over training, with 95% "
        "intervals over runs.",
    )


def distance_table(comparison: SupervisedComparison) -> Table:
    """How far the shared parameters travelled."""
    keys = ("total", "shortest", "ratio")
    rows: list[list[Cell]] = []
    for method in comparison.methods:
        logged = [run.metrics.logged for run in method.runs if run.summary and "distance/ratio" in run.metrics.logged]
        if logged:
            ends = [np.array([own[f"distance/{key}"][-1] for own in logged]) for key in keys]
            rows.append([method.name, *(_over_seeds(comparison, values) for values in ends)])
    return Table(
        "distance",
        "How far the shared parameters travel",
        ["method", "total distance", "shortest distance", "ratio"],
        rows,
        "At the end of finished runs: the length of the path, the straight line from its start to its end, and their "
        "quotient (Pascal et al., section 4.4), with 95% intervals over runs.",
    )


def _over_seeds(comparison: SupervisedComparison, values: Floats) -> Estimate:
    return mean_over_seeds(values, np.random.default_rng(comparison.seed))
