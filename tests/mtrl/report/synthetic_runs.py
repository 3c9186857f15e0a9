"""Run directories as training leaves them, made of arithmetic instead of learning."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from mtrl.gradients import Combination
from mtrl.gradients.conflict import conflict_metrics
from mtrl.rl.evaluation import Evaluation

CONFIG: dict[str, Any] = {
    "benchmark": {"name": "mt10", "horizon": 500},
    "task": None,
    "agent": {"hidden_sizes": [400, 400, 400], "learning_rate": 3e-4},
    "batch_size": 128,
    "eval": {"every": 1000, "episodes": 50, "goals": "both"},
    "device": "auto",
    "num_workers": None,
    "progress": True,
    "debug": False,
}
TASKS = ["reach-v3", "push-v3", "pick-place-v3"]
MACHINE = {
    "versions": {"python": "3.11.7", "mtrl": "0.1.0", "torch": "2.13.0", "metaworld": "3.1.1", "mujoco": "3.3.0"},
    "processor": "A processor",
    "cores": 2,
    "gpu": None,
}


def write_run(
    directory: Path,
    combiner: str = "unitary",
    seed: int = 0,
    *,
    options: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    tasks: Sequence[str] = TASKS,
    level: float = 0.8,
    evaluations: int = 10,
    finished: bool = True,
    conflict: bool = True,
    logs_per_evaluation: int = 2,
    seconds_per_step: float = 0.01,
    machine: Mapping[str, Any] = MACHINE,
) -> Path:
    """Writes a run that learns towards ``level``; everything in it follows from its arguments."""
    rng = np.random.default_rng([seed, len(tasks), *combiner.encode()])
    resolved = copy.deepcopy(CONFIG) | {"tasks": list(tasks), "combiner": {"name": combiner} | dict(options or {})}
    resolved |= {"seed": seed, "run_dir": str(directory)} | dict(config or {})
    every = resolved["eval"]["every"]
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    entries: list[dict[str, Any]] = []
    ability = np.clip(level + 0.1 * rng.normal(size=len(tasks)) + 0.05 * rng.normal(), 0, 1)
    log_every = every // logs_per_evaluation
    for step in range(log_every, evaluations * every + 1, log_every):
        when = {"step": step, "time": round(step * seconds_per_step, 3)}
        entries.append(when | _training(tasks, rng, seconds_per_step))
        if conflict:
            progress = step / (evaluations * every)
            entries.append(when | _conflict(tasks, combiner, progress, rng) | _plasticity(progress))
        if step % every == 0:
            learned = ability * (1 - np.exp(-5 * step / (evaluations * every)))
            episodes = rng.random((len(tasks), resolved["eval"]["episodes"])) < learned[:, None]
            others = np.random.default_rng([seed, step]).random(episodes.shape) < 0.9 * learned[:, None]
            found = {"eval/": episodes, "eval/held_out/": others}
            measured = [Evaluation(list(tasks), {"success": own}).metrics(prefix) for prefix, own in found.items()]
            entries.append(when | measured[0] | measured[1])
    write_entries(directory, entries)
    if finished:
        summary = {
            "tasks": list(tasks),
            "steps": evaluations * every,
            "seconds": evaluations * every * seconds_per_step,
            "episodes_per_evaluation": resolved["eval"]["episodes"],
            "evaluated_on": ["training", "held_out"],
            "memory": {"process_gib": round(1 + rng.random(), 3)},
            "machine": dict(machine),
            "command": ["scripts/train.py", f"combiner={combiner}", f"seed={seed}"],
        }
        (directory / "summary.json").write_text(json.dumps(summary))
    return directory


def write_entries(directory: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Writes what a run logged: numbers and matrices in a file each."""
    lines: dict[str, list[str]] = {"metrics.jsonl": [], "matrices.jsonl": []}
    for entry in entries:
        when = {key: entry[key] for key in ("step", "time")}
        matrices = {key: value for key, value in entry.items() if isinstance(value, list)}
        numbers = {key: value for key, value in entry.items() if key not in matrices}
        lines["metrics.jsonl"].append(json.dumps(numbers))
        if matrices:
            lines["matrices.jsonl"].append(json.dumps(when | matrices))
    for name, written in lines.items():
        (directory / name).write_text("".join(line + "\n" for line in written))


def write_sweep(folder: Path, combiners: Mapping[str, float], seeds: Sequence[int], **options: Any) -> Path:
    """Writes a run for each combiner and seed; ``combiners`` says what level each learns towards."""
    for combiner, level in combiners.items():
        for seed in seeds:
            write_run(folder / f"{combiner}-{seed}", combiner, seed, level=level, **options)
    return folder


SUPERVISED_CONFIG: dict[str, Any] = {
    "benchmark": {"name": "multi_digits", "pairs_per_digit": 5, "data_seed": 0},
    "combiner": {"name": "unitary"},
    "method": {"name": "combined"},
    "wrt": "shared",
    "weights_from": None,
    "epochs": 8,
    "batch_size": 256,
    "dropout": 0.5,
    "selection": None,
    "optimizer": {"name": "adam", "learning_rate": 1e-3, "weight_decay": 0.0, "momentum": 0.0},
    "device": "auto",
    "progress": True,
    "debug": False,
}


