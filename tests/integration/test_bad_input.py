"""What a wrong command ends with: one line, exit code 2, nothing written."""

import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from mtrl.errors import InputError
from mtrl.run.initial_weights import state_of_run
from scripts import benchmark, compare, evaluate, linear_mtl, supervised, train
from scripts.entry import message_of, run
from tests.configured import configured


def fails(
    script: object, overrides: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """The one line that a script writes before it ends with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["script", *overrides])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stop:
        run(script.main)  # type: ignore[attr-defined]
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["stepz=3"], "unknown key 'stepz': did you mean 'steps'?"),
        (["agent.learnin_rate=3"], "did you mean 'agent.learning_rate'?"),
        (["learning_rate=3"], "unknown key 'learning_rate': did you mean 'agent.learning_rate'?"),
        (["lr=3"], "unknown key 'lr': did you mean 'agent.learning_rate'?"),
        (["agent.gamma=3"], "unknown key 'agent.gamma': did you mean 'agent.discount'?"),
        (["agent.batch_size=3"], "unknown key 'agent.batch_size': did you mean 'batch_size'?"),
        (["combiner=cagrad", "combiner.d=3"], "unknown key 'combiner.d': valid: combiner.actor, combiner.c, combiner."),
        (["combiner=[pcgrad,mgda]"], "combiner: expected one name, got [pcgrad,mgda]; a sweep takes several: -m comb"),
        (["agent=[cpu,large]"], "agent: expected one name, got [cpu,large]; a sweep takes several: -m agent=A,B"),
        (["combiner=pcgrad,mgda"], "combiner=pcgrad,mgda: several values are for a sweep, which -m asks for; a list"),
        (["hydra.run.dir=x"], "hydra.run.dir=x: a run's directory is set by run_dir, a sweep's by hydra.sweep.dir"),
        (["hydra.sweep.dir=x"], "hydra.sweep.dir=x: this is for a sweep, which -m asks for"),
        (["hydra/launcher=joblib"], "hydra/launcher=joblib: this is for a sweep, which -m asks for"),
        (["steps=many"], "steps: expected an integer, got 'many'"),
        (["agent.discount=high"], "agent.discount: expected a number, got 'high'"),
        (["agent.learning_rate=-1"], "agent.learning_rate: expected a number in (0, inf), got -1.0"),
        (["eval.every=0"], "eval.every: expected an integer of at least 1, got 0"),
        (["combiner=pcgrod"], "unknown combiner 'pcgrod': did you mean 'pcgrad'?"),
        (["combiner=PCGrad"], "unknown combiner 'PCGrad': did you mean 'pcgrad'?"),
        (["combiner=IMTL-G"], "unknown combiner 'IMTL-G': did you mean 'imtl_g'?"),
        (["+combiner.strength=3"], "unknown option of unitary 'strength'"),
        (["+combiner.seed=3"], "combiner.seed is a key of the whole: seed=1"),
        (["+combiner.rescale=true"], "combiner.rescale is the agent's: agent.rescale=true or false"),
        (["method=individual_step"], "unknown method 'individual_step': did you mean 'individual_steps'?"),
        (["method=individual_steps", "combiner=pcgrad"], "does without a combiner: leave out combiner=pcgrad"),
        (
            ["method=individual_steps", "combiner.actor=mgda"],
            "does without a combiner: leave out combiner=unitary+mgda",
        ),
        (["method=individual_steps", "combiner.log=true"], "does without a combiner: leave out combiner.log"),
        (["method.groups=2"], "method.groups is for method=individual_steps and individual_optimizers"),
        (
            ["method=individual_optimizers", "method.groups=0"],
            "method.groups: expected an integer of at least 1, got 0",
        ),
        (["method=individual_optimizers", "method.groups=11"], "method.groups: expected 1 to 10 for 10 tasks, got 11"),
        (["benchmark=mt100"], "unknown benchmark 'mt100': did you mean 'mt10'?"),
        (["benchmark=mt1"], "add e.g. task=reach-v3"),
        (["benchmark=mt1", "task=reech-v3"], "unknown task 'reech-v3': did you mean 'reach-v3'?"),
        (["benchmark=custom"], "needs tasks"),
        (["benchmark=custom", "tasks=[reach-v3,puhs-v3]"], "unknown task 'puhs-v3': did you mean"),
        (["tasks=[hammer-v3]"], "unknown task of mt10 'hammer-v3'"),
        (["device=cuda:99"], "device=cuda:99 cannot be used"),
        (["tasks=push"], "tasks: expected a list, tasks=[A,B], got push"),
        (["agent.actor=[3]"], "agent.actor: expected keys of its own, agent.actor.NAME=VALUE, got [3]"),
        (
            [f"tasks=[{','.join(['reach-v3'] * 40)}]"],
            "task 'reach-v3' is listed twice",
        ),  # longer than a file's name may be
        (["mt10"], "'mt10': a value comes with its key, KEY=mt10"),
        (["method=pcgrad"], "unknown method 'pcgrad': it is a combiner, combiner=pcgrad"),
        (["device=gpu"], "device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        (["agent.buffer_size=900000000000", "steps=100000000000"], "lower agent.buffer_size"),
        (["--steps", "100"], "unknown flag '--steps': keys are set without dashes, steps=VALUE"),
        (["--steps=100"], "unknown flag '--steps=100': keys are set without dashes, steps=100"),
        (["steps=1e6", "eval.every=0"], "eval.every: expected an integer of at least 1, got 0"),
        (["steps=1.5e6"], "steps: expected an integer, got '1500000.0'"),
        (["progress=maybe"], "progress: expected true or false, got 'maybe'"),
        (["tasks=3"], "tasks: expected a list, tasks=[A,B], got 3"),
        (["tasks={reach-v3: 1}"], "tasks: expected a list, tasks=[A,B], got {reach-v3: 1}"),
        (["task=[reach-v3]"], "task: expected a text, got ['reach-v3']"),
        (["eval=3"], "eval: expected keys of its own, eval.NAME=VALUE, got 3"),
        (["steps=["], "override 'steps=[' cannot be parsed"),
    ],
)
def test_training_refuses(
    overrides: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = tmp_path / "run"
    assert expected in fails(train, [*overrides, f"run_dir={run_dir}"], monkeypatch, capsys)
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "name the run to evaluate"),
        (["run=/does/not/exist"], "is not a run directory"),
        (["run=.", "episodes=0"], "episodes: expected an integer of at least 1"),
    ],
)
def test_evaluation_refuses(
    overrides: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in fails(evaluate, overrides, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("script", "overrides", "expected"),
    [
        (compare, ["last_c=3"], "unknown key 'last_c': did you mean 'last_k'?"),
        (compare, ["runs/mine"], "'runs/mine': a value comes with its key, runs=runs/mine"),
        (compare, [__file__], f"'{__file__}': a value comes with its key, runs={__file__}"),
        (compare, ["runs=tests", "metric=succes"], "unknown metric 'succes': did you mean 'success'?"),
        (supervised, ["wrt=rep"], "unknown wrt 'rep': did you mean 'representation'?"),
        (supervised, ["epochz=3"], "unknown key 'epochz': did you mean 'epochs'?"),
        (supervised, ["lr=3"], "unknown key 'lr': did you mean 'optimizer.learning_rate'?"),
        (supervised, ["combiner=[pcgrad,mgda]"], "combiner: expected one name, got [pcgrad,mgda]"),
        (supervised, ["hydra.launcher.n_jobs=2"], "hydra.launcher.n_jobs=2: this is for a sweep, which -m asks for"),
        (supervised, ["+combiner.rescale=true"], "combiner.rescale is a key of the whole: rescale=true"),
        (linear_mtl, ["rang=3"], "unknown key 'rang': did you mean 'rank'?"),
        (linear_mtl, [], "name the data: data=FILE, linnerud or simulated"),
        (benchmark, ["solvers", "--methods", "mgdda"], "unknown method 'mgdda': did you mean 'mgda'?"),
    ],
)
def test_so_do_the_other_scripts(
    script: object,
    overrides: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert expected in fails(script, overrides, monkeypatch, capsys)


def test_a_launcher_that_is_not_installed_is_named() -> None:
    error = MissingConfigException("", "hydra/launcher/ray", ["basic"])
    assert message_of(error) == (2, "hydra/launcher=ray is not installed: pip install -e '.[ray]'")


def test_a_run_without_a_checkpoint_can_be_neither_evaluated_nor_started_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    OmegaConf.save(OmegaConf.structured(configured()), tmp_path / "config.yaml")
    assert "has no checkpoint yet" in fails(evaluate, [f"run={tmp_path}"], monkeypatch, capsys)
    (tmp_path / "summary.json").write_text("{}")
    reason = "no checkpoint: it is finished, but they are not here"
    assert reason in fails(evaluate, [f"run={tmp_path}"], monkeypatch, capsys)
    with pytest.raises(InputError, match=reason):
        state_of_run(tmp_path, "agent")
    (tmp_path / "config.yaml").write_text("seed: many\n")
    assert "is not a training run's" in fails(evaluate, [f"run={tmp_path}"], monkeypatch, capsys)


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script", "agent.discount=2", "debug=true"])
    GlobalHydra.instance().clear()
    with pytest.raises(Exception, match=r"agent\.discount") as raised:
        run(train.main)
    assert not issubclass(raised.type, SystemExit)
