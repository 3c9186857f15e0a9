"""How numbers and counts are said."""

import math

import pytest

from mtrl.report.statistics import Estimate
from mtrl.report.tables import text_of
from mtrl.text import counted, in_order, number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (-0.0, "0.000"),
        (-1e-17, "-1.00e-17"),
        (1.52e-14, "1.52e-14"),
        (0.00071, "0.000710"),
        (0.0999999, "0.1000"),
        (0.1, "0.100"),
        (-123.45678, "-123.457"),
        (999999.0, "999999.000"),
        (1.5e20, "1.50e+20"),
        (-1.5e300, "-1.50e+300"),
        (math.nan, "-"),
        (math.inf, "-"),
    ],
)
def test_numbers_have_as_many_digits_as_say_something(value: float, text: str) -> None:
    assert number(value) == text
    assert str(Estimate(value)) == text


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(1.52e-14, -5.96, 5.96), "0.000 [-5.960, 5.960]"),
        (Estimate(-1.52e-14, -5.96, 0.0), "0.000 [-5.960, 0.000]"),
        (Estimate(0.0, 0.0, 0.0), "0.000 [0.000, 0.000]"),
        (Estimate(0.012, 0.001, 0.0234), "0.0120 [0.0010, 0.0234]"),
        (Estimate(1e-6, -1e-6, 2e-6), "1.00e-06 [-1.00e-06, 2.00e-06]"),
        (Estimate(2e9, 1e9, 3e9), "2.00e+09 [1.00e+09, 3.00e+09]"),
    ],
)
def test_an_estimate_has_the_digits_of_its_interval(estimate: Estimate, text: str) -> None:
    assert str(estimate) == text


def test_signs() -> None:
    assert Estimate(0.2, 0.1, 0.3).text("+") == "+0.200 [+0.100, +0.300]"
    assert Estimate(-1e-17, -0.1, 0.1).text("+") == "+0.000 [-0.100, +0.100]"
    assert number(0.0, 1e-9, "+") == "+0"


@pytest.mark.parametrize(
    ("cell", "text"),
    [(-0.0, "0"), (1e-17, "1e-17"), (1234.5, "1,234"), (1e20, "1e+20"), (-1e20, "-1e+20"), (12345, "12,345")],
)
def test_cells(cell: float, text: str) -> None:
    assert text_of(cell) == text


def test_counts() -> None:
    assert [counted(count, "run") for count in (0, 1, 2, 1200)] == ["0 runs", "1 run", "2 runs", "1,200 runs"]


def test_names_are_sorted_by_their_numbers() -> None:
    names = ["cagrad", "cagrad c=1e-4", "cagrad c=0.4", "cagrad c=2", "cagrad c=10", "cagrad c=off", "mgda"]
    assert sorted({*names}, key=in_order) == names
