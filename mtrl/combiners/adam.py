"""Adam for the few numbers that a method learns beside the network (Kingma & Ba, 2015, algorithm 1)."""

import torch
from torch import Tensor


class AdamVector(torch.nn.Module):
    """A vector ``[T]`` with its own Adam, all of it in buffers, so that ``state_dict()`` resumes it bit for bit.

    The gradient is handed in, no autograd graph is involved. Everything is float64: it costs nothing at this
    size, and thousands of small steps do not round. The betas are 0.9 and 0.999, epsilon is 1e-8.
    """

    def __init__(self, initial: Tensor, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.value: Tensor = torch.nn.Buffer(initial.double())
        self.mean: Tensor = torch.nn.Buffer(torch.zeros_like(self.value))
        self.square: Tensor = torch.nn.Buffer(torch.zeros_like(self.value))
        self.steps: Tensor = torch.nn.Buffer(torch.zeros_like(self.value[0]))

    def step(self, gradient: Tensor) -> None:
        """Moves the value (``[T]``) against its gradient (``[T]``)."""
        self.steps += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient.square(), 0.001)
        mean = self.mean / (1 - 0.9**self.steps)
        square = self.square / (1 - 0.999**self.steps)
        self.value -= self.learning_rate * mean / (square.sqrt() + 1e-8)
