"""Run directories, checkpoints and metrics on a real file system."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util import tensor_util
from torch import Tensor

from mtrl.errors import InputError, RunError, unknown_name
from mtrl.run.checkpoints import Checkpoints
from mtrl.run.directory import RunDirectory, directory_of, read_config, read_summary
from mtrl.run.files import write_atomically, write_json
from mtrl.run.member_report import VARIABLE
from mtrl.run.metrics import MetricsWriter, log_outcome, read_metrics
from mtrl.run.random_state import restore
from mtrl.run.sinks import check_wandb, heat_map
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

    def clear(self) -> None:
        self.added = 0


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


def test_matrices_have_a_file_of_their_own_and_are_drawn(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write(10, 1.0, {"conflict/critic/cosines": [[1.0, -1.0], [float("nan"), 0.0]], "conflict/mean": 0.5})
    writer.write(20, 2.0, {"train/loss": 0.25})
    writer.close()
    next(tmp_path.glob("events.out.tfevents.*")).unlink()
    MetricsWriter(tmp_path, step=20).close()  # they survive that the run goes on, and that event files are lost
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 10, "time": 1.0, "conflict/mean": 0.5},
        {"step": 20, "time": 2.0, "train/loss": 0.25},
    ]
    matrix: list[list[float | None]] = [[1.0, -1.0], [None, 0.0]]
    assert read_metrics(tmp_path / "matrices.jsonl") == [{"step": 10, "time": 1.0, "conflict/critic/cosines": matrix}]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [image.step for image in events.Images("conflict/critic/cosines")] == [10]
    assert sorted(events.Tags()["scalars"]) == ["conflict/mean", "train/loss"]
    first, second = events.Images("conflict/critic/cosines")[0], events.Scalars("train/loss")[0]
    assert second.wall_time - first.wall_time == pytest.approx(1.0, abs=1e-3)
    picture = heat_map(matrix)
    red, blue = picture[0, 0], picture[0, -1]
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert picture[-1, 0].tolist() == [128, 128, 128]
    assert picture[-1, -1].tolist() == [255, 255, 255]


def test_matrices_and_numbers_go_on_from_the_same_entry(tmp_path: Path) -> None:
    """What a killed run logged after its checkpoint goes from both files, also at the checkpoint's own step."""

    def log(writer: MetricsWriter, value: float) -> None:
        writer.write(10, 1.0, {"loss": value})
        writer.write(10, 1.0, {"cosines": [[value]], "mean": value})

    writer = MetricsWriter(tmp_path)
    log(writer, 0.25)
    entries = writer.entries
    assert entries == [2, 1]
    log(writer, 0.5)
    writer.close()
    with (tmp_path / "matrices.jsonl").open("a") as file:
        file.write('{"step": 10, "ti')
    writer = MetricsWriter(tmp_path, 10, entries)
    assert (writer.dropped, writer.missing) == (2, 0)
    log(writer, 0.75)
    writer.close()
    assert [entry["mean"] for entry in read_metrics(tmp_path / "metrics.jsonl")[1::2]] == [0.25, 0.75]
    assert [entry["cosines"] for entry in read_metrics(tmp_path / "matrices.jsonl")] == [[[0.25]], [[0.75]]]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert len(events.Images("cosines")) == 2
    (tmp_path / "matrices.jsonl").unlink()
    writer = MetricsWriter(tmp_path, 10, (4, 2))
    assert (writer.dropped, writer.missing) == (0, 2)
    writer.close()


def test_a_damaged_matrix_is_named_and_nothing_is_overwritten(tmp_path: Path) -> None:
    line = '{"step": 1, "time": 1, "cosines": [[1.0], [1.0, 2.0]]}\n'
    (tmp_path / "matrices.jsonl").write_text(line)
    with pytest.raises(InputError, match=r"matrices.jsonl, the entry of step 1: "):
        MetricsWriter(tmp_path, 1)
    assert (tmp_path / "matrices.jsonl").read_text() == line


def written(directory: Path) -> list[tuple[int, float]]:
    entries = read_metrics(directory / "metrics.jsonl")
    return [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]


