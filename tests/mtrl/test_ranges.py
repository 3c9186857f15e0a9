"""Ranges declared beside options: what they let through, and how they say what they do not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from mtrl.errors import InputError
from mtrl.ranges import Count, Fraction, NotNegative, Positive, Seed, Within, check, check_fields, described

Word = Annotated[str, Literal["sum", "mean"]]


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (0, NotNegative),
        (1e300, NotNegative),
        (math.inf, Annotated[float, Within("(0, inf]")]),
        (1.0, Fraction),
        (1, Count),
        (2**31 - 1, Seed),
        ("mean", Word),
        (None, Count | None),
        (3, Count | None),
        ("b", Literal["a", "b"]),
        (None, Literal["a"] | None),
        ([1, 2], list[Count]),
        (None, list[Count] | None),
        (False, bool),
        ("anything", str),
        (object(), Any),
    ],
)
def test_what_lies_inside_passes(value: object, annotation: Any) -> None:
    check("x", value, annotation)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        (-1e-9, NotNegative, "x: expected a number in [0, inf), got -1e-09"),
        (math.inf, NotNegative, "x: expected a number in [0, inf), got inf"),
        (math.nan, NotNegative, "x: expected a number in [0, inf), got nan"),
        (True, Positive, "x: expected a number in (0, inf), got True"),
        ("1", Positive, "x: expected a number in (0, inf), got '1'"),
        (0.0, Positive, "x: expected a number in (0, inf), got 0.0"),
        (0, Count, "x: expected an integer of at least 1, got 0"),
        (1.0, Count, "x: expected an integer of at least 1, got 1.0"),
        (2**31, Seed, "x: expected an integer of at least 0 and below 2,147,483,648, got 2147483648"),
        (0, Count | None, "x: expected an integer of at least 1, got 0"),
        (None, Count, "x: expected an integer of at least 1, got None"),
        ("men", Word, "unknown x 'men': did you mean 'mean'?"),
        ("c", Literal["alpha", "beta"], "unknown x 'c': valid: alpha, beta"),
        ([1, 0], list[Count], "x: expected an integer of at least 1, got 0"),
        (1, bool, "x: expected true or false, got 1"),
    ],
)
def test_what_lies_outside_is_told_in_one_line(value: object, annotation: Any, message: str) -> None:
    with pytest.raises(InputError) as raised:
        check("x", value, annotation)
    assert str(raised.value) == message


def test_fields_of_nested_dataclasses_are_named_by_their_path() -> None:
    @dataclass
    class Inner:
        every: Count = 1

    @dataclass
    class Outer:
        share: Fraction = 0.5
        inner: Inner = field(default_factory=Inner)

    Outer.__annotations__["inner"] = Inner
    check_fields(Outer())
    with pytest.raises(InputError, match=r"^run\.share: "):
        check_fields(Outer(share=2), "run.")
    with pytest.raises(InputError, match=r"^inner\.every: "):
        check_fields(Outer(inner=Inner(0)))


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Fraction, "[0, 1]"),
        (Count, "at least 1"),
        (Word, "sum or mean"),
        (Literal["a", "b"] | None, "a or b"),
        (Sequence[NotNegative] | None, "each [0, inf)"),
        (bool, "true or false"),
        (str, ""),
    ],
)
def test_ranges_are_described_in_few_words(annotation: Any, words: str) -> None:
    assert described(annotation) == words
