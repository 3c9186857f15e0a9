"""Statistics over runs, small enough to check by eye: estimates with intervals, and what may be said of them.

Scores come as a matrix ``[n, T]``: a row is the run of one seed, a column a task. Every interval is a 95%
percentile-bootstrap interval (Efron, 1979) from `RESAMPLES` resamples, which a generator draws; with one seed there is
none (NaN), and with few it is too narrow (`COVERAGE`). The same scores and the same generator give the same digits.
Values that are not finite are refused (`InputError`): every comparison with NaN is false, whatever the truth.

Two ways of resampling are in use, and they answer different questions:

* *Within each task* (`mean_over_tasks`, `interquartile_mean_over_tasks`): every task draws its own n seeds. This is
  the stratified bootstrap of Agarwal et al. (2021, "Deep reinforcement learning at the edge of the statistical
  precipice", section 4.1), as in their library rliable. It takes the scores of one run on different tasks as
  independent.
* *Whole seeds* (everything else): a draw takes all tasks of a run along. One multi-task run trains one network, so
  its tasks rise and fall together; this interval sees that, and is the wider one where they do.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from mtrl.errors import InputError, unknown_name
from mtrl.text import counted, number

Array = NDArray[np.float64]

RESAMPLES = 10_000
SIGNIFICANCE = 0.05
COVERAGE = {2: 50, 3: 75, 4: 80, 5: 83, 6: 86, 7: 87, 8: 88, 9: 90, 10: 90}
"""In how many of 100 cases the 95% interval of so many seeds holds the true mean, where that of a seed is normal: found
by simulation. P-values have no such fault: they are exact."""
_EXACT_SEEDS = 16


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval, NaN where there is none."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        """At least three digits, e.g. ``0.831 [0.790, 0.872]``; the value alone where there is no interval."""
        return self.text()

    def text(self, sign: str = "") -> str:
        """The same, with ``sign="+"`` signed; the digits are those of the largest of the numbers."""
        if math.isnan(self.low):
            return number(self.value, sign=sign)
        size = max(map(abs, (self.value, self.low, self.high)))
        value, low, high = (number(one, size, sign) for one in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


def mean_over_tasks(scores: Array, generator: Generator) -> Estimate:
    """The mean over runs and tasks of scores ``[n, T]``, with seeds resampled within each task."""
    _check(scores)
    resampled = np.zeros(RESAMPLES)
    for column in scores.T:
        resampled += column[_draw(len(column), generator)].mean(1)
    return _estimate(scores.mean(), resampled / scores.shape[1], len(scores))


def mean_over_seeds(values: Array, generator: Generator) -> Estimate:
    """The mean of one value per seed ``[n]``, with whole seeds resampled."""
    _check(values)
    return _estimate(values.mean(), values[_draw(len(values), generator)].mean(1), len(values))


def interquartile_mean(values: Array) -> Array:
    """The mean of the middle half along the last axis (Agarwal et al., 2021): a quarter is cut off at either end.

    As in rliable, the cut is rounded down: with fewer than four values this is their mean. On single success or
    failure scores it saturates: at a mean of 0.74 the middle half can be all ones.
    """
    _check(values)
    cut = values.shape[-1] // 4
    middle: Array = np.sort(values)[..., cut : values.shape[-1] - cut].mean(-1)
    return middle


def interquartile_mean_over_tasks(scores: Array, generator: Generator) -> Estimate:
    """The `interquartile_mean` of all scores ``[n, T]`` together, with seeds resampled within each task (rliable)."""
    _check(scores)
    resampled = np.stack([column[_draw(len(column), generator)] for column in scores.T], -1)
    return _estimate(
        interquartile_mean(scores.ravel()), interquartile_mean(resampled.reshape(RESAMPLES, -1)), len(scores)
    )


def interquartile_mean_over_seeds(values: Array, generator: Generator) -> Estimate:
    """The `interquartile_mean` of one value per seed ``[n]``, with whole seeds resampled."""
    resampled = interquartile_mean(values[_draw(len(values), generator)])
    return _estimate(interquartile_mean(values), resampled, len(values))


def probability_of_improvement(x: Array, y: Array, generator: Generator) -> Estimate:
    """How often a run of x ``[n, T]`` beats one of y ``[m, T]`` on a task, averaged over tasks; a tie counts half.

    Agarwal et al. (2021). The seeds, which are resampled independently, need not be the same.
    """
    _check(x, y)
    wins = (x[:, None] > y).mean(-1) + (x[:, None] == y).mean(-1) / 2
    n, m = wins.shape
    resampled = ((_counts(n, RESAMPLES, generator) @ wins) * _counts(m, RESAMPLES, generator)).sum(1) / (n * m)
    return _estimate(wins.mean(), resampled, min(n, m))


def mean_curve(curves: Array, generator: Generator, resamples: int = 1000) -> tuple[Array, Array, Array]:
    """The mean over seeds at every point of curves ``[n, S]``, and the ends of its interval, each ``[S]``.

    Where a run has no value (NaN), a point is over the other seeds; NaN where none has a value.
    """
    present, mean = ~np.isnan(curves), mean_of_present(curves)
    counts = _counts(len(curves), resamples, generator)
    with np.errstate(invalid="ignore"):
        resampled = (counts @ np.where(present, curves, 0)) / (counts @ present)
    ends = np.full((2, len(mean)), np.nan)
    if (several := present.sum(0) > 1).any():
        ends[:, several] = np.nanquantile(resampled[:, several], [0.025, 0.975], axis=0)
    return mean, ends[0], ends[1]


def mean_of_present(values: Array) -> Array:
    """The mean over the first axis of the values that are not NaN; NaN where there is none."""
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(present, values, 0).sum(0) / present.sum(0)
    return mean


def sign_flip_p_value(differences: Array, generator: Generator) -> float:
    """The two-sided p-value of the sign-flip permutation test that paired differences ``[n]`` are symmetric about zero.

    Exact up to 16 pairs: every assignment of signs is tried, and the smallest possible p-value is ``2 / 2^n`` (Fisher,
    1935). Beyond, 65,536 random assignments stand for them, the observed one counted among them (Phipson and Smyth,
    2010).
    """
    _check(differences)
    n = len(differences)
    if n <= _EXACT_SEEDS:
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    else:
        signs = generator.choice([-1, 1], size=(2**_EXACT_SEEDS, n))
        signs[0] = 1
    rounding = 1e-9 * np.abs(differences).sum()
    return float((np.abs(signs @ differences) >= abs(differences.sum()) - rounding).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for having asked several questions at once (Holm, 1979)."""
    _check(np.asarray(p_values, float))
    order = np.argsort(p_values, kind="stable")
    adjusted = np.maximum.accumulate(np.arange(len(order), 0, -1) * np.asarray(p_values, float)[order])
    return [float(value) for value in np.minimum(adjusted, 1)[np.argsort(order)]]


