"""Geometric loss strategy (Chennupati et al., 2019, "MultiNet++")."""

from torch import Tensor

from mtrl.combiners import Combiner, register


@register("geometric_mean")
class GeometricMean(Combiner):
    """Minimises the losses' geometric mean ``m`` (Chennupati et al., 2019), so ``w_i = m / (T L_i)``."""

    needs = "losses"
    positive_losses = True
    weights_specific = True

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        logs = losses.double().log()
        return (logs.mean() - logs).exp() / self.num_tasks
