"""The names of Meta-World's tasks and of its multi-task benchmarks."""

from collections.abc import Sequence
from types import ModuleType

from mtrl.errors import InputError, unknown_name


def benchmark_tasks(name: str) -> list[str]:
    """The task names of ``"mt10"``, ``"mt25"`` or ``"mt50"``, in the benchmark's own order.

    Raises:
        InputError: for another name, or if Meta-World cannot be imported.
    """
    env_dict = _env_dict()
    benchmarks = {"mt10": env_dict.MT10_V3, "mt25": env_dict.MT25_V3, "mt50": env_dict.MT50_V3}
    if name not in benchmarks:
        raise unknown_name("benchmark", name, benchmarks)
    return list(benchmarks[name])


def check_tasks(tasks: Sequence[str]) -> list[str]:
    """The task names as a list, once they are known to be good.

    Raises:
        InputError: if there is none, one is not a Meta-World v3 task, or one is listed twice; or if Meta-World cannot
            be imported.
    """
    valid = _env_dict().ALL_V3_ENVIRONMENTS
    if isinstance(tasks, str) or not tasks:
        raise InputError(f"tasks must be a list with at least one task name, got {tasks!r}")
    for index, task in enumerate(tasks):
        if task not in valid:
            raise unknown_name("task", task, valid)
        if task in tasks[:index]:
            raise InputError(f"task '{task}' is listed twice")
    return list(tasks)


def _env_dict() -> ModuleType:
    """Meta-World's tasks; imported where they are used: it loads MuJoCo, which takes most of a second."""
    try:
        from metaworld import env_dict
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"Meta-World cannot be imported ({reason}): pip install 'metaworld>=3.1,<3.2'") from error
    return env_dict


def balanced_groups(tasks: Sequence[str], num_groups: int) -> list[list[int]]:
    """Splits tasks into groups that take about equally long to step; returns each group's indices, in order."""
    cost = {f"{task}-v3": cost for cost, names in _STEP_COSTS.items() for task in names.split()}
    groups: list[list[int]] = [[] for _ in range(num_groups)]
    loads = [0] * num_groups
    for index in sorted(range(len(tasks)), key=lambda index: -cost[tasks[index]]):
        lightest = loads.index(min(loads))
        groups[lightest].append(index)
        loads[lightest] += cost[tasks[index]]
    return [sorted(group) for group in groups]


# Measured microseconds a step, roughly; only their ratios matter.
_STEP_COSTS = {
    100: "button-press button-press-topdown button-press-topdown-wall button-press-wall handle-press "
    "handle-press-side handle-pull handle-pull-side window-open",
    115: "door-lock drawer-close drawer-open faucet-close faucet-open lever-pull plate-slide plate-slide-back "
    "plate-slide-back-side plate-slide-side",
    125: "basketball coffee-button dial-turn pick-out-of-hole reach reach-wall window-close",
    135: "bin-picking door-close door-open door-unlock hand-insert sweep",
    150: "peg-insert-side peg-unplug-side pick-place pick-place-wall push push-back push-wall soccer",
    165: "assembly coffee-pull coffee-push disassemble hammer shelf-place sweep-into",
    195: "box-close stick-pull stick-push",
}
