"""What a log file sees of a training run."""

import time

import pytest

from mtrl.run.progress import TrainingProgress

STATUS = "epoch 1  miou_mean 0.0165  abs_error_mean 5.2212  angle_mean_mean 66.1197"


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        (8.0, f"step 2/1,200  0.25 steps/s  ETA 79.9 min  {STATUS}\n"),
        (0.01, f"step 2/1,200  200 steps/s  ETA 0.1 min  {STATUS}\n"),
    ],
)
def test_a_line_is_one_line_and_slow_steps_are_not_none(capsys, monkeypatch, seconds, line):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    shown = TrainingProgress(1200, 0, enabled=True)
    now += seconds
    shown.advance(2)
    shown.report(STATUS)
    assert capsys.readouterr().err == line
