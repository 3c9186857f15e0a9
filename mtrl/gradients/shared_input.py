"""Per-task gradients where all tasks share the input: through the representation, or loss by loss."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, distributed, nn
from torch.amp import GradScaler

from mtrl.combiners import Combiner
from mtrl.errors import InputError
from mtrl.gradients import promises
from mtrl.gradients.distributed import Replicas, refuse_sharded, refuse_wrapped
from mtrl.gradients.pipeline import (
    DEFAULT_MEMORY_LIMIT,
    Combination,
    Gradients,
    Source,
    check_combiner,
    check_memory,
    combine,
    differentiate,
    norm_of,
    wide_type,
)
from mtrl.gradients.precision import inner_products

Read = TypeVar("Read", bound="Tensor | tuple[Tensor, ...]")
"""What a head reads: a feature map, or several."""


class Aliases(tuple[Read, ...]):
    """What each of T heads reads: aliases of one shared representation, one for each task.

    As the ``representation`` of `backward` they let one backward pass give all tasks' gradients. A list or tuple that
    is not marked in this way is taken for several feature maps that every head may read. `fan_out` makes them.
    """

    __slots__ = ()


@overload
def fan_out(representation: Tensor, num_tasks: int) -> Aliases[Tensor]: ...
@overload
def fan_out(representation: Sequence[Tensor], num_tasks: int) -> Aliases[tuple[Tensor, ...]]: ...
def fan_out(representation: Tensor | Sequence[Tensor], num_tasks: int) -> Aliases[Tensor] | Aliases[tuple[Tensor, ...]]:
    """An alias of the shared representation per task: of these, one backward pass gives all tasks' gradients.

    Of a list of feature maps, every task gets a tuple of aliases.
    """
    if isinstance(representation, Tensor):
        return Aliases(representation.view_as(representation) for _ in range(num_tasks))
    return Aliases(tuple(z.view_as(z) for z in representation) for _ in range(num_tasks))


def backward(
    losses: Tensor | Sequence[Tensor],
    combiner: Combiner,
    *,
    shared: nn.Module | Iterable[nn.Module | Tensor],
    specific: nn.Module | Iterable[nn.Module | Tensor] = (),
    representation: Tensor | Sequence[Tensor] | Aliases[Tensor] | Aliases[tuple[Tensor, ...]] | None = None,
    measured: Iterable[Tensor] | None = None,
    weigh_specific: bool | None = None,
    scale: float = 1.0,
    insight: bool = False,
    retain_graph: bool = False,
    scaler: GradScaler | None = None,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    group: "distributed.ProcessGroup | None" = None,
) -> Combination:
    """Adds the combined gradient of T losses on a shared input to ``.grad``: see `pipeline.combine`.

    ``"losses"`` methods cost one plain backward pass. For the others, the per-task gradients are taken by the
    ``representation`` where one is given (MGDA-UB, Sener & Koltun, 2018, equation 5; IMTL; GradDrop), and otherwise by
    the shared parameters, one vector-Jacobian product per task. A Gramian method's weights then weigh the losses in
    one more backward pass, or its update is taken from the Jacobian where that was kept. A Jacobian method's direction
    for the representation is passed back through the encoder: shared parameters have to reach the losses through the
    representation alone. The first call with a combiner and these parameters checks that, and that every loss trains
    something shared; it warns of parameters that nothing trains, unless ``retain_graph`` tells of another pass.

    The last pass frees the graph, as `Tensor.backward` does; heads that were passed loss by loss keep theirs until the
    losses are dropped. Per-task gradients are combined in float32 or better, whatever the parameters' types, and a
    complex entry counts as two real ones. A parameter that is listed twice counts once.

    Under automatic mixed precision, give the losses as they are and the ``scaler``, then call ``scaler.step`` and
    ``scaler.update`` as usual: ``.grad`` has the scale, the combiner never sees it. A step whose losses or gradients
    overflow is no error then: ``.grad`` and ``update_norm`` are not finite and `GradScaler` skips the step. Where what
    the combiner looks at overflows, its state does not advance, and the `Combination` has no weights.

    Args:
        losses: T scalars, as a tensor ``[T]`` or a sequence.
        combiner: the method, made for T tasks.
        shared: what all tasks share (a module, modules or parameters).
        specific: what is task-specific (the same), which gets its own losses' gradients.
        representation: the shared representation z that all heads read (any shape); a list of them, whose gradients are
            concatenated; or the T aliases from `fan_out`, with which one backward pass through the heads serves all
            tasks.
        measured: the shared parameters whose gradients make the Gramian, e.g. the last layer's; None is all of them.
        weigh_specific: whether task weights apply to specific parameters too; None is as in the method's paper.
        scale: a constant factor on every gradient.
        insight: form the Gramian even where the method does not need it; it does not change the update.
        retain_graph: keep the graph for a later pass of your own.
        scaler: of automatic mixed precision.
        memory_limit: bytes that per-task parameter gradients may take. Below what the Jacobian needs, Gramian methods
            go through the parameters in blocks (of at least one), at T vector-Jacobian products each.
        group: of processes that train one model, each on its own part of the batch; all of them make this call, with
            equal parameters, combiners and numbers of samples, and get the gradient of the whole batch. Losses are
            means over samples; a mean over fewer of them (missing labels) is to be scaled by their share.

    Raises:
        NonFiniteError: if a loss, gradient or weight is not finite; ``.grad`` is left as it was. The task is named
            where the graph still tells (``insight=True`` keeps it).
        InputError: if losses, combiner and representation do not fit together, options exclude each other, a loss
            depends on no shared parameter, a Jacobian that the method reads does not fit into ``memory_limit``, or
            there are several processes and no group.
        RunError: if parameters, combiners or sizes differ between the processes of the group.
    """
    scaler = scaler if scaler is not None and scaler.is_enabled() else None
    before = combiner.checked if isinstance(combiner, Combiner) else None
    of_batch, source = source_of(
        losses,
        combiner,
        shared=shared,
        specific=specific,
        representation=representation,
        measured=measured,
        weigh_specific=weigh_specific,
        insight=insight,
        retain_graph=retain_graph,
        scaler=scaler,
        memory_limit=memory_limit,
        replicas=Replicas.of(group),
    )
    combination = combine(of_batch, combiner, source, scale=scale, insight=insight, scaler=scaler)
    if combiner.checked is not before and not retain_graph:
        _warn_of_untrained(losses, combiner, source.parameters)
    return combination


def source_of(
    losses: Tensor | Sequence[Tensor],
    combiner: Combiner,
    *,
    shared: nn.Module | Iterable[nn.Module | Tensor],
    specific: nn.Module | Iterable[nn.Module | Tensor] = (),
    representation: Tensor | Sequence[Tensor] | Aliases[Tensor] | Aliases[tuple[Tensor, ...]] | None = None,
    measured: Iterable[Tensor] | None = None,
    weigh_specific: bool | None = None,
    insight: bool = False,
    retain_graph: bool = False,
    scaler: GradScaler | None = None,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    replicas: Replicas = Replicas(),  # noqa: B008  (it is immutable)
) -> tuple[Tensor, Source]:
    """The losses ``[T]`` of the whole batch and the source of their gradients: `backward` up to the combiner's look.

    All but the replicas is as there. Without a group, nothing is read back from the device.
    """
    check_combiner(combiner)
    shared_, specific_ = _trainable(shared), _trainable(specific)
    measured_ = None if measured is None else _trainable(measured)
    scalars = _scalars(losses, combiner)
    _check_options(combiner, shared_, specific_, measured_, representation, weigh_specific)
    starts = promises.edges_of(losses if isinstance(losses, Tensor) and losses.dim() == 1 else scalars)
    with torch.enable_grad():
        scaled = scalars if scaler is None else list(scaler.scale(scalars))
    weigh = combiner.weights_specific if weigh_specific is None else weigh_specific
    weigh = weigh and combiner.needs != "jacobian"
    keep = retain_graph or (insight and combiner.needs != "gramian")  # it looks once more
    source: _LossByLoss
    common: dict[str, Any] = {"replicas": replicas, "keep": keep, "starts": starts}
    if representation is None or (combiner.needs == "losses" and not insight):
        maps = None
        source = ByParameters(scaled, shared_, specific_, weigh, memory_limit, measured_, **common)
    else:
        maps = _Maps.of(representation, len(scalars))
        source = ByRepresentation(scaled, shared_, specific_, weigh, maps, **common)
    seen = representation is None, *map(id, source.parameters), *map(id, measured_ or ())
    if combiner.checked not in ((True, seen), (maps is not None, seen)):  # where it is looked at, more is checked
        promises.check_trained(starts, measured_ or shared_, "shared" if measured_ is None else "measured")
        if maps is not None:
            maps.check(starts, shared_, specific_, alone=combiner.needs == "jacobian")
        combiner.checked = maps is not None, seen
    columns = 0 if maps is None else sum(map(_columns, maps.by_task[0]))
    return replicas.losses(torch.stack([loss.detach() for loss in scalars]), source.parameters, columns), source


def _warn_of_untrained(losses: Tensor | Sequence[Tensor], combiner: Combiner, trained: Sequence[Tensor]) -> None:
    left_out = promises.untrained(promises.edges_of(_scalars(losses, combiner)), trained)
    if left_out:
        count, shape = sum(parameter.numel() for parameter in left_out), tuple(left_out[0].shape)
        warnings.warn(
            f"the losses depend on {count:,} parameters ({len(left_out)} tensors, one of shape {shape}) that are "
            "neither shared nor specific: they get no gradient (where that is meant, requires_grad_(False) says so)",
            stacklevel=3,
        )


def _check_options(
    combiner: Combiner,
    shared: Sequence[Tensor],
    specific: Sequence[Tensor],
    measured: Sequence[Tensor] | None,
    representation: object,
    weigh_specific: bool | None,
) -> None:
    if not shared or measured == []:
        raise InputError("no shared or no measured parameter is trainable")
    if {id(parameter) for parameter in shared} & {id(parameter) for parameter in specific}:
        raise InputError("a parameter is both shared and specific")
    if measured is not None and (representation is not None or combiner.needs == "jacobian"):
        raise InputError("'measured' is for Gramian methods without a representation")
    if weigh_specific and combiner.needs == "jacobian":
        raise InputError(f"{combiner.name} has no task weights to apply to specific parameters")


@dataclass
class _Maps:
    """The feature maps of a shared representation that each of T heads reads: all the same ones, or aliases of them."""

    by_task: Sequence[Sequence[Tensor]]
    aliased: bool

    @classmethod
    def of(cls, representation: Tensor | Sequence[Tensor | tuple[Tensor, ...]], num_tasks: int) -> "_Maps":
        """What was given to `backward`, checked."""
        given = [representation] if isinstance(representation, Tensor) else list(representation)
        by_task = [list(item) if isinstance(item, list | tuple) else [item] for item in given]
        if isinstance(representation, Mapping) or not all(isinstance(z, Tensor) for maps in by_task for z in maps):
            kind = type(representation).__name__
            raise InputError(f"expected the representation as a tensor or a list of tensors, got a {kind}")
        aliased = isinstance(representation, Aliases)
        if aliased and len(given) != num_tasks:
            raise InputError(f"{num_tasks} losses, but {len(given)} representations")
        if not aliased:
            by_task = [_once(z for maps in by_task for z in maps)] * num_tasks
        if not by_task[0] or not all(z.requires_grad for maps in by_task for z in maps):
            raise InputError("the representation does not depend on any trainable parameter (is it detached?)")
        return cls(by_task, aliased)

    def check(
        self, starts: Sequence[promises.Edge], shared: Sequence[Tensor], specific: Sequence[Tensor], *, alone: bool
    ) -> None:
        """Raises `InputError` where a loss does not read the representation, or reads another task's alias.

        If its gradient `alone` gives that of the shared parameters, none may reach a loss past it.
        """
        bits = {promises.edge_of(z): 1 << bit for bit, z in enumerate(_once(z for maps in self.by_task for z in maps))}
        if any(found != 1 << bit for bit, found in enumerate(promises.reached(list(bits), bits))):
            raise InputError(
                "a map of the representation depends on another, whose gradient would count twice: let heads read "
                "gradients.fan_out(maps, num_tasks) and give that"
            )
        read = promises.reached(starts, bits)
        for task, (found, maps) in enumerate(zip(read, self.by_task, strict=True)):
            own = sum(bits[promises.edge_of(z)] for z in maps)
            if not found & own:
                raise InputError(f"the loss of task {task} does not depend on the representation")
            # Losses that were computed as one tensor cannot be told apart.
            if self.aliased and found & ~own and len({node for node, _ in starts}) == len(starts):
                raise InputError(f"the loss of task {task} reads another task's alias of the representation")
        if (
            len(read) > 1
            and not self.aliased
            and all(sum(mask >> bit & 1 for mask in read) < 2 for bit in range(len(bits)))
        ):
            raise InputError(
                "no two losses read the same map of the representation: if these are the tasks' aliases of one, "
                "mark them (gradients.fan_out or gradients.Aliases)"
            )
        if alone:
            self._check_alone(starts, bits, shared, specific)

    def _check_alone(
        self,
        starts: Sequence[promises.Edge],
        maps: Mapping[promises.Edge, int],
        shared: Sequence[Tensor],
        specific: Sequence[Tensor],
    ) -> None:
        past = dict.fromkeys(map(promises.edge_of, shared), 1)
        for task, found in enumerate(promises.reached(starts, past | dict.fromkeys(maps, 0), through=False)):
            if found:
                raise InputError(
                    f"a shared parameter reaches the loss of task {task} past the representation: give every map that "
                    "a head reads, or no representation"
                )
        if any(promises.reached(list(maps), dict.fromkeys(map(promises.edge_of, specific), 1))):
            raise InputError("the representation depends on a specific parameter: it is shared")


@dataclass
class _LossByLoss:
    """What the sources of this module share: losses that can be weighed, and the gradients of specific parameters.

    Attributes:
        losses: T scalars.
        shared: the parameters that all tasks share.
        specific: those that get their own losses' gradients.
        weigh: whether task weights apply to the specific parameters too.
        replicas: the processes whose gradients these are together.
        keep: whether the last pass leaves the graph.
        starts: where the losses hang in the graph, so that a task can be named without a pass.
        rows: the gradients of the specific parameters, one list per backward pass, where a pass took them along.
    """

    losses: Sequence[Tensor]
    shared: Sequence[Tensor]
    specific: Sequence[Tensor]
    weigh: bool
    replicas: Replicas = field(default=Replicas(), kw_only=True)
    keep: bool = field(default=True, kw_only=True)
    starts: Sequence[promises.Edge] = field(default=(), kw_only=True)
    rows: Sequence[Gradients] = field(default=(), init=False)

    @property
    def parameters(self) -> list[Tensor]:
        """See `Source`."""
        return [*self.shared, *self.specific]

    @property
    def num_shared(self) -> int:
        """See `Source`."""
        return len(self.shared)

    @property
    def activations(self) -> Sequence[Tensor]:
        """See `Source`."""
        return ()

    def gramian_of_halves(self, *, across: bool) -> Tensor:
        """See `Source`: losses hide their samples."""
        raise InputError(
            "there are no halves of each task's samples to compare, where all tasks share theirs: set halves=false, "
            "which biases the method's weights"
        )

    def weighted(self, weights: Tensor, scale: float) -> Gradients:
        """See `Source`: one more backward pass, of the weighted losses."""
        coefficients = list(self.replicas.agreed(weights) * scale)
        if self.weigh:
            found = differentiate(self.losses, self.parameters, coefficients, retain_graph=self.keep)
        else:
            own = self._unweighted(scale)
            found = differentiate(self.losses, self.shared, coefficients, retain_graph=self.keep) + own
        return self.replicas.averaged(found, self.parameters)

    def offender(self, combined: Gradients) -> int | None:
        """See `Source`: by one pass per task while the graph is there, and by what depends on what after that."""
        task = self._offender() if self.keep else promises.offender(self.starts, self.parameters, combined)
        return self.replicas.first(task, self.losses)

    def _offender(self) -> int | None:
        for task, loss in enumerate(self.losses):
            row = differentiate([loss], self.parameters, [torch.ones_like(loss)], retain_graph=True)
            if not bool(norm_of(row).isfinite()):
                return task
        return None

    def _unweighted(self, scale: float) -> Gradients:
        """The specific parameters' gradients of the losses as they are."""
        scales = [torch.full_like(loss, scale) for loss in self.losses]
        if self.rows:
            return self._from_rows(scales)
        return differentiate(self.losses, self.specific, scales, retain_graph=True)

    def _averaged(self, own: Gradients) -> Gradients:
        """The specific parameters' gradients, over all processes."""
        return self.replicas.averaged(own, self.specific)

    def _from_rows(self, coefficients: Sequence[Tensor]) -> Gradients:
        """The specific parameters' gradients, those of each pass times its coefficient."""
        found: Gradients = []
        for column in zip(*self.rows, strict=True):
            terms = [c.to(g) * g for c, g in zip(coefficients, column, strict=False) if g is not None]
            dense = any(not term.is_sparse for term in terms)
            terms = [term.to_dense() if dense and term.is_sparse else term for term in terms]
            found.append(reduce(torch.add, terms) if terms else None)
        return found


