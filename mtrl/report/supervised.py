"""The report on supervised runs: what each method reaches on the test split, beside single-task training."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from mtrl.errors import InputError
from mtrl.measures import gain_statistics, mean_rank, relative_gain, relative_loss
from mtrl.report import drawing, figures
from mtrl.report.comparison import Comparison, Method, baseline_first, differences, runs_by_method, unscored_warnings
from mtrl.report.conflict_figures import conflict_pictures
from mtrl.report.drawing import Picture, Rows
from mtrl.report.references import published
from mtrl.report.runs import Run
from mtrl.report.section import Section
from mtrl.report.statistics import Array, mean_of_present
from mtrl.report.tables import Cell, Table, configuration_table, cost_table, paired_table, runs_table

SINGLE = "single-task training"
_MANY_TASKS = 8
"""From here on a circle of tasks is easier to read than as many panels."""


@dataclass(frozen=True)
class SupervisedComparison(Comparison):
    """A comparison of supervised runs of one set of tasks.

    `Method.scores` are relative gains of each task in per cent; `Method.reached` holds ``[n]`` by metric key what the
    selected models reach on the test split.

    Attributes:
        metrics: a label for each metric key: the task and the metric's name.
        higher_is_better: by metric key.
        single: the test metrics of single-task training, ``[n]`` by metric key; empty where it was not run.
        reference: what the gains are over, by metric key: the means of single-task training, or of the baseline;
            without the metrics in which these are 0.
        reference_name: what the gains are over: single-task training or, where that was not run, the baseline.
    """

    progress = "epochs"
    interval = "epoch"
    metrics: dict[str, str]
    higher_is_better: dict[str, bool]
    single: dict[str, Array]
    reference: dict[str, float]
    reference_name: str


def compare_supervised(
    runs: Sequence[Run], *, baseline: str, seed: int, left_out: Sequence[str] = ()
) -> list[SupervisedComparison]:
    """Compares the methods of supervised runs of one benchmark by their test metrics, which only finished runs have.

    Each set of tasks is a `Comparison`, which says what the arguments are. Runs of a single task are no method: they
    are the reference that the gains of the others are over.

    Raises:
        InputError: if no run of several tasks is finished, or there is no such baseline.
    """
    unread = {run.directory: reason for run in runs if (reason := _why_unread(run))}
    said = [f"Left out: {directory / 'summary.json'}: {reason}." for directory, reason in unread.items()]
    left_out = [*left_out, *said]
    by_tasks: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        if run.directory not in unread:
            by_tasks[tuple(run.tasks)].append(run)  # in one order: `load_runs` sees to that
    singles = {tasks[0]: own for tasks, own in by_tasks.items() if len(tasks) == 1}
    multiple = {tasks: own for tasks, own in by_tasks.items() if len(tasks) > 1}
    if not multiple:
        reason = f"; {said[-1].removesuffix('.')}" if said else ""
        raise InputError(
            f"all {len(runs)} runs are of a single task: they are what multi-task runs are measured by, and there "
            f"is none of these{reason}"
        )
    finished = [tasks for tasks, own in multiple.items() if _finished(own)]
    if not finished:
        raise InputError(
            f"none of the {len(runs)} runs of several tasks is finished: test metrics are read at the end of training"
        )
    unused = [task for task in singles if not any(task in tasks for tasks in multiple)]
    left_out += [f"Single-task runs of {task} are not used: no run has it among several tasks." for task in unused]
    unfinished = [", ".join(tasks) for tasks in multiple if tasks not in finished]
    left_out += [f"No run of the tasks {tasks} is finished: they are left out." for tasks in unfinished]
    return [
        _compare(multiple[tasks], {task: singles.get(task, []) for task in tasks}, baseline, seed, left_out)
        for tasks in sorted(finished)
    ]


def _compare(
    runs: list[Run], singles: Mapping[str, list[Run]], baseline: str, seed: int, left_out: Sequence[str]
) -> SupervisedComparison:
    described = next(run.summary.metrics for run in runs if run.summary is not None)
    ordered = sorted(described, key=lambda key: ("/" in key, runs[0].tasks.index(key.split("/")[0])))
    higher = {key: described[key].higher_is_better for key in ordered}
    by_name = baseline_first(runs_by_method(runs), baseline)
    tested = {name: _tested(own, list(higher)) for name, own in by_name.items()}
    missing = [task for task, own in singles.items() if not _finished(own)]
    single: dict[str, Array] = {}
    for task, own in singles.items():
        single |= _tested(own, [key for key in higher if key.split("/")[0] == task])[1]
    if missing and not tested[baseline][0]:
        raise InputError(
            f"gains have nothing to be measured by: neither single-task training of {missing[0]} nor the baseline, "
            f"{baseline}, has a finished run"
        )
    over = tested[baseline][1] if missing else single
    reference_name = baseline if missing else SINGLE
    reference = {key: mean for key in higher if (mean := float(over[key].mean()))}
    measured = {key.split("/")[0] for key in reference}
    if lost := [task for task in runs[0].tasks if task not in measured]:
        raise InputError(
            f"the relative gain in {lost[0]} needs a reference other than 0: that of {reference_name} is 0"
        )
    every = [*runs, *(run for own in singles.values() for run in own)]
    unscored = unscored_warnings(every, [run for run in every if run.summary is None], "not finished")
    return SupervisedComparison(
        score=f"relative gain over {reference_name}, %",
        seed=seed,
        baseline=baseline,
        methods=[
            Method(name, by_name[name], seeds, _gains(test, reference, higher), test)
            for name, (seeds, test) in tested.items()
        ],
        runs=every,
        compared=_finished(every),
        tuning_seeds=(),
        remarks=[
            *unscored,
            *_reference_warnings(runs, singles, missing, baseline),
            *_zero_warnings(higher, reference, reference_name),
            *_scale_warnings(by_name),
        ],
        left_out=left_out,
        metrics={key: f"{key.split('/')[0]} {described[key].name}" for key in ordered},
        higher_is_better=higher,
        single={} if missing else single,
        reference=reference,
        reference_name=reference_name,
    )


def _finished(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.summary is not None]


def _why_unread(run: Run) -> str | None:
    """What a finished run lacks that it is compared by."""
    if run.summary is None:
        return None
    described = run.summary.metrics
    if {key.split("/")[0] for key in described} != set(run.tasks) or not set(run.tasks) <= set(described):
        return f"'metrics' does not say what {', '.join(run.tasks)} are judged by"
    return next((f"there is no test metric '{key}'" for key in described if key not in (run.summary.test or {})), None)


def _tested(runs: Sequence[Run], keys: Sequence[str]) -> tuple[list[int], dict[str, Array]]:
    """The seeds of finished runs and their test metrics by key; the mean over runs where a seed was run twice."""
    rows: dict[int, list[list[float]]] = defaultdict(list)
    for run in runs:
        if run.summary is not None:
            test = run.summary.test or {}
            if missing := next((key for key in keys if key not in test), None):
                raise InputError(f"{run.directory / 'summary.json'}: there is no test metric '{missing}'")
            rows[run.seed].append([test[key] for key in keys])
    seeds = sorted(rows)
    values = np.array([np.mean(rows[seed], 0) for seed in seeds]).reshape(len(seeds), len(keys))
    return seeds, dict(zip(keys, values.T, strict=True))


def _gains(test: Mapping[str, Array], reference: Mapping[str, float], higher: Mapping[str, bool]) -> Array:
    """``[n, T]``, the relative gain of each task over its metrics with a reference, in per cent.

    See Gama & Grassi (2025), equation 1.
    """
    tasks = dict.fromkeys(key.split("/")[0] for key in higher)
    directions = {key: higher[key] for key in reference}
    gains = [relative_gain(row, reference, directions)[1] for row in _by_seed(test)]
    return 100 * np.array([[own[task] for task in tasks] for own in gains]).reshape(len(gains), len(tasks))


def _losses(test: Mapping[str, Array], reference: Mapping[str, float], higher: Mapping[str, bool]) -> Array:
    """``[n]``, the relative loss over all metrics with a reference, in per cent."""
    directions = {key: higher[key] for key in reference}
    return 100 * np.array([relative_loss(row, reference, directions) for row in _by_seed(test)])


def _by_seed(test: Mapping[str, Array]) -> list[dict[str, float]]:
    return [dict(zip(test, row, strict=True)) for row in np.stack(list(test.values()), 1).tolist()]


def _reference_warnings(
    runs: Sequence[Run], singles: Mapping[str, list[Run]], missing: list[str], baseline: str
) -> list[str]:
    if missing:
        return [f"There is no finished single-task run of {', '.join(missing)}: gains are over {baseline} instead."]
    warnings = []
    for task, own in singles.items():
        if differing := ", ".join(differences({str(run.directory): [run] for run in own})):
            warnings.append(f"Single-task runs of {task} differ in {differing}: the reference is the mean of all.")
        if own[0].config["benchmark"] != runs[0].config["benchmark"]:
            warnings.append(f"Single-task runs of {task} have other options of the benchmark than the runs of several.")
    return warnings


def _zero_warnings(higher: Mapping[str, bool], reference: Mapping[str, float], name: str) -> list[str]:
    zero = [key for key in higher if key not in reference]
    if not zero:
        return []
    return [f"Nothing is relative to 0: gains and delta m are without {', '.join(zero)}, in which {name} reaches 0."]


def _scale_warnings(methods: Mapping[str, Sequence[Run]]) -> list[str]:
    """Adam divides a method's scale out again, SGD does not, and neither does Adam beside L2."""
    configs = [run.config for runs in methods.values() for run in runs]
    own = [config["optimizer"] for config in configs if not config.get("rescale")]
    if len(methods) == 1 or not own:
        return []
    said = "Weights are on the scale of each method's paper (rescale=false): "
    if any(optimizer["name"] == "sgd" for optimizer in own):
        return [f"{said}under SGD that is another learning rate for each method."]
    if any(optimizer["weight_decay"] for optimizer in own):
        return [f"{said}beside L2 (optimizer.weight_decay) that is another regularisation for each method."]
    return []


