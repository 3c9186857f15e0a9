"""What every script does around its work: errors in one line, exit codes, summaries of the machine."""

import os
import platform
import re
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import OmegaConfBaseException

from mtrl.errors import InputError, Interrupted, RunError, unknown_name
from mtrl.run.member_report import report
from mtrl.sweep.supervision import follow_parent, requested

_KINDS = {"Integer": "an integer", "Float": "a number", "Boolean": "true or false"}
_PACKAGES = ("mtrl", "torch", "numpy", "gymnasium", "metaworld", "mujoco")


def run(main: Callable[[], Any], sweep: Callable[[], Any] | None = None) -> None:
    """Calls a script's Hydra main; what is wrong with the configuration ends the process in one line.

    Args:
        main: runs the script once.
        sweep: runs a multirun, where the script has one.
    """
    before = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through to here
    follow_parent()
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

    Exit codes: 2 for unusable input, 1 for a run that cannot go on, 128 + signal for an interrupted one.

    Args:
        debug: show the traceback of expected errors too.
    """
    try:
        yield
    except BaseException as error:
        known = message_of(error)
        if debug or known is None:
            raise
        code, message = known
        report(reason=message, expected=True, error=type(error).__name__)
        sys.stderr.write(f"{'error: ' if code < 128 else ''}{message}\n")
        sys.stderr.flush()
        sys.exit(code)


def message_of(error: BaseException) -> tuple[int, str] | None:
    """The exit code and the line for an expected error; None for a bug."""
    if isinstance(error, InputError):
        return 2, _line(str(error))
    if isinstance(error, RunError):
        return 1, _line(str(error))
    if isinstance(error, Interrupted):
        return 128 + error.signal_number, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "interrupted before anything was to be saved"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return 2, _line(_configuration_message(error))
    # Of combiner=null, say, or +=
    if isinstance(error, ValueError | AssertionError) and _raised_in(error).startswith("hydra."):
        return 2, _line(str(error)) or "an override is malformed: expected key=value"
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return 1, _line(
            f"out of memory: {error}; lower batch_size, agent.hidden_sizes, agent.buffer_size or num_workers"
        )
    if isinstance(error, OSError):
        return 1, _line(str(error))
    return None


def _raised_in(error: BaseException) -> str:
    """The module that raised it."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""


def _line(text: str) -> str:
    return " ".join(text.split())


def _configuration_message(error: BaseException) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return str(unknown_name(group, name, [option.removeprefix("_") for option in error.options]))
    if isinstance(error, OverrideParseException):
        return f"override '{error.override}' cannot be parsed: {error.message.splitlines()[0]}"
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) and error.__cause__ else error
    key = getattr(cause, "full_key", None) or ""
    first = str(cause).strip().splitlines()[0]
    node = getattr(cause, "parent_node", None)
    if "not in" in first and node is not None and getattr(cause, "key", None) is not None:
        return str(unknown_name("key", key, [key[: len(key) - len(str(cause.key))] + str(k) for k in node]))  # type: ignore[attr-defined]
    if conversion := re.match(r"Value (.*) of type .* could not be converted to (\w+)", first):
        value, kind = conversion.groups()
        return f"{key}: expected {_KINDS.get(kind, kind)}, got {value}"
    return f"{key}: {first}" if key and key not in first else first


def machine() -> dict[str, Any]:
    """Versions and hardware, for ``summary.json``."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory() -> dict[str, float]:
    """The largest memory so far, in GiB, of this process and on the GPU."""
    peak = {"process_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    if torch.cuda.is_available():
        peak["gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return peak
