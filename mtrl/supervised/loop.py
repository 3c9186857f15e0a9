"""Training on a supervised benchmark, with model selection by validation and exact resume."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mtrl.combiners import NegativeLossError
from mtrl.errors import InputError, RunError, unknown_name
from mtrl.gradients import NonFiniteError
from mtrl.gradients.conflict import conflict_metrics
from mtrl.measures import relative_gain
from mtrl.run import random_state
from mtrl.run.directory import RunDirectory
from mtrl.run.initial_weights import check_weights
from mtrl.run.processes import Processes
from mtrl.run.session import Session
from mtrl.supervised.loading import Loader, LoadingOptions, Portion
from mtrl.supervised.measures import Distance, shared_gradients
from mtrl.supervised.problem import Batch, Benchmark, MultiTaskModel
from mtrl.supervised.tasks import MaskedTargets, Measure, Targets, Task, has_any, seen, task_loss
from mtrl.supervised.updates import Update

SELECTIONS = ("mean", "per_metric", "gain")
_EXTRA_BATCHES = 1 << 20  # keeps the seeds of a method's extra batches apart from those of the epochs
_PROCESS_SEED = 1_000_003  # and this those of the processes
Together = Callable[[dict[str, Tensor], dict[str, Targets]], tuple[dict[str, Tensor], dict[str, Targets]]]
"""Of outputs and targets of a part of a batch, those of the whole one."""


@dataclass(frozen=True)
class Schedule:
    """How long, in what portions, and which model of the run is reported.

    Attributes:
        epochs: at most this many passes over the training set.
        batch_size: samples per update; an incomplete last batch is left out.
        learning_rate: in the first epoch.
        learning_rate_decay: the factor on it, by and by.
        learning_rate_decay_every: after so many epochs, each time; None is one.
        learning_rate_patience: instead, after more than so many epochs without a better model, as torch's
            ``ReduceLROnPlateau`` has it; None decays by the epoch.
        least_learning_rate: it stays at this; None is 0.
        patience: end after so many epochs without a better model; None is never.
        selection: the model with the best validation ``mean`` of the tasks' common metric; the best one ``per_metric``
            (Kurin et al., 2022, section 4.1.3); or that of the best relative ``gain`` over ``reference``. None is
            the mean where there is a common metric, and else per metric.
        reference: single-task metrics by key, for ``gain``.
        checkpoint_every: epochs between checkpoints.
        insight_every: epochs between measurements of gradient conflict, on an epoch's last batch; 0 is never.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    learning_rate_decay: float = 1.0
    learning_rate_decay_every: int | None = None
    learning_rate_patience: int | None = None
    least_learning_rate: float | None = None
    patience: int | None = None
    selection: str | None = None
    reference: Mapping[str, float] | None = None
    checkpoint_every: int = 1
    insight_every: int = 0


def metrics_of(tasks: Mapping[str, Task]) -> dict[str, tuple[str, Measure]]:
    """Every metric and its task's name, by key: ``CL`` for a task's first, ``CL/<name>`` for others."""
    return {
        task if metric is described.metrics[0] else f"{task}/{metric.name}": (task, metric)
        for task, described in tasks.items()
        for metric in described.metrics
    }


def evaluate(
    benchmark: Benchmark,
    batches: Iterable[Batch],
    together: Together = lambda outputs, targets: (outputs, targets),
) -> dict[str, float]:
    """All metrics over the batches of a split, by the keys of `metrics_of`, and the losses as ``loss/<task>``.

    Each is over the samples that have its task's target; NaN where none has. The batches are on the model's device;
    where they are this process's parts, ``together`` gives whole ones.
    """
    model, tasks = benchmark.model, benchmark.tasks
    device = next(model.parameters()).device
    meters = {key: (name, metric.meter(tasks[name], device)) for key, (name, metric) in metrics_of(tasks).items()}
    losses, counts = dict.fromkeys(tasks, 0.0), dict.fromkeys(tasks, 0.0)
    training = model.training
    model.eval()
    with torch.no_grad():
        for inputs, targets in batches:
            outputs, targets = together(model(inputs), targets)
            found = {name: seen(task, outputs[name], targets[name]) for name, task in tasks.items()}
            for name, meter in meters.values():
                if len(found[name].targets):
                    meter.update(found[name].outputs, found[name].targets)
            for name, task in tasks.items():
                count = float(found[name].shares.sum())
                counts[name] += count
                losses[name] += float(task_loss(task, outputs[name], targets[name])) * count
    model.train(training)
    values = {key: float(meter.compute()) if counts[name] else math.nan for key, (name, meter) in meters.items()}
    return values | {f"loss/{name}": loss / counts[name] if counts[name] else math.nan for name, loss in losses.items()}