def write_supervised_run(
    directory: Path,
    tasks: Sequence[str] = ("CL", "RR"),
    combiner: str = "unitary",
    seed: int = 0,
    *,
    config: Mapping[str, Any] | None = None,
    level: float = 0.9,
    test: Mapping[str, float] | None = None,
    epochs: int = 8,
    finished: bool = True,
    machine: Mapping[str, Any] = MACHINE,
) -> Path:
    """Writes a supervised run; tasks that begin with R are judged by an error, the others by an accuracy.

    Test accuracies are near ``level``, errors near a tenth of what is missing to 1, unless ``test`` says what they are.
    """
    rng = np.random.default_rng([seed, len(tasks), *combiner.encode()])
    resolved = copy.deepcopy(SUPERVISED_CONFIG) | {"tasks": list(tasks), "combiner": {"name": combiner}, "seed": seed}
    resolved |= {"run_dir": str(directory)} | dict(config or {})
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    metrics = {
        task: {"name": "squared_error" if error else "accuracy", "higher_is_better": not error}
        for task in tasks
        for error in [task.startswith("R")]
    }
    accuracies = level + 0.01 * rng.normal(size=len(tasks))
    reached = {
        task: float(accuracy if metrics[task]["higher_is_better"] else (1 - accuracy) / 10)
        for task, accuracy in zip(tasks, accuracies, strict=True)
    }
    entries: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        entry: dict[str, Any] = {"step": 10 * epoch, "time": 2.5 * epoch, "epoch": epoch}
        for task, value in reached.items():
            entry[f"val/{task}"] = value * (1 - 0.5 ** (2 * epoch)) + float(0.005 * rng.normal())
            entry[f"train/loss/{task}"] = float(rng.random())
        conflict = _conflict(tasks, combiner, epoch / epochs, rng, ("shared",))
        for key, value in conflict.items():
            if key.startswith("conflict/shared/weight/"):
                entry[key.replace("conflict/shared/weight", "train/weight")] = value
            else:
                entry[key.replace("_to_update", "_to_average")] = value
        entry |= {"distance/total": 3.0 * epoch, "distance/shortest": float(epoch**0.5)}
        entry["distance/ratio"] = entry["distance/total"] / entry["distance/shortest"]
        entries.append(entry | {"speed/epoch_seconds": float(np.exp(0.1 * rng.normal()))})
    write_entries(directory, entries)
    if finished:
        summary = {
            "tasks": list(tasks),
            "metrics": metrics,
            "test": dict(test or reached),
            "validation": reached,
            "selection": {"by": "per_metric", "epochs": dict.fromkeys(tasks, epochs)},
            "epochs": epochs,
            "updates": 10 * epochs,
            "seconds": 2.5 * epochs,
            "memory": {"process_gib": round(0.5 + rng.random(), 3)},
            "machine": dict(machine),
            "command": ["scripts/supervised.py", f"combiner={combiner}", f"seed={seed}"],
        }
        (directory / "summary.json").write_text(json.dumps(summary))
    return directory


def write_supervised_sweep(
    folder: Path, combiners: Mapping[str, float], seeds: Sequence[int], tasks: Sequence[str] = ("CL", "RR")
) -> Path:
    """Writes a run for each combiner and seed, and the single-task runs of each task."""
    for combiner, level in combiners.items():
        for seed in seeds:
            write_supervised_run(folder / f"{'-'.join(tasks)}-{combiner}-{seed}", tasks, combiner, seed, level=level)
    for task in tasks:
        for seed in seeds:
            directory = folder / f"{task}-{seed}"
            if not directory.exists():
                write_supervised_run(directory, [task], seed=seed)
    return folder


def _training(tasks: Sequence[str], rng: np.random.Generator, seconds_per_step: float) -> dict[str, float]:
    names = [f"train/episode_return/{task}" for task in tasks] + [f"train/episode_success/{task}" for task in tasks]
    values = dict(zip(["train/critic_loss", "train/actor_loss", *names], rng.random(len(names) + 2), strict=False))
    speed = float(np.exp(0.1 * rng.normal())) / seconds_per_step
    return {key: float(value) for key, value in values.items()} | {
        "speed/steps_per_s": speed,
        "speed/updates_per_s": speed,
    }


def _plasticity(progress: float) -> dict[str, float]:
    measures = {"dormant_share": 0.3 * progress, "effective_rank": 90 - 40 * progress}
    return {f"network/{name}/{key}": value for name in ("actor", "critic") for key, value in measures.items()}


def _conflict(
    tasks: Sequence[str],
    combiner: str,
    progress: float,
    rng: np.random.Generator,
    objectives: Sequence[str] = ("critic", "actor"),
) -> dict[str, Any]:
    count = len(tasks)
    entry: dict[str, Any] = {}
    for objective in objectives:
        weights = np.ones(count) if combiner == "unitary" else 1 + progress * np.linspace(-1, 2, count)
        jacobian = rng.normal(size=(count, 8)) + 0.5
        update = weights @ jacobian
        lengths = np.linalg.norm(jacobian, axis=1) * np.linalg.norm(update)
        combination = Combination(
            losses=torch.ones(count),
            weights=torch.as_tensor(weights),
            gramian=torch.as_tensor(jacobian @ jacobian.T),
            alignment=torch.as_tensor(jacobian @ update / lengths),
            update_norm=torch.tensor(1.0),
        )
        entry |= {f"conflict/{objective}/{key}": value for key, value in conflict_metrics(combination, tasks).items()}
    return entry