@dataclass
class ByParameters(_LossByLoss):
    """A `Source` of gradients by shared parameters: one vector-Jacobian product per task.

    Attributes:
        memory_limit: bytes that the Jacobian may take; a Gramian goes through the parameters in blocks that fit.
        measured: the shared parameters that the Gramian is over; None is all of them.
    """

    memory_limit: int
    measured: Sequence[Tensor] | None = None
    _jacobian: Tensor | None = field(default=None, init=False)
    _reached: Sequence[Tensor | bool] = field(default=(), init=False)

    def jacobian(self) -> Tensor:
        """See `Source`."""
        columns = sum(map(_columns, self.shared))
        instead = "give a representation, or choose a method that needs only the Gramian"
        check_memory(len(self.losses), columns, wide_type(self.shared).itemsize, self.memory_limit, instead)
        self._jacobian, reached, self.rows = _rows(self.losses, self.shared, self.specific, self.keep)
        self._reached = self.replicas.anywhere(reached, self.shared)
        return self.replicas.mean_(self._jacobian)

    def gramian(self) -> Tensor:
        """See `Source`."""
        if self.measured is None and _bytes(len(self.losses), self.shared) <= self.memory_limit:
            return inner_products(self.jacobian())
        measured = self.shared if self.measured is None else self.measured
        gramian: Tensor | None = None
        block: list[Tensor] = []
        for position, parameter in enumerate(measured):
            block.append(parameter)
            following = measured[position + 1 : position + 2]
            if not following or _bytes(len(self.losses), [*block, *following]) > self.memory_limit:
                jacobian, *_ = _rows(self.losses, block, (), True)
                self.replicas.mean_(jacobian)
                product = inner_products(jacobian)
                gramian = product if gramian is None else gramian + product
                block = []
        assert gramian is not None
        return gramian

    def weighted(self, weights: Tensor, scale: float) -> Gradients:
        """See `Source`: from the Jacobian where it is there already."""
        if self._jacobian is None:
            return super().weighted(weights, scale)
        weights = self.replicas.agreed(weights) * scale
        own = self._from_rows(list(weights)) if self.weigh else self._unweighted(scale)
        return self._split(weights.to(self._jacobian) @ self._jacobian) + self._averaged(own)

    def along(self, direction: Tensor, scale: float) -> Gradients:
        """See `Source`."""
        return self._split(self.replicas.agreed(direction) * scale) + self._averaged(self._unweighted(scale))

    def _split(self, direction: Tensor) -> Gradients:
        pieces = torch.split(direction, list(map(_columns, self.shared)))
        return [
            None if reached is False else _shaped(piece, parameter, reached)
            for piece, parameter, reached in zip(pieces, self.shared, self._reached, strict=True)
        ]


