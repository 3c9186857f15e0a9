"""What things cost on this machine: ``python scripts/benchmark.py overhead``.

``overhead``: a full SAC update under every combiner, as a ratio to unitary scalarization's.
``solvers``: the time from a Gramian to the task weights, on several families of gradients.

Each prints a table and writes one JSON file with every single measurement.
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

# As in training, so that what is measured is what training does.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from agents.sac import MultiTaskSAC, SACConfig
from mtrl import combiners
from mtrl.combiners import Combiner
from mtrl.errors import RunError, unknown_name
from mtrl.experiment.command_line import machine, run
from mtrl.experiment.files import write_json
from mtrl.gradients import Combination, TaskBatched
from scripts.composition import ACTION_SIZE, OBSERVATION_SIZE, device_of

try:
    from torchjd.aggregation import PCGrad, PCGradWeighting
    from torchjd.autogram import Engine
    from torchjd.autojac import backward, jac_to_grad
except ImportError:
    Engine = None  # type: ignore[assignment, misc]

Update = Callable[[], object]
Item = TypeVar("Item")


def seconds(function: Update, device: torch.device) -> float:
    """The wall-clock time of one call, work on the device included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def tracked(items: Sequence[Item], title: str) -> Iterable[Item]:
    """The items, with a progress bar where somebody looks."""
    console = Console(stderr=True)
    return track(items, title, console=console, disable=not console.is_terminal)


def make_combiner(name: str, num_tasks: int) -> Combiner:
    """A combiner with its default options."""
    options: dict[str, Any] = {"weights": [1.0] * num_tasks} if name == "fixed" else {}
    return combiners.make(name, num_tasks, rescale=True, **options)


# ------------------------------------------------------------------------------------------------------ overhead

RIVAL_REPEATS = 2
"""Rivals are repeated less: at 50 tasks, one of their updates takes as long as all methods here together."""


