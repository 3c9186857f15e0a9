"""Batch normalisation by the whole batch, where several processes hold parts of it."""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mtrl.gradients.pipeline import wide_type


class _Sum(torch.autograd.Function):
    """The sum over a group, whose gradient is the sum of the group's gradients."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: "distributed.ProcessGroup") -> Tensor:
        ctx.group = group
        total = part.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _over(gradients[0], ctx.group), None


def _over(part: Tensor, group: "distributed.ProcessGroup") -> Tensor:
    total: Tensor = _Sum.apply(part, group)  # type: ignore[no-untyped-call]
    return total


class WholeBatchNorm(_BatchNorm):
    """A layer of batch normalisation, whose parameters and buffers it takes over, over the batch of a whole group.

    Means and variances are of all processes' samples, however many each has, and gradients go through them. Where it
    does not train it is what it was. (torch's ``SyncBatchNorm`` is for GPUs alone.)
    """

    def __init__(self, layer: _BatchNorm, group: "distributed.ProcessGroup") -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        self._parameters, self._buffers = layer._parameters, layer._buffers
        self.train(layer.training)
        self._group = group

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do: the layer that this was has been called with them before."""

    def forward(self, given: Tensor) -> Tensor:
        """``[N, channels, ...]``, normalised by channel."""
        if not self.training:
            plain: Tensor = super().forward(given)
            return plain
        x = given.to(wide_type([given]))
        over = [dimension for dimension in range(x.ndim) if dimension != 1]
        count = x.new_tensor([x.numel() / x.shape[1]])
        sums = _over(torch.cat([x.sum(over), count]), self._group)
        count, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        shape = [-1, *[1] * (x.ndim - 2)]
        centred = x - mean.view(shape)
        variance = _over(centred.square().sum(over), self._group) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(given.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_(variance.to(self.running_var.dtype), factor)


def normalise_whole_batches(model: nn.Module, group: "distributed.ProcessGroup | None") -> None:
    """Puts a `WholeBatchNorm` in the place of every batch normalisation in a model; nothing without a group."""
    if group is None:
        return
    for module in list(model.modules()):
        for name, part in module.named_children():
            if isinstance(part, _BatchNorm):
                setattr(module, name, WholeBatchNorm(part, group))
