"""Meta-World's tasks; importing this loads neither MuJoCo nor Meta-World."""

from envs.metaworld.family import MetaWorld, make_vector
from envs.metaworld.options import ACTION_SIZE, OBSERVATION_SIZE, Options
from envs.metaworld.tasks import benchmark_tasks, check_tasks

__all__ = ["ACTION_SIZE", "OBSERVATION_SIZE", "MetaWorld", "Options", "benchmark_tasks", "check_tasks", "make_vector"]
