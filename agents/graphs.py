"""The update of `MultiTaskSAC` as two CUDA graphs, with the combiners' weights found on the host in between.

Neither piece reads a value back from the device; one transfer between them, of a few numbers a task, is all that the
host waits for. The pieces are plain functions of static memory, and the same on every device; `capture` alone is
CUDA's.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agents.replay import Batch
from mtrl.gradients import NonFiniteError, TaskBatched, check_finite

if TYPE_CHECKING:
    from agents.sac import Losses, MultiTaskSAC

WARM_UP = 3
"""Runs of the pieces before their capture: libraries choose and allocate what they need when first called."""


class CapturedUpdate:
    """An update in three parts: `differentiate`, `weigh` on the host, `apply`.

    It does what the agent's own update does, but for this: a combined gradient that is not finite is found by `apply`,
    which then leaves everything as it is, and reported by the next call or `check`; its task is not named.

    Args:
        agent: whose update; both combiners are re-weightings (see `obstacle`).
        batch: a mini-batch like those to come.
    """

    def __init__(self, agent: "MultiTaskSAC", batch: Batch) -> None:
        self.agent = agent
        num_tasks = len(agent.tasks)
        self._gradients: dict[str, TaskBatched] = {"critic": agent.critic_gradients, "actor": agent.actor_gradients}
        self._measured = {name: combiner.needs == "gramian" for name, combiner in agent.combiners.items()}
        # The pieces find here what they are given, always in the same place.
        self._batch = Batch(*(tensor.clone() for tensor in _tensors(batch)))
        self._weights = torch.ones(2, num_tasks, device=agent.device)
        self._host_weights = torch.ones(2, num_tasks, pin_memory=agent.device.type == "cuda")
        self._norms = torch.zeros(2, device=agent.device)
        # ... and leave here what they found.
        self._losses: Losses
        self._report: Tensor
        self._metrics: dict[str, Tensor]

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """One update on a mini-batch; see `MultiTaskSAC.update`."""
        torch._foreach_copy_(_tensors(self._batch), _tensors(batch))
        self.differentiate()
        self.weigh(self._report.cpu())
        self._weights.copy_(self._host_weights, non_blocking=True)
        self.apply()
        return dict(zip(self._metrics, torch.stack(list(self._metrics.values())), strict=True))

    def differentiate(self) -> None:
        """The losses of both objectives and, for methods that look at them, the per-task gradients' Gramians."""
        self._losses = self.agent.losses(self._batch)
        parts = [self._norms]
        for name, losses in self._objectives():
            parts.append(losses.detach())
            if self._measured[name]:
                parts.append(self._gradients[name].measure(losses).flatten())
        self._report = torch.cat(parts)

    def weigh(self, report: Tensor) -> None:
        """Finds the weights on the host, from what `differentiate` reports.

        Raises:
            RunError: if a loss, gradient or weight is not finite, or the last update's combined gradient was not.
        """
        self._check_norms(report[:2])
        num_tasks, start = len(self.agent.tasks), 2
        for row, (name, measured) in enumerate(self._measured.items()):
            losses, gramian = report[start : start + num_tasks], None
            start += num_tasks
            with self.agent.named_errors(name):
                check_finite("loss", losses)
                if measured:
                    gramian = report[start : start + num_tasks**2].view(num_tasks, num_tasks)
                    start += num_tasks**2
                    check_finite("gradient", gramian.diagonal())
                weights = self.agent.combiners[name].weights(losses, gramian)
                check_finite("weight", weights)
            self._host_weights[row] = weights

    def apply(self) -> None:
        """Combines the gradients and takes the optimizers' step, unless a gradient is not finite."""
        scale = 1 / len(self.agent.tasks)
        for row, (name, losses) in enumerate(self._objectives()):
            gradients = self._gradients[name]
            norm = gradients.add_weighted(losses, self._weights[row], scale=scale, measured=self._measured[name])
            self.agent.clip(gradients.parameters, norm)
            self._norms[row] = norm
        skip = 1 - self._norms.isfinite().all().float()
        self.agent.step(self._losses, skip)
        self._metrics = self.agent.metrics(self._losses, *self._norms)
        del self._losses  # and with them what autograd keeps, the streams it ran on included

    def check(self) -> None:
        """Waits for the last update.

        Raises:
            RunError: if its combined gradient was not finite: nothing was applied.
        """
        self._check_norms(self._norms.cpu())

    def _objectives(self) -> list[tuple[str, Tensor]]:
        return [("critic", self._losses.critic), ("actor", self._losses.actor)]

    def _check_norms(self, norms: Tensor) -> None:
        for name, finite in zip(self._measured, norms.isfinite().tolist(), strict=True):
            if not finite:
                self._norms.zero_()
                with self.agent.named_errors(name):
                    raise NonFiniteError("gradient", None)


