"""Single-task training as the literature reports it, from the data file beside this one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).with_name("single_task.yaml")


@dataclass(frozen=True)
class Reference:
    """What one source reports of single-task training on a benchmark.

    Attributes:
        name: who reports it.
        source: where.
        setting: how it was trained.
        metrics: by task, and then by the metric's name.
    """

    name: str
    source: str
    setting: str
    metrics: Mapping[str, Mapping[str, float]]

    def by_key(self, labels: Mapping[str, str]) -> dict[str, float] | None:
        """Its numbers by metric key, of the tasks that are there; None where one of these has none, or a metric lacks.

        ``labels`` are the task and the metric's name, a space between them, by key.
        """
        keys = {label: key for key, label in labels.items()}
        tasks = {key.split("/")[0] for key in labels}
        if not tasks <= self.metrics.keys():
            return None
        wanted = {f"{task} {name}": number for task in tasks for name, number in self.metrics[task].items()}
        return {keys[label]: number for label, number in wanted.items()} if wanted.keys() <= keys.keys() else None


def published(benchmark: str) -> list[Reference]:
    """What is known of a benchmark; nothing of most."""
    known: dict[str, list[dict[str, Any]]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return [Reference(**entry) for entry in known.get(benchmark, [])]
