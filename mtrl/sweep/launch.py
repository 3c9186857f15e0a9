"""What a sweep has Hydra do: the command line of a multirun, and its members' own."""

import hashlib
import math
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from omegaconf import DictConfig

from mtrl.errors import InputError
from mtrl.run.machine import gpus
from mtrl.sweep.member import PARENT, Member, run_member, stopping
from mtrl.sweep.place import taking_place, workers
from mtrl.sweep.supervision import FOLDER, QUIET, SIZE, sweep_directory
from mtrl.text import quoted

RUNS_PER_GPU = 2
"""How many runs a GPU computes side by side where nobody says."""


def launch(config_dir: str, config_name: str, named: Collection[str], cores_key: str | None = None) -> None:
    """Has Hydra launch the multirun that the command line asks for, below `mtrl.sweep.supervision.Supervision`.

    Args:
        config_dir: the absolute path of the configuration files.
        config_name: of the script's configuration.
        named: the keys that a run directory's default name tells.
        cores_key: the key that gets the number of a member's cores where it is null; None is no such key.

    Raises:
        InputError: if the members would share one run directory, or are to use a GPU that they do not see.
    """
    folder, directory = Path(os.environ[FOLDER]), sweep_directory(sys.argv)
    arguments = [a for a in sys.argv[1:] if "=" in a and not a.startswith("-")]
    flags = [a for a in sys.argv[1:] if a not in arguments and a not in ("-m", "--multirun") and not a.startswith("~")]
    command = [sys.executable, str(Path(sys.argv[0]).absolute()), *flags]
    overrides = {o.key_or_group: o for o in OverridesParser.create().parse_overrides(arguments)}
    swept = frozenset(key for key, override in overrides.items() if override.is_sweep_override())
    size = size_of([overrides[key] for key in swept])
    (folder / SIZE).write_text(str(size or ""))
    given = overrides.get("run_dir")
    own = given is None or given.is_sweep_override() or re.search(r"\$\{|{name}", given.get_value_string())
    if size != 1 and not own:
        raise InputError("run_dir is the directory of one run, and this is a sweep: set hydra.sweep.dir=DIR instead")
    threads = os.environ.get("OMP_NUM_THREADS")
    default_run_dir = given is None

    def member(config: DictConfig) -> None:
        """What Hydra's launchers call for every member, wherever: runs the script as a process of its own."""
        settings: Any = HydraConfig.get()
        parent = os.getppid()
        own = [str(override) for override in settings.overrides.task]
        label = " ".join(override for override in own if _key(override) in swept)
        with taking_place(settings, folder, size, threads) as place:
            if stopping(folder) or os.getppid() != parent:
                return
            if default_run_dir:
                own.append(f"run_dir={quoted(run_dir_of(str(directory), own, swept.difference(named)))}")
            if cores_key is not None and place.cores is not None and config[cores_key] is None:
                own.append(f"{cores_key}={place.cores}")
            signal_number = run_member(
                Member(settings.job.num, label),
                [*command, *own],
                folder,
                place.environment(os.environ),
                settings.runtime.cwd,
                log=place.cores is not None or (folder / QUIET).exists(),
            )
        if signal_number is not None and place.cores is None:
            sys.exit(128 + signal_number)  # it was for the launcher too
        if os.getppid() != parent:
            os._exit(1)  # the launcher is dead, for whom joblib's workers would wait

    sys.argv += [
        f"hydra.sweep.dir={quoted(directory.absolute())}",
        "hydra.sweep.subdir=.",
        f"hydra.job.name={config_name}",
        *for_launcher(overrides, size),
    ]
    os.environ[PARENT] = str(os.getpid())  # for joblib's workers
    hydra.main(version_base="1.3", config_path=config_dir, config_name=config_name)(member)()