def means(tasks: Mapping[str, Task], metrics: Mapping[str, float]) -> dict[str, float]:
    """``<metric>_mean`` over the tasks that are judged by that metric."""
    groups: dict[str, list[float]] = {}
    for name, task in tasks.items():
        groups.setdefault(f"{task.metrics[0].name}_mean", []).append(metrics[name])
    return {key: sum(values) / len(values) for key, values in groups.items()}


def criteria(
    tasks: Mapping[str, Task], selection: str | None, reference: Mapping[str, float] | None
) -> tuple[str, dict[str, Callable[[Mapping[str, float]], float]]]:
    """What models are selected by: the selection's name, and one score (higher is better) per model to keep.

    Raises `InputError` on an unknown selection, one that does not fit the metrics, or a missing reference.
    """
    kinds = {task.metrics[0].name for task in tasks.values()}
    selection = selection or ("mean" if len(kinds) == 1 else "per_metric")
    if selection not in SELECTIONS:
        raise unknown_name("selection", selection, SELECTIONS)
    directions = {key: metric.higher_is_better for key, (_, metric) in metrics_of(tasks).items()}

    def mean(keys: Sequence[str], metrics: Mapping[str, float]) -> float:
        sign = 1 if all(directions[key] for key in keys) else -1
        return sign * sum(metrics[key] for key in keys) / len(keys)

    if selection == "per_metric":
        return selection, {key: partial(mean, [key]) for key in directions}
    if selection == "gain":
        known = reference or {}
        for key in directions:
            if not known.get(key):
                raise InputError(f"selection=gain needs reference.{key}, that metric of single-task training, not 0")
        return selection, {"gain": lambda metrics: relative_gain(metrics, known, directions)[0]}
    if len(kinds) > 1:
        raise InputError(f"selection=mean: {' and '.join(sorted(kinds))} cannot be averaged; use per_metric or gain")
    return selection, {"mean": partial(mean, list(tasks))}


def start_from(model: MultiTaskModel, state: Mapping[str, Tensor]) -> None:
    """Takes over encoder and heads from another model's ``state_dict``; `InputError` if a shape differs (named).

    What a method has added to the model, as Maximum Roaming's masks, stays new.
    """
    own, theirs = (
        {name: tensor for name, tensor in weights.items() if name.startswith(("encoder.", "heads."))}
        for weights in (model.state_dict(), state)
    )
    check_weights(own, theirs, "model")
    model.load_state_dict(theirs, strict=False)