@dataclass
class ByRepresentation(_LossByLoss):
    """A `Source` whose Jacobian is over the shared representation, or over its T aliases."""

    maps: "_Maps"

    @property
    def activations(self) -> Sequence[Tensor]:
        """See `Source`: the aliases all have the value of one."""
        return self.replicas.activations(self.maps.by_task[0])

    def jacobian(self) -> Tensor:
        """See `Source`."""
        return self.replicas.beside(self._by_maps(self.keep), self._sizes)

    def gramian(self) -> Tensor:
        """See `Source`."""
        jacobian = self._by_maps(True)
        return self.replicas.gramian(inner_products(jacobian))

    def along(self, direction: Tensor, scale: float) -> Gradients:
        """See `Source`: passed back through the encoder."""
        own = self._averaged(self._unweighted(scale))
        maps = self.maps.by_task[0]
        pieces = self.replicas.own(self.replicas.agreed(direction) * scale, self._sizes)
        shaped = [_shaped(piece, z) for piece, z in zip(pieces, maps, strict=True)]
        found = differentiate(maps, self.shared, shaped, retain_graph=self.keep)
        return self.replicas.added(found, self.shared) + own

    @property
    def _sizes(self) -> list[int]:
        return list(map(_columns, self.maps.by_task[0]))

    def _by_maps(self, keep: bool) -> Tensor:
        """The Jacobian; unless it is to `keep` the graph, the last pass through the heads frees them."""
        # Weighted gradients of specific parameters wait for the pass that weighs the losses.
        along = [] if self.weigh else self.specific
        ones = [torch.ones_like(loss) for loss in self.losses]
        by_task = self.maps.by_task
        if self.maps.aliased:
            size = len(by_task[0])
            inputs = [z for maps in by_task for z in maps]
            row = differentiate(self.losses, [*inputs, *along], ones, retain_graph=keep)
            by_z = [row[start : start + size] for start in range(0, len(inputs), size)]
            self.rows = [row[len(inputs) :]]
        else:
            size, last = len(by_task[0]), len(self.losses) - 1
            passes = [
                differentiate([loss], [*by_task[task], *along], [one], retain_graph=keep or task < last)
                for task, (loss, one) in enumerate(zip(self.losses, ones, strict=True))
            ]
            by_z, self.rows = [row[:size] for row in passes], [row[size:] for row in passes]
        if not along:
            self.rows = ()
        jacobian = by_task[0][0].new_zeros(len(by_z), sum(self._sizes), dtype=wide_type(by_task[0]))
        for entries_, found in zip(jacobian, by_z, strict=True):
            for piece, gradient in zip(entries_.split(self._sizes), found, strict=True):
                if gradient is not None:
                    piece.copy_(promises.entries(gradient).flatten())
        return jacobian


