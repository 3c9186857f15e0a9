"""Combined gradients of a batch that several processes hold together."""

from pathlib import Path
from typing import Any

import pytest

from tests.pairs import found_by_two

SCRIPT = Path(__file__).parent / "half_a_batch.py"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return found_by_two(SCRIPT, tmp_path_factory.mktemp("two"))


def test_two_processes_are_one_with_the_whole_batch(two: list[dict[str, Any]]) -> None:
    """Parameters, weights, Gramians and alignments after two steps, by every method and every way of looking."""
    for found in two:
        assert len(found["error"]) > 120
        assert {case: error for case, error in found["error"].items() if not error < 1e-8} == {}


def test_processes_that_differ_are_told_so(two: list[dict[str, Any]]) -> None:
    for found in two:
        said = found["said"]
        assert said.pop("alike") == ""
        assert said == {
            "parameters": "the parameters differ between processes 0 and 1 of the group: begin with the same weights, "
            "and let only combined gradients move them",
            "combiners": "the weights differ between processes 0 and 1 of the group: make every process's combiner "
            "with the same seed and options",
            "samples": "the sizes of the representation differ between processes 0 and 1 of the group: give every "
            "process as many samples",
            "loss of one": "non-finite loss (task 0)",
            "forgotten": "torch.distributed runs 2 processes, whose replicas would drift apart: give "
            "group=torch.distributed.group.WORLD",
            "not a member": "this process is not a member of the group: let only its members call backward",
        }


def test_what_processes_tell_each_other(two: list[dict[str, Any]]) -> None:
    """The table of docs/performance.md: numbers per update."""
    tasks, samples, features = 3, 4, 4
    shared, last, heads = 5 * 6 + 6 + 6 * 4 + 4, 6 * 4 + 4, 3 * (4 * 2 + 2)
    agreement = tasks + 2 + 1  # losses, what has to be the same, the weights' norm
    reached = 5 + 6  # a flag for every parameter; one, of 3 numbers, reaches no loss
    for found in two:
        assert found["sent"] == {
            "unitary shared": agreement + reached + shared + heads,
            "mgda shared": agreement + reached + tasks * (shared + 3) + heads,
            "mgda last": agreement + reached + tasks * last + shared + heads,
            "mgda aliases": agreement + reached + tasks**2 + shared + heads,
            "graddrop aliases": agreement + reached + (tasks + 1) * samples * features + shared + heads,
        }
