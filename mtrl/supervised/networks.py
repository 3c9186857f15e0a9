"""Encoders of images, as the papers have them."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Pixels(nn.Module):
    """From bytes to what a network sees: images ``[N, 3, H, W]`` of type uint8, RGB, become float, divided by 255.

    Before that, ``bgr`` turns the channels around and ``mean`` is subtracted, one number for each channel then.
    """

    def __init__(self, mean: tuple[float, float, float] = (0.0, 0.0, 0.0), *, bgr: bool = False) -> None:
        super().__init__()
        self.bgr = bgr
        self.mean: Tensor = nn.Buffer(torch.tensor(mean).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """The images as float."""
        return ((images.flip(1) if self.bgr else images) - self.mean) / 255


class _Block(nn.Module):
    """Two convolutions around which their input goes too (He et al., 2016), with dropout between them."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.first, self.second = _normalised(inputs, outputs, 3, stride), _normalised(outputs, outputs, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.around = nn.Identity() if inputs == outputs else _normalised(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.dropout(F.relu(self.first(x)))) + self.around(x))


def resnet18(dropout: float = 0.0) -> nn.Module:
    """ResNet-18 for images of 64x64 pixels, to 2048 features (Sener & Koltun, 2018; Kurin et al., 2022).

    It begins with a convolution of 3x3 and no pooling, and ends with averages over 4x4. Dropout is within the blocks
    and of the features, as in Kurin et al.'s code.
    """
    widths, blocks = (64, 64, 64, 128, 128, 256, 256, 512, 512), []
    for inputs, outputs in pairwise(widths):
        blocks.append(_Block(inputs, outputs, 1 if inputs == outputs else 2, dropout))
    stem = [_normalised(3, 64, 3), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AvgPool2d(4), nn.Flatten(), nn.Dropout(dropout))


def nine_layers(dropout: float = 0.0) -> nn.Module:
    """Seven convolutions and two linear layers, all normalised by batches, to 512 features.

    It is the network of Pascal et al. and, after them, of Liu et al. (2023, FAMO); dropout of the features is ours.
    """
    layers: list[nn.Module] = []
    widths = (3, 64, 128, 128, 256, 256, 512, 512)
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        pooling = [nn.MaxPool2d(2)] if number in (0, 2, 4) else []
        layers += [_normalised(inputs, outputs, 3), nn.ReLU(), *pooling]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for _ in range(2):
        layers += [nn.Linear(512, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(dropout))


def _normalised(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))