def _rows(
    losses: Sequence[Tensor], parameters: Sequence[Tensor], along: Sequence[Tensor], keep: bool
) -> tuple[Tensor, list[Tensor | bool], list[Gradients]]:
    """The Jacobian ``[T, P]``, which parameters any loss reaches, and each loss's gradients of those taken along.

    Of a parameter with sparse gradients, it says which of its rows are reached, ``[n]``.
    """
    sizes = list(map(_columns, parameters))
    jacobian = parameters[0].new_zeros(len(losses), sum(sizes), dtype=wide_type(parameters))
    reached: list[Tensor | bool] = [False] * len(parameters)
    rows: list[Gradients] = []
    for task, (row, loss) in enumerate(zip(jacobian, losses, strict=True)):
        last = task == len(losses) - 1
        found = differentiate([loss], [*parameters, *along], [torch.ones_like(loss)], retain_graph=keep or not last)
        for position, (piece, gradient) in enumerate(zip(row.split(sizes), found, strict=False)):
            if gradient is not None:
                if gradient.is_sparse or reached[position] is not True:
                    reached[position] = _touched(gradient, reached[position])
                piece.copy_(promises.entries(gradient.to_dense() if gradient.is_sparse else gradient).flatten())
        rows.append(found[len(parameters) :])
    return jacobian, reached, rows if along else []


