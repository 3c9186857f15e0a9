"""What every script does around its work: the configuration checked, errors in one line, exit codes."""

import difflib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import hydra
import torch
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtrl import combiners
from mtrl.errors import InputError, Interrupted, RunError, unknown_name
from mtrl.ranges import check_fields
from mtrl.run.member_report import report
from mtrl.run.processes import first_to_tell
from mtrl.sweep.supervision import requested
from mtrl.text import quoted

CONFIGS = str(Path(__file__).parents[1] / "configs")
SUPERVISED_CONFIGS = str(Path(CONFIGS) / "supervised")
Configuration = TypeVar("Configuration")
_TEXTS = (
    *("run_dir", "run", "runs", "out", "data", "data_dir", "benchmark.data_dir", "benchmark.file", "weights_from"),
    *("init_from", "hydra.sweep.dir", "baseline"),
)
_LAUNCHERS = {"joblib": "joblib", "ray": "ray", "submitit_local": "slurm", "submitit_slurm": "slurm"}
"""Which extra installs each of Hydra's launchers."""
_WHOLE = r"\d+[eE]\+?\d{1,2}"
"""A whole number that Hydra would read as one that need not be."""
_EXPECTED = {
    r"Value (.*) of type .* could not be converted to Integer": "an integer",
    r"Value (.*) of type .* could not be converted to Float": "a number",
    r"Value (.*) is not a valid bool": "true or false",
    r"Cannot convert '.*' to string: '(.*)'": "a text",
    r"Invalid value assigned: (\w+) is not a ListConfig": "a list, KEY=[A,B]",
    r"ListConfig: Cannot merge (.*)": "a list, KEY=[A,B]",
    r"DictConfig: Cannot merge (.*)": "keys of its own, KEY.NAME=VALUE",
    r"Invalid type assigned: .* is not a subclass of \w+\. value: (.*)": "keys of its own, KEY.NAME=VALUE",
}
"""What should have been given, by what OmegaConf says of a value; of a merge, behind what there was."""
_ALSO_CALLED = {"lr": "learning_rate", "gamma": "discount", "tau": "target_update_rate"}
_GROUPS = "agent", "benchmark", "combiner", "method"
"""Of which a run has one each."""


def as_typed(arguments: Sequence[str], *, sweeping: bool = False) -> list[str]:
    """A command line as Hydra reads it as typed: paths and names quoted, e.g. ``runs/lr=0.1``, and 1e6 an integer."""
    return [_as_typed(argument, sweeping) for argument in arguments]


def _as_typed(argument: str, sweeping: bool) -> str:
    key, _, value = argument.partition("=")
    if key.lstrip("+") not in _TEXTS:
        is_whole = re.fullmatch(rf"{_WHOLE}(,{_WHOLE})*", value)
        return f"{key}={','.join(str(int(float(n))) for n in value.split(','))}" if is_whole else argument
    if not value:
        return argument
    try:
        override = OverridesParser.create().parse_override(argument)
        read = override.value()
        is_text = read is None or isinstance(read, str | QuotedString) or (sweeping and override.is_sweep_override())
    except HydraException:
        is_text = False
    return argument if is_text else f"{key}={quoted(value)}"


def hydra_main(
    schema: type[Configuration],
    name: str,
    work: Callable[[Configuration], object],
    configs: str = CONFIGS,
    about: str | None = None,
    **required: str,
) -> Callable[[], Any]:
    """A script's main: composes and checks the configuration of the command line, and does the work with it.

    Args:
        schema: the configuration's dataclass, with its fields' ranges.
        name: of the configuration's file.
        work: what the script does.
        configs: the folder of the configuration's files.
        about: what ``--help`` prints above the keys; None is Hydra's help, for configurations of groups.
        required: what to say, by key, where a value is missing.
    """
    ConfigStore.instance().store(f"{name}_schema", schema)

    def main(config: DictConfig) -> None:
        with one_line_errors(debug=config.debug):  # here too: Hydra would have a line of its own to say
            for key, message in required.items():
                if OmegaConf.is_missing(config, key):
                    raise InputError(message)
            checked: Any = OmegaConf.to_object(config)
            check_fields(checked)
            work(checked)

    composed: Callable[[], Any] = hydra.main(version_base="1.3", config_path=configs, config_name=name)(main)

    def start() -> None:
        if about is None or not helped(about, Path(configs) / f"{name}.yaml"):
            refuse_flags(sys.argv[1:], next(iter(required), "KEY"))
            if about is None:
                refuse_misread(sys.argv[1:])
            composed()

    return start


