"""Writes into a folder until that fails. Arguments: what, the folder, and the largest size of a file, 0 for any."""

import resource
import sys
from pathlib import Path

import torch

from mtrl.run.checkpoints import Checkpoints
from mtrl.run.directory import RunDirectory
from mtrl.run.metrics import MetricsWriter
from scripts.entry import one_line_errors

if __name__ == "__main__":
    what, folder, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with one_line_errors(debug=False):
        if what == "open":
            RunDirectory(folder, {"seed": 1}).close()
        elif what == "checkpoints":
            store = Checkpoints(folder)
            for step in range(1, 100_000):
                store.save(step, {"values": torch.arange(1000 * step)})
        else:
            writer = MetricsWriter(folder)
            for step in range(1, 100_000):
                writer.write(step, step / 10, {"train/loss": step / 2})
                if what == "curves":
                    writer.flush()
