"""One of two processes that train one model, beside one process with whole batches.

Arguments: rank, a file where the processes meet, a folder for runs and for what was found.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from mtrl import combiners
from mtrl.errors import InputError, Interrupted
from mtrl.run.directory import RunDirectory
from mtrl.run.processes import Processes
from mtrl.supervised import Benchmark, MaskedTargets, MultiTaskModel, Split, classification, methods, regression
from mtrl.supervised.loop import Schedule, Trainer
from mtrl.supervised.norms import normalise_whole_batches
from mtrl.supervised.updates import OptimizerOptions, Setup, Wrt

CASES: list[tuple[str, str, Wrt]] = [
    ("combined", "unitary", "shared"),
    ("combined", "mgda", "representation"),
    ("combined", "graddrop", "representation"),
    ("combined", "gradnorm", "last"),
    ("combined", "famo", "shared"),
    ("rotograd", "nash_mtl", "representation"),
    ("maximum_roaming", "pcgrad", "shared"),
    ("individual_steps", "unitary", "shared"),
    ("individual_optimizers", "unitary", "shared"),
    ("auto_lambda", "unitary", "shared"),
]


def problem(dropout: float) -> Benchmark:
    """Three tasks, of which many samples have no target; batch normalisation; splits that two cannot halve."""
    generator = torch.Generator().manual_seed(0)

    def split(samples: int) -> Split:
        x = torch.randn(samples, 1, 6, generator=generator)
        labels = (x.sum((1, 2)) > 0).long()
        labels[torch.rand(samples, generator=generator) < 0.4] = -100
        values = x[:, 0, :2].square()
        values[torch.rand(samples, 2, generator=generator) < 0.3] = torch.nan
        known = torch.rand(samples, generator=generator) < 0.5
        known[0] = True
        return Split(x, {"a": labels, "b": values, "c": x[:, 0, :1]}, {"c": known})

    torch.manual_seed(0)
    # Without biases: before a normalisation they have no gradient but rounding, which Adam makes a step of.
    convolution = [nn.Conv1d(1, 4, 3, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten()]
    linear = [nn.Dropout(dropout), nn.Linear(16, 5, bias=False), nn.BatchNorm1d(5, momentum=None)]
    encoder = nn.Sequential(*convolution, *linear)
    return Benchmark(
        tasks={"a": classification(), "b": regression(), "c": regression()},
        model=MultiTaskModel(encoder, {"a": nn.Linear(5, 2), "b": nn.Linear(5, 2), "c": nn.Linear(5, 1)}),
        train=split(50),
        validation=split(13),
        test=split(7),
        evaluation_batch=5,
    )


def make(case: tuple[str, str, Wrt], path: Path, group: Any, dropout: float = 0.0, stop: int = 0) -> Trainer:
    benchmark = problem(dropout)
    normalise_whole_batches(benchmark.model, group)
    method, combiner, wrt = case
    made = combiners.make(combiner, 3, seed=1)
    setup = Setup(benchmark, made, OptimizerOptions(learning_rate=0.01), wrt, 4, group)
    update = methods.make(method, setup)
    if stop:
        plain = update.step

        def stopping(*arguments: Any) -> dict[str, Tensor]:
            nonlocal stop
            stop -= 1
            if not stop and group.rank() == 1:  # one of them is enough
                os.kill(os.getpid(), signal.SIGTERM)
            return plain(*arguments)

        update.step = stopping  # type: ignore[method-assign, assignment]
    processes = Processes(group)
    run = RunDirectory(path if processes.first else path.with_name(f"{path.name}-1"), {"seed": 4})
    schedule = Schedule(2, 10, 0.01, selection="per_metric", insight_every=1)
    device = torch.device("cpu")
    return Trainer(
        Benchmark(**vars(benchmark) | {"model": update.model}),
        update,
        run,
        schedule,
        seed=4,
        device=device,
        show_progress=False,
        processes=processes,
    )


def trained(trainer: Trainer) -> dict[str, Any]:
    """What a run came to, and its last logged numbers."""
    trainer.train()
    summary = {key: value for key, value in trainer.summary().items() if "seconds" not in key}
    logged = (trainer.session.run.path / "metrics.jsonl").read_text().splitlines()
    trainer.session.run.close()
    weights = [p.detach().flatten().tolist() for p in trainer.benchmark.model.state_dict().values()]
    return {"summary": summary, "logged": [json.loads(line) for line in logged], "weights": weights}


def compared(ours: Any, theirs: Any) -> float:
    """The largest difference of all numbers, as far as they are no times."""
    if isinstance(ours, dict):
        keys = [key for key in ours if key not in ("time", "speed/epoch_seconds", "counters")]
        assert ours.keys() == theirs.keys()
        return max((compared(ours[key], theirs[key]) for key in keys), default=0.0)
    if isinstance(ours, list):
        assert len(ours) == len(theirs)
        return max((compared(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)
    if isinstance(ours, int | float) and not isinstance(ours, bool):
        return float(abs(ours - theirs))
    assert ours == theirs
    return 0.0


def stopped(folder: Path, group: Any) -> dict[str, Any]:
    """How runs with dropout end that are stopped and go on, beside those that are not."""
    case = CASES[1]
    whole = trained(make(case, folder / "whole", group, dropout=0.3))
    first = make(case, folder / "broken", group, dropout=0.3, stop=7)
    said = ""
    try:
        first.train()
    except Interrupted as interrupted:
        said = str(interrupted)
    first.session.run.close()
    resumed = trained(make(case, folder / "broken", group, dropout=0.3))
    if group.rank():  # whose log is nobody's
        del whole["logged"], resumed["logged"]
    return {"said": said, "difference": compared(resumed, whole)}


def refused(folder: Path, group: Any) -> str:
    """What is said to those who cannot share a batch."""
    try:
        benchmark = problem(0)
        update = methods.make(
            "combined", Setup(benchmark, combiners.make("unitary", 3), OptimizerOptions(), group=group)
        )
        run = RunDirectory(folder / f"odd-{group.rank()}", {})
        Trainer(
            benchmark, update, run, Schedule(1, 5, 0.1), seed=0, device=torch.device("cpu"), processes=Processes(group)
        )
    except InputError as error:
        return str(error)
    return ""


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    rank, store, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    alone = {case: trained(make(case, folder / f"alone-{'-'.join(case)}", None)) for case in CASES if rank == 0}
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    world = distributed.group.WORLD
    processes = Processes(world)
    found: dict[str, Any] = {"error": {}}
    for case in CASES:
        together = trained(make(case, folder / f"two-{'-'.join(case)}", world))
        found["error"][" ".join(case)] = compared(together, processes.shared(alone.get(case)))
    found["stopped"] = stopped(folder, world)
    found["odd batch"] = refused(folder, world)
    pair = MaskedTargets(torch.tensor([rank == 0]), torch.tensor(rank, dtype=torch.int16))
    found["any type"] = [processes.of_all(one).tolist() for one in pair]
    found["part"] = list(processes.part(range(5)))
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