class Trainer:
    """Trains a benchmark's model, and goes on where an interrupted run left off.

    The update is made for the benchmark's model, which is on the device. The seed is that of the order of the samples
    and of dropout. Of several processes that train one model, each has a trainer and sees its part of every batch; all
    come to the same. Raises `InputError` if the schedule does not fit the benchmark, or a batch the processes.

    Attributes:
        session: the run: updates done, seconds of training and validation, checkpoints, metrics.
        epoch_seconds: seconds of each epoch's updates.
        chosen: the selected models by criterion: ``score``, ``epoch``, ``metrics`` (validation) and ``model``.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        update: Update,
        run: RunDirectory,
        schedule: Schedule,
        *,
        seed: int,
        device: torch.device,
        loading: LoadingOptions | None = None,
        show_progress: bool = True,
        processes: Processes | None = None,
    ) -> None:
        self.processes = processes or Processes()
        self.benchmark, self.update, self.schedule = benchmark, update, schedule
        self.seed, self.device = seed, device
        self.selection, self._scores = criteria(benchmark.tasks, schedule.selection, schedule.reference)
        self.batches = len(benchmark.train) // schedule.batch_size
        if not self.batches:
            raise InputError(f"batch_size={schedule.batch_size}, but there are {len(benchmark.train)} training samples")
        if schedule.batch_size % self.processes.size:
            raise InputError(f"batch_size={schedule.batch_size}, which {self.processes.size} processes cannot share")
        benchmark.check(device)
        self.loader = Loader(benchmark, device, seed=seed, options=loading)
        self.session = Session(
            run,
            schedule.epochs * self.batches,
            device=device,
            show_progress=show_progress,
            processes=self.processes,
        )
        self.epoch_seconds: list[float] = []
        self.chosen: dict[str, dict[str, Any]] = {}
        self._complete = benchmark.complete
        self.distance = Distance(list(benchmark.model.encoder.parameters()))
        self._partial_seconds = 0.0  # of the epoch under way
        self._sums: dict[str, Tensor] = {}
        self._seen: dict[str, Tensor] = {}  # by task, batches with a target of it
        self._conflict: dict[str, Any] = {}
        self._decays = self._waited = 0  # of a learning rate with patience

    @property
    def epoch(self) -> int:
        """Complete epochs so far."""
        return self.session.step // self.batches

    def train(self) -> None:
        """Runs to the end of the schedule, or until patience is lost.

        Raises:
            Interrupted: on SIGINT or SIGTERM, after writing a checkpoint.
            RunError: if a loss, gradient or weight is not finite, or no model could be selected.
        """
        session = self.session
        with session.running(self) as resumed, closing(self.loader):
            if not resumed:
                torch.manual_seed(self.seed + _PROCESS_SEED * self.processes.rank)
                session.begin()
            self.benchmark.model.train()
            while not self._ended():
                begun = session.step % self.batches
                batches = self.loader.batches(self._requests(begun))
                for position in range(begun, self.batches):
                    if position:
                        session.stop_if_asked(f"in epoch {self.epoch + 1}")
                    self._advance(position, batches)
                    session.progress.advance(session.step)
                self._end_epoch()
                session.stop_if_asked(f"in epoch {self.epoch + 1}")
                if self.epoch % self.schedule.checkpoint_every == 0 or self._ended():
                    session.checkpoint()
        if len(self.chosen) < len(self._scores):
            raise RunError("no model could be selected: a validation metric was never finite")

    def summary(self, *, test: bool = True) -> dict[str, Any]:
        """What a finished run came to, plain data; ``test`` is in it where the test split is to be read."""
        metrics = metrics_of(self.benchmark.tasks)
        scores, epochs, validated = (
            {criterion: chosen[what] for criterion, chosen in self.chosen.items()}
            for what in ("score", "epoch", "metrics")
        )

        def reached(by_criterion: Mapping[str, dict[str, float]]) -> dict[str, float]:
            """Each metric of the model that was chosen for it, and the means."""
            single = None if self.selection == "per_metric" else self.selection
            found = {key: by_criterion[single or key][key] for key in metrics}
            return found | means(self.benchmark.tasks, found)

        tested = {}
        with closing(self.loader):
            for criterion, chosen in self.chosen.items() if test else ():
                self.benchmark.model.load_state_dict(chosen["model"])
                tested[criterion] = self._evaluate("test")
        return {
            "tasks": list(self.benchmark.tasks),
            "metrics": {
                key: {"name": metric.name, "higher_is_better": metric.higher_is_better}
                for key, (_, metric) in metrics.items()
            },
            **({"test": reached(tested)} if test else {}),
            "validation": reached(validated),
            "selection": {"by": self.selection, "epochs": epochs, "scores": scores},
            "epochs": self.epoch,
            "updates": self.session.step,
            "seconds": round(self.session.seconds, 3),
            "epoch_seconds": [round(seconds, 4) for seconds in self.epoch_seconds],
            "distance": self.distance.measures(),
            "counters": self.session.counters,
        }

    # ----------------------------------------------------------------------------------------------- one update

    def _generator(self, number: int) -> torch.Generator:
        """Random numbers by the run's seed and this number: no state, so nothing to resume."""
        return torch.Generator().manual_seed(self.seed * 2_000_003 + number)

    def _requests(self, position: int) -> Iterator[list[Portion]]:
        """What the epoch's updates from a position on need: a batch, and a second one where the method draws it."""
        samples, size, epoch, done = len(self.benchmark.train), self.schedule.batch_size, self.epoch, self.session.step
        part = self.processes.part
        order = torch.randperm(samples, generator=self._generator(epoch))
        for step, chosen in enumerate(torch.split(order, size)[position : self.batches], start=done):
            request = [Portion("training", part(chosen.tolist()), epoch)]
            if self.update.second_batch:
                number = _EXTRA_BATCHES + step
                others = torch.randint(samples, (size,), generator=self._generator(number))
                request.append(Portion("training", part(others.tolist()), number))
            yield request

    def _evaluate(self, split: str) -> dict[str, float]:
        total, size = len(self.loader.splits[split]), self.benchmark.evaluation_batch
        batches = self.loader.whole(split, size, self.processes.part)
        if self.processes.size == 1:
            return evaluate(self.benchmark, batches)
        counts = (min(size, total - start) for start in range(0, total, size))
        # The first one's: a last digit that differs would make them stop at different epochs.
        return self.processes.shared(evaluate(self.benchmark, batches, partial(self._together, counts)))

    def _together(
        self, counts: Iterator[int], outputs: dict[str, Tensor], targets: dict[str, Targets]
    ) -> tuple[dict[str, Tensor], dict[str, Targets]]:
        """What all processes' parts of an evaluation's next batch are together; the counts are of its samples."""
        count = next(counts)

        def of_all(tensor: Tensor) -> Tensor:
            return self.processes.of_all(tensor).flatten(0, 1)[:count]

        def whole(found: Targets) -> Targets:
            return MaskedTargets(*map(of_all, found)) if isinstance(found, MaskedTargets) else of_all(found)

        names = list(self.benchmark.tasks)
        return {name: of_all(outputs[name]) for name in names}, {name: whole(targets[name]) for name in names}

    def _advance(self, position: int, batches: Iterator[list[Batch]]) -> None:
        begun = time.monotonic()
        epoch = self.epoch
        if position == 0:
            self.update.set_learning_rate(self._learning_rate())
        try:
            batch, *others = next(batches)
        except RunError:
            if self.processes.size == 1:  # what asks to stop may have ended the workers too
                self.session.stop_if_asked(f"in epoch {epoch + 1}")
            raise
        every = self.schedule.insight_every
        if every and position + 1 == self.batches and (epoch + 1) % every == 0:
            measured = time.monotonic()
            self._conflict = self._insight(batch)
            begun += time.monotonic() - measured  # no part of what the method costs
        try:
            logged = self.update.step(batch, partial(self._second, others), self.distance.moved)
        except NonFiniteError as error:
            task = "" if error.task is None else f" of task {list(self.benchmark.tasks)[error.task]}"
            where = f"{task} in epoch {epoch + 1}, update {self.session.step + 1}"
            advice = "try a smaller learning rate or another method"
            raise RunError(f"non-finite {error.quantity}{where}: {advice}") from error
        except NegativeLossError as error:
            where = f"in epoch {epoch + 1}, update {self.session.step + 1}"
            raise error.named(list(self.benchmark.tasks)[error.task], where) from error
        for name, there in zip(self.benchmark.tasks, self._there(batch[1]), strict=True):
            self._seen[name] = self._seen[name] + there if name in self._seen else there
        for key, value in self.session.count(logged).items():
            self._sums[key] = self._sums[key] + value if key in self._sums else value
        self.session.step += 1
        self._partial_seconds += time.monotonic() - begun

    def _there(self, targets: dict[str, Targets]) -> Tensor:
        """Which tasks have a target in the whole batch, ``[T]`` of 0 or 1."""
        if self._complete:
            return torch.ones(len(targets), dtype=torch.long)
        told = [has_any(described, targets[name]) for name, described in self.benchmark.tasks.items()]
        return self.processes.largest(torch.stack(told))

    def _learning_rate(self) -> float:
        """Of the epoch that begins."""
        schedule = self.schedule
        by_the_epoch = self.epoch // (schedule.learning_rate_decay_every or 1)
        times = by_the_epoch if schedule.learning_rate_patience is None else self._decays
        rate = schedule.learning_rate * schedule.learning_rate_decay**times
        return max(rate, min(schedule.least_learning_rate or 0.0, schedule.learning_rate))

    def _second(self, others: list[Batch]) -> Batch:
        if not others:
            raise RunError(f"{type(self.update).__name__} draws a second batch: it has to say so, second_batch = True")
        return others[0]

    def _insight(self, batch: Batch) -> dict[str, Any]:
        """Conflict of the shared parameters' gradients, whatever the method takes its own by."""
        combination = shared_gradients(self.benchmark.model, self.benchmark.tasks, batch, self.update.replicas)
        found = conflict_metrics(combination, list(self.benchmark.tasks))
        return {f"conflict/shared/{key.replace('_to_update', '_to_average')}": value for key, value in found.items()}

    def _end_epoch(self) -> None:
        """Validates, selects and logs."""
        seconds = self.session.clock()
        validated = self._evaluate("validation")
        averages = means(self.benchmark.tasks, validated)
        self._waited += 1
        for criterion, score in self._scores.items():
            value = score(validated)
            if value > self.chosen.get(criterion, {}).get("score", float("-inf")):
                model = {key: tensor.detach().clone() for key, tensor in self.benchmark.model.state_dict().items()}
                self.chosen[criterion] = {"score": value, "epoch": self.epoch, "metrics": validated, "model": model}
                self._waited = 0
        if self.schedule.learning_rate_patience is not None and self._waited > self.schedule.learning_rate_patience:
            self._decays, self._waited = self._decays + 1, 0
        self.epoch_seconds.append(self._partial_seconds)
        self.session.metrics.write(
            self.session.step,
            seconds,
            {"epoch": self.epoch}
            | self._averages()
            | {f"val/{key}": value for key, value in (validated | averages).items()}
            | {f"distance/{key}": value for key, value in self.distance.measures().items()}
            | self._conflict
            | {"speed/epoch_seconds": self._partial_seconds},
        )
        self._sums, self._seen, self._conflict, self._partial_seconds = {}, {}, {}, 0.0
        told = "  ".join(f"{key} {value:.4f}" for key, value in averages.items())
        self.session.progress.report(f"epoch {self.epoch}  {told}")

    def _averages(self) -> dict[str, float]:
        """What updates logged, averaged over the epoch; a loss over the batches that had a target of its task."""
        counts = {f"loss/{name}": int(count) for name, count in self._seen.items()}
        averages = {key: (float(total), counts.get(key, self.batches)) for key, total in self._sums.items()}
        return {f"train/{key}": total / count for key, (total, count) in averages.items() if count}

    def _ended(self) -> bool:
        """Whether the schedule is at its end, or out of patience."""
        best = max((chosen["epoch"] for chosen in self.chosen.values()), default=0)
        patient = self.schedule.patience is None or self.epoch - best < self.schedule.patience
        return self.epoch >= self.schedule.epochs or not patient

    # ---------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Everything that training goes on from."""
        return {
            "epoch_seconds": self.epoch_seconds,
            "partial_seconds": self._partial_seconds,
            "sums": self._sums,
            "seen": self._seen,
            "chosen": self.chosen,
            "decays": [self._decays, self._waited],
            "distance": self.distance.state_dict(),
            "model": self.benchmark.model.state_dict(),
            "update": self.update.state_dict(),
            "random": torch.get_rng_state(),
            "random_device": None if self._device_generator is None else self._device_generator.get_state(),
        } | self._random_of_others()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave; on another kind of device, random numbers are new from here on."""
        self.epoch_seconds, self._partial_seconds = state["epoch_seconds"], state["partial_seconds"]
        self._sums = {key: value.to(self.device) for key, value in state["sums"].items()}
        self._seen = {key: value.to(self.device) for key, value in state["seen"].items()}
        self.chosen = state["chosen"]
        self._decays, self._waited = state["decays"]
        self.distance.load_state_dict(state["distance"])
        self.benchmark.model.load_state_dict(state["model"])
        self.update.load_state_dict(state["update"])
        saved = [[state["random"], state["random_device"]], *state.get("random_of_others", [])]
        if self.processes.rank >= len(saved):  # there are more processes than before
            torch.manual_seed(self.seed + _PROCESS_SEED * self.processes.rank + self.session.step)
            return
        host, own = saved[self.processes.rank]
        random_state.restore(torch.default_generator, host)
        if self._device_generator is not None:
            random_state.restore(self._device_generator, host if own is None else own)

    def _random_of_others(self) -> dict[str, list[list[Tensor | None]]]:
        """What other processes draw from, as that of this one is kept; without any, nothing."""
        if self.processes.size == 1:
            return {}
        host = list(self.processes.of_all(torch.get_rng_state()))
        device: list[Tensor] | list[None] = [None] * len(host)
        if self._device_generator is not None:
            device = list(self.processes.of_all(self._device_generator.get_state()))
        return {"random_of_others": [list(pair) for pair in zip(host, device, strict=True)][1:]}

    @property
    def _device_generator(self) -> torch.Generator | None:
        """What draws beside the host's."""
        return random_state.of_device(self.device) if self.device.type == "cuda" else None