def helped(about: str, configuration: Path) -> bool:
    """Whether ``--help`` was asked for; if so, prints what the script does and its keys, as the file has them."""
    if {"-h", "--help"}.isdisjoint(sys.argv):
        return False
    keys = re.sub(r"(?m)^(#.*|(defaults|hydra):\n( .*\n)+)", "", configuration.read_text())
    print(f"{about.strip().replace('``', '`')}\n\n{keys.strip()}")
    return True


def refuse_flags(arguments: Sequence[str], main_key: str = "KEY") -> None:
    """Raises `InputError` on a flag that Hydra does not know, most a key with dashes before it, and on a lone value."""
    parsed, rest = get_args_parser().parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("--")]
    if unknown:
        key, _, value = unknown[0].lstrip("-").partition("=")
        raise InputError(f"unknown flag '{unknown[0]}': keys are set without dashes, {key or 'KEY'}={value or 'VALUE'}")
    for word in parsed.overrides:
        if ("=" not in word and not word.startswith("~")) or os.path.exists(word):  # Path's raises for long words
            raise InputError(f"'{word}': a value comes with its key, {main_key}={word}")


def refuse_misread(arguments: Sequence[str], *, sweeping: bool = False) -> None:
    """Raises `InputError` on what Hydra takes without a word and does not do as meant.

    It merges several of what a run has one of; a run's directory is not Hydra's; one run has no launcher.
    """
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in _GROUPS and value.startswith("["):
            raise InputError(f"{key}: expected one name, got {value}; a sweep takes several: -m {key}=A,B")
        if key == "hydra.run.dir":
            raise InputError(f"{argument}: a run's directory is set by run_dir, a sweep's by hydra.sweep.dir")
        if not sweeping and re.match(r"hydra[./](sweep|launcher)", key):
            raise InputError(f"{argument}: this is for a sweep, which -m asks for")


def run(main: Callable[[], Any], sweep: Callable[[], Any] | None = None) -> None:
    """Runs a script once, or its sweep where a multirun is asked for; what is expected to go wrong is one line."""
    before = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through to here
    sys.argv[1:] = as_typed(sys.argv[1:], sweeping=requested(sys.argv))
    try:
        with one_line_errors(debug=before == "1" or "debug=true" in sys.argv):
            if sweep is not None and requested(sys.argv):
                _launch(sweep)
            else:
                main()
    except Exception as error:
        report(reason=f"{type(error).__name__}: {error}")
        raise
    finally:
        os.environ["HYDRA_FULL_ERROR"] = before


def _launch(sweep: Callable[[], Any]) -> None:
    refuse_flags(sys.argv[1:])
    refuse_misread(sys.argv[1:], sweeping=True)
    try:
        sweep()
    except Exception as error:
        if message_of(error) is not None:
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        raise RunError(f"the launcher gave up: {type(error).__name__}: {first} (debug=true tells more)") from error


