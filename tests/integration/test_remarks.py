"""What a training run says before it starts."""

import pytest

from scripts.build import nothing_learned
from tests.configured import configured


@pytest.mark.parametrize(("steps", "warmup", "said"), [(5, 10, True), (10, 10, True), (11, 10, False), (2, 1, False)])
def test_a_run_that_ends_before_its_first_update_is_told(steps: int, warmup: int, said: bool) -> None:
    remark = nothing_learned(configured(f"steps={steps}", f"warmup_steps={warmup}"))
    assert (remark is not None) is said
    assert not said or f"warmup_steps={warmup}" in str(remark)
