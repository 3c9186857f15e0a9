"""Run directories, checkpoints and metrics on a real file system."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor

from mtrl.errors import InputError, RunError, unknown_name
from mtrl.run.checkpoints import Checkpoints
from mtrl.run.directory import RunDirectory, directory_of, read_config, read_summary
from mtrl.run.files import write_atomically, write_json
from mtrl.run.metrics import MetricsWriter, check_wandb, heat_map, read_metrics
from scripts.entry import message_of

CONFIG = {"seed": 1, "agent": {"learning_rate": 3e-4}, "tasks": ["a", "b"], "device": "cpu"}


class Ring:
    """The simplest stream: numbers in a ring."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.added = capacity, 0
        self.values = torch.full((capacity,), -1)

    def add(self, count: int) -> None:
        for _ in range(count):
            self.values[self.added % self.capacity] = self.added
            self.added += 1

    def slice(self, start: int, stop: int) -> dict[str, Tensor]:
        return {"values": self.values[torch.arange(start, stop) % self.capacity]}

    def restore(self, start: int, entries: dict[str, Tensor]) -> None:
        values = entries["values"]
        self.values[torch.arange(start, start + len(values)) % self.capacity] = values


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    write_json(file, {"a": 1})

    def fail(_: Any) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, fail)
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("capacity", [4, 10, 100])
def test_checkpoints_restore_the_stream_and_write_each_entry_once(tmp_path: Path, capacity: int) -> None:
    checkpoints, ring = Checkpoints(tmp_path / "checkpoints"), Ring(capacity)
    written: dict[str, int] = {}
    for step in (3, 6, 7, 7, 20, 33):
        ring.add(step - ring.added)
        checkpoints.save(step, {"step": step}, ring)
        for path in checkpoints.directory.glob("replay-*.pt"):
            written[path.name] = len(torch.load(path)["values"])
        copy = Ring(capacity)
        loaded = checkpoints.load(copy)
        assert loaded == (step, {"step": step})
        assert torch.equal(copy.values, ring.values)
    assert sum(written.values()) <= 33
    assert checkpoints.steps() == [20, 33]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    checkpoints, ring = Checkpoints(tmp_path), Ring(10)
    for step in (5, 8):
        ring.add(step - ring.added)
        checkpoints.save(step, {"values": torch.arange(1000)}, ring)
    damaged = tmp_path / "step-8.pt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(bytes(content))
    copy = Ring(10)
    with pytest.warns(UserWarning, match="step 8: step-8.pt does not match its checksum"):
        loaded = checkpoints.load(copy)
    assert loaded is not None
    assert loaded[0] == 5
    checkpoints.discard_after(5)
    assert copy.values.tolist()[:5] == [0, 1, 2, 3, 4]
    copy.added = 5
    copy.add(1)
    checkpoints.save(6, {}, copy)
    again = Ring(10)
    checkpoints.load(again)
    assert again.values.tolist()[:6] == [0, 1, 2, 3, 4, 5]


