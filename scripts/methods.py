"""The methods on the command line: the choices of ``combiner=NAME``, files in ``plugins=[...]``, and ``--methods``."""

import inspect
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import MISSING
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtrl import combiners
from mtrl.errors import InputError
from mtrl.plugins import load_file
from mtrl.ranges import described
from scripts.entry import one_line_errors

COMBINER_DEFAULTS = {name: option.default for name, option in combiners.WRAPPERS.items()} | {
    "critic": None,
    "actor": None,
}
"""Keys of every combiner: those of wrappers; and whose side has a combiner of its own, in ``scripts/train.py``."""

_NEEDS = {"losses": "losses", "gramian": "Gramian", "jacobian": "Jacobian"}


def load_plugins(files: Iterable[str]) -> None:
    """Loads Python files, and makes every combiner that is registered a choice of Hydra's group ``combiner``.

    Raises:
        InputError: if a file is missing or fails.
    """
    for file in files:
        load_file("plugins", file)
    for name in combiners.names():
        options = choice(name, combiners.get(name).options())
        ConfigStore.instance().store(name, options | COMBINER_DEFAULTS, group="combiner")


def choice(name: str, options: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """A choice of one of Hydra's groups, without types: what is refused is refused by whoever takes the options."""
    return {"name": name} | {key: MISSING if o.default is o.empty else o.default for key, o in options.items()}


load_plugins([])


def combiner_of(
    options: Mapping[str, Any], num_tasks: int, seed: int, *, rescale: bool, rescaled_by: str
) -> combiners.Combiner:
    """A combiner by its name and options, as a configuration has them.

    Raises:
        InputError: if an option does not fit, or is what the run itself says; ``rescaled_by`` tells which key rescales.
    """
    own = {"rescale": rescaled_by, "seed": "a key of the whole: seed=1", "num_tasks": "how many tasks there are"}
    for key, said in own.items():
        if key in options:
            raise InputError(f"combiner.{key} is {said}")
    return combiners.make(num_tasks=num_tasks, seed=seed, rescale=rescale, **options)


def plugins_in(arguments: Sequence[str]) -> list[str]:
    """The files that ``plugins=[...]`` names in a command line.

    Raises:
        InputError: if it is not a list.
    """
    given = [argument for argument in arguments if argument.lstrip("+").startswith("plugins=")]
    files: list[str] = []
    for override in OverridesParser.create().parse_overrides(given):
        value = override.value()
        if not isinstance(value, list):
            got = override.get_value_string()
            raise InputError(f"plugins: expected a list of Python files, e.g. plugins=[mine.py], got {got}")
        files += map(str, value)
    return files


def read_methods() -> None:
    """Loads the files of the command line's ``plugins=[...]``; where it asks for ``--methods``, prints all and ends."""
    with one_line_errors(debug="debug=true" in sys.argv):
        load_plugins(plugins_in(sys.argv[1:]))
    if "--methods" in sys.argv:
        console = Console()
        if not console.is_terminal:
            console.width = 100
        console.print(methods_table())
        sys.exit()


def methods_table() -> Table:
    """Every combiner: what it needs, whether losses may be negative, what it does, and its options."""
    table = Table("combiner", "needs", "what it does, and its options with their defaults", box=SIMPLE)
    for name in sorted(combiners.names(), key=lambda name: (list(_NEEDS).index(combiners.get(name).needs), name)):
        method = combiners.get(name)
        needs = f"{_NEEDS[method.needs]}, > 0" if method.positive_losses else _NEEDS[method.needs]
        summary = (method.__doc__ or "").partition("\n")[0].replace("``", "")
        table.add_row(name, needs, Text("\n".join([summary, *map(_option, method.options().values()), ""])))
    table.caption = (
        "> 0: for positive losses, a negative one is refused. Set an option by combiner.OPTION=VALUE. Any method with\n"
        "weights also takes every=R (solve at every R-th update), smooth=a (average weights over time) and log=true\n"
        "(gradients of log losses)."
    )
    return table


def _option(option: inspect.Parameter) -> str:
    default = "" if option.default is option.empty else option.default
    if default is None or isinstance(default, bool):
        default = json.dumps(default)
    return f"    {option.name}={default}    {described(option.annotation)}".rstrip()
