"""The configuration of training, with every key's range; `configs/train.yaml` holds the defaults."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agents.sac import SACConfig
from envs.metaworld import Options
from mtrl.errors import InputError
from mtrl.gradients.precision import PRECISIONS
from mtrl.ranges import Count, Index, Positive, Seed, check_fields
from mtrl.rl.loop import Schedule
from mtrl.run.directory import read_config
from mtrl.run.extracted_weights import WAYS
from mtrl.run.machine import device_of
from mtrl.run.record import MEASURES, combiner_name
from mtrl.run.sinks import check_wandb
from mtrl.task_groups import refuse_combiner
from scripts.methods import COMBINER_DEFAULTS

METAWORLD = "mt1", "mt10", "mt25", "mt50"
"""Benchmarks with tasks of their own."""
GROUPED = "individual_steps", "individual_optimizers"
"""The methods that take a step for each group of tasks."""
HELD_OUT_SEED = 1_000_003
"""Every run of every seed is evaluated on the same held-out goals, or, where there are none, in the same episodes."""


@dataclass
class EveryConfig:
    """How often something is done, in vector steps (of `scripts/train.py`) or epochs (of `scripts/supervised.py`)."""

    every: Count = MISSING


@dataclass
class CheckpointConfig(EveryConfig):
    """How often a checkpoint is written, and how many of the newest are kept."""

    keep: Count = 2


@dataclass
class ReplayCheckpointConfig(CheckpointConfig):
    """The same of `scripts/train.py`; and whether a finished run keeps its replay buffer on the disk."""

    keep_replay: bool = True


@dataclass
class InsightConfig:
    """How often gradient conflict is measured, as for `EveryConfig`; 0 is never."""

    every: Index = MISSING


@dataclass
class RunConfig:
    """What ``scripts/train.py`` and ``scripts/supervised.py`` both have."""

    combiner: dict[str, Any] = field(default_factory=dict)
    weights_from: str | None = None
    weights_how: Annotated[str, Literal[*WAYS]] = "ema"
    init_from: str | None = None
    plugins: list[str] = field(default_factory=list)
    seed: Seed = MISSING
    batch_size: Count = MISSING
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    insight: InsightConfig = field(default_factory=InsightConfig)
    run_dir: str | None = None
    device: str = "auto"
    progress: bool = True
    wandb: str = "disabled"
    debug: bool = False

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if not isinstance(self.combiner.get("name"), str):
            raise InputError("combiner: expected the name of one, e.g. combiner=unitary")
        self.combiner = {k: v for k, v in self.combiner.items() if COMBINER_DEFAULTS.get(k, ...) != v}
        check_fields(self)
        check_wandb(self.wandb)
        self.plugins = [str(Path(file).absolute()) for file in self.plugins]


@dataclass
class BenchmarkConfig(Options):
    """Which tasks, and how they are played; all but ``horizon`` of how is Meta-World's alone."""

    name: str = MISSING
    horizon: Count | None = None  # type: ignore[assignment]  # Meta-World: 500; others: the environment's own
    file: str | None = None  # of one's own environments, for benchmark=custom
    options: Any = None  # of the function in it, by name


@dataclass
class EvalConfig:
    """When and how long to evaluate."""

    every: Count = 10_000
    episodes: Count = 50
    goals: Annotated[str, Literal["training", "held_out", "both"]] = "both"
    """Those that training uses, which is Meta-World's protocol; 50 others, the same for every seed; or each.

    Other environments have no goals: their episodes of evaluation are those of one seed, the same for every run."""
    beside: bool | None = None
    """Play it in a process while training goes on; null does so where the updates are computed on a GPU."""
    video: Annotated[str, Literal["best"]] | None = None
    """Film the first episode of each task whenever a policy is the best so far."""


@dataclass
class MethodConfig:
    """Whether an update is one step for all tasks, or one for each group in turn (`agents.alternating`)."""

    name: Annotated[str, Literal["combined", *GROUPED]] = "combined"
    groups: Count | None = None  # drawn at random; null is one for each task

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        check_fields(self, "method.")
        if self.name == "combined" and self.groups is not None:
            raise InputError(f"method.groups is for method={' and '.join(GROUPED)}")


