"""Trains a supervised multi-task model: ``python scripts/supervised.py benchmark=multi_digits combiner=mgda``."""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from mtrl import combiners
from mtrl.errors import InputError, unknown_name
from mtrl.experiment.command_line import machine, one_line_errors, peak_memory, run
from mtrl.experiment.metrics import read_metrics
from mtrl.experiment.run_directory import RunDirectory
from mtrl.supervised import Benchmark, benchmarks
from mtrl.supervised.auto_lambda import AutoLambdaUpdate
from mtrl.supervised.measures import extracted_weights
from mtrl.supervised.training import Schedule, Trainer
from mtrl.supervised.updates import CombinedUpdate, IndividualUpdates, OptimizerOptions, Update, random_groups
from scripts.composition import EveryConfig, device_of

METHODS = ("combined", "individual_steps", "individual_optimizers", "auto_lambda")


@dataclass
class SupervisedConfig:
    """The configuration of ``scripts/supervised.py``; ``configs/supervised`` holds the defaults."""

    benchmark: dict[str, Any] = field(default_factory=dict)
    tasks: list[str] | None = None
    combiner: dict[str, Any] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    wrt: str = MISSING
    weights_from: str | None = None
    seed: int = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    learning_rate_decay: float = MISSING
    dropout: float = MISSING
    patience: int | None = None
    selection: str | None = None
    reference: dict[str, float] | None = None
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    checkpoint: EveryConfig = field(default_factory=EveryConfig)
    insight: EveryConfig = field(default_factory=EveryConfig)
    run_dir: str | None = None
    device: str = "auto"
    progress: bool = True
    debug: bool = False

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        smallest = {
            "seed": (self.seed, 0),
            "epochs": (self.epochs, 1),
            "batch_size": (self.batch_size, 1),
            "patience": (self.patience, 1),
            "checkpoint.every": (self.checkpoint.every, 1),
            "insight.every": (self.insight.every, 0),
        }
        for key, (value, least) in smallest.items():
            if value is not None and value < least:
                raise InputError(f"{key}: expected an integer of at least {least}, got {value}")
        if not 0 < self.learning_rate_decay <= 1:
            raise InputError(f"learning_rate_decay: expected a number in (0, 1], got {self.learning_rate_decay}")


ConfigStore.instance().store("supervised_schema", SupervisedConfig)
for _file in sorted((Path(__file__).parents[1] / "configs" / "combiner").glob("*.yaml")):
    ConfigStore.instance().store(_file.stem, OmegaConf.load(_file), group="combiner")


def train(config: SupervisedConfig) -> None:
    """Trains to the end, or goes on with an interrupted run; says so where the run is finished."""
    console = Console(stderr=True, highlight=False)
    device = device_of(config.device)
    torch.manual_seed(config.seed)
    benchmark = make_benchmark(config)
    benchmark.model.to(device)
    update = make_update(config, benchmark)
    tasks = list(benchmark.tasks)
    directory = RunDirectory(run_directory(config, tasks), dataclasses.asdict(config) | {"tasks": tasks})
    try:
        if directory.finished:
            console.print(
                f"{directory.path} is finished: nothing to do. Another run_dir or seed starts a new run.",
                soft_wrap=True,
            )
            return
        trainer = Trainer(
            benchmark,
            update,
            directory,
            schedule(config),
            seed=config.seed,
            device=device,
            show_progress=config.progress,
        )
        console.print(
            f"{config.benchmark['name']}: {', '.join(tasks)}; {len(benchmark.train):,} training samples, "
            f"{sum(p.numel() for p in benchmark.model.parameters()):,} parameters, {method_name(config)}, {device}; "
            f"run directory {directory.path}",
            soft_wrap=True,
        )
        trainer.train()
        summary = trainer.summary() | {"memory": peak_memory(), "machine": machine(), "command": sys.argv}
        directory.finish(summary)
        report(summary, directory.path, Console())
    finally:
        directory.close()


