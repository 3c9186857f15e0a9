"""A short version of the soak: nothing grows, nothing is left behind, and it would be seen."""

import json
import signal
from pathlib import Path

import pytest

from tests.reliability import soak


def samples(**slopes: float) -> list[soak.Sample]:
    """Two hours in which some quantities rise by so much an hour, and all jump about and rise at the beginning."""
    return [
        {"seconds": 12.0 * number}
        | {
            key: 100 + slopes.get(key, 0) * number / 300 + min(number, 100) / 10 + 0.01 * (number * 7919 % 13)
            for key in soak.LIMITS
        }
        for number in range(600)
    ]


def test_a_leak_is_told_from_noise_and_warm_up() -> None:
    assert all(value < 0.2 for value in soak.growth(samples()).values())
    leaking = soak.growth(samples(rss_mib=20.0, processes=1.0))
    assert leaking["rss_mib"] == pytest.approx(30, abs=0.2)  # over the last one and a half hours
    assert {key for key, value in leaking.items() if value > max(soak.LIMITS[key], 0.2)} == {"rss_mib", "processes"}


def test_nothing_grows_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sooner = ["warmup_steps=100", "eval.every=200", "checkpoint.every=200"]
    monkeypatch.setattr(soak, "TRAINING", [*soak.TRAINING, *sooner])
    saved: list[int] = []
    watched = soak.watch(6, tmp_path / "run", lambda found: saved.append(len(found)))
    assert saved == list(range(1, len(watched) + 1))
    assert {"rss_mib", "pss_mib", "shared_mib", "descriptors", "processes", "threads", "step"} <= watched[0].keys()
    assert watched[0]["processes"] == 3  # training, and one worker each for training and evaluation
    broken = {key: value for key, value in soak.growth(watched).items() if value > soak.LIMITS[key]}
    assert not broken, json.dumps(watched)
    soak.picture(watched, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Of a killed run, and of the one that goes on to the end."""
    assert soak.left_behind(signal.SIGKILL, tmp_path / "run") == []
