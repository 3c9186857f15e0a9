"""Per-task gradients of T disjoint batches from one backward pass.

A linear layer's gradient for task t is the product of that task's activations with that task's output gradients.
Where no sample serves two tasks, one backward pass of the summed losses down to the layers' outputs gives the
output gradients of all tasks, and one batched matrix product per layer their T parameter gradients.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from mtrl.combiners import Combiner
from mtrl.errors import InputError
from mtrl.gradients import promises
from mtrl.gradients.distributed import refuse_several, refuse_sharded, refuse_wrapped
from mtrl.gradients.layers import Rule, TaskRows, count_of_samples, grouped_by_task, rule_for, supported
from mtrl.gradients.pipeline import (
    DEFAULT_MEMORY_LIMIT,
    Combination,
    Gradients,
    Source,
    check_combiner,
    check_memory,
    combine,
    differentiate,
    wide_type,
)
from mtrl.gradients.precision import inner_products
from mtrl.gradients.shared_input import ByParameters
from mtrl.ranges import Count, check

ALIGNED = 4
"""At multiples of how many numbers a Jacobian's rows begin on a GPU, which loads them together."""

POWERS = 8
"""How many different powers of two the check of promises multiplies losses by, in one pass."""
COARSE = 4
"""How many roundings of products the check of promises allows."""

_ONE_PROCESS = "TaskBatched takes one, whose batch holds all tasks"


class _Uncompiled:
    """Compiled modules run uncompiled while any thread is in here.

    torch has one stance for the whole process: the first thread to come changes it, the last to leave puts it back.
    """

    def __init__(self) -> None:
        self._lock, self._threads = Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._threads:
                self._changed = torch.compiler.set_stance("force_eager")
            self._threads += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads:
                self._changed.__exit__(None, None, None)


_uncompiled = _Uncompiled()


@dataclass
class _Layer:
    """A module that owns trainable parameters, and its columns of the Jacobian."""

    name: str
    module: nn.Module
    rule: Rule
    parameters: dict[str, nn.Parameter]
    columns: slice

    def views(self, rows: Tensor) -> dict[str, Tensor]:
        """``[K, size]`` as one ``[K, *parameter.shape]`` per parameter."""
        pieces = torch.split(rows, [p.numel() for p in self.parameters.values()], 1)
        named = zip(self.parameters.items(), pieces, strict=True)
        return {name: piece.view(len(rows), *parameter.shape) for (name, parameter), piece in named}


class _Call:
    """One call of one layer during the recorded forward pass."""

    delta: Tensor | None
    """The output's gradient; None where no loss depends on this call."""

    def __init__(self, layer: _Layer, input_: Tensor, output: Tensor) -> None:
        self.layer, self.input, self.output = layer, input_.detach(), output
        self._versions = input_._version, output._version

    def check_untouched(self) -> None:
        """Refuses a call whose input or output is no longer what it was."""
        if (self.input._version, self.output._version) != self._versions:
            raise InputError(
                f"the input or output of layer '{self.layer.name}' was changed in place after its call "
                "(such as by ReLU(inplace=True)): its per-task gradients are lost"
            )


