"""The statistics against SciPy, against the published definitions, and by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats

from mtrl.errors import InputError
from mtrl.report.statistics import (
    COVERAGE,
    RESAMPLES,
    Array,
    Estimate,
    PairedComparison,
    best_by_luck,
    compare_with_baseline,
    detectable_difference,
    holm,
    interquartile_mean,
    interquartile_mean_over_seeds,
    interquartile_mean_over_tasks,
    mean_curve,
    mean_over_seeds,
    mean_over_tasks,
    probability_of_improvement,
    seeds_needed,
    sign_flip_p_value,
    verdict_sentences,
)

NONE = Estimate(math.nan, math.nan, math.nan)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def scores(seeds: int, tasks: int, seed: int = 1) -> Array:
    return generator(seed).binomial(20, 0.7, size=(seeds, tasks)) / 20


def check(estimate: Estimate, value: float, interval: object) -> None:
    low, high = interval.low, interval.high  # type: ignore[attr-defined]
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((value, low, high), abs=1e-12)


# SciPy draws the same resamples from the same generator, so that the digits must agree.


def test_mean_over_seeds_is_scipys_percentile_bootstrap() -> None:
    values = scores(7, 4).mean(1)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=generator())
    check(mean_over_seeds(values, generator()), values.mean(), theirs.confidence_interval)


def test_mean_over_tasks_is_scipys_bootstrap_of_each_task() -> None:
    x = scores(6, 5)

    def mean(*columns: Array, axis: int) -> Array:
        means: Array = np.mean([column.mean(axis) for column in columns], 0)
        return means

    theirs = scipy.stats.bootstrap(tuple(x.T), mean, n_resamples=RESAMPLES, method="percentile", rng=generator())
    check(mean_over_tasks(x, generator()), x.mean(), theirs.confidence_interval)


def test_interquartile_mean_over_seeds_is_scipys() -> None:
    values = scores(9, 4).mean(1)

    def trimmed(sample: Array, axis: int) -> Array:
        mean: Array = scipy.stats.trim_mean(sample, 0.25, axis=axis)
        return mean

    theirs = scipy.stats.bootstrap((values,), trimmed, n_resamples=RESAMPLES, method="percentile", rng=generator())
    check(interquartile_mean_over_seeds(values, generator()), float(trimmed(values, 0)), theirs.confidence_interval)


@pytest.mark.parametrize(("seeds", "tasks"), [(9, 4), (5, 3)])
def test_interquartile_mean_over_tasks_is_rliables(seeds: int, tasks: int) -> None:
    """Their ``aggregate_iqm`` trims a quarter off either end of all scores of a stratified resample."""
    x = scores(seeds, tasks)

    def trimmed(*columns: Array, axis: int) -> Array:
        mean: Array = scipy.stats.trim_mean(np.concatenate(columns, -1), 0.25, axis=axis)
        return mean

    columns = tuple(x.T)
    theirs = scipy.stats.bootstrap(columns, trimmed, n_resamples=RESAMPLES, method="percentile", rng=generator())
    check(interquartile_mean_over_tasks(x, generator()), float(trimmed(x.ravel(), axis=0)), theirs.confidence_interval)


def test_probability_of_improvement_is_scipys_bootstrap_of_whole_seeds() -> None:
    x, y = scores(6, 3), scores(4, 3, seed=2)

    def wins(own: Array, other: Array) -> float:
        a, b = x[own.astype(int)][:, None], y[other.astype(int)]
        return float(((a > b) + (a == b) / 2).mean())

    indices = np.arange(6.0), np.arange(4.0)
    theirs = scipy.stats.bootstrap(
        indices, wins, n_resamples=RESAMPLES, method="percentile", vectorized=False, rng=generator()
    )
    check(probability_of_improvement(x, y, generator()), wins(*indices), theirs.confidence_interval)


@pytest.mark.parametrize("seeds", [1, 2, 3, 4, 7, 8, 10])
def test_interquartile_mean_is_rliables_trimmed_mean(seeds: int) -> None:
    values = scores(seeds, 3)
    assert interquartile_mean(values.ravel()) == pytest.approx(scipy.stats.trim_mean(values, 0.25, axis=None))


def test_interquartile_mean_by_hand() -> None:
    assert interquartile_mean(np.array([9.0, 1, 2, 3, 4, 5, 6, 100])) == (3 + 4 + 5 + 6) / 4
    assert interquartile_mean(np.array([0.0] * 26 + [1.0] * 74)) == pytest.approx(49 / 50)  # saturated


def test_probability_of_improvement_by_hand() -> None:
    x = np.array([[1.0, 0.5], [0.0, 0.5]])
    y = np.array([[0.0, 0.5], [0.5, 1.0]])
    # Task 1: 1 > 0, 1 > 0.5, 0 = 0, 0 < 0.5: (1 + 1 + 1/2 + 0) / 4. Task 2: (1/2 + 0 + 1/2 + 0) / 4.
    assert probability_of_improvement(x, y, generator()).value == pytest.approx((2.5 / 4 + 1 / 4) / 2)


def test_probability_of_improvement_is_rliables_mean_of_mann_whitney_statistics() -> None:
    x, y = scores(8, 6), scores(5, 6, seed=3)
    theirs = np.mean([scipy.stats.mannwhitneyu(a, b).statistic / (8 * 5) for a, b in zip(x.T, y.T, strict=True)])
    assert probability_of_improvement(x, y, generator()).value == pytest.approx(theirs)
    mirrored = probability_of_improvement(y, x, generator()).value
    assert mirrored == pytest.approx(1 - theirs)


def test_tasks_that_move_together_widen_only_the_interval_of_whole_seeds() -> None:
    good_and_bad_runs = np.repeat(np.linspace(0.2, 0.9, 10)[:, None], 10, 1)
    stratified = mean_over_tasks(good_and_bad_runs, generator())
    whole = mean_over_seeds(good_and_bad_runs.mean(1), generator())
    assert whole.value == pytest.approx(stratified.value)
    assert whole.high - whole.low > 2.5 * (stratified.high - stratified.low)


@pytest.mark.parametrize("seeds", [2, 4, 10])
def test_an_interval_of_few_seeds_holds_the_mean_as_often_as_is_said(seeds: int) -> None:
    draw = generator()
    intervals = [mean_over_seeds(draw.normal(size=seeds), draw) for _ in range(400)]
    held = 100 * np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert held == pytest.approx(COVERAGE[seeds], abs=5)


@pytest.mark.parametrize("function", [mean_over_tasks, lambda x, g: mean_over_seeds(x.mean(1), g)])
def test_one_seed_has_no_interval(function: object) -> None:
    estimate = function(scores(1, 3), generator())  # type: ignore[operator]
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)
    assert str(estimate) == f"{scores(1, 3).mean():.3f}"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.8311, "0.831"), (0.0, "0.000"), (0.0123456, "0.0123"), (-0.00071, "-0.000710"), (12.3456, "12.346")],
)
def test_small_values_keep_three_digits(value: float, text: str) -> None:
    assert str(Estimate(value, math.nan, math.nan)) == text
    assert str(Estimate(value, value, value)) == f"{text} [{text}, {text}]"


def test_mean_curve_is_the_bootstrap_at_every_point() -> None:
    curves = scores(6, 4)
    mean, low, high = mean_curve(curves, generator(), resamples=RESAMPLES)
    for point in range(4):
        estimate = mean_over_seeds(curves[:, point], generator())
        assert (mean[point], low[point], high[point]) == pytest.approx((estimate.value, estimate.low, estimate.high))


def test_mean_curve_where_runs_are_missing() -> None:
    nan = math.nan
    mean, low, high = mean_curve(np.array([[1.0, 1, nan], [3.0, nan, nan]]), generator())
    np.testing.assert_array_equal(mean, [2, 1, nan])
    np.testing.assert_array_equal(low, [1, nan, nan])
    np.testing.assert_array_equal(high, [3, nan, nan])


# ------------------------------------------------------------------------------------------------- significance


@pytest.mark.parametrize("seeds", [1, 2, 5, 10])
def test_the_smallest_p_value_is_that_of_equal_signs(seeds: int) -> None:
    assert sign_flip_p_value(np.linspace(0.1, 0.2, seeds), generator()) == min(1, 2 / 2**seeds)


def test_sign_flip_by_hand() -> None:
    # The observed sum is 2; of the eight |±1 ±2 ±3| only 1 + 2 - 3 and its mirror image are smaller.
    assert sign_flip_p_value(np.array([1.0, -2, 3]), generator()) == 6 / 8
    assert sign_flip_p_value(np.zeros(4), generator()) == 1


def test_sign_flip_is_scipys_exact_permutation_test() -> None:
    differences = generator(5).normal(0.3, 0.5, 11)
    theirs = scipy.stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    assert sign_flip_p_value(differences, generator()) == pytest.approx(theirs.pvalue)


def test_sign_flip_with_many_seeds_comes_near_the_exact_value() -> None:
    differences = generator(5).normal(0.2, 0.5, 20)
    signs = 1 - 2 * (np.arange(2**20)[:, None] >> np.arange(20) & 1)
    exact = (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12).mean()
    assert sign_flip_p_value(differences, generator()) == pytest.approx(exact, abs=0.003)
    assert sign_flip_p_value(np.ones(60), generator()) > 0


def test_rounding_does_not_break_ties() -> None:
    # |±0.1 ±0.2 ±0.3 ±0.7| >= 0.7 in 10 of 16; four of these are ties, of which floating point makes 0.7 ± 1e-16.
    assert sign_flip_p_value(np.array([0.1, 0.2, -0.3, 0.7]), generator()) == 10 / 16


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1, 1]
    assert holm([]) == []


@pytest.mark.parametrize("comparisons", [1, 2, 3, 4, 33])
def test_seeds_needed(comparisons: int) -> None:
    seeds = seeds_needed(comparisons)
    assert holm([2 / 2**seeds] + [1.0] * (comparisons - 1))[0] <= 0.05
    assert holm([2 / 2 ** (seeds - 1)] + [1.0] * (comparisons - 1))[0] > 0.05


@pytest.mark.parametrize("seeds", [7, 10, 14])
def test_a_detectable_difference_is_detected_four_times_in_five(seeds: int) -> None:
    noise = generator(3).normal(0, 2.0, (1000, seeds))
    noise = (noise - noise.mean(1, keepdims=True)) / noise.std(1, ddof=1, keepdims=True)
    needed = detectable_difference(0.3 + 2.0 * noise[0])
    assert needed == pytest.approx(detectable_difference(noise[0]) * 2)
    drawn = generator(4).normal(needed, 2.0, (400, seeds))
    detected = np.mean([sign_flip_p_value(own, generator()) <= 0.05 for own in drawn])
    assert detected == pytest.approx(0.8, abs=0.06)


def test_so_few_seeds_detect_nothing() -> None:
    assert math.isnan(detectable_difference(np.arange(5.0)))
    assert detectable_difference(np.arange(6.0)) > 0


def paired(seeds: int, value: float, p: float, comparisons: int = 1) -> PairedComparison:
    difference = Estimate(value, value - 0.1, value + 0.1) if seeds > 1 else Estimate(value, math.nan, math.nan)
    return PairedComparison("pcgrad", "unitary", seeds, difference, p, p, comparisons, NONE, math.nan)


@pytest.mark.parametrize(
    ("comparison", "verdict", "sentence"),
    [
        (
            paired(10, 0.2, 0.004),
            "better",
            "Better than unitary (10 paired seeds): pcgrad +0.200 [+0.100, +0.300], p = 0.004.",
        ),
        (paired(10, -0.2, 0.004), "worse", "Worse than unitary (10 paired seeds): pcgrad -"),
        (
            paired(10, 0.02, 0.6),
            "no significant difference",
            "No significant difference from unitary (10 paired seeds): pcgrad ",
        ),
        (paired(5, 0.2, 0.0625), "too few seeds to tell", "fewer than 6 cannot be significant"),
        (paired(10, 0.2, 0.06, 33), "too few seeds to tell", "fewer than 11 cannot be significant"),
        (paired(1, 0.2, 1.0), "too few seeds to tell", "(1 paired seed; fewer than 6 cannot be significant, "),
        (paired(1, 0.2, 1.0), "too few seeds to tell", "even with the same sign in every seed): pcgrad +0.200."),
        (paired(0, math.nan, 1.0), "too few seeds to tell", "run both with the same seeds: pcgrad."),
    ],
)
def test_verdicts(comparison: PairedComparison, verdict: str, sentence: str) -> None:
    assert comparison.verdict == verdict
    (said,) = verdict_sentences([comparison])
    assert sentence in said


def test_methods_of_one_verdict_and_as_many_seeds_share_a_sentence() -> None:
    few = paired(4, 0.2, 0.125, 4)
    even = paired(10, 0.02, 0.6, 4)
    named = [replace(few, method="a"), replace(even, method="b"), replace(few, method="c"), paired(10, 0.2, 0.004, 4)]
    assert verdict_sentences([*named, paired(9, 0.02, 0.6, 4)]) == [
        "Better than unitary (10 paired seeds): pcgrad +0.200 [+0.100, +0.300], p = 0.004.",
        "No significant difference from unitary (10 paired seeds): b +0.020 [-0.080, +0.120], p = 0.6.",
        "No significant difference from unitary (9 paired seeds): pcgrad +0.020 [-0.080, +0.120], p = 0.6.",
        "Too few seeds to tell from unitary (4 paired seeds; fewer than 8 cannot be significant, even with the same "
        "sign in every seed): a +0.200 [+0.100, +0.300]; c +0.200 [+0.100, +0.300].",
    ]


def test_comparison_is_paired_by_seed() -> None:
    # Seeds differ far more than methods: without pairing nothing would be seen.
    level = np.linspace(0.1, 0.9, 8)[:, None]
    methods = {
        "unitary": (list(range(8)), np.repeat(level, 2, 1)),
        "better": (list(range(7, -1, -1)), np.repeat(level, 2, 1)[::-1] + 0.05),
        "alone": ([100, 101], np.ones((2, 2))),
    }
    better, alone = compare_with_baseline(methods, "unitary", seed=0)
    assert (better.seeds, better.comparisons) == (8, 1)
    assert better.difference.value == pytest.approx(0.05)
    assert better.p_value == better.adjusted_p_value == 2 / 2**8  # the one comparison that could be made
    assert better.verdict == "better"
    assert 0.5 < better.improvement.value < 0.7
    assert alone.seeds == 0
    assert math.isnan(alone.difference.value)
    assert alone.verdict == "too few seeds to tell"


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"a": ([1, 2], np.ones((2, 3)))}, "unknown method 'sum': valid: a"),
        ({"sum": ([1, 2], [0.1, 0.2])}, r"sum: expected a row for each of 2 seeds .*, got scores of shape \(2,\)"),
        (
            {"sum": ([1, 2], np.ones((3, 2)))},
            r"sum: expected a row for each of 2 seeds .*, got scores of shape \(3, 2\)",
        ),
        ({"sum": ([1, 1], np.ones((2, 2)))}, "sum: a seed is listed twice"),
        ({"sum": ([1], [[1.0]]), "b": ([1], [[1.0, 2.0]])}, "methods have scores of different numbers of tasks"),
    ],
)
def test_scores_that_are_not_as_described_are_refused(methods: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^({message})$"):
        compare_with_baseline(methods, "sum", seed=0)


def test_same_seed_same_digits_whatever_else_is_compared() -> None:
    a, b = (list(range(6)), scores(6, 3)), (list(range(6)), scores(6, 3, seed=7))
    alone = compare_with_baseline({"unitary": a, "b": b}, "unitary", seed=3)
    among = compare_with_baseline({"unitary": a, "a": a, "b": b}, "unitary", seed=3)
    assert alone[0].difference == among[1].difference
    assert alone[0].improvement == among[1].improvement
    other_seed = compare_with_baseline({"unitary": a, "b": b}, "unitary", seed=4)
    assert alone[0].difference != other_seed[0].difference


@pytest.mark.parametrize(("episodes", "best"), [(1, 1.0), (50, 0.85)])
def test_best_of_200_evaluations_flatters(episodes: int, best: float) -> None:
    assert best_by_luck(np.full(10, 0.8), episodes, 200, generator()) == pytest.approx(best, abs=0.01)


def test_best_of_one_evaluation_does_not() -> None:
    assert best_by_luck(np.array([0.2, 0.6]), 5000, 1, generator()) == pytest.approx(0.4, abs=0.005)