@contextmanager
def one_line_errors(*, debug: bool) -> Iterator[None]:
    """Ends the process with one line and an exit code where an expected error occurs; bugs keep their traceback.

    Exit codes: 2 for unusable input, 1 for a run that cannot go on, 128 + signal for an interrupted one. With
    ``debug``, expected errors keep their traceback too.
    """
    try:
        yield
    except BaseException as error:
        known = message_of(error)
        if debug or known is None:
            raise
        code, message = known
        report(reason=message, error=type(error).__name__)
        if first_to_tell():
            sys.stderr.write(f"{'error: ' if code < 128 else ''}{message}\n")
            sys.stderr.flush()
        sys.exit(code)


def message_of(error: BaseException) -> tuple[int, str] | None:
    """The exit code and the line for an expected error; None for a bug."""
    if isinstance(error, Interrupted):
        return 128 + error.signal_number, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "interrupted before anything was to be saved"
    code, told = 1, str(error)
    if isinstance(error, InputError):
        code = 2
    elif isinstance(error, HydraException | OmegaConfBaseException):
        code, told = 2, _configuration_message(error)
    # Of combiner=null, say, or +=
    elif isinstance(error, ValueError | AssertionError) and _raised_in(error).startswith("hydra."):
        code, told = 2, told.strip() or "an override is malformed: expected key=value"
    elif not isinstance(error, RunError):
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in told:
            told = f"out of memory: {told}; lower batch_size, agent.hidden_sizes, agent.buffer_size or num_workers"
        elif not isinstance(error, OSError):
            return None
    return code, " ".join(told.split())


def _raised_in(error: BaseException) -> str:
    """The module that raised it."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""


def _configuration_message(error: BaseException) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if group == "method" and name in combiners.names():
            return f"unknown method '{name}': it is a combiner, combiner={name}"
        if group == "hydra/launcher" and name in _LAUNCHERS:
            return f"{group}={name} is not installed: pip install -e '.[{_LAUNCHERS[name]}]'"
        return str(unknown_name(group, name, [option.removeprefix("_") for option in error.options]))
    if isinstance(error, OverrideParseException):
        return f"override '{error.override}' cannot be parsed: {error.message.splitlines()[0]}"
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) and error.__cause__ else error
    key = getattr(cause, "full_key", None) or ""
    first = str(cause).strip().splitlines()[0]
    node = getattr(cause, "parent_node", None)
    if "not in" in first and node is not None and getattr(cause, "key", None) is not None:
        return _unknown_key(key, node)
    if ambiguous := re.match(r"Ambiguous value for argument '(.*)'", first):
        return f"{ambiguous[1]}: several values are for a sweep, which -m asks for; a list is written KEY=[A,B]"
    if first.startswith("Cannot merge"):
        first = f"{type(node).__name__}: {first}"
    given = dict(word.lstrip("+").split("=", 1) for word in sys.argv if "=" in word)
    for said, expected in _EXPECTED.items():
        if found := re.match(said, first):
            got = given.get(key, found[1]) if "Config" in said else found[1]  # OmegaConf names a type alone
            return f"{key}: expected {expected.replace('KEY', key)}, got {got}"
    return f"{key}: {first}" if key and key not in first else first


def _unknown_key(key: str, node: Container) -> str:
    """What to say of a key that its node has not: the nearest of that node, or of the whole configuration."""
    before, _, name = key.rpartition(".")
    beside = {str(other): f"{before}.{other}".lstrip(".") for other in node}
    known = {path.rpartition(".")[2]: path for path in reversed(list(_paths(node._get_root())))} | beside
    near = difflib.get_close_matches(_ALSO_CALLED.get(name, name), known, n=1, cutoff=0.6)
    expected = f"did you mean '{known[near[0]]}'?" if near else f"valid: {', '.join(sorted(beside.values()))}"
    return f"unknown key '{key}': {expected}"


def _paths(node: Container, before: str = "") -> Iterator[str]:
    """The keys of a configuration and of all that is in it."""
    if isinstance(node, DictConfig):
        for key in map(str, node):
            yield f"{before}{key}"
            if not (OmegaConf.is_missing(node, key) or key == "hydra"):
                yield from _paths(node[key], f"{before}{key}.")