@pytest.mark.parametrize("accumulator", [EventAccumulator, plugin_event_accumulator.EventAccumulator])
@pytest.mark.parametrize("clock", [0, -3600, 3600])
def test_an_open_tensorboard_goes_on_where_a_run_does(
    tmp_path: Path, accumulator: Any, clock: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that reads on without starting anew shows what one that is started now does: what the run has logged.

    The run goes back to entries and steps of all kinds, with a clock that stands still or is moved, is killed before
    it logs anything, and in the end has an outcome as a finished run has, and becomes longer.
    """
    reader, now = accumulator(str(tmp_path)), time.time()
    logged, history, files = 0, [(0, [0, 0])], set[Path]()
    random = torch.Generator().manual_seed(clock + 4000)

    def shown(events: Any) -> list[tuple[int, float]]:
        events.Reload()
        if accumulator is EventAccumulator:
            return [(event.step, event.value) for event in events.Scalars("loss")]
        return [(event.step, float(tensor_util.make_ndarray(event.tensor_proto))) for event in events.Tensors("loss")]

    for part in range(8):
        monkeypatch.setattr(time, "time", lambda part=part: now + clock * part)
        step, entries = history[-1 - part % 2] if len(history) > 1 else history[0]
        writer = MetricsWriter(tmp_path, step, entries)
        assert files <= set(tmp_path.glob("events*"))  # none is removed
        for _ in range(part % 4):
            step += int(torch.randint(0, 3, (), generator=random))
            late = step - 2 * (part % 2)  # an evaluation is logged later than its step
            logged += 1
            writer.write(max(late, 0), float(logged), {"loss": float(logged), "matrix": [[0.5]]})
        if part % 3:
            history.append((step, writer.entries))
        writer.close()
        files |= set(tmp_path.glob("events*"))
        if part in (0, 3):
            continue  # TensorBoard looks now and then
        expected = sorted(written(tmp_path))
        assert sorted(shown(reader)) == expected
        assert sorted(shown(accumulator(str(tmp_path)))) == expected
    log_outcome(tmp_path, {}, {"seed": 1}, {"loss/final": 0.5})
    assert {"loss/final", "loss"} <= set(written_tags(tmp_path))
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]["step"]
    MetricsWriter(tmp_path, last).close()
    assert sorted(shown(reader)) == sorted(written(tmp_path))
    reader = EventAccumulator(str(tmp_path))
    reader.Reload()
    assert "loss/final" not in reader.Tags()["scalars"] or not reader.Scalars("loss/final")


def written_tags(directory: Path) -> list[str]:
    events = EventAccumulator(str(directory))
    events.Reload()
    tags: list[str] = events.Tags()["scalars"]
    return tags


def test_event_files_do_not_grow_with_every_time_that_a_run_goes_on(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    for step in range(300):
        writer.write(step, 0.0, {"loss": 1.0})
    writer.close()
    before = sum(path.stat().st_size for path in tmp_path.glob("events*"))
    for _ in range(20):
        MetricsWriter(tmp_path, 299, [300, 0]).close()
    assert sum(path.stat().st_size for path in tmp_path.glob("events*")) < 1.5 * before


def test_what_somebody_took_out_of_the_metrics_is_no_longer_shown(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    for step in range(6):
        writer.write(step, 0.0, {"loss": float(step)})
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:2] + lines[3:]))
    writer = MetricsWriter(tmp_path, 5, [6, 0])
    assert writer.missing == 1
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [0, 1, 3, 4, 5]


def test_opening_a_run_loads_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from mtrl.run.directory import RunDirectory\n"
        "run = RunDirectory(pathlib.Path(sys.argv[1]) / 'run', {'seed': 1})\n"
        "run.finish({'seconds': 1})\n"
        "run.close()\n"
        "print(*{'hydra', 'omegaconf', 'matplotlib', 'tensorboard', 'wandb', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_a_member_of_a_sweep_tells_how_its_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "member.json"
    told.write_text("{}")
    monkeypatch.setenv(VARIABLE, str(told))
    run = RunDirectory(tmp_path / "run", CONFIG)
    assert json.loads(told.read_text()) == {"run_dir": str(run.path)}
    writer = MetricsWriter(run.path)
    writer.write(1, 1.0, {"test/CL": 0.75})
    writer.close()
    run.finish({"test": {"CL": 0.75}, "seconds": 90})
    assert json.loads(told.read_text())["result"] == "CL 0.750 in 1.5 min"
    run.close()
    RunDirectory(tmp_path / "run", CONFIG).close()
    assert json.loads(told.read_text())["result"] == "is finished already"


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
        "config = {'wandb': 'offline', 'seed': 3}\n"
        "writer = MetricsWriter(pathlib.Path(sys.argv[1]), step=int(sys.argv[2]), config=config)\n"
        "writer.write(int(sys.argv[2]) + 1, 1.0, {'train/loss': 2.0, 'cosines': [[1.0]]})\n"
        "writer.close()"
    )
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
    other = CONFIG | {"agent": {"learning_rate": 0.1}}
    RunDirectory(tmp_path / "run", other).close()  # what was refused before it began binds nobody
    RunDirectory(tmp_path / "run", CONFIG | {"device": "cuda"}).close()
    (tmp_path / "run" / "metrics.jsonl").touch()
    with pytest.raises(InputError, match=r"agent.learning_rate=0.0003, not 0.1"):
        RunDirectory(tmp_path / "run", other)
    run = RunDirectory(tmp_path / "run", CONFIG)
    run.finish({"steps": 3})
    assert run.finished
    assert read_summary(tmp_path / "run") == {"steps": 3}
    run.close()


def test_a_configuration_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("colour: blue\n")
    with pytest.raises(InputError, match=r"holds a run with agent.learning_rate=None, not 0.0003"):
        RunDirectory(tmp_path, CONFIG)
    assert (tmp_path / "config.yaml").read_text() == "colour: blue\n"


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


class OfAGpu:
    """A generator whose state is of the other kind: sixteen bytes, as CUDA's."""

    def __init__(self, seed: int) -> None:
        self.state = torch.tensor([*seed.to_bytes(8, "little"), *bytes(8)], dtype=torch.uint8)

    def get_state(self) -> Tensor:
        return self.state

    def set_state(self, state: Tensor) -> None:
        assert len(state) == 16
        self.state = state

    def manual_seed(self, seed: int) -> None:
        self.state = torch.tensor([*seed.to_bytes(8, "little"), *bytes(8)], dtype=torch.uint8)


def test_generators_go_on_exactly_on_their_device_and_anew_on_another() -> None:
    first, second = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    torch.rand(7, generator=first)
    restore(second, first.get_state())
    assert torch.equal(torch.rand(5, generator=first), torch.rand(5, generator=second))
    gpu: Any = OfAGpu(3)
    other: Any = OfAGpu(4)
    restore(other, gpu.get_state())
    assert torch.equal(other.get_state(), gpu.get_state())

    for neither in (torch.zeros(3), torch.zeros(16), torch.zeros(17, dtype=torch.uint8)):
        with pytest.raises((RuntimeError, TypeError)):
            restore(first, neither)

    drawn = set()
    for seed in (3, 3, 4):  # on the CPU: the same from the same state, another from another
        restore(first, OfAGpu(seed).get_state())
        drawn.add(tuple(torch.rand(5, generator=first).tolist()))
    assert len(drawn) == 2
    assert tuple(torch.rand(5, generator=torch.Generator().manual_seed(3)).tolist()) not in drawn
    seeds = set()
    for seed in (5, 5, 6):  # and back
        restore(gpu, torch.Generator().manual_seed(seed).get_state())
        seeds.add(bytes(gpu.get_state().tolist()))
    assert len(seeds) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_final_measure_that_is_not_finite_is_one_line_and_no_summary(tmp_path: Path, value: float) -> None:
    MetricsWriter(tmp_path).close()
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    directory = RunDirectory(tmp_path, {"seed": 1})
    with pytest.raises(RunError, match=r"cannot be completed: test/CL of the trained model is not finite$"):
        directory.finish({"test": {"CL": value, "RR": 0.5}})
    assert not directory.finished
    directory.finish({"seconds": 1.0, "distance": {"ratio": value}, "epoch_seconds": [1.0, value]})
    assert read_summary(tmp_path) == {"seconds": 1.0, "distance": {"ratio": None}, "epoch_seconds": [1.0, None]}
    directory.close()


def test_a_misspelt_run_directory_is_told_from_an_empty_one(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "mt10-pcgrad-seed1", CONFIG).close()
    (tmp_path / "empty").mkdir()
    offered = rf"'.*seed' is not .*: there is no such directory; did you mean '{tmp_path / 'mt10-pcgrad-seed1'}'\?$"
    for name, told in (("mt10-pcgrad-seed", offered), ("x", "no such directory$"), ("empty", "no config.yaml$")):
        with pytest.raises(InputError, match=told):
            read_config(tmp_path / name)
