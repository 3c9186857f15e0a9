"""Trains a supervised multi-task model: ``python scripts/supervised.py benchmark=multi_digits combiner=mgda``."""

import dataclasses
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, cast

import torch
from hydra.core.config_store import ConfigStore
from rich.console import Console
from rich.table import Column, Table

from mtrl import combiners
from mtrl.errors import InputError
from mtrl.ranges import Count, FractionBelowOne, Index, NotNegative, Positive, PositiveFraction, options_of
from mtrl.run.checkpoints import Checkpoints
from mtrl.run.directory import RunDirectory, directory_of
from mtrl.run.extracted_weights import weights_of_run
from mtrl.run.initial_weights import state_of_run
from mtrl.run.machine import keep_to_cores, machine, peak_memory
from mtrl.run.processes import Processes, own_device, started, together
from mtrl.supervised import Benchmark, benchmarks, methods
from mtrl.supervised.loading import LoadingOptions
from mtrl.supervised.loop import Schedule, Trainer, start_from
from mtrl.supervised.norms import normalise_whole_batches
from mtrl.supervised.problem import Precision
from mtrl.supervised.scan import problems
from mtrl.supervised.updates import OptimizerOptions, Setup, Update, Wrt
from mtrl.sweep.launch import launch
from mtrl.sweep.supervision import requested, supervise
from mtrl.text import counted
from scripts.configuration import RunConfig
from scripts.entry import SUPERVISED_CONFIGS, hydra_main, one_line_errors, run
from scripts.methods import choice, combiner_of, load_plugins, read_methods


@dataclass
class DataOptions(LoadingOptions):
    """How data sets are read, and whether all of them is looked at first."""

    check: bool = False


@dataclass(kw_only=True)
class SupervisedConfig(RunConfig):
    """The configuration of ``scripts/supervised.py``; ``configs/supervised`` holds the defaults."""

    data_dir: str | None
    tasks: list[str] | None
    wrt: str | None
    epochs: Count
    learning_rate_decay: PositiveFraction
    learning_rate_decay_every: Count | None
    learning_rate_patience: Index | None
    least_learning_rate: NotNegative | None
    dropout: FractionBelowOne
    patience: Count | None
    selection: str | None
    test: bool
    benchmark: dict[str, Any] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    reference: Any = None  # a mapping to numbers; Hydra fills in nothing but what has no type or has the keys already
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    data: DataOptions = field(default_factory=DataOptions)
    precision: Annotated[str, Literal["fp32", "bf16"]] = "fp32"
    channels_last: bool = False
    memory_limit: Positive | None = None
    rescale: bool = False

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        super().__post_init__()
        given = {} if self.reference is None else self.reference
        if not isinstance(given, dict) or not all(isinstance(number, int | float) for number in given.values()):
            raise InputError(f"reference: expected numbers by metric, e.g. {{CL: 0.97}}, got {given!r}")
        self.wrt = self.wrt or methods.method.get(self.method["name"]).usual_wrt


def store_options() -> None:
    """Gives Hydra the configuration's schema and the groups ``benchmark`` and ``method``."""
    store = ConfigStore.instance().store
    store("supervised_schema", SupervisedConfig)  # again: a plugin may have imported this script, which is `__main__`
    for name in benchmarks.benchmark.names():
        store(name, choice(name, options_of(benchmarks.benchmark.get(name))), group="benchmark")
    for name in methods.method.names():
        store(name, choice(name, options_of(methods.method.get(name))), group="method")


store_options()


def train(config: SupervisedConfig) -> None:
    """Trains to the end, or goes on with an interrupted run; says so where the run is finished.

    Of several processes that ``torchrun`` has started, each has a part of every batch, and the first one writes.
    """
    with together() as processes, ExitStack() as temporary:
        if not processes.first:  # what is written by others is nobody's
            folder = temporary.enter_context(TemporaryDirectory())
            config = dataclasses.replace(config, run_dir=folder, progress=False, wandb="disabled")
        _train(config, processes)


def _train(config: SupervisedConfig, processes: Processes) -> None:
    def say(line: str) -> None:
        if processes.first:
            print(line, file=sys.stderr)

    keep_to_cores()
    device = own_device(config.device)
    load_plugins(config.plugins)
    torch.manual_seed(config.seed)
    benchmark = make_benchmark(config)
    if config.data.check and processes.first:
        check_data(benchmark, config.data)
    benchmark.model.to(device)
    tasks = list(benchmark.tasks)
    update = make_update(config, benchmark, processes)
    benchmark = dataclasses.replace(benchmark, model=update.model)
    name = f"{config.benchmark['name']}-{'-'.join(tasks)}-{method_name(config)}-seed{config.seed}"
    path = directory_of(config.run_dir, name)
    if config.init_from is not None and processes.first and not Checkpoints(path / "checkpoints").steps():
        start_from(update.model, state_of_run(Path(config.init_from), "model")["model"])
    update.model.load_state_dict(processes.shared(update.model.state_dict()))
    with closing(RunDirectory(path, dataclasses.asdict(config) | {"tasks": tasks})) as directory:
        directory.checkpoints.keep = config.checkpoint.keep
        if processes.shared(directory.finished):
            say(f"{path} is finished: nothing to do. More epochs go on with it; another run_dir or seed is a new run.")
            return
        if directory.longer:
            say(f"{path} is finished, and goes on to {config.epochs:,} epochs; all other keys are the same.")
        trainer = Trainer(
            benchmark,
            update,
            directory,
            schedule(config),
            seed=config.seed,
            device=device,
            loading=config.data,
            show_progress=config.progress,
            processes=processes,
        )
        say(
            f"{config.benchmark['name']}: {', '.join(tasks)}; {len(benchmark.train):,} training samples, "
            f"{sum(p.numel() for p in benchmark.model.parameters()):,} parameters, {method_name(config)}, "
            f"{f'{processes.size} processes, first on ' if processes.size > 1 else ''}{device}; "
            f"run directory {path}"
        )
        for line in benchmark.missing():
            say(line)
        trainer.train()
        summary = trainer.summary(test=config.test)
        if processes.first:
            about = {"processes": processes.size, "memory": peak_memory(device), "machine": machine(device)}
            directory.finish(summary | about | {"command": sys.argv})
            report(summary, path)