def supervised_section(comparison: SupervisedComparison) -> Section:
    """What the report says of a comparison."""
    subject = f"{comparison.runs[0].benchmark} ({', '.join(comparison.tasks)})"
    methods, *others = supervised_tables(comparison)
    return Section(
        comparison,
        subject=subject,
        compared_by=f"on the test split by {comparison.score}",
        pictures=drawing.drawn(_pictures(comparison)),
        headline=methods.columns(f"{subject}: {comparison.score}", ["method", "seeds", "gain, %", "mean rank"]),
        tables=[methods, *others],
    )


def _pictures(comparison: SupervisedComparison) -> Iterator[Picture | None]:
    gains = figures.intervals(
        comparison,
        "On the test split. The mean over tasks of the relative gain (Gama and Grassi, 2025, equation 1); dashed: "
        f"{comparison.reference_name}.",
    )
    gains.figure.axes[0].axvline(0, color=drawing.GREY, ls="--", lw=1)
    yield gains
    yield _test_metrics(comparison)
    yield _radar(comparison)
    yield _logged_curves(
        comparison,
        {f"val/{key}": label for key, label in comparison.metrics.items()},
        "validation",
        "Validation over training",
        "Mean over seeds on the validation split, with the 95% bootstrap interval over seeds.",
    )
    yield _logged_curves(
        comparison,
        {"distance/total": "total distance", "distance/shortest": "shortest distance", "distance/ratio": "their ratio"},
        "distance",
        "How far the shared parameters travel",
        "The length of the path so far, the straight line from its start, and their quotient: 1 is the straight way "
        "(Pascal et al., section 4.4). Mean over seeds, with the 95% bootstrap interval over seeds.",
    )
    yield figures.times(comparison, "epoch_time", "an epoch's updates")
    yield figures.memory(comparison)
    yield from conflict_pictures(comparison)