def _touched(gradient: Tensor, before: Tensor | bool) -> Tensor | bool:
    """Which rows of a parameter have a gradient, ``[n]``, beside those before; True for a dense one."""
    if not gradient.is_sparse or before is True:
        return True
    none = torch.zeros(len(gradient), dtype=torch.bool, device=gradient.device)
    return (none if before is False else before).index_fill(0, gradient._indices()[0], True)


def _shaped(piece: Tensor, parameter: Tensor, touched: Tensor | bool = True) -> Tensor:
    """A piece of a Jacobian's row as the gradient of its parameter, sparse where only some rows are `touched`."""
    if parameter.is_complex():
        gradient = torch.view_as_complex(piece.clone().view(*parameter.shape, 2)).to(parameter)
    else:
        gradient = piece.view_as(parameter).to(parameter)
    if isinstance(touched, bool):
        return gradient
    indices = touched.nonzero().T
    # Said so explicitly: torch 2.11 warns else, whatever an argument says.
    with torch.sparse.check_sparse_tensor_invariants(False):  # type: ignore[no-untyped-call]
        return torch.sparse_coo_tensor(indices, gradient[indices[0]], gradient.shape, is_coalesced=True)


def _columns(parameter: Tensor) -> int:
    """How many columns of the Jacobian are a parameter's: two for each complex entry."""
    return parameter.numel() * (2 if parameter.is_complex() else 1)


