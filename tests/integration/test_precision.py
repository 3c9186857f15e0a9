"""``precision``: what ``auto`` was when a run began is what the run goes on with."""

import sys
from pathlib import Path

import pytest
import torch
import yaml

from mtrl.errors import InputError
from mtrl.gradients import precision
from scripts.build import settle_precision
from scripts.train import train
from tests.configured import configured
from tests.integration.test_weights_from import SMALL

CPU = torch.device("cpu")


def units(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr("mtrl.gradients.precision.platform.machine", lambda: "x86_64")
    monkeypatch.setattr(precision, "_cpu_has", names.__contains__)


def test_a_run_keeps_what_auto_meant_when_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    own = [*SMALL, "combiner=pcgrad", "eval.every=6", "checkpoint.every=8", "log.every=4", "precision=auto"]
    units(monkeypatch, "avx512_bf16")
    train(configured(*own, f"run_dir={tmp_path / 'run'}", "steps=10"))
    assert ", cpu, bf16; " in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["precision"] == "bf16"
    units(monkeypatch)  # another machine
    config = configured(*own)
    remark = "precision=bf16 is emulated on this cpu, which has no units for it: fp32 is faster"
    assert settle_precision(config, tmp_path / "run", CPU) == remark
    assert config.precision == "bf16"
    train(configured(*own, f"run_dir={tmp_path / 'run'}", "steps=10"))
    assert "is finished: nothing to do" in capsys.readouterr().err
    with pytest.raises(InputError, match="holds a run with precision='bf16', not 'fp32'"):
        train(configured(*own, f"run_dir={tmp_path / 'run'}", "steps=10", "precision=fp32"))


def test_a_new_run_has_what_this_machine_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for names, expected in (([], "fp32"), (["amx_tile"], "bf16")):
        units(monkeypatch, *names)
        config = configured("precision=auto")
        assert settle_precision(config, tmp_path, CPU) is None
        assert config.precision == expected
    with pytest.raises(InputError, match="precision=tf32 is not there on cpu"):
        train(configured("precision=tf32", "device=cpu", f"run_dir={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()


def test_unless_asked_products_are_in_float32() -> None:
    assert configured().precision == "fp32"