def detectable_difference(differences: Array) -> float:
    """How large a difference has to be for as many seeds to show it four times in five, at 5%, before any adjustment.

    ``(t_0.975 + t_0.8) s / sqrt(n)`` with the spread ``s`` of the paired differences ``[n]`` and Student's quantiles
    (Cohen, 1988). NaN where so few can show nothing, whatever it is.
    """
    from scipy.special import stdtrit  # not above: who trains imports this module too

    _check(differences)
    n = len(differences)
    if n < seeds_needed(1):
        return math.nan
    quantiles = stdtrit(n - 1, 0.975) + stdtrit(n - 1, 0.8)
    return float(quantiles * differences.std(ddof=1) / math.sqrt(n))


def seeds_needed(comparisons: int) -> int:
    """The fewest paired seeds with which one of several comparisons can be significant on its own after Holm."""
    return math.ceil(1 + math.log2(comparisons / SIGNIFICANCE))


@dataclass(frozen=True)
class PairedComparison:
    """A method against the baseline, seed by seed.

    Attributes:
        method: its name.
        baseline: the baseline's name.
        seeds: how many seeds both have.
        difference: method minus baseline, mean over these seeds, whole seeds resampled; NaN without a common seed.
        p_value: of the sign-flip test.
        adjusted_p_value: after Holm's correction.
        comparisons: how many methods were compared with the baseline, seed by seed.
        improvement: the probability that the method improves on the baseline, over all seeds of either.
        detectable: the `detectable_difference` of these seeds.
    """

    method: str
    baseline: str
    seeds: int
    difference: Estimate
    p_value: float
    adjusted_p_value: float
    comparisons: int
    improvement: Estimate
    detectable: float

    @property
    def verdict(self) -> str:
        """What may be said: ``better``, ``worse``, ``no significant difference`` or ``too few seeds to tell``."""
        if self.adjusted_p_value <= SIGNIFICANCE:
            return "better" if self.difference.value > 0 else "worse"
        if not self.seeds or self.seeds < seeds_needed(self.comparisons):
            return "too few seeds to tell"
        return "no significant difference"


_VERDICTS = {
    "better": "Better than",
    "worse": "Worse than",
    "no significant difference": "No significant difference from",
    "too few seeds to tell": "Too few seeds to tell from",
}


def verdict_sentences(comparisons: Sequence[PairedComparison]) -> list[str]:
    """The verdicts with the numbers that they rest on: a sentence for all methods of one verdict and as many seeds."""

    def order(paired: PairedComparison) -> tuple[int, int]:
        return list(_VERDICTS).index(paired.verdict), -paired.seeds

    return [_sentence(list(alike)) for _, alike in groupby(sorted(comparisons, key=order), order)]