def make_benchmark(config: SupervisedConfig) -> Benchmark:
    """The benchmark that a configuration asks for."""
    options = dict(config.benchmark)
    return benchmarks.make(options.pop("name"), config.tasks, dropout=config.dropout, **options)


def make_update(config: SupervisedConfig, benchmark: Benchmark) -> Update:
    """The method that a configuration asks for.

    Raises:
        InputError: on an unknown method, or options that do not fit it.
    """
    options = dict(config.method)
    name = options.pop("name")
    tasks = list(benchmark.tasks)
    if name == "combined":
        return CombinedUpdate(
            benchmark.model,
            benchmark.tasks,
            make_combiner(config, tasks),
            config.optimizer,
            config.wrt,  # type: ignore[arg-type]
        )
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    if name == "auto_lambda":
        return AutoLambdaUpdate(benchmark.model, benchmark.tasks, config.optimizer, **options)
    groups = random_groups(tasks, options["groups"], config.seed)
    individual = name == "individual_optimizers"
    return IndividualUpdates(
        benchmark.model, benchmark.tasks, groups, config.optimizer, individual_optimizers=individual
    )


def make_combiner(config: SupervisedConfig, tasks: list[str]) -> combiners.Combiner:
    """The combiner that a configuration asks for."""
    options = dict(config.combiner)
    name = options.pop("name")
    if config.weights_from is not None:
        if name != "fixed":
            raise InputError(f"weights_from is for combiner=fixed, not {name}")
        options["weights"] = weights_of(Path(config.weights_from), tasks)
    return combiners.make(name, len(tasks), seed=config.seed, **options)


def weights_of(directory: Path, tasks: list[str]) -> list[float]:
    """The weights that a run's method had in the end, averaged (Gama & Grassi, 2025, section 3.5)."""
    file = directory / "metrics.jsonl"
    if not file.exists():
        raise InputError(f"weights_from: '{directory}' is not a run directory: it has no metrics.jsonl")
    keys = [f"train/weight/{task}" for task in tasks]
    return extracted_weights([[e[key] for key in keys] for e in read_metrics(file) if all(e.get(k) for k in keys)])


def schedule(config: SupervisedConfig) -> Schedule:
    """How long, and in what portions."""
    return Schedule(
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.optimizer.learning_rate,
        learning_rate_decay=config.learning_rate_decay,
        patience=config.patience,
        selection=config.selection,
        reference=config.reference,
        checkpoint_every=config.checkpoint.every,
        insight_every=config.insight.every,
    )


def method_name(config: SupervisedConfig) -> str:
    """The combiner's name where there is one, and else the method's."""
    name: str = config.method["name"]
    return str(config.combiner["name"]) if name == "combined" else name


def run_directory(config: SupervisedConfig, tasks: list[str]) -> Path:
    """The run's directory, by default named after benchmark, tasks, method and seed."""
    name = f"{config.benchmark['name']}-{'-'.join(tasks)}-{method_name(config)}-seed{config.seed}"
    return Path(config.run_dir or f"runs/{name}")


def report(summary: dict[str, Any], directory: Path, console: Console) -> None:
    """Prints the test metrics of a finished run."""
    table = Table(title=f"Model selection: {summary['selection']['by']}")
    for column in ("metric", "validation", "test"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for key, value in summary["test"].items():
        name = f"{key} {summary['metrics'][key]['name']}" if key in summary["metrics"] else key
        table.add_row(name, f"{summary['validation'][key]:.4f}", f"{value:.4f}")
    console.print(table)
    console.print(f"{summary['epochs']} epochs in {summary['seconds'] / 60:.1f} min", highlight=False)
    console.print(f"run directory    {directory}", highlight=False, soft_wrap=True)


@hydra.main(version_base="1.3", config_path="../configs/supervised", config_name="supervised")
def main(config: DictConfig) -> None:
    """Checks the configuration and trains."""
    with one_line_errors(debug=config.debug):
        checked = OmegaConf.to_object(config)
        assert isinstance(checked, SupervisedConfig)
        train(checked)


if __name__ == "__main__":
    run(main)