def supervised_tables(comparison: SupervisedComparison) -> list[Table]:
    """Every table, that of the methods first."""
    return [
        _methods_table(comparison),
        *_published_tables(comparison),
        paired_table(comparison),
        _metrics_table(comparison),
        _gains_table(comparison),
        _alignment_table(comparison),
        _distance_table(comparison),
        cost_table(comparison, "Of each epoch's updates, without validation. Memory: the largest of any finished run."),
        configuration_table(comparison),
        runs_table(
            comparison,
            {"tasks": lambda run: ", ".join(run.tasks), "method": lambda run: run.method},
            {"last evaluation at epoch": lambda metrics: int(metrics.steps[-1])},
        ),
    ]


def _methods_table(comparison: SupervisedComparison) -> Table:
    estimate = comparison.estimate
    means = {own.name: {key: float(values.mean()) for key, values in own.reached.items()} for own in comparison.scored}
    ranks = mean_rank(means, comparison.higher_is_better)
    alike: dict[str, list[str]] = defaultdict(list)
    for task in comparison.tasks:
        alike[comparison.metrics[task].removeprefix(f"{task} ")].append(task)

    def mean_of(tasks: Sequence[str]) -> Callable[[Method], Cell]:
        return lambda method: estimate(np.stack([method.reached[task] for task in tasks], 1).mean(1))

    return Table.of(
        "methods",
        "Methods",
        sorted(comparison.methods, key=lambda method: not method.seeds),
        {
            "method": lambda method: method.name,
            "seeds": lambda method: len(method.seeds),
            "gain, %": lambda method: estimate(method.scores.mean(1)),
            "mean rank": lambda method: ranks.get(method.name),
            "delta m, %": lambda method: estimate(
                _losses(method.reached, comparison.reference, comparison.higher_is_better)
            ),
            **{f"{name}, mean over tasks": mean_of(tasks) for name, tasks in alike.items() if len(tasks) > 1},
        },
        f"On the test split, with 95% intervals that resample whole seeds. gain: {comparison.score}, the mean within a "
        "task, then over tasks (Gama and Grassi, 2025, equation 1; higher is better). The reference is "
        "taken as it is, the mean over its seeds. mean rank: of the mean metrics of all methods, 1 is best (equation "
        "2). delta m: the relative loss over the same reference, the mean over all metrics (Navon et al., 2022; lower "
        "is better).",
    )


