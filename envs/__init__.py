"""Meta-World task vectors; importing this loads neither MuJoCo nor Meta-World."""

from envs.metaworld_tasks import benchmark_tasks, check_tasks
from envs.vector import StepResult, TaskVector

__all__ = ["StepResult", "TaskVector", "benchmark_tasks", "check_tasks"]
