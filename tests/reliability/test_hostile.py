"""Files that somebody sent: they are data. None of them runs code or reaches out of its directory."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.sac import MultiTaskSAC, SACConfig
from envs.metaworld import make_vector
from envs.vector import TaskVector
from mtrl import combiners
from mtrl.errors import InputError, RunError
from mtrl.rl.loop import Schedule, Trainer
from mtrl.run.checkpoints import Checkpoints
from mtrl.run.directory import RunDirectory, read_config, read_summary
from tests.reliability.runs import refused

TASK = ["reach-v3"]


class Harmful:
    """Unpickling it makes a directory."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def signed(directory: Path, step: int, state: dict[str, Any], stream: list[dict[str, Any]]) -> None:
    """A manifest whose checksum is right, as somebody who means it would write it."""
    manifest = {"step": step, "state": state, "stream": stream}
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (directory / f"step-{step}.json").write_text(json.dumps(manifest | {"sha256": digest}))


def test_a_checkpoint_with_code_in_it_is_not_loaded(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "checkpoints")
    store.save(1, {"weights": torch.zeros(2), "x": Harmful(tmp_path / "harm")})
    with pytest.raises(RunError, match="no intact checkpoint"):
        store.load()
    assert not (tmp_path / "harm").exists()
    torch.load(store.directory / "step-1.pt", weights_only=False)  # it would have done harm
    assert (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["../../secret.pt", "/etc/hostname", "..", ".", "", "step-1.json"])
def test_a_manifest_cannot_name_a_file_elsewhere(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "run" / "checkpoints"
    directory.mkdir(parents=True)
    torch.save({"secret": 1}, tmp_path / "secret.pt")
    digest = hashlib.sha256((tmp_path / "secret.pt").read_bytes()).hexdigest()
    signed(directory, 1, {"file": name, "sha256": digest}, [])
    with pytest.raises(RunError, match="no intact checkpoint"):
        Checkpoints(directory).load()


def test_what_a_manifest_names_elsewhere_is_not_removed_either(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    store = Checkpoints(directory)
    (tmp_path / "thesis.pt").touch()
    for step in (1, 2, 3, 4):
        store.save(step, {"step": step})
        if step == 1:
            signed(directory, 1, {"file": "../thesis.pt", "sha256": ""}, [{"file": "../thesis.pt", "stop": 1}])
    assert (tmp_path / "thesis.pt").exists()
    assert store.load() == (4, {"step": 4})


@pytest.mark.parametrize("manifest", ["[]", "null", "{}", '{"sha256": 3}', "[" * 5000, '{"sha256": ["x"]}', "\x00"])
def test_a_manifest_of_another_shape_is_damage(tmp_path: Path, manifest: str) -> None:
    store = Checkpoints(tmp_path)
    store.save(1, {"x": 1})
    (tmp_path / "step-2.json").write_text(manifest)
    (tmp_path / "step-x.json").write_text(manifest)
    with pytest.warns(UserWarning, match="damaged checkpoint passed over"):
        assert store.load() == (1, {"x": 1})
    store.discard_after(1)
    store.save(3, {"x": 3})
    assert store.steps() == [1, 3]


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir ['{mark}']",
        "seed: !!python/object/apply:os.mkdir ['{mark}']",
        "seed: !!python/name:os.system",
        "a: &a [x]\nb: !<tag:yaml.org,2002:python/object/new:os.mkdir> ['{mark}']",
    ],
)
def test_yaml_is_data(tmp_path: Path, text: str) -> None:
    mark = tmp_path / "harm"
    (tmp_path / "config.yaml").write_text(text.format(mark=mark))
    with pytest.raises(InputError, match=r"config.yaml cannot be read") as caught:
        read_config(tmp_path)
    refused(caught.value)
    assert not mark.exists()


def test_a_broken_summary_is_one_line(tmp_path: Path) -> None:
    for content in (b"{", b"\xff", b"[" * 5000, b"3"):
        (tmp_path / "summary.json").write_bytes(content)
        with pytest.raises(InputError, match=r"summary.json") as caught:
            read_summary(tmp_path)
        refused(caught.value)


def make_trainer(directory: RunDirectory, environments: TaskVector) -> Trainer:
    critic, actor = (combiners.make("unitary", 1) for _ in range(2))
    device = torch.device("cpu")
    config = SACConfig(hidden_sizes=[8])
    agent = MultiTaskSAC(TASK, 39, 4, critic, actor, config, batch_size=4, capacity=20, seed=0, device=device)
    schedule = Schedule(8, 4, 2, 8, 4, 8, 0, 1, {"training": 1}, eval_beside=False)
    return Trainer(agent, environments, lambda: environments, directory, schedule, show_progress=False)


def test_a_checkpoint_of_something_else_is_one_line(tmp_path: Path) -> None:
    """Its checksums are right, its content is not this run's: nothing is half restored and trained on."""
    directory = RunDirectory(tmp_path, {"seed": 0})
    with make_vector(TASK, seed=0, horizon=4, num_workers=1) as environments:
        make_trainer(directory, environments).train()
    loaded = directory.checkpoints.load()
    assert loaded is not None
    step, state = loaded
    changes: list[dict[str, Any]] = [
        {"agent": None},
        {"observations": "none"},
        {"counters": 3},
        {"environments": {"options": {}, "tasks": {}}},
        {"agent": state["agent"] | {"actor": {}}},
        {"agent": state["agent"] | {"generator": torch.zeros(3)}},
        {"agent": state["agent"] | {"generator": torch.zeros(17, dtype=torch.uint8)}},
    ]
    with make_vector(TASK, seed=0, horizon=4, num_workers=1) as environments:
        for change in changes:
            directory.checkpoints.save(step, state | change)
            with pytest.raises((InputError, RunError)) as caught:
                make_trainer(directory, environments).train()
            refused(caught.value)
    directory.close()