class TaskBatched:
    """Per-task gradients of a network whose T tasks each have their own samples, in one backward pass.

    Inside `record`, the network is called on tensors whose task dimension comes first (``[T, B, ...]``, or
    ``[E, T, B, ...]`` in the layers of an ensemble), and one loss per task comes out that depends on that
    task's samples alone. The first backward pass that needs per-task gradients checks both promises against
    autograd.

    Supported are ``nn.Linear``, ``nn.LayerNorm``, ``nn.Embedding`` and their ensembles (`mtrl.gradients.layers`),
    ``nn.RMSNorm``, and whatever `mtrl.gradients.register_rule` adds, with any operation without parameters between
    them; a layer may be called several times. Each row of a `mtrl.gradients.TaskRows` is a single task's: it gets the
    gradient of that task's loss as it is, is in no Gramian or Jacobian, and no method sees it.

    Args:
        network: the module whose parameters are shared by all tasks, but for rows; frozen ones get no gradient.
        num_tasks: T.
        allow_slow: differentiate task by task (T backward passes) where the network holds an unsupported
            layer, instead of raising.
        memory_limit: bytes that the Jacobian ``[T, P]`` may take. Above it, Gramian methods stream: each
            layer's per-task gradients are added to the Gramian and dropped, and the weighted gradient is one
            more product with the output gradients scaled by their task's weight.

    Attributes:
        parameters: the trainable parameters; first the shared ones, in the order of the Jacobian's columns.

    Raises:
        InputError: if a parameter belongs to an unsupported module (named) or to two modules, and
            ``allow_slow`` is off.
    """

    def __init__(
        self,
        network: nn.Module,
        num_tasks: int,
        *,
        allow_slow: bool = False,
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
    ) -> None:
        if not isinstance(network, nn.Module):
            raise InputError(f"expected a module as the network, got a {type(network).__name__}")
        check("num_tasks", num_tasks, Count)
        self.network = network
        self.num_tasks = num_tasks
        self.memory_limit = memory_limit
        shared, specific = self._trainable()
        self.parameters, self._num_shared = shared + specific, len(shared)
        self._specific_gradients: Gradients = []
        self._num_columns = sum(parameter.numel() for parameter in shared)
        self._type = wide_type(shared)
        self._layers: list[_Layer] = []
        self._calls: list[_Call] = []
        self._losses: Tensor | None = None
        self._differentiated = False
        self._memory, self._kept = torch.empty(0), False
        self._keep = True
        self._trains = self._checked = False
        refuse_wrapped(network)
        refuse_sharded(list(network.parameters()))
        refuse_several(_ONE_PROCESS)
        if not shared:
            raise InputError("the network has no trainable parameters")
        problem = self._find_layers()
        if problem and not allow_slow:
            raise InputError(
                f"{problem}; call the network for each task by itself and use gradients.backward, or let "
                "allow_slow=True differentiate task by task"
            )
        self._slow = bool(problem)
        if self._slow:
            self._layers.clear()

    def _trainable(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The trainable parameters that all tasks share, and those whose rows are the tasks' own."""
        rows = {id(module.weight) for module in self.network.modules() if isinstance(module, TaskRows)}
        trainable = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        shared = [parameter for parameter in trainable if id(parameter) not in rows]
        return shared, [parameter for parameter in trainable if id(parameter) in rows]

    def _find_layers(self) -> str:
        """Fills the list of layers; returns what stands in the way of a batched backward, if anything."""
        start, owner = 0, dict[nn.Parameter, str]()
        for path, module in self.network.named_modules():
            own = {name: p for name, p in module.named_parameters(recurse=False) if p.requires_grad}
            if not own or isinstance(module, TaskRows):
                continue
            name = path or type(module).__name__
            rule = rule_for(module, own)
            if rule is None:
                return (
                    f"layer '{name}' ({type(module).__name__} with parameters {', '.join(own)}) has no per-task "
                    f"gradient rule (supported: {supported()})"
                )
            for parameter in own.values():
                if parameter in owner:
                    return f"layers '{owner[parameter]}' and '{name}' share a parameter"
                owner[parameter] = name
            stop = start + sum(parameter.numel() for parameter in own.values())
            self._layers.append(_Layer(name, module, rule, own, slice(start, stop)))
            start = stop
        return ""

    @contextmanager
    def record(self) -> Iterator[None]:
        """Records the network's layers while the losses are computed; one recording serves one `backward`.

        Compiled modules run uncompiled in here: a compiled graph hides its layers.

        Raises:
            InputError: if parameters were added, frozen or thawed since this object was made.
        """
        if [id(p) for part in self._trainable() for p in part] != [id(p) for p in self.parameters]:
            raise InputError("the network's trainable parameters changed: make a new TaskBatched")
        self.forget()
        with _uncompiled:
            hooks = [
                layer.module.register_forward_hook(self._remember(layer), with_kwargs=True) for layer in self._layers
            ]
            try:
                yield
            finally:
                for hook in hooks:
                    hook.remove()

    def _remember(self, layer: _Layer) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            if output.requires_grad:
                first = args[0] if args else kwargs[next(iter(inspect.signature(module.forward).parameters))]
                self._calls.append(_Call(layer, first, output))

        return hook

    def backward(
        self,
        losses: Tensor,
        combiner: Combiner,
        *,
        scale: float = 1.0,
        insight: bool = False,
        retain_graph: bool = False,
        scaler: GradScaler | None = None,
    ) -> Combination:
        """Adds the combined gradient of losses ``[T]``, computed inside `record`, to ``.grad``: see `pipeline.combine`.

        A ``scale`` of ``1 / T`` makes it that of the mean over tasks; ``retain_graph`` and ``scaler`` are as in
        `mtrl.gradients.backward`. Beside what `combine` raises, an `InputError` where the network broke a promise of
        `record`, or a needed Jacobian does not fit into ``memory_limit``.
        """
        check_combiner(combiner)
        scaler = scaler if scaler is not None and scaler.is_enabled() else None
        try:
            keep = retain_graph or (insight and combiner.needs != "gramian")  # it looks once more
            source = self.source(losses, scaler, keep=keep)
            return combine(losses, combiner, source, scale=scale, insight=insight, scaler=scaler)
        finally:
            self.forget()

    def source(self, losses: Tensor, scaler: GradScaler | None = None, *, keep: bool = True) -> Source:
        """The per-task gradients of losses ``[T]`` computed inside `record`, for one backward pass.

        After the first pass, nothing here reads a value back from the device, and all shapes stay, so that graphs can
        hold it (not with ``allow_slow``).

        Args:
            losses: ``[T]``.
            scaler: take the gradients of the scaled losses.
            keep: leave autograd's graph after the last pass.
        """
        refuse_several(_ONE_PROCESS)
        if not isinstance(losses, Tensor):
            raise InputError(f"expected the losses as one tensor [T] (torch.stack), got a {type(losses).__name__}")
        if losses.shape != (self.num_tasks,):
            raise InputError(f"expected one loss for each of {self.num_tasks} tasks, got {tuple(losses.shape)}")
        starts = promises.edges_of(losses)
        if not self._trains:
            promises.check_trained(starts, self.parameters, "trainable")
            self._trains = True
        with torch.enable_grad():
            scaled = losses if scaler is None else scaler.scale(losses)
        if self._slow:
            parts = self.parameters[: self._num_shared], self.parameters[self._num_shared :]
            return ByParameters(list(scaled), *parts, False, self.memory_limit, keep=keep, starts=starts)
        self._losses, self._keep = scaled, keep
        return self

    def forget(self) -> None:
        """Lets go of what was recorded: it serves one backward pass."""
        self._calls, self._losses, self._specific_gradients = [], None, []
        self._differentiated = self._kept = False

    # ----------------------------------------------------------------------------------------- as a source, by layer

    @property
    def num_shared(self) -> int:
        """See `Source`."""
        return self._num_shared

    @property
    def activations(self) -> Sequence[Tensor]:
        """See `Source`."""
        return ()

    def jacobian(self) -> Tensor:
        """See `Source`; in memory that every call reuses."""
        instead = "or choose a method that needs only the Gramian"
        check_memory(self.num_tasks, self._num_columns, self._type.itemsize, self.memory_limit, instead)
        self._differentiate()
        jacobian = self._rows(self._num_columns)
        for layer in self._layers:
            self._fill(layer, jacobian[:, layer.columns])
        self._kept = True
        return jacobian

    def gramian(self) -> Tensor:
        """See `Source`."""
        if self._fits:
            return inner_products(self.jacobian())
        self._differentiate()
        gramian = self.parameters[0].new_zeros(self.num_tasks, self.num_tasks, dtype=self._type)
        for layer in self._layers:
            rows = self._rows(layer.columns.stop - layer.columns.start)
            self._fill(layer, rows)
            gramian = inner_products(rows, gramian)
        return gramian

    def gramian_of_halves(self, *, across: bool) -> Tensor:
        """See `Source`: where losses are sums or means over samples. Of an odd number, the middle one is left out."""
        self._differentiate()
        self._kept = False
        t = self.num_tasks
        size = t if across else 2 * t
        gramian = self.parameters[0].new_zeros(size, size, dtype=self._type)
        for layer in self._layers:
            rows = self._rows(layer.columns.stop - layer.columns.start, 2 * t)
            for half in range(2):
                self._fill(layer, rows[half * t : half * t + t], half=half)
            gramian = inner_products(rows[:size], gramian, rows[-size:])
        return gramian

    def weighted(self, weights: Tensor, scale: float) -> Gradients:
        """See `Source`: one plain backward pass, unless the per-task gradients are there already."""
        if not self._differentiated:
            losses, shared, own = self._losses, self.parameters[: self._num_shared], self._unweighted(scale)
            assert losses is not None
            if not self._keep:
                self.forget()  # what was recorded would outlive the pass through it
            return differentiate([losses], shared, [weights * scale], retain_graph=self._keep) + own
        weights = weights.to(self.parameters[0].device, self._type) * scale
        if self._kept:
            return self._split(weights @ self._rows(self._num_columns)) + self._unweighted(scale)
        update = self.parameters[0].new_empty(1, self._num_columns, dtype=self._type)
        for layer in self._layers:
            self._fill(layer, update[:, layer.columns], weights)
        return self._split(update[0]) + self._unweighted(scale)

    def along(self, direction: Tensor, scale: float) -> Gradients:
        """See `Source`."""
        return self._split(direction * scale) + self._unweighted(scale)

    def _unweighted(self, scale: float) -> Gradients:
        """The gradients of rows that are the tasks' own: those of the sum of losses, since these do not share them."""
        specific, losses = self.parameters[self._num_shared :], self._losses
        if self._differentiated or not specific:
            return [None if gradient is None else gradient * scale for gradient in self._specific_gradients]
        assert losses is not None
        return differentiate([losses], specific, [torch.full_like(losses, scale)], retain_graph=True)

    def offender(self, combined: Gradients) -> int | None:
        """See `Source`; from what was recorded."""
        for gradient in combined[self._num_shared :]:
            if gradient is not None and len(bad := (~gradient.isfinite().all(1)).nonzero()):
                return int(bad[0])
        if self._calls:
            bad = (~self.gramian().diagonal().isfinite()).nonzero()
            return int(bad[0]) if len(bad) else None
        return None

    def _differentiate(self) -> None:
        """The output gradient of every recorded call: tasks do not mix, so the sum of losses gives them all."""
        if self._differentiated:
            return
        if not self._calls:
            raise InputError("no layer of the network was called inside record()")
        for call in self._calls:
            call.check_untouched()
        assert self._losses is not None
        outputs = [call.output for call in self._calls]
        keep = self._keep or not self._checked
        inputs = outputs + self.parameters[self._num_shared :]
        found = differentiate([self._losses], inputs, [torch.ones_like(self._losses)], retain_graph=keep)
        for call, delta in zip(self._calls, found, strict=False):
            call.delta = delta
        self._specific_gradients = found[len(outputs) :]
        self._differentiated = True
        if not self._checked:
            self._checked = self._check_promises(self._losses)

    @property
    def _fits(self) -> bool:
        # Only memory speaks for streaming: into memory that is already there, keeping J (a write and a read of it)
        # took 0.88 times the time of a second product with the output gradients at 50 tasks x 26 samples, 0.80 at
        # 50 x 128 and 0.83 at 10 x 128 (forward and backward of two 3x400 critics, one CPU core).
        return self.num_tasks * self._num_columns * self._type.itemsize <= self.memory_limit

    def _rows(self, columns: int, count: int | None = None) -> Tensor:
        """``[T or count, columns]`` of memory that is allocated once and again only when it has to grow or move."""
        count = self.num_tasks if count is None else count
        device = self.parameters[0].device
        stride = columns + -columns % ALIGNED if device.type == "cuda" else columns
        size = count * stride
        if self._memory.numel() < size or self._memory.dtype != self._type or self._memory.device != device:
            self._memory = torch.empty(size, dtype=self._type, device=device)
        return self._memory[:size].view(count, stride)[:, :columns]

    def _fill(self, layer: _Layer, rows: Tensor, weights: Tensor | None = None, *, half: int | None = None) -> None:
        """Writes a layer's per-task gradients (``[T, size]``), or with weights their weighted sum (``[1, size]``).

        Those of the first (0) or second (1) ``half`` of the samples are as large as those of all.
        """
        pairs = [
            self._grouped(call, call.delta) if half is None else self._halved(call, call.delta, half)
            for call in self._calls
            if call.layer is layer and call.delta is not None
        ]
        if not pairs:
            rows.zero_()
            return
        # Several calls are one call on all of their samples.
        x, delta = pairs[0] if len(pairs) == 1 else (torch.cat(parts, -2) for parts in zip(*pairs, strict=True))
        if weights is not None:
            x = x.flatten(-3, -2).unsqueeze(-3)
            delta = (delta * weights[:, None, None]).flatten(-3, -2).unsqueeze(-3)
        delta = delta if layer.rule.mixed else delta.to(rows.dtype)
        if x.is_floating_point():
            x = x.to(delta.dtype)  # as autocast does for the layer's own product
        layer.rule.fill(layer.module, x, delta, layer.views(rows))

    def _grouped(self, call: _Call, delta: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return grouped_by_task(call.layer.module, call.layer.rule, call.input, delta, self.num_tasks)
        except ValueError as error:
            raise InputError(
                f"layer '{call.layer.name}' got or gave a {error}: expected {self.num_tasks} tasks in the first "
                "dimension (the second in an ensemble) and samples in the next"
            ) from None

    def _halved(self, call: _Call, delta: Tensor, half: int) -> tuple[Tensor, Tensor]:
        x, grouped = self._grouped(call, delta)
        count = self._num_samples()
        kept = x.shape[-2] // count * (count // 2)  # behind the samples there can be other dimensions
        where = slice(kept) if half == 0 else slice(-kept, None)
        return x[..., where, :], grouped[..., where, :] * (count / (count // 2))

    def _num_samples(self) -> int:
        """How many of each task there are, the same in every call."""
        counts = {count_of_samples(call.layer.module, call.layer.rule, call.output) for call in self._calls}
        if len(counts) > 1 or min(counts) < 2:
            raise InputError(
                "halves of each task's samples need two or more, and as many in every call of a layer: got "
                f"{', '.join(map(str, sorted(counts)))}"
            )
        return counts.pop()

    def _split(self, update: Tensor) -> Gradients:
        """A flat update (``[P]``) by parameter, with None where no loss reaches it."""
        reached = [call.layer for call in self._calls if call.delta is not None]
        pieces: Gradients = []
        for layer in self._layers:
            views = layer.views(update[None, layer.columns])
            there = any(layer is other for other in reached)
            pieces += [view[0].to(layer.parameters[name].dtype) if there else None for name, view in views.items()]
        return pieces

    def _check_promises(self, losses: Tensor) -> bool:
        """No loss depends on another task's samples, and the recorded calls explain the whole gradient.

        Every task's loss is multiplied by a power of two (at most 1, so that nothing overflows), which changes no
        rounding, whatever the precision of products in between; tasks that get the same power in one pass get different
        ones in another. Returns whether gradients were finite, so that there was something to see.
        """
        outputs, passes = [call.output for call in self._calls], 1
        while POWERS**passes < self.num_tasks:
            passes += 1
        for digit in range(passes):
            powers = [task // POWERS**digit % POWERS - (POWERS - 1) for task in range(self.num_tasks)]
            factors = torch.tensor([2.0**power for power in powers], dtype=self._type, device="cpu").to(losses.device)
            keep = self._keep or digit < passes - 1
            inputs = [*outputs, *self.parameters]
            scaled = differentiate([losses], inputs, [factors.to(losses)], retain_graph=keep)
            self._check_separate(scaled[: len(outputs)], factors)
            self._check_rows(scaled[len(outputs) + self._num_shared :], factors)
        return self._check_explained(scaled[len(outputs) :], factors)

    def _check_separate(self, scaled: Gradients, factors: Tensor) -> None:
        largest = max(
            (float(call.delta.norm(dtype=self._type)) for call in self._calls if call.delta is not None), default=0.0
        )
        for call, other in zip(self._calls, scaled, strict=True):
            if call.delta is None or other is None:
                continue
            delta, other = (self._grouped(call, d)[1].to(self._type) for d in (call.delta, other))
            allowed = COARSE * _rounding(call.delta) * float(other.norm())
            if _differ(other, delta * factors[:, None, None], largest, allowed):
                raise InputError(
                    f"the losses mix tasks behind layer '{call.layer.name}': each loss has to depend on its own "
                    "task's samples alone (statistics over the samples of all tasks do not)"
                )

    def _check_rows(self, scaled: Gradients, factors: Tensor) -> None:
        for gradient, other in zip(self._specific_gradients, scaled, strict=True):
            if gradient is None or other is None:
                continue
            rows, other = (entries.to(self._type) for entries in (gradient, other))
            allowed = COARSE * _rounding(gradient) * float(other.norm())
            if _differ(other, rows * factors[:, None], float(rows.norm()), allowed):
                raise InputError("a task's loss depends on another task's row of a TaskRows, which is that task's own")

    def _check_explained(self, scaled: Gradients, factors: Tensor) -> bool:
        finite = True
        given = iter(scaled)
        for layer in self._layers:
            found = [
                (torch.zeros_like(parameter) if gradient is None else gradient).flatten().to(self._type)
                for parameter, gradient in zip(layer.parameters.values(), given, strict=False)
            ]
            whole = torch.cat(found)
            rows = self._rows(layer.columns.stop - layer.columns.start)
            self._fill(layer, rows)
            finite = finite and bool(rows.isfinite().all())
            deltas = [call.delta for call in self._calls if call.layer is layer and call.delta is not None]
            rounding = [
                *map(_rounding, deltas),
                *map(promises.product_precision, [*deltas, *layer.parameters.values()]),
            ]
            magnitude = float((rows * factors[:, None]).norm())
            allowed = COARSE * max(rounding) * (float(whole.norm()) + magnitude)
            if _differ(factors @ rows, whole, magnitude, allowed):
                raise InputError(
                    f"the gradient of layer '{layer.name}' does not come from its calls alone: its parameters are "
                    "used outside its forward, or a hook changes what it gets or gives"
                )
        return finite


def _differ(found: Tensor, expected: Tensor, magnitude: float, allowed: float) -> bool:
    """Whether two tensors differ by more than is allowed and the rounding of terms as large as ``magnitude``."""
    precision = torch.finfo(found.dtype).eps
    error = float((found - expected).norm())
    allowed = max(allowed, 10 * precision**0.5 * float(expected.norm()) + 100 * precision * magnitude)
    # What is not finite is for the caller to report.
    return math.isfinite(error) and error > allowed


def _rounding(delta: Tensor) -> float:
    """The relative rounding of an output's gradient: by its type's precision, or by the smallest number it knows."""
    kind = torch.finfo(delta.dtype)
    step = 2**POWERS * kind.smallest_normal * kind.eps
    return float(max(kind.eps, step * delta.numel() ** 0.5 / max(float(delta.norm(dtype=torch.float64)), kind.tiny)))
