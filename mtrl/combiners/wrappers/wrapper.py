"""What all wrappers share."""

from torch import Tensor

from mtrl.combiners.base import Combiner, Needs
from mtrl.errors import InputError


class Wrapper(Combiner):
    """A method used in another way; it is called by the method's name.

    Args:
        inner: the method, made without ``rescale``: weights are rescaled once, at last.

    Raises:
        InputError: if the method combines the Jacobian's entries, and so has no weights.
    """

    def __init__(self, inner: Combiner) -> None:
        super().__init__(inner.num_tasks)
        if inner.needs == "jacobian":
            wrapper = type(self).__name__.lower()
            raise InputError(f"{inner.name} has no task weights for '{wrapper}': it combines the gradients' entries")
        self.inner, self.name = inner, inner.name
        self.positive_losses, self.weights_specific = inner.positive_losses, inner.weights_specific

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """See `Combiner`."""
        return self.inner.needs

    @property
    def halves(self) -> bool:  # type: ignore[override]
        """See `Combiner`."""
        return self.inner.halves

    @property
    def across_halves(self) -> bool:  # type: ignore[override]
        """See `Combiner`."""
        return self.inner.across_halves

    @property
    def stationary(self) -> bool:  # type: ignore[override]
        """See `Combiner`."""
        return self.inner.stationary

    def _after_step(self, losses: Tensor) -> None:
        """See `Combiner`."""
        self.inner.after_step(losses)

    @property
    def needs_losses_after_step(self) -> bool:
        """See `Combiner`."""
        return self.inner.needs_losses_after_step
