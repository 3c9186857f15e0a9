"""The supervised scripts from end to end, as a user starts them, on tiny runs."""

import json
import os
import subprocess
import sys

import pytest


def run(script, *overrides, code=0):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", f"scripts/{script}.py", *overrides],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


TINY = ("benchmark.pairs_per_digit=1", "epochs=2", "insight.every=3", "progress=false")


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


def test_single_task_training_and_individual_optimizers(tmp_path):
    run("supervised", "tasks=[CL]", *TINY, f"run_dir={tmp_path / 'single'}")
    run("supervised", "method=individual_optimizers", "method.groups=2", *TINY, f"run_dir={tmp_path / 'io'}")
    single, io = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("single", "io"))
    assert list(single["validation"]) == ["CL", "accuracy_mean"]
    assert io["tasks"] == ["CL", "CR", "RL", "RR"]


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
        (("benchmark=multi_mnist", "benchmark.data_dir=/nowhere"), "train-images-idx3-ubyte"),
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
