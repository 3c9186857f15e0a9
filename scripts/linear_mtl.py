"""Can linear scalarization explore the Pareto front?

``python scripts/linear_mtl.py data=FILE targets=[3,4,5] rank=1``
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from mtrl import combiners
from mtrl.errors import InputError, RunError
from mtrl.linear import data
from mtrl.linear.certificate import certified
from mtrl.linear.report import Models, picture, points_csv, table
from mtrl.linear.surface import descend, feasible, scalarized
from mtrl.linear.verdict import verdict
from mtrl.ranges import Count, Index, NotNegative
from mtrl.run.files import write_atomically, write_text
from scripts.entry import hydra_main, run

SIMULATED_RECORDS = 6000


@dataclass
class LinearConfig:
    """The configuration of ``scripts/linear_mtl.py``; ``configs/linear_mtl.yaml`` holds the defaults."""

    data: str
    outputs: int | None
    targets: list[int] | None
    rank: Count
    point: list[float] | None
    surface: Count
    weightings: Count
    combiners: list[str]
    starts: Count
    epochs: Count
    learning_rate: NotNegative
    seed: Index
    out: str | None
    debug: bool = False


def load(config: LinearConfig) -> tuple[data.Problem, list[int]]:
    """The problem, and its targets as the user numbers them.

    Raises:
        InputError: if the data cannot be used, or a target does not exist.
    """
    if config.data == "simulated":
        try:
            from envs.metaworld.inverse_dynamics import inverse_dynamics

            inputs, outputs = inverse_dynamics(SIMULATED_RECORDS, config.seed)
        except ImportError as error:
            raise InputError(f"data=simulated needs Meta-World and MuJoCo ({error})") from error
    else:
        inputs, outputs = data.load(config.data, config.outputs)
    available = outputs.shape[1]
    targets = config.targets or list(range(1, available + 1))
    for target in targets:
        if not 1 <= target <= available:
            raise InputError(f"targets: expected numbers from 1 to {available}, got {target}")
    if len(set(targets)) < len(targets):
        raise InputError(f"targets: one comes twice in {targets}")
    return data.standardised(inputs, outputs[:, [target - 1 for target in targets]]), targets


def models(config: LinearConfig, problem: data.Problem, console: Console) -> Iterator[Models]:
    """Models on the surface, those of linear scalarization, and those that optimizers end at."""
    k = len(problem.gramian)
    yield Models("surface", feasible(problem.gramian, config.rank, config.surface, config.seed))
    weights = np.random.default_rng(config.seed).dirichlet(np.ones(k), config.weightings)
    yield Models("scalarization", scalarized(problem.gramian, config.rank, weights), weights)
    for name in config.combiners:
        ends = {}
        for start in range(1, config.starts + 1):
            seed = config.seed + start - 1
            try:
                ends[start] = descend(
                    problem,
                    config.rank,
                    combiners.make(name.removesuffix("_ub"), k, seed=seed),
                    by_representation=name.endswith("_ub"),
                    epochs=config.epochs,
                    learning_rate=config.learning_rate,
                    seed=seed,
                )
            except RunError as error:
                console.print(f"{name}, start {start}: {error}")
        if ends:
            yield Models(name, np.array(list(ends.values())), starts=list(ends))


def explore(config: LinearConfig) -> None:
    """Prints the verdict and writes ``points.csv`` and ``surface.png``."""
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    problem, targets = load(config)
    if config.data == "simulated":
        console.print("data: simulated, inverse dynamics of Meta-World's arm by MuJoCo")
    for name in config.combiners:
        combiners.get(name.removesuffix("_ub"))
    first, *others = verdict(problem.gramian, config.rank).lines(targets)
    console.print(f"targets {', '.join(map(str, targets))}, rank {config.rank}: {first}", *others, sep="\n")
    if config.point is not None:
        if config.rank != 1:
            raise InputError("point: the certificate is for rank=1")
        console.print(f"point {list(config.point)}: {certified(problem, config.point)}")
    found = list(models(config, problem, console))
    stem = Path(config.data).stem
    out = Path(config.out or f"runs/linear-{stem}-{'-'.join(map(str, targets))}-rank{config.rank}")
    out.mkdir(parents=True, exist_ok=True)
    console.print(table(found, problem, targets, config.rank))
    write_text(out / "points.csv", points_csv(found, problem, targets))
    print(f"points   {out / 'points.csv'}")
    if len(targets) > 1:
        figure = picture(found, problem, targets, f"{stem}, rank {config.rank}")
        write_atomically(
            out / "surface.png", lambda stream: figure.savefig(stream, dpi=120, format="png", bbox_inches="tight")
        )
        print(f"figure   {out / 'surface.png'}")


main = hydra_main(
    LinearConfig, "linear_mtl", explore, about=__doc__, data="name the data: data=FILE, linnerud or simulated"
)

if __name__ == "__main__":
    run(main)
