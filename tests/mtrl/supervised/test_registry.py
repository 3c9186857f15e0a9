"""Benchmarks and methods by name, as a stranger adds one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, get_args

import pytest

from mtrl import combiners
from mtrl.errors import InputError
from mtrl.ranges import FractionBelowOne, Within, checked, described, options_of
from mtrl.registry import Registry
from mtrl.supervised import benchmarks, methods
from mtrl.supervised.updates import OptimizerOptions, Setup, Wrt

BENCHMARKS = [
    *("celeba", "cityscapes", "cityscapes_groups", "cityscapes_raw", "digit_attributes", "motorcycle", "multi_digits"),
    *("multi_fashion", "multi_fashion_and_mnist", "multi_mnist", "nyuv2", "qm9"),
]
METHODS = ["auto_lambda", "combined", "individual_optimizers", "individual_steps", "maximum_roaming", "rotograd"]


@pytest.fixture
def setup():
    benchmark = benchmarks.make("multi_digits", ["CL", "RR"], pairs_per_digit=1)
    return Setup(benchmark, combiners.make("unitary", 2), OptimizerOptions())


def defaults(maker):
    return {name: option.default for name, option in options_of(maker).items()}


def test_what_the_package_registers_is_found_without_a_list():
    assert methods.method.names() == METHODS
    assert benchmarks.benchmark.names() == BENCHMARKS
    assert defaults(methods.method.get("rotograd")) == {"learning_rate_scale": 1.0, "homogenize": True, "burn_in": 20}
    assert defaults(methods.method.get("combined")) == {}
    assert defaults(benchmarks.benchmark.get("multi_digits")) == {"pairs_per_digit": 5, "data_seed": 0}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_made_with_its_defaults(setup, name):
    update = methods.make(name, setup)
    assert list(update.tasks) == ["CL", "RR"]
    assert update.usual_wrt in get_args(Wrt)
    update.load_state_dict(update.state_dict())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rotogard", {}, "unknown method 'rotogard': did you mean 'rotograd'"),
        ("rotograd", {"burnin": 3}, "unknown option of rotograd 'burnin': did you mean 'burn_in'"),
        ("rotograd", {"burn_in": -1}, r"method\.burn_in: expected an integer of at least 0, got -1"),
        ("rotograd", {"learning_rate_scale": -0.5}, r"method\.learning_rate_scale: expected a number in \[0, inf\)"),
        ("auto_lambda", {"initial_weight": 0.0}, r"method\.initial_weight: expected a number in \(0, inf\)"),
        ("auto_lambda", {"learning_rate": float("nan")}, r"method\.learning_rate: expected a number"),
        ("maximum_roaming", {"share": 1.1}, r"method\.share: expected a number in \(0, 1\]"),
        ("maximum_roaming", {"roaming_updates": 0}, r"method\.roaming_updates: expected an integer of at least 1"),
        ("individual_steps", {"groups": 0}, r"method\.groups: expected an integer of at least 1, got 0"),
        ("individual_steps", {"groups": 3}, "groups: expected 1 to 2 for 2 tasks, got 3"),
    ],
)
def test_bad_options_are_refused(setup, name, options, message):
    with pytest.raises(InputError, match=message):
        methods.make(name, setup, **options)


def test_a_method_without_a_combiner_takes_none(setup):
    mgda = Setup(setup.benchmark, combiners.make("mgda", 2), setup.optimizer)
    with pytest.raises(InputError, match="method=auto_lambda does without a combiner: leave out combiner=mgda"):
        methods.make("auto_lambda", mgda)


def test_ranges_hold_whoever_calls():
    registry = Registry("method", "mtrl.supervised.methods", checked("method"))

    @registry("mine")
    def mine(setup, *, strength: Annotated[float, Within("[0, 1]")] = 0.5):
        return setup, strength

    @registry("other")
    class Other:
        def __init__(self, setup, *, strength: Annotated[float, Within("[0, 1]")]):
            self.strength = strength

    assert mine(1) == (1, 0.5)
    assert Other(1, strength=0.2).strength == 0.2
    for maker in (mine, Other):
        with pytest.raises(InputError, match=r"method\.strength: expected a number in \[0, 1\], got 2"):
            maker(1, strength=2)
    with pytest.raises(InputError, match=r"method 'mine' is registered twice: .*test_registry has it"):
        registry("mine")(mine)
    assert described(FractionBelowOne).endswith("[0, 1)")


STRANGER = """
from mtrl.supervised.benchmarks import benchmark
from mtrl.supervised.data.multi_digits import multi_digits
from mtrl.supervised.methods import method
from mtrl.supervised.methods.combined import CombinedUpdate
from mtrl.ranges import Positive

@benchmark("mine")
def mine(tasks=("CL", "RR"), dropout=0.0, *, pairs: Positive = 1):
    return multi_digits(tasks, dropout, pairs_per_digit=pairs)

@method("scaled")
class Scaled(CombinedUpdate):
    def __init__(self, setup, *, factor: Positive = 2.0):
        super().__init__(setup)
        self.factor = factor

from scripts.supervised import main
main()
"""


def test_a_stranger_s_benchmark_and_method_train_from_the_command_line(tmp_path):
    (tmp_path / "mine.py").write_text(STRANGER)
    root = Path(__file__).parents[3]
    command = (
        f"plugins=[{tmp_path / 'mine.py'}]",
        "benchmark=mine",
        "method=scaled",
        "method.factor=3",
        "epochs=1",
        "insight.every=0",
        "progress=false",
    )
    done = subprocess.run(
        [sys.executable, str(root / "scripts" / "supervised.py"), *command, f"run_dir={tmp_path / 'run'}"],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "factor: 3" in config
    assert "pairs: 1" in config
