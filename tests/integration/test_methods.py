"""The methods on the command line: Hydra's group, files of one's own (in a grid: ``test_grid.py``), and the list."""

import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from mtrl import combiners
from mtrl.errors import InputError
from scripts import configuration, entry, supervised, train
from scripts.entry import CONFIGS
from scripts.methods import COMBINER_DEFAULTS, plugins_in, read_methods
from tests.commands import run

MINE = """
from mtrl.combiners import Combiner, register
from mtrl.ranges import Positive

@register("mine")
class Mine(Combiner):
    \"\"\"Every loss weighs the same.\"\"\"

    needs = "losses"

    def _setup(self, *, weight: Positive, noise: bool = False) -> None:
        self.weight = weight

    def _weights(self, losses, gramian):
        return losses.new_full((self.num_tasks,), self.weight)
"""


def output(folder: Path, script: str, *arguments: str) -> str:
    done = run(script, *arguments, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One with a file that registers a method."""
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def choice(name: str) -> Any:
    """What Hydra has stored for ``combiner=NAME``."""
    return OmegaConf.to_container(ConfigStore.instance().load(f"combiner/{name}.yaml").node)


@pytest.mark.parametrize(
    ("script", "schema"), [("train", configuration.TrainConfig), ("supervised", supervised.SupervisedConfig)]
)
def test_every_method_is_a_choice_with_its_defaults(script: str, schema: type) -> None:
    GlobalHydra.instance().clear()
    folder = CONFIGS if script == "train" else str(Path(CONFIGS) / script)
    with initialize_config_dir(folder, version_base="1.3"):
        assert isinstance(OmegaConf.to_object(compose(script)), schema)
        choices = GlobalHydra.instance().config_loader().get_group_options("combiner")
        assert sorted(choices) == combiners.names()  # what combiner=glob(*) sweeps over
        for name in combiners.names():
            own = {option: found.default for option, found in combiners.get(name).options().items()}
            assert choice(name) == {"name": name} | own | COMBINER_DEFAULTS
        chosen = compose(script, ["combiner=cagrad", "combiner.c=0.7"]).combiner
        assert OmegaConf.to_container(chosen) == choice("cagrad") | {"c": 0.7}


def test_the_list_tells_what_there_is_to_know(folder: Path) -> None:
    printed = output(folder, "train.py", "--methods", "plugins=[mine.py]")
    assert max(map(len, printed.splitlines())) <= 100
    words = " ".join(printed.split())
    for name in combiners.names():
        assert f" {name} " in words
        for option in combiners.get(name).options():
            assert f" {option}=" in words
    assert "mine losses Every loss weighs the same. weight= (0, inf) noise=false true or false" in words
    assert "famo losses, > 0 FAMO (Liu et al., 2023, equation 11): all losses fall" in words
    assert "shrink=quadratic quadratic or linear or none" in words
    assert "period=25 at least 1" in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("combiner=mine",), "unknown combiner 'mine': did you mean "),
        (("combiner=mine", "plugins=[your.py]"), "plugins: there is no Python file 'your.py'"),
        (("combiner=mine", "plugins=[broken.py]"), "plugins: line 2 of 'broken.py' fails: NameError: name 'x'"),
        (("combiner=mime", "plugins=[mine.py]"), "unknown combiner 'mime': did you mean 'mine'?"),
        (("combiner=mine", "plugins=[mine.py]"), "combiner.weight"),
        (("combiner=mine", "plugins=[mine.py]", "combiner.weigth=1"), "did you mean 'combiner.weight'?"),
        (("combiner=mine", "plugins=[mine.py]", "combiner.weight=0"), "weight of mine: expected a number in (0, inf)"),
        (("combiner=mine", "plugins=mine.py"), "plugins: expected a list of Python files, e.g. plugins=[mine.py]"),
    ],
)
def test_what_is_wrong_is_one_line(
    folder: Path,
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "broken.py").write_text("\nprint(x)\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(combiners.register, "_entries", dict(combiners.register._entries))
    monkeypatch.setitem(ConfigStore.instance().repo, "combiner", dict(ConfigStore.instance().repo["combiner"]))
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, "run_dir=run"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stop:  # noqa: PT012
        read_methods()
        entry.run(train.main)
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert message in told
    assert not Path("run").exists()


def test_plugins_are_read_from_the_command_line() -> None:
    given = ["-m", "seed=1,2", "plugins=['a b.py',/x/c.py]", "+plugins=[d.py]", "other.plugins=[e.py]", "plugins=[]"]
    assert plugins_in(given) == ["a b.py", "/x/c.py", "d.py"]
    for wrong in ("plugins=a.py", "plugins=[a.py],[b.py]", "plugins={a: b}", "plugins=null"):
        with pytest.raises(InputError, match=r"^plugins: expected a list of Python files"):
            plugins_in([wrong])
