"""An update of CelebA's network on made-up faces under every combiner, and what loading a batch takes."""

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from mtrl import combiners
from mtrl.errors import InputError
from mtrl.run.machine import peak_memory
from mtrl.supervised.data.celeba import celeba
from mtrl.supervised.loading import Loader, LoadingOptions, Portion
from mtrl.supervised.methods.combined import CombinedUpdate
from mtrl.supervised.problem import Benchmark
from mtrl.supervised.updates import OptimizerOptions, Setup, Wrt
from scripts.benchmarks.timing import Line, Row, Work, interleaved, milliseconds, processor_seconds, ratio
from scripts.benchmarks.timing import seconds as wall_seconds
from scripts.benchmarks.updates import chosen, make_combiner

TITLE = "update of CelebA's network: time relative to unitary scalarization's (and in milliseconds)"
WORDS = ("method", "needs")
_LOADING = ("loading", "loading_cached")
_BATCHES = 4
"""That there are samples for."""


def measure(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    """Times an update under every method, each right after unitary's, in rounds over all methods.

    On a CPU that is this process's processor time, which others do not lengthen. Loading is timed on the wall's clock:
    workers read a batch of images while nothing else is done.
    """
    names = chosen(arguments.methods, [*combiners.names(), *_LOADING])
    for precision in arguments.precision:
        if precision not in ("fp32", "bf16"):
            raise InputError(f"precision: expected fp32 or bf16, got {precision}")
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        write_faces(Path(folder), arguments.tasks, _BATCHES * arguments.batch_size)
        for precision in arguments.precision:
            benchmark = celeba(data_dir=folder, network=arguments.network)
            benchmark.model.to(device)
            benchmark.model.compute(precision, channels_last=arguments.channels_last)
            of_updates = _updates(benchmark, [name for name in names if name not in _LOADING], arguments, device)
            rows += [{"precision": precision} | row for row in of_updates]
        for name in names:
            if name in _LOADING:
                times = _loading(benchmark, device, arguments, cached=name == _LOADING[1])
                row: Row = {"precision": "", "method": name, "needs": "", "seconds": times, "median": median(times)}
                rows.append(row)
    case = {"tasks": arguments.tasks, "batch_size": arguments.batch_size, "wrt": arguments.wrt}
    return [case | {"network": arguments.network} | row for row in rows]


def _updates(
    benchmark: Benchmark, names: Sequence[str], arguments: argparse.Namespace, device: torch.device
) -> list[Row]:
    loader = Loader(benchmark, device)
    batch = next(loader.whole("training", arguments.batch_size))
    loader.close()
    base = CombinedUpdate(_setup(benchmark, "unitary", "shared"))

    def work(name: str, wrt: Wrt) -> Work:
        needs = combiners.get(name).needs
        update = CombinedUpdate(_setup(benchmark, name, "shared" if needs == "losses" else wrt, arguments.memory_limit))
        update.optimizer = base.optimizer  # one for all: its memory is not what is compared
        return lambda: update.step(batch, lambda: batch, lambda: None)

    clock = processor_seconds if device.type == "cpu" else partial(wall_seconds, device=device)
    unitary = work("unitary", "shared")
    costs = {name: partial(_pair, clock, unitary, work(name, arguments.wrt)) for name in names}
    return _rows(costs, arguments, device)


def _setup(benchmark: Benchmark, name: str, wrt: Wrt, memory: float | None = None) -> Setup:
    made = make_combiner(name, len(benchmark.tasks))
    if name == "modo":  # there are no halves of what all tasks share
        made = combiners.make(name, len(benchmark.tasks), rescale=True, halves=False)
    return Setup(benchmark, made, OptimizerOptions(), wrt, memory_limit=memory)


def _pair(clock: Any, unitary: Work, update: Work) -> tuple[float, float]:
    return clock(unitary), clock(update)


def _rows(costs: dict[str, Any], arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    base, own = interleaved(costs, arguments.repeats, f"{arguments.tasks} tasks x {arguments.batch_size} images")
    rows: list[Row] = []
    for name in costs:
        found = {"unitary_seconds": base[name], "seconds": own[name], "median": median(own[name])}
        row = {"method": name, "needs": combiners.get(name).needs, "ratio": ratio(own[name], base[name])}
        rows.append(row | found | ({"peak_gib": peak_memory(device)} if len(costs) == 1 else {}))
    return rows


def _loading(benchmark: Benchmark, device: torch.device, arguments: argparse.Namespace, *, cached: bool) -> list[float]:
    """Seconds for each batch of a pass, by workers that are there already."""
    loader = Loader(benchmark, device, options=LoadingOptions(cache=0.5 if cached else 0.0))
    order = torch.split(torch.arange(len(benchmark.train)), arguments.batch_size)

    def requests() -> Iterator[Sequence[Portion]]:
        for number in range(1 + arguments.repeats):
            yield from ([Portion("training", indices.tolist(), number)] for indices in order)

    times, last = [], time.perf_counter()
    for _ in loader.batches(requests()):
        times.append(time.perf_counter() - last)
        last = time.perf_counter()
    loader.close()
    return times[len(order) :]


def write_faces(folder: Path, tasks: int, count: int) -> None:
    """Made-up faces in the layout of CelebA's authors: as many pixels, nearly as many bytes, attributes by chance."""
    random = np.random.default_rng(0)
    names = [f"attribute_{number}" for number in range(tasks)]
    images = folder / "Img" / "img_align_celeba"
    for place in (images, folder / "Anno", folder / "Eval"):
        place.mkdir(parents=True)
    lines, parts = [], []
    total = count + 2
    for number in range(total):
        file = f"{number + 1:06}.jpg"
        coarse = Image.fromarray(random.integers(0, 256, (28, 23, 3), dtype=np.uint8))
        coarse.resize((178, 218), Image.Resampling.BICUBIC).save(images / file, quality=90)
        signs = " ".join("1" if sign else "-1" for sign in random.integers(0, 2, tasks))
        lines.append(f"{file} {signs}\n")
        parts.append(f"{file} {max(number - count + 1, 0)}\n")
    (folder / "Anno" / "list_attr_celeba.txt").write_text(f"{total}\n{' '.join(names)}\n{''.join(lines)}")
    (folder / "Eval" / "list_eval_partition.txt").write_text("".join(parts))


def lines(rows: list[Row]) -> Iterator[Line]:
    """One line a method, one column a case."""
    order = ["losses", "gramian", "jacobian", ""]
    for row in sorted(rows, key=lambda row: (order.index(row["needs"]), row["method"])):
        taken = f"({milliseconds(row['median'])})"
        if "ratio" in row:
            case = f"{row['tasks']} x {row['batch_size']} by {row['wrt']}, {row['precision']}"
            numbers = {case: f"{row['ratio']:.2f} {taken}"}
        else:
            numbers = {f"a batch of {row['batch_size']}": taken}
        if "peak_gib" in row:
            numbers |= {key.replace("_", " "): f"{peak:.2f}" for key, peak in row["peak_gib"].items()}
        yield (row["method"], row["needs"]), numbers
