"""Meta-World task vectors; importing this loads neither MuJoCo nor Meta-World."""

from envs.metaworld.shared import ACTION_SIZE, OBSERVATION_SIZE
from envs.metaworld.tasks import benchmark_tasks, check_tasks
from envs.metaworld.vector import TaskVector

__all__ = ["ACTION_SIZE", "OBSERVATION_SIZE", "TaskVector", "benchmark_tasks", "check_tasks"]