@dataclass
class TrainConfig(RunConfig):
    """The configuration of ``scripts/train.py``; ``configs/train.yaml`` holds the defaults."""

    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    task: str | None = None
    tasks: list[str] | None = None
    envs: list[Any] | None = None
    pad: bool | None = None
    metric: Annotated[str, Literal[*MEASURES]] | None = None
    agent: SACConfig = field(default_factory=SACConfig)
    method: MethodConfig | None = None
    """None is ``combined``: runs of before there was a choice have none."""
    steps: Count = MISSING
    warmup_steps: Count = MISSING
    catch_up_updates: Index | None = None
    updates_per_step: Positive = 1.0
    resets: list[Count] = field(default_factory=list)
    reset_updates: Index = 1000
    precision: Annotated[str, Literal["auto", *PRECISIONS]] = "fp32"
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: ReplayCheckpointConfig = field(default_factory=ReplayCheckpointConfig)
    log: EveryConfig = field(default_factory=EveryConfig)
    num_workers: Count | None = None
    threads: Count | None = None

    def __post_init__(self) -> None:
        """Refuses values out of range, and keys that are of other environments."""
        super().__post_init__()
        benchmark = self.benchmark
        for key, whose in self._keys_of_others():
            raise InputError(f"{key} is for {whose}, not for benchmark={benchmark.name}")
        if self.is_metaworld and benchmark.horizon is None:
            benchmark.horizon = Options.horizon
        if not isinstance(benchmark.options or {}, dict):
            raise InputError(f"benchmark.options: expected {{name: value}}, got {benchmark.options!r}")
        if benchmark.file is not None:
            benchmark.file = str(Path(benchmark.file).absolute())
        if self.method is not None and self.method.name == "combined":
            self.method = None
        if self.method is not None:
            refuse_combiner(self.method.name, combiner_name(self.combiner))
            if further := sorted(self.combiner.keys() - {"name"}):
                raise InputError(f"method={self.method.name} does without a combiner: leave out combiner.{further[0]}")

    @property
    def method_name(self) -> str:
        """The combiner's, or that of the method that does without."""
        return combiner_name(self.combiner) if self.method is None else self.method.name

    @property
    def is_metaworld(self) -> bool:
        """Whether the tasks are Meta-World's."""
        return self.envs is None and self.benchmark.file is None and self.benchmark.name != "gymnasium"

    def _keys_of_others(self) -> Iterator[tuple[str, str]]:
        """Keys that are set, but have no meaning for these environments, and whom they are for."""
        benchmark = self.benchmark
        if self.envs is not None and (benchmark.file is not None or benchmark.name in METAWORLD):
            yield "envs", "benchmark=gymnasium"
        if self.is_metaworld:
            others = {"pad": self.pad, "benchmark.options": benchmark.options}
            yield from ((key, "Gymnasium environments") for key, value in others.items() if value is not None)
            return
        if self.task is not None:
            yield "task", "benchmark=mt1"
        for one in fields(Options):
            if one.name != "horizon" and getattr(benchmark, one.name) != one.default:
                yield f"benchmark.{one.name}", "Meta-World"

    @property
    def eval_seeds(self) -> dict[str, int]:
        """The seeds of evaluation's environments, by the goals that are played.

        Raises:
            InputError: if other goals are asked for where there is but one.
        """
        if not self.is_metaworld:
            if self.eval.goals != "both":
                raise InputError(f"eval.goals={self.eval.goals} is for Meta-World: other environments have no goals")
            return {"seeded": HELD_OUT_SEED}
        seeds = {"training": self.seed, "held_out": HELD_OUT_SEED}
        if self.benchmark.goals == "fixed":
            if self.eval.goals == "held_out":
                raise InputError("eval.goals=held_out is not for benchmark.goals=fixed: the one goal is training's")
            return {"training": self.seed}
        return seeds if self.eval.goals == "both" else {self.eval.goals: seeds[self.eval.goals]}

    @property
    def schedule(self) -> Schedule:
        """What happens when."""
        return Schedule(
            steps=self.steps,
            warmup_steps=self.warmup_steps,
            catch_up_updates=self.warmup_steps if self.catch_up_updates is None else self.catch_up_updates,
            eval_every=self.eval.every,
            checkpoint_every=self.checkpoint.every,
            log_every=self.log.every,
            insight_every=self.insight.every,
            eval_episodes=self.eval.episodes,
            eval_seeds=self.eval_seeds,
            updates_per_step=self.updates_per_step,
            resets=tuple(self.resets),
            reset_updates=self.reset_updates,
            metric=self.metric,
            eval_beside=device_of(self.device).type != "cpu" if self.eval.beside is None else self.eval.beside,
        )


ConfigStore.instance().store("combined", {"name": "combined"}, group="method")
for _name in GROUPED:  # as supervised training stores them
    ConfigStore.instance().store(_name, {"name": _name, "groups": None}, group="method")

WITHOUT: dict[str, dict[str, Any]] = {
    "nothing": {},
    "categorical": {"agent.critic_loss": "mse"},
    "return_scale": {"agent.reward_scale": "sigma"},
    "residual": {"agent.critic.block": "mlp"},
    "layer_norm": {"agent.critic.layer_norm": False},
    "actor_layer_norm": {"agent.actor.layer_norm": False},
    "critic_size": {"agent.critic.hidden_sizes": None},
    "mean": {"agent.twins": "min"},
    "temperature": {"agent.initial_temperature": 1.0},
    "target_entropy": {"agent.target_entropy": None},
    "weight_decay": {"agent.critic.weight_decay": 0.0},
    "discount": {"agent.discount": 0.99},
    "n_step": {"agent.n_step": 1},
    "updates": {"updates_per_step": 1.0},
    "batch": {"batch_size": 128},
}
"""What ``without=ELEMENT`` takes away from an agent: that element is then as in ``agent=kurin``."""
for _name, _keys in WITHOUT.items():
    _node = OmegaConf.create()
    for _key, _value in _keys.items():
        OmegaConf.update(_node, _key, _value)
    ConfigStore.instance().store(_name, _node, group="without", package="_global_")


def load_config(directory: Path) -> TrainConfig:
    """The configuration of a training run's directory.

    Raises:
        InputError: if it is not a training run's.
    """
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), read_config(directory)))
    except OmegaConfBaseException as error:
        raise InputError(
            f"{directory / 'config.yaml'} is not a training run's: {str(error).splitlines()[0]}"
        ) from error
    assert isinstance(config, TrainConfig)
    return config
