"""The one abstraction for every way of combining per-task gradients, and the bases of the two kinds of re-weighting."""

import functools
import inspect
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, Literal, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from mtrl.combiners.solvers import Array, gramian_of, to_host, unit_gramian
from mtrl.errors import InputError, unknown_name
from mtrl.ranges import Count, Seed, check, options_of

P = ParamSpec("P")
R = TypeVar("R")
Needs = Literal["losses", "gramian", "jacobian"]


class NegativeLossError(InputError):
    """A method for positive losses got a negative one.

    Attributes:
        combiner: the method's name.
        task: the index of the first task with a negative loss.
        loss: this loss.
    """

    def __init__(self, combiner: str, task: int, loss: float) -> None:
        super().__init__(f"{combiner} needs positive losses, but task {task} has {loss:.4g}")
        self.combiner, self.task, self.loss = combiner, task, loss

    def named(self, task: str, where: str) -> InputError:
        """The same for a person: by the task's name, and where it happened."""
        return InputError(f"{self.combiner} needs positive losses, but task '{task}' has {self.loss:.4g} {where}")


def cpu_by_default(function: Callable[P, R]) -> Callable[P, R]:
    """Makes tensors without a device the CPU's within a function, whatever ``torch.set_default_device`` says."""

    @functools.wraps(function)
    def guarded(*arguments: P.args, **options: P.kwargs) -> R:
        with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
            return function(*arguments, **options)

    return guarded


def divisors(losses: Tensor) -> Tensor:
    """Losses to divide by: infinity in the place of 0, and of what is so small that its reciprocal overflows."""
    return torch.where((1 / losses).isfinite(), losses, torch.inf)


