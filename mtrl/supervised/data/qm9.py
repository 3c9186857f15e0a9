"""QM9 (Ramakrishnan et al., 2014): quantum-chemical properties of 130,831 molecules, from the package ``qm9pack``."""

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mtrl.errors import InputError
from mtrl.ranges import Count
from mtrl.supervised.benchmarks import benchmark
from mtrl.supervised.data.packages import data_of
from mtrl.supervised.message_passing import ELEMENTS, MessagePassing
from mtrl.supervised.problem import Benchmark, MultiTaskModel, Split
from mtrl.supervised.tasks import Metric, Task, check_tasks, regression

SOURCE = "the package qm9pack has the files (MIT, 104 MB): pip install qm9pack"
_FILES = ("qm9_part1.csv", "qm9_part2.csv", "qm9_part3.csv")
_MOST_ATOMS = 29
_HELD_OUT = 10_000
_ALL = 130_831
Division = Literal["navon", "dimenet", "cormorant"]
"""How molecules are divided, by who did so."""
_FIXED = {"dimenet": (42, 110_000, 10_000), "cormorant": (0, 100_000, 17_748)}
"""Of which NumPy's generator has shuffled all: its seed, then how many are for training and for validation."""
_EV = 27.211386246  # per Hartree, as torch_geometric has it


class Property(NamedTuple):
    """One target: its column, and how it is reported.

    ``atoms`` are Hartree of one H, C, N, O and F, by the data set's own ``atomref.txt``: what is predicted is the
    energy without theirs, of atomisation.
    """

    column: str
    unit: str
    factor: float = 1.0
    atoms: tuple[float, ...] = ()


PROPERTIES = {
    "mu": Property("Dipole_debye", "D"),
    "alpha": Property("Polarizability_bohr3", "bohr3"),
    "homo": Property("HOMO_au", "meV", 1000 * _EV),
    "lumo": Property("LUMO_au", "meV", 1000 * _EV),
    "r2": Property("R2_bohr2", "bohr2"),
    "zpve": Property("ZPVE_au", "meV", 1000 * _EV),
    "U0": Property(
        "InternalEnergy_0K_au", "meV", 1000 * _EV, (-0.500273, -37.846772, -54.583861, -75.064579, -99.718730)
    ),
    "U": Property(
        "InternalEnergy_298K_au", "meV", 1000 * _EV, (-0.498857, -37.845355, -54.582445, -75.063163, -99.717314)
    ),
    "H": Property("Enthalphy_298K_au", "meV", 1000 * _EV, (-0.497912, -37.844411, -54.581501, -75.062219, -99.716370)),
    "G": Property(
        "GibbsFreeEnergy_298K_au", "meV", 1000 * _EV, (-0.510927, -37.861317, -54.598897, -75.079532, -99.733544)
    ),
    "Cv": Property("Heatcapacity_Cv_cal_mol_K", "cal_mol_K"),
}
"""The eleven of the literature (Navon et al., 2022), in its order and units; without the gap of HOMO and LUMO."""


@benchmark("qm9")
def qm9(
    tasks: Sequence[str] = tuple(PROPERTIES),
    dropout: float = 0.0,
    *,
    data_dir: str | None = None,
    molecules: Count | None = None,
    split: Division = "navon",
    order: str | None = None,
    data_seed: int = 0,
    width: Count = 64,
) -> Benchmark:
    """Eleven properties of small organic molecules, from elements and coordinates.

    Targets are normalised by the training split's mean and deviation, and errors reported in the papers' units: meV for
    energies, those of atomisation for U0, U, H and G. Raises `InputError` on an unknown task or split, or if a file is
    missing or not qm9pack's.

    Args:
        tasks: a selection of `PROPERTIES`.
        dropout: of the representation.
        data_dir: where the files ``qm9_part1.csv`` to ``qm9_part3.csv`` are; None is in the installed package.
        molecules: how many, drawn at random; None is all.
        split: ``navon`` has 10,000 molecules for the test, 10,000 for validation, or a tenth each if that is less
            (Navon et al., 2022, and their successors). The others are always the same molecules: ``dimenet`` 110,000
            for training, 10,000 for validation and the rest for the test (Gasteiger et al., 2020); ``cormorant``
            100,000 for training, a tenth for the test and the rest for validation (Anderson et al., 2019, as their
            successors read it: their own code swaps the last two). Of fewer molecules each has its share.
        order: a file with the molecules' numbers from 0, which then are not shuffled: one a line, or a tensor saved by
            torch, such as LibMTL's. Test comes first, then validation, then training.
        data_seed: draws molecules and splits of ``navon``; the same for every seed of training, unless it is set to it.
        width: of the network, 64 in the papers.
    """
    tasks = check_tasks(tasks, list(PROPERTIES))
    files = [_folder(data_dir) / name for name in _FILES]
    rows = list(chain.from_iterable(map(_rows, files)))
    if order is None and split in _FIXED:
        if data_seed:
            raise InputError(f"data_seed: split={split} is always the same molecules")
        parts = _fixed(split, len(rows), molecules or len(rows))
    else:
        shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(data_seed))
        numbers = (shuffled if order is None else read_order(Path(order), len(rows)))[:molecules]
        parts = torch.split(numbers, _sizes(split, len(numbers)))
    chosen, (test, held_out, _) = torch.cat(parts), map(len, parts)
    if not all(map(len, parts)):
        raise InputError(f"molecules: {molecules or len(rows)} are too few for three splits, expected at least 14")
    atoms = torch.zeros(len(chosen), _MOST_ATOMS, 4)
    targets = torch.zeros(len(chosen), len(tasks), dtype=torch.float64)
    for place, number in enumerate(chosen.tolist()):
        atoms[place], targets[place] = _read(rows[number], tasks)
    train = targets[test + held_out :]
    mean, deviation = train.mean(0), train.std(0)
    if not bool((deviation > 0).all()):
        raise InputError(f"{tasks[int(deviation.argmin())]} is the same for all {len(train)} training molecules")
    normalised = ((targets - mean) / deviation).float()
    splits = [
        Split(atoms[part], {task: normalised[part, column, None] for column, task in enumerate(tasks)})
        for part in (slice(test + held_out, None), slice(test, test + held_out), slice(test))
    ]
    kinds = {task: _task(task, float(deviation[column])) for column, task in enumerate(tasks)}
    encoder = nn.Sequential(MessagePassing(width), nn.Dropout(dropout))
    return Benchmark(kinds, MultiTaskModel(encoder, {task: nn.Linear(width, 1) for task in tasks}), *splits)


