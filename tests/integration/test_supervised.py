"""The supervised scripts from end to end, as a user starts them, on tiny runs."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

from mtrl.linear.data import load, standardised
from mtrl.linear.report import Models, picture
from mtrl.linear.surface import feasible
from tests import commands


def run(script, *overrides, code=0):
    done = commands.run(f"{script}.py", *overrides)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


TINY = ("device=cpu", "benchmark.pairs_per_digit=1", "epochs=2", "progress=false")


def test_training_leaves_a_run_directory(tmp_path):
    command = ("benchmark=multi_digits", "combiner=mgda", "tasks=[CL,RR]", *TINY, f"run_dir={tmp_path}")
    assert "squared_error" in run("supervised", *command)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["tasks"] == ["CL", "RR"]
    assert 0 < summary["test"]["CL"] <= 1
    assert summary["metrics"]["RR"] == {"name": "squared_error", "higher_is_better": False}
    names = {path.name.split(".")[0] for path in tmp_path.iterdir()}
    assert {"config", "metrics", "summary", "checkpoints", "events"} <= names
    assert "is finished: nothing to do" in run("supervised", *command)
    assert "combiner.name='mgda', not 'unitary'" in run("supervised", *command[2:], code=2)


def improves(directory, key):
    entries = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return entries[-1][f"train/loss/{key}"] < entries[0][f"train/loss/{key}"]


def test_a_benchmark_of_ones_own(tmp_path):
    command = (
        "benchmark=custom",
        "benchmark.file=mtrl/supervised/data/example.py",
        "combiner=imtl_l",
        "epochs=3",
        "device=cpu",
    )
    output = run("supervised", *command, "progress=false", f"run_dir={tmp_path}")
    assert "digit accuracy" in output
    assert "ink squared_error" in output
    assert improves(tmp_path, "digit")
    assert improves(tmp_path, "ink")


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """IDX files of 28x28 pixels in torchvision's layout: scikit-learn's digits, enlarged."""
    raw = tmp_path_factory.mktemp("data") / "MNIST" / "raw"
    raw.mkdir(parents=True)
    source = load_digits()
    images = np.pad(source.images.repeat(3, 1).repeat(3, 2) * 255 / 16, ((0, 0), (2, 2), (2, 2)))
    for name, part in (("train", slice(0, 300)), ("t10k", slice(300, 400))):
        for kind, array in (("images-idx3", images[part]), ("labels-idx1", source.target[part])):
            header = struct.pack(f">4B{array.ndim}i", 0, 0, 8, array.ndim, *array.shape)
            (raw / f"{name}-{kind}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
    return raw.parents[1]


def test_multi_mnist_from_its_own_files(tmp_path, mnist):
    options = ("benchmark.validation=100", "batch_size=20", "epochs=4", "tasks=[CL,RR]", "progress=false")
    run("supervised", "benchmark=multi_mnist", f"data_dir={mnist}", *options, f"run_dir={tmp_path}")
    assert json.loads((tmp_path / "summary.json").read_text())["updates"] == 40
    assert improves(tmp_path, "CL")
    assert improves(tmp_path, "RR")


def test_data_that_lie_elsewhere_now(tmp_path, mnist):
    moved, directory = tmp_path / "moved", tmp_path / "run"
    shutil.copytree(mnist, moved)
    size = ("benchmark.validation=100", "batch_size=20", "epochs=2", "checkpoint.every=1")
    options = ("benchmark=multi_mnist", *size, "device=cpu", "progress=false", f"run_dir={directory}")
    run("supervised", *options, f"data_dir={mnist}")
    whole = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert f"data_dir='{mnist}', not '{moved}'" in run("supervised", *options, f"data_dir={moved}", code=2)
    (directory / "summary.json").unlink()
    (directory / "checkpoints" / "step-20.json").unlink()
    assert f"has read {mnist} and goes on with {moved}" in run("supervised", *options, f"data_dir={moved}")
    again = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [entry["val/CL"] for entry in again] == [entry["val/CL"] for entry in whole]


@pytest.mark.parametrize(
    "method", [("method=rotograd", "combiner=mgda"), ("method=maximum_roaming", "combiner=pcgrad")], ids=lambda m: m[0]
)
def test_methods_around_a_combiner(tmp_path, method):
    selected = ("selection=gain", "reference={CL: 0.5, RR: 0.1}")
    run("supervised", *method, "tasks=[CL,RR]", *selected, *TINY, f"run_dir={tmp_path}")
    assert list(json.loads((tmp_path / "summary.json").read_text())["selection"]["scores"]) == ["gain"]
    entry = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert ("train/rotation_loss/RR" in entry) == (method[0] == "method=rotograd")
    assert improves(tmp_path, "RR")


def test_single_task_training_and_individual_optimizers(tmp_path):
    run("supervised", "tasks=[CL]", *TINY, f"run_dir={tmp_path / 'single'}")
    run("supervised", "method=individual_optimizers", "method.groups=2", *TINY, f"run_dir={tmp_path / 'io'}")
    single, io = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("single", "io"))
    assert list(single["validation"]) == ["CL", "accuracy_mean"]
    assert io["tasks"] == ["CL", "CR", "RL", "RR"]


def test_weights_on_the_scale_of_unitary(tmp_path):
    for rescale, total in (("false", 1), ("true", 2)):
        folder = tmp_path / rescale
        run("supervised", "combiner=mgda", "tasks=[CL,RR]", *TINY, f"rescale={rescale}", f"run_dir={folder}")
        entry = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert entry["train/weight/CL"] + entry["train/weight/RR"] == pytest.approx(total)


def test_weights_extracted_from_another_run(tmp_path):
    tasks = "tasks=[CL,RR]"
    run("supervised", "combiner=edm", tasks, *TINY, f"run_dir={tmp_path / 'edm'}")
    message = run("supervised", f"weights_from={tmp_path / 'edm'}", tasks, *TINY, f"run_dir={tmp_path / 'a'}", code=2)
    assert "combiner=fixed" in message
    run("supervised", "combiner=fixed", f"weights_from={tmp_path / 'edm'}", tasks, *TINY, f"run_dir={tmp_path / 'b'}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("combiner=mgad",), "did you mean 'mgda'"),
        (("benchmark=mnist",), "did you mean 'multi_mnist'"),
        (("benchmark=multi_mnist", "data_dir=/nowhere"), "train-images-idx3-ubyte or"),
        (("data_dir=/nowhere",), "unknown option of multi_digits 'data_dir'"),
        (("benchmark=custom",), "benchmark.file"),
        (("reference=3",), "reference: expected numbers by metric"),
        (("method=auto_lambda", "combiner=mgda"), "leave out combiner=mgda"),
        (
            ("method=rotograd", "+method.burnin=3"),
            "'burnin': did you mean 'burn_in'?",
        ),
        (("optimizer.learning_rate=fast",), "optimizer.learning_rate: expected a number"),
    ],
)
def test_bad_input_is_one_line(tmp_path, overrides, message):
    output = run("supervised", *overrides, f"run_dir={tmp_path / 'run'}", code=2)
    assert message in output
    assert output.count("\n") == 1
    assert not (tmp_path / "run").exists()


QUICK = ("surface=50", "weightings=50", "combiners=[mgda,mgda_ub]", "starts=1", "epochs=5")


def test_linear_mtl_prints_the_verdict_and_writes_its_files(tmp_path):
    output = run("linear_mtl", "data=linnerud", "rank=1", *QUICK, "point=[0.9,0.9,0.9]", f"out={tmp_path}")
    assert "can fully explore" in output
    assert "sign flips: 3" in output
    assert "point [0.9, 0.9, 0.9]: " in output
    header, *rows = (tmp_path / "points.csv").read_text().splitlines()
    assert header == "source,start,mse_1,mse_2,mse_3,balance,weight_1,weight_2,weight_3"
    assert {row.split(",")[0] for row in rows} == {"surface", "scalarization", "mgda", "mgda_ub"}
    assert len(rows) == 102
    assert (tmp_path / "surface.png").read_bytes().startswith(b"\x89PNG")


def test_linear_mtl_says_when_it_cannot(tmp_path):
    # Three targets that are nearly orthogonal inputs, with one sign that cannot be flipped away.
    rows = ["x1,x2,x3,y1,y2,y3"]
    for i in range(64):
        x = [(i * k * 7919) % 64 / 64 for k in (1, 5, 11)]
        rows.append(",".join(f"{v:.6f}" for v in (*x, x[0] + x[1] / 2, x[1] - x[2] / 2, x[2] + x[0])))
    (tmp_path / "x.csv").write_text("\n".join(rows))
    output = run("linear_mtl", f"data={tmp_path / 'x.csv'}", "outputs=3", *QUICK, f"out={tmp_path / 'out'}")
    assert "cannot fully explore" in output
    assert "offending cycle: " in output


def test_linear_mtl_on_the_simulated_arm(tmp_path):
    output = run("linear_mtl", "data=simulated", "targets=[1,2,3,4,5]", "rank=3", *QUICK, f"out={tmp_path}")
    assert "no criterion is known" in output
    assert "simulated" in output


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data=linnerud", "targets=[0]"), "expected numbers from 1 to 3, got 0"),
        (("data=nowhere.mat",), "gaussianprocess.org"),
        (("data=linnerud", "combiners=[mgad]"), "did you mean 'mgda'"),
        (("data=linnerud", "rank=2", "point=[1,1,1]"), "rank=1"),
    ],
)
def test_linear_mtl_refuses_bad_input_in_one_line(overrides, message):
    output = run("linear_mtl", *overrides, code=2)
    assert message in output.splitlines()[-1]


def test_points_beyond_the_surface_do_not_squeeze_the_figure():
    problem = standardised(*load("linnerud"))
    surface = feasible(problem.gramian, 1, 50)
    ends = np.array([surface[1], surface[1] - 1e6])
    found = [Models("surface", surface), Models("mgda", surface[:1]), Models("nash_mtl", ends)]
    axes: Any = picture(found, problem, [1, 2, 3], "").axes[0]
    assert axes.get_legend_handles_labels()[1] == ["surface", "mgda", "nash_mtl (1 of 2 outside)"]
    for limits in (axes.get_xlim(), axes.get_ylim(), axes.get_zlim()):
        assert -1 < limits[0] < limits[1] < 2


def test_the_example_of_the_documentation_trains(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "supervised.md").read_text()
    (tmp_path / "mine.py").write_text(text.split("```python\n")[1].split("```")[0])
    command = ("benchmark=custom", f"benchmark.file={tmp_path / 'mine.py'}", "combiner=nash_mtl", "epochs=3")
    run("supervised", *command, "progress=false", f"run_dir={tmp_path / 'run'}")
    assert improves(tmp_path / "run", "sign")
    assert improves(tmp_path / "run", "largest")
