"""One of two processes, each with half of every batch: all methods, beside one process with the whole batch.

Arguments: rank, a file where the processes meet, a file for what was found.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, distributed, nn

from mtrl import combiners, gradients
from mtrl.errors import InputError, RunError

TASKS, SAMPLES, STEPS = 3, 8, 2
COUNTED = [("unitary", "shared"), ("mgda", "shared"), ("mgda", "last"), ("mgda", "aliases"), ("graddrop", "aliases")]
WAYS = ("shared", "last", "representation", "aliases")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(TASKS))
        self.unused = nn.Parameter(torch.ones(3))


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    for _ in range(STEPS):
        x = torch.randn(SAMPLES, 5, generator=generator)
        yield x, torch.randn(TASKS, SAMPLES, 2, generator=generator) + 1


def trained(name: str, way: str, group: distributed.ProcessGroup | None, **options: Any) -> list[Tensor]:
    """The parameters, and losses, weights, alignments and norms of every step."""
    torch.manual_seed(0)
    own: dict[str, dict[str, Any]] = {"fixed": {"weights": [0.5, 2.0, 0.3]}, "modo": {"halves": False}}
    model, combiner = Model(), combiners.make(name, TASKS, seed=1, **own.get(name, {}))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    found: list[Tensor] = []
    for x, y in batches():
        if group is not None:
            half = slice(group.rank() * SAMPLES // 2, (group.rank() + 1) * SAMPLES // 2)
            x, y = x[half], y[:, half]

        def losses(reads: Sequence[Tensor], y: Tensor = y) -> list[Tensor]:
            return [(head(z) - own).square().mean() for head, z, own in zip(model.heads, reads, y, strict=True)]

        z = model.encoder(x)
        aliases = gradients.fan_out(z, TASKS)
        optimizer.zero_grad()
        combination = gradients.backward(
            losses(aliases if way == "aliases" else [z] * TASKS),
            combiner,
            shared=[*model.encoder.parameters(), model.unused],
            specific=model.heads,
            representation={"representation": z, "aliases": aliases}.get(way),
            measured=model.encoder[2].parameters() if way == "last" else None,
            group=group,
            **options,
        )
        assert model.unused.grad is None
        optimizer.step()
        if combiner.needs_losses_after_step:
            after = torch.stack(losses([model.encoder(x)] * TASKS)).detach()
            combiner.after_step(gradients.mean_losses(after, group))
        told = combination.losses, combination.weights, combination.gramian, combination.alignment
        found += [*(value for value in told if value is not None), combination.update_norm]
    return [*(p.detach().clone() for p in model.parameters()), *found]


def cases() -> Iterator[tuple[str, str]]:
    for name in combiners.names():
        for way in WAYS:
            if way != "last" or combiners.get(name).needs != "jacobian":
                yield name, way


def refused(group: distributed.ProcessGroup) -> dict[str, str]:
    """What is said to one who makes the processes differ."""
    rank = group.rank()

    def attempt(seed: int = 0, options: int = 0, samples: int = 4, loss: float = 1.0, **backward: Any) -> str:
        torch.manual_seed(seed)
        encoder = nn.Linear(5, 4)
        z = encoder(torch.ones(samples, 5))
        losses = [z.square().mean() * loss, (z - 1).square().mean()]
        combiner = combiners.make("rlw_normal", 2, seed=options)
        kept = {"group": group, "representation": z} | backward
        try:
            gradients.backward(losses, combiner, shared=encoder, insight=True, **kept)
        except (InputError, RunError) as error:
            return str(error)
        return ""

    return {
        "alike": attempt(),
        "parameters": attempt(seed=rank),
        "combiners": attempt(options=rank),
        "samples": attempt(samples=4 + rank),
        "loss of one": attempt(loss=float("nan") if rank else 1.0),
        "forgotten": attempt(group=None),
        "not a member": attempt(group=distributed.GroupMember.NON_GROUP_MEMBER),
    }


def numbers_sent(name: str, way: str, group: distributed.ProcessGroup) -> int:
    """How many numbers an update gives to the other process, averaged over `STEPS`."""
    sent: list[int] = []

    def counted(call: Callable[..., Any], argument: int) -> Callable[..., Any]:
        def counting(*args: Any, **options: Any) -> Any:
            sent.append(args[argument].numel())
            return call(*args, **options)

        return counting

    with (
        patch.object(distributed, "all_reduce", counted(distributed.all_reduce, 0)),
        patch.object(distributed, "all_gather", counted(distributed.all_gather, 1)),
    ):
        trained(name, way, group)
    return sum(sent) // STEPS


def difference(ours: list[Tensor], theirs: list[Tensor] | None) -> float:
    """The largest; 0 in the process that has nothing to compare with (processes that drift apart stop themselves)."""
    return 0 if theirs is None else max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    rank, store, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    alone = {case: trained(*case, None) if rank == 0 else None for case in cases()}
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    world = distributed.group.WORLD
    assert world is not None
    found = {}
    for case, expected in alone.items():
        found[" ".join(case)] = difference(trained(*case, world), expected)
    limited = trained("pcgrad", "shared", world, memory_limit=8 * TASKS * 30)
    found["pcgrad in blocks"] = difference(limited, alone["pcgrad", "shared"])
    with (folder / f"{rank}.json").open("w") as file:
        sent = {" ".join(case): numbers_sent(*case, world) for case in COUNTED}
        json.dump({"error": found, "said": refused(world), "sent": sent}, file)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