def _sizes(split: Division, count: int) -> list[int]:
    """How many molecules are for the test, for validation and for training."""
    if split == "navon":
        tenth = min(_HELD_OUT, count // 10)
        return [tenth, tenth, count - 2 * tenth]
    _, training, held_out = _FIXED[split]
    training, held_out = count * training // _ALL, count * held_out // _ALL
    return [count - training - held_out, held_out, training]


def _fixed(split: Division, count: int, molecules: int) -> tuple[Tensor, ...]:
    """The numbers of a split's molecules, of ``count``: for the test, for validation and for training."""
    seed, *_ = _FIXED[split]
    shuffled = torch.from_numpy(np.random.RandomState(seed).permutation(count))
    parts = torch.split(shuffled, _sizes(split, count)[::-1])[::-1]
    return tuple(part[: len(part) * molecules // count] for part in parts)


def read_order(path: Path, count: int) -> Tensor:
    """The numbers of so many molecules in a file, see `qm9`; `InputError` if it is not an order of them."""
    try:
        content = path.read_bytes()
        if content[:1].isdigit():
            numbers = torch.tensor([int(line) for line in content.split()])
        else:
            numbers = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise InputError(f"order: {path} has no numbers of molecules ({' '.join(str(error).split())[:80]})") from error
    if not isinstance(numbers, Tensor) or numbers.ndim != 1 or numbers.is_floating_point() or numbers.is_complex():
        raise InputError(f"order: {path} is not one list of whole numbers")
    outside = ((numbers < 0) | (numbers >= count)).nonzero()
    if len(outside) or len(set(numbers.tolist())) < len(numbers):
        found = f"{int(numbers[outside[0]])} among them" if len(outside) else "one of them twice"
        raise InputError(f"order: {path} has {len(numbers):,} numbers, {found}: expected 0 to {count - 1:,}, each once")
    return numbers.long()


class Row(NamedTuple):
    """One molecule's line."""

    place: str
    values: dict[str, str]


def _task(name: str, deviation: float) -> Task:
    described = PROPERTIES[name]
    error = Metric(f"mae_{described.unit}", False, partial(_absolute_errors, deviation * described.factor))
    plain = regression()
    return Task(plain.loss, (error,), plain.check, plain.present)


def _absolute_errors(scale: float, outputs: Tensor, targets: Tensor) -> Tensor:
    return scale * (outputs - targets).abs().squeeze(1)


def _read(row: Row, tasks: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Atoms ``[29, 4]``: atomic number, 0 where there is none, and coordinates in Angstrom; and targets ``[T]``."""
    elements = row.values["Elements"].strip("[]").replace("'", "").split(",")
    found = np.zeros((_MOST_ATOMS, 4), np.float32)
    try:
        numbers = [ELEMENTS[element.strip()] for element in elements]
        coordinates = row.values["XYZ_Ang"].replace("[", "").replace("]", "").split(",")
        found[: len(numbers)] = np.column_stack([numbers, np.array(coordinates, float).reshape(len(numbers), 3)])
        targets = [_target(PROPERTIES[task], row.values, numbers) for task in tasks]
    except (KeyError, ValueError) as error:
        raise InputError(f"{row.place}: these are no elements, coordinates and properties ({error})") from error
    if not np.isfinite(found).all() or not np.isfinite(targets).all():
        raise InputError(f"{row.place}: a number is not finite")
    return torch.from_numpy(found), torch.tensor(targets, dtype=torch.float64)


def _target(described: Property, values: dict[str, str], numbers: Sequence[int]) -> float:
    value = float(values[described.column])
    of_atoms = dict(zip(ELEMENTS.values(), described.atoms, strict=False))
    return value - sum(of_atoms.get(number, 0.0) for number in numbers)


def _rows(path: Path) -> Iterator[Row]:
    needed = {"Elements", "XYZ_Ang", *(described.column for described in PROPERTIES.values())}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, restval="")
            if lacking := needed - set(reader.fieldnames or ()):
                raise InputError(f"{path} has no column {', '.join(sorted(lacking))}: it is not qm9pack's")
            for values in reader:
                yield Row(f"{path}, line {reader.line_num}", {name: values[name] for name in needed})
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); {SOURCE}") from error


def _folder(data_dir: str | None) -> Path:
    return data_of("qm9pack", data_dir, f"benchmark=qm9: {SOURCE}, or data_dir=DIR with {', '.join(_FILES)}")