def _published_tables(comparison: SupervisedComparison) -> Iterator[Table]:
    """Both gains over the literature's single-task training, a table for each source that has all tasks."""
    for number, reference in enumerate(published(comparison.runs[0].benchmark), start=1):
        known = reference.by_key(comparison.metrics)
        if known is None:
            continue
        rows: list[list[Cell]] = []
        for method in comparison.scored:
            gains, losses = (
                measure(method.reached, known, comparison.higher_is_better) for measure in (_gains, _losses)
            )
            rows.append([method.name, comparison.estimate(gains.mean(1)), comparison.estimate(losses)])
        yield Table(
            f"published-{number}",
            f"Beside single-task training of {reference.name}",
            ["method", "gain, %", "delta m, %"],
            rows,
            f"Of the test metrics, over single-task training as {reference.name} report it ({reference.source}; "
            f"{reference.setting}), which means most where data, network and schedule are theirs. gain: the mean "
            "within a task, then over tasks, higher is better; delta m: the mean over all metrics, lower is better.",
        )


def _metrics_table(comparison: SupervisedComparison) -> Table:
    keys = list(comparison.metrics)
    tested = {method.name: method.reached for method in comparison.scored}
    if comparison.single:
        tested = {SINGLE: comparison.single} | tested
    arrows = {key: "↑" if comparison.higher_is_better[key] else "↓" for key in keys}
    return Table(
        "metrics",
        "Test metrics",
        ["method", *(f"{comparison.metrics[key]} {arrows[key]}" for key in keys)],
        [[name, *(comparison.estimate(test[key]) for key in keys)] for name, test in tested.items()],
        "Of the models selected by validation; mean over seeds with 95% intervals. ↑ higher is better, ↓ lower is.",
    )


