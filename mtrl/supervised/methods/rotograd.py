"""RotoGrad: every head reads a rotated representation, so that the tasks' gradients point the same way."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from mtrl.combiners import Combiner
from mtrl.errors import InputError
from mtrl.ranges import Index, NotNegative
from mtrl.supervised.methods import method
from mtrl.supervised.methods.combined import CombinedUpdate
from mtrl.supervised.problem import Benchmark, batch_of, placed
from mtrl.supervised.updates import Setup, named


@method("rotograd")
class RotoGradUpdate(CombinedUpdate):
    """RotoGrad (Javaloy & Valera, 2022) around any combiner.

    Head k reads ``r_k = R_k z`` with a rotation ``R_k`` of its own, the identity at first. While the model minimises
    its losses, an optimizer of their own turns the rotations to minimise ``-sum_n <R_k^T u'_nk, v_n>`` (section 3.2),
    where ``u'_k`` is the gradient of loss k by ``r_k``, n counts samples and ``v`` is the mean of the tasks' gradients
    by z. All gradients are divided by their norm over the batch, so that this rotation loss is between -1 (all tasks
    agree) and 1. The rotations are kept orthogonal by the matrix exponential.

    A rotation is put before each of the model's heads; `InputError` if what they read is not a vector per sample.
    ``wrt`` is ``representation`` in the paper.

    Args:
        learning_rate_scale: the rotations' learning rate (Adam's), as a multiple of the model's; 0 leaves them be.
        homogenize: bring gradients to one length before they are combined (section 3.1), see `Homogenized`.
        burn_in: for that, see there.
    """

    usual_wrt = "representation"
    captures = False

    def __init__(
        self, setup: Setup, *, learning_rate_scale: NotNegative = 1.0, homogenize: bool = True, burn_in: Index = 20
    ) -> None:
        combiner = Homogenized(setup.combiner, burn_in) if homogenize else setup.combiner
        super().__init__(replace(setup, combiner=combiner))
        self.rotations = _rotations(setup.benchmark)
        for (name, head), rotation in zip(list(self.model.heads.items()), self.rotations, strict=True):
            self.model.heads[name] = nn.Sequential(rotation, head)
        turned = nn.ModuleList(self.rotations).parameters()
        self.rotation_optimizer = torch.optim.Adam(turned, setup.optimizer.learning_rate * learning_rate_scale)
        self.rates[self.rotation_optimizer] = learning_rate_scale
        self.stateful["rotation_optimizer"] = self.rotation_optimizer

    def _observe(self, losses: Sequence[Tensor], aliases: Sequence[Tensor]) -> dict[str, Tensor]:
        gradients = torch.autograd.grad(losses, aliases, retain_graph=True, materialize_grads=True)
        units = [g / self.replicas.norm(g).clamp_min(torch.finfo(g.dtype).tiny) for g in gradients]
        mean = torch.stack(units).mean(0)
        rotation_losses = []
        for rotation, unit in zip(self.rotations, units, strict=True):
            turned = unit @ rotation.weight.detach().T  # the gradient by r
            rotation_losses.append(-(turned @ rotation.weight * mean).sum())
        self.rotation_optimizer.zero_grad()
        size = self.replicas.size  # a sum over all samples, not their mean
        (size * torch.stack(rotation_losses).sum()).backward()  # type: ignore[no-untyped-call]
        self._average_gradients(self.rotation_optimizer)
        self.rotation_optimizer.step()
        return named("rotation_loss", self.tasks, size * self._mean_losses(rotation_losses))


class Homogenized(Combiner):
    """Brings the tasks' gradients to one length before another method combines them.

    With ``a_k`` the task's share of ``|g_k| / |g_k^0|`` over all tasks, the common length is ``sum_k a_k |g_k|``
    (Javaloy & Valera, 2022, section 3.1): tasks whose gradients shrink least set it. ``|g_k^0|`` is measured after
    ``burn_in`` updates; until then that of the first update is used, and of a task without a gradient by then that of
    its first one. A task without a gradient, for a batch has no target of it, counts for nothing.
    Raises `InputError` if the other method has no task weights, or looks at the losses after the step.
    """

    needs = "gramian"

    def __init__(self, inner: Combiner, burn_in: int) -> None:
        super().__init__(inner.num_tasks)
        if inner.needs == "jacobian" or inner.needs_losses_after_step:
            raise InputError(f"method.homogenize=true needs a method with weights from one batch, not {inner.name}")
        self.name, self.inner, self.burn_in = inner.name, inner, burn_in
        self.initial: Tensor = nn.Buffer(torch.zeros(inner.num_tasks, dtype=torch.float64))
        self.updates: Tensor = nn.Buffer(torch.tensor(0))

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        assert gramian is not None
        norms, initial = gramian.diagonal().double().sqrt(), self.initial.to(gramian.device)
        there = norms > 0
        self.initial = torch.where(there & ((initial == 0) | (self.updates == self.burn_in)), norms, initial)
        self.updates += 1
        ratios = torch.where(there, norms / self.initial, 0)
        scale = torch.where(there, ratios @ norms / ratios.sum() / norms, 1).to(gramian)
        return scale * self.inner.weights(scale * losses, scale[:, None] * gramian * scale)


def _rotations(benchmark: Benchmark) -> list[nn.Linear]:
    model = benchmark.model
    training = model.training
    inputs, _ = placed(batch_of(benchmark.train, [0, 1]), next(model.parameters()).device)
    with torch.no_grad():
        z = model.eval().encoder(inputs)
    model.train(training)
    if z.ndim != 2:
        raise InputError(f"rotograd turns a vector per sample, but the encoder's output has shape {tuple(z.shape)}")
    rotations = []
    for _ in model.heads:
        layer = nn.Linear(z.shape[1], z.shape[1], bias=False, device=z.device, dtype=z.dtype)
        nn.init.eye_(layer.weight)
        orthogonal(layer, orthogonal_map="matrix_exp")
        rotations.append(layer)
    return rotations
