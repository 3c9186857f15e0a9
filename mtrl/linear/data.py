"""Regression problems for linear multi-task learning, from files of the user's or from scikit-learn's wheel."""

import csv
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mtrl.errors import InputError

Array = npt.NDArray[np.float64]

TOLERANCE = 1e-9
"""Cosines and relative errors below this count as 0."""


@dataclass(frozen=True)
class Problem:
    """k regression targets on p inputs, standardised.

    Attributes:
        inputs: ``[n, p]``.
        targets: ``[n, k]``.
        gramian: ``[k, k]``, of the least-squares predictions, divided by n.
        variances: ``[k]``, the mean squares of the targets (1, but for rounding).
    """

    inputs: Array
    targets: Array
    gramian: Array
    variances: Array


def standardised(inputs: Array, targets: Array) -> Problem:
    """A problem whose inputs ``[n, p]`` and targets ``[n, k]`` get mean 0, variance 1; constant inputs are left out.

    Raises:
        InputError: if a value is not finite, a target is constant, or no input varies.
    """
    for name, values in (("input", inputs), ("target", targets)):
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise InputError(f"{name} {column + 1} of record {row + 1} is not a finite number")
    scale, spread = inputs.std(0), targets.std(0)
    varying = scale > TOLERANCE * np.abs(inputs).max(0)
    if not varying.any():
        raise InputError("no input varies")
    constant = np.flatnonzero(spread <= TOLERANCE * np.abs(targets).max(0))
    if len(constant):
        raise InputError(f"target {constant[0] + 1} is constant: there is nothing to predict")
    x = (inputs - inputs.mean(0))[:, varying] / scale[varying]
    y = (targets - targets.mean(0)) / spread
    predictions = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return Problem(x, y, predictions.T @ predictions / len(x), np.square(y).mean(0))


def load(data: str, outputs: int | None = None) -> tuple[Array, Array]:
    """Inputs ``[n, p]`` and targets ``[n, k]``.

    Args:
        data: ``linnerud`` (20 records, from scikit-learn), or a file: ``.csv``, with or without a header, or ``.mat``
            with one table; SARCOS has 21 inputs and 7 joint torques.
        outputs: how many of the last columns are targets; SARCOS and ``linnerud`` need none.

    Raises:
        InputError: if the data are missing, damaged or not a table of numbers.
    """
    if data == "linnerud":
        try:
            from sklearn.datasets import load_linnerud  # type: ignore[import-untyped]
        except ImportError as error:
            raise InputError("data=linnerud needs scikit-learn: pip install scikit-learn") from error
        source = load_linnerud()
        return np.asarray(source.data, dtype=np.float64), np.asarray(source.target, dtype=np.float64)
    path = Path(data)
    if not path.is_file():
        raise InputError(
            f"there is no file '{path}' (data= takes a .mat or .csv file, linnerud or simulated). SARCOS is published "
            "at http://www.gaussianprocess.org/gpml/data/ without a licence; nothing is downloaded here"
        )
    read = {".mat": _read_mat, ".csv": _read_csv}.get(path.suffix)
    if read is None:
        raise InputError(f"'{path}' is neither a .mat nor a .csv file")
    table, known = read(path)
    columns = table.shape[1]
    outputs = known if outputs is None else outputs
    if outputs is None:
        raise InputError(f"'{path}' needs outputs=K: how many of its {columns} columns, the last, are targets")
    if not 1 <= outputs < columns:
        raise InputError(f"outputs: expected 1 to {columns - 1} of {columns} columns, got {outputs}")
    return table[:, :-outputs], table[:, -outputs:]


def _read_mat(path: Path) -> tuple[Array, int | None]:
    """The one table of a file, and how many targets it is known to have."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise InputError("a .mat file needs SciPy: pip install scipy") from error
    # In a process of its own: some damaged files end SciPy's with a bus error.
    context = get_context("forkserver")
    context.set_forkserver_preload(["scipy.io"])
    with ProcessPoolExecutor(1, context) as process:
        try:
            content = process.submit(loadmat, path).result()
        except Exception as error:  # SciPy has no common class for what a damaged file raises
            raise InputError(f"'{path}' is not a whole MATLAB file ({' '.join(str(error).split())})") from error
    names = [name for name in content if not name.startswith("__")]
    if len(names) != 1:
        raise InputError(f"'{path}': expected one table, found {', '.join(names) or 'none'}")
    name, table = names[0], content[names[0]]
    if getattr(table, "ndim", 0) != 2 or table.dtype.kind not in "fiu":
        raise InputError(f"'{path}': {name} is not a table of numbers")
    sarcos = name.startswith("sarcos_inv")
    if sarcos and table.shape[1] != 28:
        raise InputError(f"'{path}': {name} has {table.shape[1]} columns, SARCOS has 28 (21 inputs, 7 torques)")
    return np.asarray(table, dtype=np.float64), 7 if sarcos else None


def _read_csv(path: Path) -> tuple[Array, None]:
    rows: list[list[float]] = []
    try:
        with path.open(newline="") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if not row:
                    continue
                try:
                    values = [float(cell) for cell in row]
                except ValueError as error:
                    if number == 1:
                        continue
                    raise InputError(f"'{path}', line {number}: {error}") from error
                if rows and len(values) != len(rows[0]):
                    raise InputError(f"'{path}', line {number}: {len(values)} columns, expected {len(rows[0])}")
                rows.append(values)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{path}' is not a CSV file ({error})") from error
    if not rows:
        raise InputError(f"'{path}' has no records")
    return np.array(rows), None