def _gains_table(comparison: SupervisedComparison) -> Table:
    rows: list[list[Cell]] = []
    for method in comparison.scored:
        even = gain_statistics(dict(zip(comparison.tasks, method.scores.mean(0).tolist(), strict=True)))
        gains = map(comparison.estimate, method.scores.T)
        rows.append([method.name, *gains, *(even[key] for key in ("min", "max", "median", "std"))])
    return Table(
        "gains",
        "How evenly the tasks gain",
        ["method", *comparison.tasks, "min", "max", "median", "std"],
        rows,
        f"{comparison.score}: of each task with 95% intervals over seeds, and over the tasks' mean gains the smallest, "
        "the largest, the median and the (population) standard deviation (Gama and Grassi, 2025, table 5).",
    )


def _alignment_table(comparison: SupervisedComparison) -> Table:
    norm, cosines = "shared/summed_gradient_norm", [f"shared/cosine_to_average/{task}" for task in comparison.tasks]

    def read(run: Run) -> list[float] | None:
        logged = run.metrics.conflict
        if not {norm, *cosines} <= set(logged):
            return None
        by_task = [float(mean_of_present(logged[key])) for key in cosines]
        return [*by_task, float(np.mean(by_task)), float(mean_of_present(logged[norm]))]

    return Table(
        "alignment",
        "Do the tasks' gradients agree?",
        ["method", *comparison.tasks, "mean over tasks", "norm of the summed gradient"],
        _over_runs(comparison, read),
        "Cosine of each task's gradient of the shared parameters to the average of all (Gama and Grassi, 2025, figures "
        "3a and 7), and the norm of their sum (Kurin et al., 2022, section 5.3): means over training, with 95% "
        "intervals over runs.",
    )


def _distance_table(comparison: SupervisedComparison) -> Table:
    def read(run: Run) -> list[float] | None:
        if run.summary is None or "distance/ratio" not in run.metrics.logged:
            return None
        return [float(run.metrics.logged[f"distance/{key}"][-1]) for key in ("total", "shortest", "ratio")]

    return Table(
        "distance",
        "How far the shared parameters travel",
        ["method", "total distance", "shortest distance", "ratio"],
        _over_runs(comparison, read),
        "At the end of finished runs: the length of the path, the straight line from its start to its end, and their "
        "quotient (Pascal et al., section 4.4), with 95% intervals over runs.",
    )


def _over_runs(comparison: Comparison, read: Callable[[Run], list[float] | None]) -> list[list[Cell]]:
    """A row for each method with runs that values are read of: the estimates of these."""
    found = {method.name: [values for run in method.runs if (values := read(run))] for method in comparison.methods}
    return [[name, *map(comparison.estimate, np.array(rows).T)] for name, rows in found.items() if rows]