def _sentence(alike: Sequence[PairedComparison]) -> str:
    first = alike[0]
    if not first.seeds:
        methods = ", ".join(paired.method for paired in alike)
        return f"No seed in common with {first.baseline}, run both with the same seeds: {methods}."
    numbers = [f"{paired.method} {paired.difference.text('+')}" for paired in alike]
    seeds = counted(first.seeds, "paired seed")
    if first.verdict == "too few seeds to tell":
        needed = seeds_needed(first.comparisons)
        seeds += f"; fewer than {needed} cannot be significant, even with the same sign in every seed"
    else:
        numbers = [f"{own}, p = {paired.adjusted_p_value:.2g}" for own, paired in zip(numbers, alike, strict=True)]
    return f"{_VERDICTS[first.verdict]} {first.baseline} ({seeds}): {'; '.join(numbers)}."


def compare_with_baseline(
    methods: Mapping[str, tuple[Sequence[int], ArrayLike]], baseline: str, seed: int
) -> list[PairedComparison]:
    """Compares every other method with the baseline, seed by seed.

    Every method gets the same resamples, which the seed draws, whichever others are compared. Seeds of which a score is
    not finite are left out; where none is left of the baseline, nothing is compared.

    Args:
        methods: by name, the seeds ``[n]`` and a row of T scores for each, ``[n, T]``; higher is better.
        baseline: the name of one of them.
        seed: of the resamples.

    Raises:
        InputError: if the baseline is not among the methods, or their scores are not as described.
    """
    if baseline not in methods:
        raise unknown_name("method", baseline, methods)
    whole = {name: _whole(name, *of) for name, of in methods.items()}
    if len({scores.shape[1] for _, scores in whole.values()}) > 1:
        raise InputError("methods have scores of different numbers of tasks")
    whole = {name: of for name, of in whole.items() if of[0] or name == baseline}
    base_seeds, base_scores = whole[baseline]
    if not base_seeds:
        return []
    base = dict(zip(base_seeds, base_scores.mean(1), strict=True))
    differences = {
        name: np.array([value - base[own] for own, value in zip(seeds, scores.mean(1), strict=True) if own in base])
        for name, (seeds, scores) in whole.items()
        if name != baseline
    }
    p = {name: sign_flip_p_value(own, np.random.default_rng(seed)) for name, own in differences.items() if len(own)}
    adjusted = dict(zip(p, holm(list(p.values())), strict=True))
    return [
        PairedComparison(
            name,
            baseline,
            seeds=len(own),
            difference=mean_over_seeds(own, np.random.default_rng(seed)) if len(own) else Estimate(),
            p_value=p.get(name, 1.0),
            adjusted_p_value=adjusted.get(name, 1.0),
            comparisons=len(p),
            improvement=probability_of_improvement(whole[name][1], base_scores, np.random.default_rng(seed)),
            detectable=detectable_difference(own),
        )
        for name, own in differences.items()
    ]


def best_by_luck(rates: Array, episodes: int, evaluations: int, generator: Generator) -> float:
    """The expected best of several evaluations at success rates ``[T]`` in [0, 1] that never change.

    The largest of many noisy measurements lies above the truth: this says how far, and so how much of a reported best
    may be nothing but luck. Each evaluation draws so many independent episodes of each task.
    """
    successes = generator.binomial(episodes, rates, size=(200, evaluations, len(rates)))
    return float(successes.mean(-1).max(1).mean() / episodes)


def _whole(name: str, seeds: Sequence[int], given: ArrayLike) -> tuple[list[int], Array]:
    """The seeds of which all scores are finite, and these."""
    scores = np.asarray(given, float)
    if scores.ndim != 2 or len(scores) != len(seeds):
        expected = f"a row for each of {counted(len(seeds), 'seed')} and a column for each task"
        raise InputError(f"{name}: expected {expected}, got scores of shape {scores.shape}")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{name}: a seed is listed twice")
    kept = [place for place, row in enumerate(scores) if np.isfinite(row).all()]
    return [seeds[place] for place in kept], scores[kept]


def _check(*arrays: Array) -> None:
    if not all(np.isfinite(values).all() for values in arrays):
        raise InputError("statistics are of finite numbers: leave out what is missing, and say so")


def _draw(n: int, generator: Generator) -> NDArray[np.int64]:
    return generator.integers(n, size=(RESAMPLES, n))


def _counts(n: int, resamples: int, generator: Generator) -> Array:
    """How often each of n seeds is in each resample, ``[resamples, n]``."""
    drawn = generator.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(float)


def _estimate(value: float | Array, resampled: Array, n: int) -> Estimate:
    low, high = np.quantile(resampled, [0.025, 0.975]) if n > 1 else (math.nan, math.nan)
    return Estimate(float(value), float(low), float(high))