def _bytes(num_tasks: int, parameters: Sequence[Tensor]) -> int:
    return num_tasks * sum(map(_columns, parameters)) * wide_type(parameters).itemsize


def _scalars(losses: Tensor | Sequence[Tensor], combiner: Combiner) -> list[Tensor]:
    if isinstance(losses, Mapping):
        raise InputError("losses are a dict, expected a sequence in the order of the tasks: list(losses.values())")
    with torch.enable_grad():
        scalars = list(losses) if not isinstance(losses, Tensor) or losses.dim() else [losses]
        if len(scalars) != combiner.num_tasks:
            raise InputError(f"{combiner.name} was made for {combiner.num_tasks} tasks, got {len(scalars)} losses")
        for task, loss in enumerate(scalars):
            if not isinstance(loss, Tensor):
                raise InputError(f"the loss of task {task} is a {type(loss).__name__}, expected a tensor")
            if loss.numel() != 1:
                raise InputError(f"the loss of task {task} has shape {tuple(loss.shape)}, expected a scalar")
            if loss.is_complex():
                raise InputError(f"the loss of task {task} is complex, expected a real number")
        return [loss.reshape(()) for loss in scalars]


def _trainable(given: nn.Module | Iterable[nn.Module | Tensor]) -> list[Tensor]:
    """The trainable parameters of modules and among parameters, each once."""
    items = [given] if isinstance(given, nn.Module | Tensor) else list(given)
    refuse_wrapped(*(item for item in items if isinstance(item, nn.Module)))
    found: list[Tensor] = []
    for item in items:
        if not isinstance(item, nn.Module | Tensor):
            raise InputError(f"expected modules or parameters, such as model.parameters(), got a {type(item).__name__}")
        found += item.parameters() if isinstance(item, nn.Module) else [item]
    refuse_sharded(found)
    return _once(parameter for parameter in found if parameter.requires_grad)


def _once(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())