def capture(agent: "MultiTaskSAC", batch: Batch) -> CapturedUpdate | None:
    """The agent's update as CUDA graphs, or None, said in one warning, where that cannot be.

    To be called after an eager update, which has made the optimizers' state.
    """
    reason = obstacle(agent)
    if reason is None:
        update = CapturedUpdate(agent, batch)
        try:
            with unchanged(agent):
                _record(update)
        except RuntimeError as error:
            first = error.__context__ or error  # ending a capture that failed raises once more
            reason = f"the capture failed ({str(first).splitlines()[0]})"
        else:
            return update
    warnings.warn(f"updates are not captured as CUDA graphs: {reason}", stacklevel=2)
    return None


def obstacle(agent: "MultiTaskSAC") -> str | None:
    """Why an agent's update cannot be split, if it cannot."""
    for combiner in agent.combiners.values():
        if combiner.needs == "jacobian":
            return f"combiner '{combiner.name}' combines the gradients' entries"
        if combiner.needs_losses_after_step:
            return f"combiner '{combiner.name}' looks at the losses after the step"
    return None


@contextmanager
def unchanged(agent: "MultiTaskSAC") -> Iterator[None]:
    """Puts everything that an update changes back, in place: the graphs know tensors by their memory."""
    tensors = [
        *(p for network in (agent.actor, agent.critic, agent.target_critic) for p in network.parameters()),
        agent.log_alpha,
        *(tensor for o in agent.optimizers.values() for state in o.state.values() for tensor in state.values()),
    ]
    saved, generator = [tensor.detach().clone() for tensor in tensors], agent.generator.get_state()
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(tensors, saved)
        agent.generator.set_state(generator)
        for optimizer in agent.optimizers.values():
            optimizer.zero_grad()


def _record(update: CapturedUpdate) -> None:
    """Replaces both pieces by CUDA graphs of what they do."""
    agent = update.agent
    with torch.cuda.device(agent.device):
        caller, pool = torch.cuda.current_stream(), torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(caller)
        try:
            # A capture that fails leaves its stream the current one; this puts the caller's back.
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    update.differentiate()
                    update.apply()
                _set_capturable(agent, True)
                for piece in ("differentiate", "apply"):
                    graph = torch.cuda.CUDAGraph()
                    graph.register_generator_state(agent.generator)
                    with torch.cuda.graph(graph, pool=pool, stream=stream):
                        getattr(update, piece)()
                    setattr(update, piece, graph.replay)
        finally:
            _set_capturable(agent, False)
            caller.wait_stream(stream)


def _set_capturable(agent: "MultiTaskSAC", value: bool) -> None:
    """Optimizers want to know: set, they refuse graphs no longer, and warn of every step outside of one."""
    for optimizer in agent.optimizers.values():
        for group in optimizer.param_groups:
            group["capturable"] = value


def _tensors(batch: Batch) -> list[Tensor]:
    return [getattr(batch, field.name) for field in fields(batch)]
