"""The supervised sibling: the same combiners, on supervised multi-task problems.

`Benchmark` says what a problem consists of, `benchmarks` finds one by name, `loop.Trainer` trains a model on it.
Importing this needs torch and numpy alone; scikit-learn and SciPy are loaded by the data sets that come with them.
"""

from mtrl.supervised.problem import Benchmark, MultiTaskModel, Split
from mtrl.supervised.tasks import MaskedTargets, Metric, Task, WholeSplit, binary, classification, regression

__all__ = [
    "Benchmark",
    "MaskedTargets",
    "Metric",
    "MultiTaskModel",
    "Split",
    "Task",
    "WholeSplit",
    "binary",
    "classification",
    "regression",
]