class Combiner(torch.nn.Module):
    """Combines the gradients of T tasks into one update direction.

    With the per-task gradients as rows of the Jacobian ``J`` (``[T, P]``) and their Gramian ``G = J J^T``, a
    method is either a re-weighting, which implements `_weights`, or a direction method, which looks at the
    entries of ``J`` and implements `_combine`. Weights are relative to the sum of the losses: all ones is
    unitary scalarization. One instance serves one objective (a critic's is not the actor's), since methods keep
    state; all of it is in ``state_dict()``, the random generator included, so that a resumed run goes on bit
    for bit.

    What a method has of its own it makes in `_setup`, whose parameters are its options, their ranges and defaults;
    the command line, its help and every check read them there. Class docstrings describe these under ``Args``.

    Args:
        num_tasks: the number of tasks T, at least 1.
        seed: seeds this instance's own random generator.
        rescale: multiply the weights by ``T / sum_i |w_i|``, so that every method has unitary scalarization's
            scale and weight decay or gradient clipping mean the same for all; off, each method keeps the
            scale of its paper. Direction methods without weights are not affected.
        **options: the method's own.

    Raises:
        InputError: if ``num_tasks`` or an option is out of range, or an option is unknown or missing.
    """

    needs: ClassVar[Needs]
    """The cheapest thing that the driver has to compute: per-task losses, their Gramian, or the Jacobian."""
    needs_change: ClassVar[bool] = False
    """Whether `needs` is not the same at every step; it is that of the step that comes next."""
    halves: bool = False
    """Whether the Gramian is to be that of two independent halves of each task's samples: ``[2T, 2T]``, the first
    halves' gradients first, each as large as that of all samples. ``[T, T]`` stands for two equal halves."""
    across_halves: bool = False
    """Whether of the Gramian of halves the method needs no more than the first halves' products with the second ones,
    ``[T, T]``: a quarter of it."""
    positive_losses: bool = False
    """Whether the method is for positive losses: a negative one is refused. A loss of 0, as of a task learnt perfectly
    or without a label in the batch, takes no part in that call, unless the class says otherwise."""
    weights_specific: bool = False
    """Whether task weights apply to task-specific parameters too (drivers can override it): as in the method's paper,
    and where that leaves it open as in its authors' code, named beside the value. Directions have no such weights."""
    stationary: bool = False
    """Whether the last call's equation had no solution since training has arrived at a Pareto-stationary point."""
    checked: Hashable = None
    """What a driver has checked once, so that it need not at every step."""
    step_unseen: bool = False
    """Whether the method looks at the losses after a step, and was not shown them after the last: see `after_step`."""
    name: str
    """The name that `mtrl.combiners.register` gave to this class; until then its own."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = cls.__name__

    @cpu_by_default
    def __init__(self, num_tasks: int, *, seed: int = 0, rescale: bool = False, **options: Any) -> None:
        super().__init__()
        check("num_tasks", num_tasks, Count)
        check("seed", seed, Seed)
        check("rescale", rescale, bool)
        known = self.options()
        for option, value in options.items():
            if option not in known:
                raise unknown_name(f"option of {self.name}", option, [*known, "rescale"])
            check(f"{option} of {self.name}", value, known[option].annotation)
        for option, parameter in known.items():
            if parameter.default is parameter.empty and option not in options:
                raise InputError(f"{self.name} needs its option {option}")
        self.num_tasks = int(num_tasks)
        self.rescale = rescale
        # On the CPU whatever the device of the losses, so that a seed means the same stream everywhere.
        self.generator = torch.Generator().manual_seed(int(seed))
        self._setup(**options)

    def _setup(self, *_: Any, **options: Any) -> None:  # to a type checker, this is any signature
        """Takes the method's options, as keywords with their ranges, and makes its state."""

    @classmethod
    def options(cls) -> dict[str, inspect.Parameter]:
        """The method's own options by name, each with its ``default`` and, as ``annotation``, its range."""
        return options_of(cls._setup)

    @cpu_by_default
    def weights(self, losses: Tensor, gramian: Tensor | None = None) -> Tensor:
        """The task weights (``[T]``, like ``losses`` in dtype and device) of this step; methods with state advance it.

        Args:
            losses: ``[T]``, detached or not; no gradient flows through the weights.
            gramian: ``[T, T]``, the inner products of the per-task gradients (see `halves`); unused by ``"losses"``
                methods.

        Raises:
            InputError: on a wrong shape, a missing Gramian, or a negative loss that this method cannot take.
        """
        with torch.no_grad():
            self._check(losses, gramian)
            found = self._weights(losses.detach(), gramian)
            weights = self._returned("_weights", found, losses.shape).to(losses)
            if self.rescale:
                # Divided first: all weights can be zero.
                weights = weights / weights.abs().sum().clamp_min(torch.finfo(weights.dtype).tiny) * self.num_tasks
            return weights

    @cpu_by_default
    def combine(self, losses: Tensor, jacobian: Tensor, activations: Sequence[Tensor] = ()) -> Tensor:
        """The update direction (``[P]``) to put into ``.grad``.

        Args:
            losses: ``[T]``.
            jacobian: ``[T, P]``, one task's gradient a row. It may be overwritten.
            activations: where these are gradients by a representation, its maps (``[N, ...]`` each, samples first),
                whose entries are the columns in their order; none where they are gradients by parameters.

        Raises:
            InputError: as `weights`.
        """
        with torch.no_grad():
            if self.needs == "jacobian":
                self._check(losses, None)
                if activations:
                    found = self._combine_at(losses.detach(), jacobian, activations)
                else:
                    found = self._combine(losses.detach(), jacobian)
                return self._returned("_combine", found, jacobian.shape[1:])
            gramian = gramian_of(jacobian) if self.needs == "gramian" else None
            return self.weights(losses, gramian) @ jacobian

    @cpu_by_default
    def after_step(self, losses: Tensor) -> None:
        """Shows the losses (``[T]``) on the same batch after the optimizer's step; only FAMO looks."""
        self._after_step(losses)
        self.step_unseen = False

    def _after_step(self, losses: Tensor) -> None:
        """What a method does with the losses after a step."""

    @property
    def needs_losses_after_step(self) -> bool:
        """Whether `after_step` does anything, so that drivers compute the losses again only when needed."""
        return type(self)._after_step is not Combiner._after_step

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no task weights: it combines entries of the Jacobian")

    def _combine(self, losses: Tensor, jacobian: Tensor) -> Tensor:
        raise NotImplementedError

    def _combine_at(self, losses: Tensor, jacobian: Tensor, activations: Sequence[Tensor]) -> Tensor:
        """`_combine` at a representation, for methods to which samples and features are not the same."""
        return self._combine(losses, jacobian)

    def _returned(self, by: str, found: Tensor, shape: torch.Size) -> Tensor:
        """What a method found, `InputError` where it is nothing of that shape: methods may be users' own."""
        if not isinstance(found, Tensor) or found.shape != shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"{self.name}.{by} returned {got}, expected a tensor of shape {tuple(shape)}")
        return found

    def _check(self, losses: Tensor, gramian: Tensor | None) -> None:
        t = self.num_tasks
        if losses.shape != (t,):
            raise InputError(f"{self.name} was made for {t} tasks, got losses of shape {tuple(losses.shape)}")
        allowed = ((t, t), (2 * t, 2 * t)) if self.halves else ((t, t),)
        if self.needs == "gramian" and (gramian is None or gramian.shape not in allowed):
            got = None if gramian is None else tuple(gramian.shape)
            raise InputError(f"{self.name} needs a Gramian of shape {(t, t)}, got {got}")
        if self.positive_losses and not bool((losses >= 0).all()):
            task = int((~(losses >= 0)).nonzero()[0])
            raise NegativeLossError(self.name, task, float(losses[task]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Goes from device to device with a model that holds it; its state keeps its types where the model is cast."""

        def moved(state: Tensor) -> Tensor:
            found = fn(state)
            return found if found.dtype == state.dtype else state.to(found.device)

        return super()._apply(moved, recurse)  # type: ignore[no-untyped-call]

    def get_extra_state(self) -> Tensor:
        """The state of the random generator, saved with ``state_dict()``."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restores the state of the random generator."""
        self.generator.set_state(state.cpu())


class LossCombiner(Combiner):
    """A re-weighting by the losses alone: one backward pass gives it to all parameters, task-specific ones too."""

    needs = "losses"
    weights_specific = True  # all these papers minimise a weighted sum of the losses, by whatever parameters it has


class GramianCombiner(Combiner):
    """A re-weighting that is solved in float64 on the CPU, by `_solve` or `_solve_nonzero`.

    Their arguments: ``norms``, the lengths ``[T]`` of the gradients; ``cosines`` between them, ``[T, T]``, 0 for zero
    gradients; the ``losses`` ``[T]``; ``precision``, the machine epsilon of the type in which the gradients were
    computed: the Gramian's, or that of the losses, since a Gramian can be float64 for its range alone. They return the
    weights ``[T]``.
    """

    needs = "gramian"

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        assert gramian is not None  # `_check` has seen to it.
        host_gramian, host_losses = to_host(gramian, losses)
        norms, cosines = unit_gramian(host_gramian)
        own, of_losses = torch.finfo(gramian.dtype).eps, torch.finfo(losses.dtype).eps
        precision = max(own, min(of_losses, torch.finfo(torch.float32).eps))
        return torch.from_numpy(self._solve(norms, cosines, host_losses, precision))

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        """By default those of `_solve_nonzero` for the tasks that have a gradient, and 0 for the others."""
        kept = np.flatnonzero(norms)
        weights = np.zeros_like(norms)
        if kept.size:
            weights[kept] = self._solve_nonzero(norms[kept], cosines[np.ix_(kept, kept)], precision)
        return weights

    def _solve_nonzero(self, norms: Array, cosines: Array, precision: float) -> Array:
        """For equations with unit gradients or divided by norms, where a zero gradient has no place."""
        raise NotImplementedError