def _test_metrics(comparison: SupervisedComparison) -> Picture:
    methods = comparison.scored
    figure, grid, columns = drawing.panels(len(comparison.metrics), 4, (2.1, 0.9 + 0.3 * len(methods)), (2.2, 0))
    for index, ((key, label), axes) in enumerate(zip(comparison.metrics.items(), grid, strict=True)):
        for row, method in enumerate(methods):
            mean, colour = comparison.estimate(method.reached[key]), drawing.look(comparison, method.name)[0]
            drawing.scores(axes, row, method.reached[key], colour, 6, (mean, 3))
        if comparison.single:
            alone = comparison.estimate(comparison.single[key])
            axes.axvline(alone.value, color=drawing.GREY, ls="--", lw=1)
            axes.axvspan(*np.nan_to_num([alone.low, alone.high], nan=alone.value), color=drawing.GREY, alpha=0.15, lw=0)
        axes.set_title(f"{label} {'→' if comparison.higher_is_better[key] else '←'}", fontsize=9)
        drawing.label_rows(axes, [method.name for method in methods])
        axes.tick_params(labelleft=index % columns == 0, labelsize=8)
        axes.locator_params(axis="x", nbins=4)
    alone_too = f" Dashed and grey: {SINGLE} and its interval." if comparison.single else ""
    return Picture(
        "metrics",
        "Test metrics",
        "Of the models selected by validation: mean over seeds, 95% interval, and a tick for each seed. The arrow "
        f"points to the better side.{alone_too}",
        figure,
    )


def _radar(comparison: SupervisedComparison) -> Picture | None:
    """Every task's error around a circle, where many tasks are judged alike (Sener & Koltun, 2018, figure 2)."""
    by_metric: dict[str, list[str]] = defaultdict(list)
    for key, label in comparison.metrics.items():
        by_metric[label.removeprefix(f"{key.split('/')[0]} ")].append(key)
    name = "error" if "error" in by_metric else comparison.metrics[comparison.tasks[0]].partition(" ")[2]
    keys = by_metric[name]
    if len(keys) < _MANY_TASKS or len(keys) < len(comparison.tasks):
        return None
    tested = {method.name: method.reached for method in drawing.selected(comparison) if method.seeds}
    looks = {own: drawing.look(comparison, own) for own in tested}
    if comparison.single:
        tested, looks = {SINGLE: comparison.single} | tested, {SINGLE: (drawing.GREY, ":")} | looks
    levels = {key: float(np.mean([test[key].mean() for test in tested.values()])) for key in keys}
    ordered = sorted(keys, key=levels.__getitem__, reverse=comparison.higher_is_better[keys[0]])
    halves = ordered[: (len(ordered) + 1) // 2], ordered[(len(ordered) + 1) // 2 :]
    figure = Figure(figsize=(11, 6))
    for number, half in enumerate(halves, start=1):
        axes = figure.add_subplot(1, 2, number, projection="polar")
        angles = np.linspace(0, 2 * np.pi, len(half), endpoint=False)
        for own, test in tested.items():
            values = [float(test[key].mean()) for key in half]
            colour, style = looks[own]
            label = own if number == 1 else "_"  # once in the legend
            axes.plot([*angles, angles[0]], [*values, values[0]], color=colour, ls=style, lw=1.2, label=label)
        axes.set_xticks(angles, [key.split("/")[0] for key in half], fontsize=7)
        axes.tick_params(axis="y", labelsize=7)
    figure.legend(loc="outside upper center", ncols=4)
    better = "higher" if comparison.higher_is_better[keys[0]] else "lower"
    caption = (
        f"The test {name} of every task, the mean over seeds; {better} is better. The easier half of the tasks is on "
        "the left, each half with a scale of its own (Sener and Koltun, 2018, figure 2). "
        f"{drawing.selection(comparison)}"
    )
    return Picture("radar", "Every task around a circle", caption.strip(), figure)


def _logged_curves(
    comparison: SupervisedComparison, keys: Mapping[str, str], name: str, title: str, caption: str
) -> Picture | None:
    figure, grid, _ = drawing.panels(len(keys), 4, (2.6, 2.2), (0, 0.9), sharex=True)
    for (key, label), axes in zip(keys.items(), grid, strict=True):
        drawing.curves(axes, comparison, label, partial(_logged, key=key))
    return drawing.picture_over_training(comparison, figure, name, title, f"{caption} {drawing.READING}")


def _logged(method: Method, key: str) -> Rows | None:
    runs = [run.metrics for run in method.runs if key in run.metrics.logged]
    return drawing.aligned([(run.steps, run.logged[key]) for run in runs])
