"""Meta-World's tasks as a family, as a vector steps them. Importing this loads neither MuJoCo nor Meta-World."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from envs.metaworld.options import ACTION_SIZE, OBSERVATION_SIZE, Options
from envs.metaworld.tasks import balanced_groups, check_tasks
from envs.shared import Task
from envs.vector import TaskVector
from mtrl.ranges import Count, Index, check_fields

if TYPE_CHECKING:
    from envs.rendering import Film


@dataclass(frozen=True)
class MetaWorld:
    """Meta-World v3 tasks, each with 50 goals: observations of 39 numbers, actions of 4.

    Raises:
        InputError: if a task is unknown or listed twice, or an option is not as described.
    """

    tasks: list[str]
    options: Options = field(default_factory=Options)
    pad: bool = False
    reference_returns: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses what is unknown or out of range."""
        check_tasks(self.tasks)
        check_fields(self.options)

    @property
    def whole_episodes(self) -> bool:
        """See `envs.shared.Family`."""
        return not self.options.terminate_on_success

    def sizes(self) -> tuple[int, int]:
        """The sizes of observations and actions."""
        return OBSERVATION_SIZE, ACTION_SIZE

    def evaluated(self, *, whole_episodes: bool) -> Self:
        """As evaluation plays it: all 50 goals in turn (or the one), each episode up to its first success or whole."""
        goals = "fixed" if self.options.goals == "fixed" else "evaluation"
        return replace(self, options=replace(self.options, goals=goals, terminate_on_success=not whole_episodes))

    def films(self, policy: Callable[[Any], Any], seed: int) -> Iterator["Film"]:
        """See `envs.metaworld.rendering.film`."""
        from envs.metaworld.rendering import film

        return film(policy, self.tasks, self.options, seed)

    def make(self, task: str, seed: int) -> Task:
        """See `envs.shared.Family`."""
        import mujoco

        from envs.metaworld import fast
        from envs.metaworld.task import TaskEnv

        mujoco.set_mju_user_warning(lambda _: None)  # instead of a log file; the step says that it was unstable
        if self.options.fast:
            fast.install()
        return TaskEnv(task, seed, self.options)

    def groups(self, num_groups: int) -> list[list[int]]:
        """See `envs.shared.Family`."""
        return balanced_groups(self.tasks, num_groups)

    def identity(self) -> dict[str, Any]:
        """See `envs.shared.Family`; without ``fast``, which changes no byte."""
        return {key: value for key, value in asdict(self.options).items() if key != "fast"}


def make_vector(tasks: Sequence[str], *, seed: Index, num_workers: Count | None = None, **options: Any) -> TaskVector:
    """A vector of Meta-World tasks; ``options`` are the fields of `Options`."""
    return TaskVector(MetaWorld(check_tasks(tasks), Options(**options)), seed=seed, num_workers=num_workers)
