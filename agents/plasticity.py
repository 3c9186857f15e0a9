"""How much of a network is still at work: dormant units and the rank of its features."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def dormant_share(activations: Tensor, threshold: float = 0.025) -> Tensor:
    """The share of units that hardly ever answer (Sokar et al., 2023, definition 1), in [0, 1].

    Args:
        activations: of one layer, ``[samples, units]``.
        threshold: a unit is dormant if its mean magnitude is at most this share of the layer's mean.
    """
    scores = activations.abs().mean(0)
    return (scores <= threshold * scores.mean()).to(scores).mean()


def effective_rank(features: Tensor) -> Tensor:
    """``exp`` of the entropy of the normalised singular values (Roy & Vetterli, 2007), in [1, units]; 0 of zeros.

    Args:
        features: ``[samples, units]``.
    """
    features = features.double()
    squares = torch.linalg.eigvalsh((features.T @ features).cpu()).clamp_min(0)
    # Rounding leaves directions without features a square of about 1e-16 of the largest.
    values = squares.where(squares > 1e-14 * squares.amax(), 0).sqrt()
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return torch.where((values > 0).any(), torch.special.entr(shares).sum().exp(), 0)


@torch.no_grad()
def plasticity(network: nn.Module, forward: Callable[[], object], members: int = 1) -> dict[str, float]:
    """``dormant_share`` over all hidden layers and ``effective_rank`` of the last one, the mean over members.

    Args:
        network: its hidden layers end in ``nn.ReLU``.
        forward: calls the network.
        members: what the first dimension of activations counts, where there is more than one network in it.
    """
    layers: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: layers.append(output))
        for module in network.modules()
        if isinstance(module, nn.ReLU)
    ]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    flat = [layer.float().reshape(members, -1, layer.shape[-1]) for layer in layers]
    dormant = torch.stack([dormant_share(member) for layer in flat for member in layer])
    ranks = torch.stack([effective_rank(member) for member in flat[-1]])
    return {"dormant_share": float(dormant.mean()), "effective_rank": float(ranks.mean())}