def test_a_truncated_manifest_gives_way_and_none_intact_is_an_error(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load() is None
    checkpoints.save(1, {"x": 1})
    (tmp_path / "step-1.json").write_text('{"step"')
    with pytest.raises(RunError, match="no intact checkpoint"):
        checkpoints.load()


def test_a_checkpoint_that_was_interrupted_does_not_exist(tmp_path: Path) -> None:
    """Files without a manifest are what a kill in the middle of saving leaves."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": 1})
    (tmp_path / "step-2.pt").write_bytes(b"half")
    (tmp_path / "replay-0-2.pt.tmp").write_bytes(b"half")
    assert checkpoints.load() == (1, {"x": 1})
    checkpoints.save(3, {"x": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1.json", "step-1.pt", "step-3.json", "step-3.pt"]


def test_loading_a_checkpoint_never_runs_code(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "harm",))

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": Harmful()})
    with pytest.raises(RunError, match="no intact checkpoint"):
        checkpoints.load()
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("start", [0, 20])
def test_metrics_go_on_without_gaps_or_doubles(tmp_path: Path, start: int) -> None:
    writer = MetricsWriter(tmp_path)
    for step in (10, 20, 30):
        writer.write(step, step / 10, {"train/loss": torch.tensor(float(step)), "eval/x": float("nan")})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "ti')
    assert [entry["step"] for entry in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20, 30]
    writer = MetricsWriter(tmp_path, step=start)
    for step in range(start + 10, 40, 10):
        writer.write(step, 3.5, {"train/loss": step + 0.5, "eval/x": float("inf")})
    writer.close()
    entries = read_metrics(tmp_path / "metrics.jsonl")
    expected = [(step, step + 0.5 * (step > start)) for step in (10, 20, 30)]
    assert [(e["step"], e["train/loss"]) for e in entries] == expected
    assert entries[0]["eval/x"] is None
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == expected


def test_matrices_are_kept_in_the_metrics_and_drawn(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write(10, 1.0, {"conflict/critic/cosines": [[1.0, -1.0], [float("nan"), 0.0]]})
    writer.close()
    MetricsWriter(tmp_path, step=10).close()  # they survive that the run goes on
    entry = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert entry["conflict/critic/cosines"] == [[1.0, -1.0], [None, 0.0]]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [image.step for image in events.Images("conflict/critic/cosines")] == [10]
    assert events.Tags()["scalars"] == []
    picture = heat_map(entry["conflict/critic/cosines"])
    red, blue = picture[0, 0], picture[0, -1]
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert picture[-1, 0].tolist() == [128, 128, 128]
    assert picture[-1, -1].tolist() == [255, 255, 255]


def test_the_end_of_a_run_fills_the_hparams_tab_and_doubles_no_curve(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", CONFIG)
    for final in (0.25, 0.5):  # the second time as if it had been killed before it could write its summary
        writer = MetricsWriter(run.path)
        writer.write(10, 1.0, {"eval/success_mean": final})
        writer.close()
        run.finish({"final": {"success_mean": final}})
    run.close()
    assert not [path for path in run.path.iterdir() if path.is_dir()]
    events = EventAccumulator(str(run.path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("eval/success_mean")] == [(10, 0.5)]
    session = HParamsPluginData.FromString(events.PluginTagToContent("hparams")["_hparams_/session_start_info"])
    values = session.session_start_info.hparams
    assert values["agent.learning_rate"].number_value == 3e-4
    assert values["tasks"].string_value == '["a", "b"]'
    assert "device" not in values
    experiment = HParamsPluginData.FromString(events.PluginTagToContent("hparams")["_hparams_/experiment"]).experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["eval/success_mean"]


def test_measures_that_were_not_logged_on_the_way_get_their_point(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", CONFIG)
    writer = MetricsWriter(run.path)
    writer.write(7, 1.0, {"eval/CL": 0.5})
    writer.close()
    run.finish({"test": {"CL": 0.75}})
    run.close()
    events = EventAccumulator(str(run.path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("test/CL")] == [(7, 0.75)]


def test_weights_and_biases_offline_stays_in_the_run_directory_under_one_id(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from mtrl.run.metrics import MetricsWriter\n"
        "writer = MetricsWriter(pathlib.Path(sys.argv[1]), step=int(sys.argv[2]))\n"
        "writer.write(int(sys.argv[2]) + 1, 1.0, {'train/loss': 2.0, 'cosines': [[1.0]]})\n"
        "writer.close()"
    )
    (tmp_path / "config.yaml").write_text("wandb: offline\nseed: 3\n")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    for step in ("0", "1"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path), step], check=True, cwd=tmp_path, env=environment)
    identity = (tmp_path / "wandb" / "run-id").read_text()
    files = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert {file.name for file in files} == {f"run-{identity}.wandb"}
    assert [entry["step"] for entry in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_an_unknown_mode_of_weights_and_biases_is_refused() -> None:
    with pytest.raises(InputError, match="unknown wandb mode 'offlin': did you mean 'offline'"):
        check_wandb("offlin")


def test_a_run_directory_has_the_default_name_or_holds_it() -> None:
    assert directory_of(None, "mt10-pcgrad-seed1") == Path("runs/mt10-pcgrad-seed1")
    assert directory_of("x/{name}-y", "mt10-pcgrad-seed1") == Path("x/mt10-pcgrad-seed1-y")


@pytest.mark.parametrize("line", ["{", "[]", '{"step": "x"}', "null"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2"):
        read_metrics(file)


def test_a_run_directory_is_one_configuration(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", CONFIG)
    assert read_config(tmp_path / "run") == CONFIG
    assert not run.finished
    run.close()
    RunDirectory(tmp_path / "run", CONFIG | {"device": "cuda"}).close()
    with pytest.raises(InputError, match=r"agent.learning_rate=0.0003, not 0.1"):
        RunDirectory(tmp_path / "run", CONFIG | {"agent": {"learning_rate": 0.1}})
    run = RunDirectory(tmp_path / "run", CONFIG)
    run.finish({"steps": 3})
    assert run.finished
    assert read_summary(tmp_path / "run") == {"steps": 3}
    run.close()


def test_a_directory_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="not empty"):
        RunDirectory(tmp_path, CONFIG)
    with pytest.raises(InputError, match="not a run directory"):
        read_config(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        RunDirectory(tmp_path / "file" / "run", CONFIG)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", CONFIG)
    code = (
        "import sys, json, pathlib\n"
        "from mtrl.run.directory import RunDirectory\n"
        "RunDirectory(pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run"), json.dumps(CONFIG)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "is in use by another process" in refused.stderr
    run.close()
    assert subprocess.run(command, check=False).returncode == 0


def test_unknown_names_offer_the_nearest_or_all() -> None:
    assert str(unknown_name("task", "reech", ["push", "reach"])) == "unknown task 'reech': did you mean 'reach'?"
    assert str(unknown_name("task", "xyz", ["push", "reach"])) == "unknown task 'xyz': valid: push, reach"


def test_running_out_of_memory_is_one_line_that_says_what_to_lower() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    code, line = message_of(caught.value) or (0, "")
    assert code == 1
    assert re.fullmatch(r"out of memory: .*tried to allocate \d+ bytes.*; lower batch_size, .*", line)