class RetainGraphLoop(TaskBatched):
    """The usual way to per-task gradients: one backward pass per task through the joint graph."""

    def backward(self, losses: Tensor, combiner: Combiner, *, scale: float = 1.0, insight: bool = False) -> Combination:
        """As `TaskBatched.backward`."""
        rows = [torch.autograd.grad(loss, self.parameters, retain_graph=True) for loss in losses]
        jacobian = torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])
        update = combiner.combine(losses, jacobian) * scale
        pieces = torch.split(update, [parameter.numel() for parameter in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        return Combination(losses.detach(), None, None, None, update.norm())


class TorchJDJacobian(TaskBatched):
    """TorchJD's ``autojac`` with its own PCGrad."""

    def backward(self, losses: Tensor, combiner: Combiner, *, scale: float = 1.0, insight: bool = False) -> Combination:
        """As `TaskBatched.backward`; the combiner is TorchJD's."""
        backward(losses * scale, inputs=self.parameters)
        jac_to_grad(self.parameters, PCGrad())
        return Combination(losses.detach(), None, None, None, torch.zeros(()))


class TorchJDGramian(TaskBatched):
    """TorchJD's ``autogram``, told that tasks are the batch dimension, with its own PCGrad."""

    def __init__(self, network: nn.Module, num_tasks: int) -> None:
        super().__init__(network, num_tasks)
        self.engine = Engine(network, batch_dim=0)

    @contextmanager
    def record(self) -> Iterator[None]:
        """As `TaskBatched.record`; forgets what the engine saw of other losses, such as the actor's."""
        self.engine._gramian_accumulator.reset()
        self.engine._target_edges.reset()
        for computer in self.engine._gramian_computers.values():
            computer.reset()
        with super().record():
            yield

    def backward(self, losses: Tensor, combiner: Combiner, *, scale: float = 1.0, insight: bool = False) -> Combination:
        """As `TaskBatched.backward`; the combiner is TorchJD's."""
        weights = PCGradWeighting()(self.engine.compute_gramian(losses))
        gradients = torch.autograd.grad(losses, self.parameters, weights * scale, retain_graph=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return Combination(losses.detach(), weights, None, None, torch.zeros(()))


class LinearTwinCritic(nn.Module):
    """Two critics of plain layers, for ``autogram``, whose batch dimension has to come first in every layer."""

    def __init__(self, observation_size: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        sizes = [observation_size + ACTION_SIZE, *hidden_sizes, 1]
        self.members = nn.ModuleList()
        for _ in range(2):
            layers = [(nn.Linear(i, o), nn.ReLU()) for i, o in itertools.pairwise(sizes)]
            self.members.append(nn.Sequential(*[layer for pair in layers for layer in pair][:-1]))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """As `agents.networks.TwinCritic`."""
        x = torch.cat([observations, actions], -1)
        return torch.stack([member(x).squeeze(-1) for member in self.members])


def make_agent(num_tasks: int, batch_size: int, hidden_sizes: list[int], device: torch.device) -> MultiTaskSAC:
    """An agent with random transitions to learn from."""
    agent = MultiTaskSAC(
        [f"task {task}" for task in range(num_tasks)],
        OBSERVATION_SIZE,
        ACTION_SIZE,
        make_combiner("unitary", num_tasks),
        make_combiner("unitary", num_tasks),
        SACConfig(hidden_sizes=hidden_sizes),
        batch_size=batch_size,
        capacity=300,
        seed=0,
        device=device,
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        observations = torch.randn(2, num_tasks, OBSERVATION_SIZE, generator=generator)
        actions = torch.rand(num_tasks, ACTION_SIZE, generator=generator) * 2 - 1
        rewards = torch.rand(num_tasks, generator=generator) * 10
        agent.replay.add(observations[0], actions, rewards, observations[1], torch.zeros(num_tasks))
    return agent


def use_linear_critics(agent: MultiTaskSAC, hidden_sizes: Sequence[int]) -> None:
    """Gives an agent critics that ``autogram`` can read."""
    size = OBSERVATION_SIZE + len(agent.tasks)
    for name in ("critic", "target_critic"):
        setattr(agent, name, LinearTwinCritic(size, hidden_sizes).to(agent.device))
    agent.optimizers["critic"] = torch.optim.Adam(agent.critic.parameters(), fused=True)


# All with PCGrad
RIVALS: dict[str, type[TaskBatched]] = {
    "retain_graph_loop": RetainGraphLoop,
    "torchjd_autojac": TorchJDJacobian,
    "torchjd_autogram": TorchJDGramian,
}


def make_update(agent: MultiTaskSAC, name: str) -> Update:
    """The agent's full update under one method; all methods share the agent and its memory for Jacobians."""
    num_tasks = len(agent.tasks)
    critic = make_combiner("pcgrad" if name in RIVALS else name, num_tasks)
    # As in training: a method that needs positive losses serves the critic alone.
    actor = make_combiner("unitary" if critic.positive_losses else critic.name, num_tasks)
    pair = {"critic": critic.to(agent.device), "actor": actor.to(agent.device)}
    batched = agent.critic_gradients, agent.actor_gradients
    if name in RIVALS:
        batched = RIVALS[name](agent.critic, num_tasks), RIVALS[name](agent.actor, num_tasks)

    def update() -> None:
        agent.combiners = pair
        agent.critic_gradients, agent.actor_gradients = batched
        agent.update()

    return update


def overhead(arguments: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Times the full SAC update under every method, each right after unitary's, in rounds over all methods."""
    names = chosen(arguments.methods, [*combiners.names(), *RIVALS])
    rows: list[dict[str, Any]] = []
    for num_tasks, batch_size in arguments.cases:
        agent = make_agent(num_tasks, batch_size, arguments.hidden_sizes, device)
        unitary = make_update(agent, "unitary")
        updates: dict[str, Update] = {}
        for name in names:
            if name.startswith("torchjd") and Engine is None:
                continue
            own = agent
            if name == "torchjd_autogram":
                own = make_agent(num_tasks, batch_size, arguments.hidden_sizes, device)
                use_linear_critics(own, arguments.hidden_sizes)
            updates[name] = make_update(own, name)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in updates}
        title = f"{num_tasks} tasks x {batch_size} samples"
        for round_ in tracked(range(1 + arguments.repeats), title):
            for name, update in updates.items():
                if name in RIVALS and not 0 < round_ <= RIVAL_REPEATS:
                    continue
                pair = seconds(unitary, device), seconds(update, device)
                if round_ > 0:  # the first one warms up
                    times[name].append(pair)
        for name in names:
            row = {"tasks": num_tasks, "batch_size": batch_size, "method": name}
            row["needs"] = "rival" if name in RIVALS else combiners.get(name).needs
            if name in times:
                row["unitary_seconds"], row["seconds"] = zip(*times[name], strict=True)
                row["median"] = statistics.median(row["seconds"])
                row["ratio"] = statistics.median(time_ / base for base, time_ in times[name])
            rows.append(row)
    return rows


def overhead_table(rows: list[dict[str, Any]]) -> Table:
    """One line a method, one column a case."""
    table = Table(title="full SAC update: time relative to unitary scalarization's (and in milliseconds)")
    table.add_column("method", no_wrap=True)
    table.add_column("needs")
    lines: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        cell = f"{row['ratio']:.2f} ({1e3 * row['median']:.0f})" if "ratio" in row else "not installed"
        lines.setdefault((row["method"], row["needs"]), []).append(cell)
    for case in dict.fromkeys(f"{row['tasks']} x {row['batch_size']}" for row in rows):
        table.add_column(case, justify="right")
    order = ["losses", "gramian", "jacobian", "rival"]
    for method, needs in sorted(lines, key=lambda line: (order.index(line[1]), line[0])):
        table.add_row(method, needs, *lines[method, needs])
    return table


# ------------------------------------------------------------------------------------------------------- solvers


def aligned(num_tasks: int, generator: torch.Generator) -> Tensor:
    """Gradients that agree."""
    return random(1, generator) + 0.3 * random(num_tasks, generator)


def conflicting(num_tasks: int, generator: torch.Generator) -> Tensor:
    """Two camps that pull against each other."""
    side = 1.0 - 2.0 * (torch.arange(num_tasks) % 2)
    return side[:, None] * random(1, generator) + 0.3 * random(num_tasks, generator)


def random(num_tasks: int, generator: torch.Generator) -> Tensor:
    """Independent gradients."""
    return torch.randn(num_tasks, 200, generator=generator, dtype=torch.float64)


def rank_deficient(num_tasks: int, generator: torch.Generator) -> Tensor:
    """Half as many dimensions as gradients."""
    return random(num_tasks, generator)[:, : max(num_tasks // 2, 1)]


def spread(num_tasks: int, generator: torch.Generator) -> Tensor:
    """Norms from 1e-3 to 1e3."""
    return random(num_tasks, generator) * torch.logspace(-3, 3, num_tasks, dtype=torch.float64)[:, None]


FAMILIES = (random, aligned, conflicting, rank_deficient, spread)


def solvers(arguments: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Times the weights of every method that needs the Gramian alone."""
    valid = [name for name in combiners.names() if combiners.get(name).needs == "gramian"]
    rows: list[dict[str, Any]] = []
    for num_tasks in arguments.tasks:
        for name in tracked(chosen(arguments.methods, valid), f"{num_tasks} tasks"):
            for family in FAMILIES:
                jacobian = family(num_tasks, torch.Generator().manual_seed(0))
                gramian = (jacobian @ jacobian.T).float().to(device)
                losses = torch.linspace(0.5, 2, num_tasks, device=device)
                combiner = make_combiner(name, num_tasks).to(device)

                def solve(combiner: Combiner = combiner, losses: Tensor = losses, gramian: Tensor = gramian) -> Tensor:
                    return combiner.weights(losses, gramian)

                row: dict[str, Any] = {"tasks": num_tasks, "method": name, "family": family.__name__}
                try:
                    row["seconds"] = [seconds(solve, device) for _ in range(1 + arguments.repeats)][1:]
                    row["median"] = statistics.median(row["seconds"])
                except RunError as error:
                    row["no_solution"] = str(error)
                rows.append(row)
    return rows


def solvers_table(rows: list[dict[str, Any]]) -> Table:
    """One line a method and number of tasks, one column a family."""
    table = Table(title="from the Gramian to the weights: milliseconds")
    table.add_column("tasks", justify="right")
    table.add_column("method", no_wrap=True)
    for family in FAMILIES:
        table.add_column(family.__name__.replace("_", " "), justify="right")
    lines: dict[tuple[int, str], list[str]] = {}
    for row in rows:
        cell = f"{1e3 * row['median']:.2f}" if "median" in row else "no solution"
        lines.setdefault((row["tasks"], row["method"]), []).append(cell)
    for (num_tasks, method), cells in lines.items():
        table.add_row(str(num_tasks), method, *cells)
    return table


# -------------------------------------------------------------------------------------------------- command line


def chosen(methods: list[str] | None, valid: list[str]) -> list[str]:
    """The methods asked for, or all."""
    for method in methods or ():
        if method not in valid:
            raise unknown_name("method", method, valid)
    return methods or valid


def case(text: str) -> tuple[int, int]:
    """``TASKSxSAMPLES``, such as ``10x128``."""
    num_tasks, batch_size = (int(part) for part in text.split("x"))
    if min(num_tasks, batch_size) < 1:
        raise ValueError
    return num_tasks, batch_size


def positive(text: str) -> int:
    """An integer of at least 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--methods", nargs="+", help="by default all")
    common.add_argument("--repeats", type=positive, default=5, help="by default 5")
    common.add_argument("--threads", type=positive, help="of torch; by default what torch chooses")
    common.add_argument("--device", default="auto", help="auto, cpu or cuda")
    common.add_argument("--out", type=Path, help="by default runs/benchmark/COMMAND.json")
    whole = argparse.ArgumentParser(prog="benchmark.py", description=__doc__)
    commands = whole.add_subparsers(required=True, dest="command")
    command = commands.add_parser("overhead", parents=[common], help="full SAC updates under every combiner")
    command.add_argument("--cases", nargs="+", type=case, default=[(10, 128), (50, 128), (50, 26)], metavar="TxB")
    command.add_argument("--hidden-sizes", nargs="+", type=positive, default=[400, 400, 400])
    command.set_defaults(measure=overhead, table=overhead_table)
    command = commands.add_parser("solvers", parents=[common], help="from the Gramian to the weights")
    command.add_argument("--tasks", nargs="+", type=positive, default=[10, 50])
    command.set_defaults(measure=solvers, table=solvers_table)
    return whole


def main(command_line: Sequence[str] | None = None) -> None:
    """Measures, prints the table and writes the JSON file."""
    arguments = parser().parse_args(command_line)
    device = device_of(arguments.device)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    about = machine()
    if Engine is not None:
        about["versions"]["torchjd"] = version("torchjd")
    about |= {"device": str(device), "threads": torch.get_num_threads(), "repeats": arguments.repeats}
    rows = arguments.measure(arguments, device)
    out = arguments.out or Path("runs/benchmark") / f"{arguments.command}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, {"command": arguments.command, **about, "rows": rows})
    console = Console()
    console.print(arguments.table(rows))
    console.print(
        f"{about['processor']}, {about['cores']} cores, {about['threads']} threads, {about['gpu'] or 'no GPU'}, "
        f"device {device}; {', '.join(' '.join(item) for item in about['versions'].items())}",
        highlight=False,
    )
    console.print(f"written to {out}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run(main)