def size_of(swept: Sequence[Override]) -> int | None:
    """How many members there are, by what is swept; None where only Hydra knows."""
    if any(isinstance(override.value(), Glob) or not override.is_discrete_sweep() for override in swept):
        return None
    return math.prod(sum(1 for _ in override.sweep_iterator()) for override in swept)


def run_dir_of(directory: str, overrides: Sequence[str], keys: Collection[str]) -> str:
    """Where a member goes: the default name, and what it sets of the keys that this does not tell.

    Values that are more than a word or a list of words end in a hash, for cleaned they may be equal.
    """
    told = [override.lstrip("+") for override in overrides if _key(override) in keys]
    return "-".join([f"{directory}/{{name}}", *map(_clean, told)])


def _clean(override: str) -> str:
    """An override for a shell and for Hydra."""
    clean = re.sub("[^a-zA-Z0-9_.-]+", "_", override).strip("_")
    if re.fullmatch(r"[\w./]+=(\[?[\w.+-]+(, ?[\w.+-]+)*\]?|'[\w.+-]+')", override, re.ASCII):
        return clean
    return f"{clean}_{hashlib.sha256(override.encode()).hexdigest()[:8]}"


def _devices(overrides: Mapping[str, Override]) -> list[str]:
    """The devices that a command line names; none where it leaves that to the configuration."""
    override = overrides.get("device")
    if override is None:
        return []
    return [str(one) for one in override.sweep_iterator()] if override.is_sweep_override() else [str(override.value())]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def for_launcher(overrides: Mapping[str, Override], size: int | None) -> list[str]:
    """What a launcher is told beside the command line.

    Args:
        overrides: the command line, by key.
        size: how many members there are; None where that is unknown.

    Raises:
        InputError: if a member is to use a GPU that it does not see.
    """
    return [*_for_joblib(overrides, size), *_for_ray(overrides)]


def _for_joblib(overrides: Mapping[str, Override], size: int | None) -> list[str]:
    """No worker that no member ever asks to end with the launcher, and by default not more than GPUs bear."""
    launcher, n_jobs = (overrides.get(key) for key in ("hydra/launcher", "hydra.launcher.n_jobs"))
    if launcher is None or launcher.value() != "joblib":
        return []
    devices, visible = _devices(overrides), gpus()
    hidden = [device for device in devices if re.fullmatch("cuda:[1-9][0-9]*", device)]
    if hidden and visible:
        raise InputError(
            f"device={hidden[0]} cannot be used: a run of a joblib sweep sees one GPU, which is cuda; "
            "CUDA_VISIBLE_DEVICES says which GPUs the sweep has"
        )
    at_once = workers(-1 if n_jobs is None else int(str(n_jobs.value())), size)
    if n_jobs is None and visible and devices != ["cpu"] and at_once > RUNS_PER_GPU * len(visible):
        at_once = RUNS_PER_GPU * len(visible)
        _say(
            f"{at_once} runs at a time, {RUNS_PER_GPU} on each GPU; "
            "hydra.launcher.n_jobs=N says otherwise, and device=cpu has one on each core"
        )
    return [f"hydra.launcher.n_jobs={at_once}"]


def _for_ray(overrides: Mapping[str, Override]) -> list[str]:
    launcher, asked = overrides.get("hydra/launcher"), any(key.endswith("ray.remote.num_gpus") for key in overrides)
    if launcher is not None and launcher.value() == "ray" and not asked and gpus() and _devices(overrides) != ["cpu"]:
        _say(
            "Ray hides GPUs from runs that ask for none: +hydra.launcher.ray.remote.num_gpus=1 gives each run one, "
            "0.5 half of one; device=cpu means none"
        )
    if "hydra.launcher.ray.init.address" in overrides:
        # The launcher always sets it, and Ray refuses it for a cluster that is up.
        return ["+hydra.launcher.ray.init.object_store_memory=null"]
    if "hydra/launcher" in overrides and overrides["hydra/launcher"].value() == "ray":
        return ["hydra.launcher.ray.init.address=local"]  # not whatever cluster Ray finds
    return []
