"""Options that are chosen by some seeds, so that tuned methods can be compared by others."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mtrl.errors import InputError
from mtrl.report.comparison import Method
from mtrl.report.statistics import Array
from mtrl.text import counted, in_order


@dataclass(frozen=True)
class Trial:
    """A method with some options.

    Attributes:
        method: its name without them.
        configuration: its name with them.
        scores: ``[n]``, the mean over tasks of each seed of tuning.
        chosen: whether it is the method's best, and so the one that is compared.
    """

    method: str
    configuration: str
    scores: Array
    chosen: bool = False


def tune(configurations: Iterable[Method], seeds: Sequence[int]) -> tuple[dict[str, Method], list[Trial]]:
    """By name, each method with the options that are best on average over some seeds, scored by all other seeds.

    The first of equals by name is chosen; what was not scored with all of these seeds cannot be.

    Raises:
        InputError: if nothing can be chosen for a method, or no method has another seed.
    """
    by_method: dict[str, list[Method]] = defaultdict(list)
    for own in sorted(configurations, key=lambda own: in_order(own.name)):
        by_method[own.every[0].method].append(own)
    methods, trials = dict[str, Method](), list[Trial]()
    for name, every in by_method.items():
        scores = [own.scores[np.isin(own.seeds, seeds)].mean(1) for own in every]
        means = [own.mean() if len(own) == len(seeds) else -np.inf for own in scores]
        best = int(np.argmax(means))
        if means[best] == -np.inf:
            raise InputError(f"tuning_seeds={list(seeds)}: no configuration of {name} was scored with all of these")
        trials += [Trial(name, own.name, scores[i], i == best) for i, own in enumerate(every)]
        methods[name] = _of_other_seeds(every[best], name, seeds)
    if not any(method.seeds for method in methods.values()):
        found = ", ".join(trial.configuration for trial in trials if trial.chosen)
        raise InputError(f"tuning_seeds={list(seeds)}: run the best with other seeds, to compare them by: {found}")
    return methods, trials


def _of_other_seeds(method: Method, name: str, seeds: Sequence[int]) -> Method:
    rows = ~np.isin(method.seeds, seeds)
    return replace(
        method,
        name=name,
        every=[run for run in method.every if run.seed not in seeds],
        seeds=[seed for seed in method.seeds if seed not in seeds],
        scores=method.scores[rows],
        reached={key: values[rows] for key, values in method.reached.items()},
    )


def tuning_warnings(trials: Sequence[Trial], seeds: Sequence[int]) -> list[str]:
    """What was chosen by which seeds, what could not be, and whether methods had as many trials."""
    whole = Counter(trial.method for trial in trials if len(trial.scores) == len(seeds))
    chosen = ", ".join(f"{trial.configuration} (of {whole[trial.method]})" for trial in trials if trial.chosen)
    warnings = [f"Options were chosen by seeds that are not compared ({', '.join(map(str, seeds))}): {chosen}."]
    if lacking := [trial.configuration for trial in trials if len(trial.scores) < len(seeds)]:
        warnings.append(f"Not scored with all of these seeds, and so not to be chosen: {', '.join(lacking)}.")
    if len({*whole.values()}) > 1:
        counts = ", ".join(f"{counted(count, 'configuration')} of {name}" for name, count in whole.items())
        warnings.append(f"Methods were not tuned alike: {counts}.")
    return warnings
