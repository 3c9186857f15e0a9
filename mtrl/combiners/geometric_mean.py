"""Geometric loss strategy (Chennupati et al., 2019, "MultiNet++")."""

from torch import Tensor

from mtrl.combiners import LossCombiner, register


@register("geometric_mean")
class GeometricMean(LossCombiner):
    """Minimises the losses' geometric mean ``m`` (Chennupati et al., 2019), so ``w_i = m / (T L_i)``."""

    positive_losses = True

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        logs = losses.double().log()
        return (logs.mean() - logs).exp() / self.num_tasks