def make_update(config: SupervisedConfig, benchmark: Benchmark, processes: Processes) -> Update:
    """The method that a configuration asks for, and its model: the benchmark's, for a part of every batch each."""
    normalise_whole_batches(benchmark.model, processes.group)
    combiner = make_combiner(config, list(benchmark.tasks))
    wrt = cast(Wrt, config.wrt)
    setup = Setup(benchmark, combiner, config.optimizer, wrt, config.seed, processes.group, config.memory_limit)
    update = methods.make(setup=setup, **config.method)
    update.model.compute(cast(Precision, config.precision), channels_last=config.channels_last)
    return update


def make_benchmark(config: SupervisedConfig) -> Benchmark:
    """The benchmark that a configuration asks for."""
    options = dict(config.benchmark)
    if config.data_dir is not None and options.get("data_dir") is None:
        options["data_dir"] = config.data_dir  # refused by a benchmark that reads no files
    return benchmarks.make(tasks=config.tasks, dropout=config.dropout, **options)


def check_data(benchmark: Benchmark, options: LoadingOptions) -> None:
    """Prints everything that is wrong with the data, and raises `InputError` if something is."""
    found = 0
    for line in problems(benchmark, options):
        print(line, file=sys.stderr)
        found += 1
    if found:
        raise InputError(f"data.check: {counted(found, 'sample')} cannot be used: listed above")


def make_combiner(config: SupervisedConfig, tasks: list[str]) -> combiners.Combiner:
    """The combiner that a configuration asks for."""
    options = dict(config.combiner)
    if config.weights_from is not None:
        if options["name"] != "fixed":
            raise InputError(f"weights_from is for combiner=fixed, not {options['name']}")
        options["weights"] = weights_of_run(Path(config.weights_from), tasks, "train/weight", config.weights_how)
        if options["weights"] is None:
            raise InputError(f"weights_from: the run in '{config.weights_from}' logged no weights: its method has none")
    said = "a key of the whole: rescale=true"
    return combiner_of(options, len(tasks), config.seed, rescale=config.rescale, rescaled_by=said)


def schedule(config: SupervisedConfig) -> Schedule:
    """How long, and in what portions."""
    return Schedule(
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.optimizer.learning_rate,
        learning_rate_decay=config.learning_rate_decay,
        learning_rate_decay_every=config.learning_rate_decay_every,
        learning_rate_patience=config.learning_rate_patience,
        least_learning_rate=config.least_learning_rate,
        patience=config.patience,
        selection=config.selection,
        reference=config.reference,
        checkpoint_every=config.checkpoint.every,
        insight_every=config.insight.every,
    )


def method_name(config: SupervisedConfig) -> str:
    """The combiner's name, with the method's where it is more than that."""
    name, combiner = str(config.method["name"]), str(config.combiner["name"])
    return combiner if name == "combined" else name if combiner == "unitary" else f"{name}-{combiner}"


def report(summary: dict[str, Any], directory: Path) -> None:
    """Prints the metrics of a finished run."""
    console = Console(highlight=False, markup=False, emoji=False)
    numbers = (Column(name, justify="right") for name in ("validation", "test"))
    table = Table("metric", *numbers, title=f"Model selection: {summary['selection']['by']}")
    for key, value in summary["validation"].items():
        name = f"{key.split('/')[0]} {summary['metrics'][key]['name']}" if key in summary["metrics"] else key
        table.add_row(name, f"{value:.4f}", f"{summary['test'][key]:.4f}" if "test" in summary else "not read")
    console.print(table)
    console.print(f"{counted(summary['epochs'], 'epoch')} in {summary['seconds'] / 60:.1f} min")
    print(f"run directory    {directory}")


main = hydra_main(SupervisedConfig, "supervised", train, SUPERVISED_CONFIGS)


def refuse_a_sweep_of_processes() -> None:
    """Ends a sweep that ``torchrun`` has started once per process."""
    if started() > 1 and requested(sys.argv):
        with one_line_errors(debug=False):
            raise InputError("torchrun trains one model, not a sweep: leave out -m")


if __name__ == "__main__":
    refuse_a_sweep_of_processes()
    supervise()
    read_methods()
    store_options()  # those of plugins too
    named = ("benchmark", "tasks", "combiner", "method", "seed")
    run(main, partial(launch, SUPERVISED_CONFIGS, "supervised", named))
