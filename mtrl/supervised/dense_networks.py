"""Networks that answer at every pixel: encoders, heads, and both as one model.

Parameters of the ResNets are named as in torchvision's, whose files of weights they take.
"""

import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrl.errors import InputError
from mtrl.supervised.problem import MultiTaskModel

Network = Annotated[str, Literal["resnet18", "resnet50", "unet", "segnet"]]
Head = Annotated[str, Literal["aspp", "pyramid"]]


def dense_model(
    network: str,
    outputs: Mapping[str, int],
    size: tuple[int, int],
    *,
    head: str = "aspp",
    dropout: float = 0.0,
    weights: str | None = None,
    pixels: nn.Module | None = None,
) -> MultiTaskModel:
    """A network for images and, by task, so many channels of answers at each of ``size`` pixels.

    Args:
        network: a ResNet, dilated so that its features are an eighth of the image's size; `UNet` or `SegNet`.
        outputs: channels by task.
        size: height and width of the answers.
        head: of a ResNet's tasks: `aspp` or `pyramid`.
        dropout: in the ResNets' heads, or of the others' representation.
        weights: a file of a ResNet's weights, as torchvision has them.
        pixels: what an image goes through first.

    Raises:
        InputError: if the file is not one of such weights.
    """
    first = [] if pixels is None else [pixels]
    if network.startswith("resnet"):
        encoder = ResNet(deep=network == "resnet50")
        if weights is not None:
            load(encoder, Path(weights))
        make: Callable[[int], nn.Module] = partial(
            aspp if head == "aspp" else pyramid, encoder.features, dropout=dropout
        )
        body: list[nn.Module] = [encoder]
    else:
        if weights is not None:
            raise InputError(f"benchmark.encoder_weights are for resnet18 and resnet50, not {network}")
        body = [UNet() if network == "unet" else SegNet(), nn.Dropout(dropout)]
        make = partial(nn.Conv2d, 64, kernel_size=1) if network == "unet" else _segnet_head
    heads = {task: nn.Sequential(make(channels), Resized(size)) for task, channels in outputs.items()}
    return MultiTaskModel(nn.Sequential(*first, *body), heads)


def load(encoder: nn.Module, path: Path) -> None:
    """Takes weights from a file of a ``state_dict``, which runs no code; the classifier's stay out.

    Raises `InputError` if it cannot be read, or is not of that network (the parameter is named).
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        told = str(error).split("\n")[0]
        raise InputError(f"encoder_weights: {path} cannot be read as weights alone ({told})") from error
    if not isinstance(found, dict):
        raise InputError(f"encoder_weights: {path} holds no weights by name")
    found = {name: tensor for name, tensor in found.items() if not name.startswith("fc.")}
    for name, tensor in encoder.state_dict().items():
        there = list(found[name].shape) if name in found else "missing"
        if there != list(tensor.shape) and not name.endswith("num_batches_tracked"):
            raise InputError(f"encoder_weights: {name} is {there} in {path}, expected {list(tensor.shape)}")
    if strange := found.keys() - encoder.state_dict().keys():
        raise InputError(f"encoder_weights: {path} has {min(strange)}, which the network has not")
    encoder.load_state_dict(found, strict=False)


class Resized(nn.Module):
    """Bilinearly brings maps ``[N, C, H, W]`` to a size, corners onto corners."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of that size."""
        if maps.shape[-2:] == self.size:
            return maps
        return F.interpolate(maps, self.size, mode="bilinear", align_corners=True)


def _convolved(inputs: int, outputs: int, kernel: int, dilation: int = 1, *, bias: bool = False) -> nn.Module:
    """A convolution that keeps the size, normalised by batches, and a ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=bias)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _three(inputs: int, outputs: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)


class _Block(nn.Module):
    """A residual block: two convolutions of 3x3, or if it is ``deep``, one between two of 1x1."""

    def __init__(self, inputs: int, width: int, deep: bool, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        outputs = 4 * width if deep else width
        before, after = dilations
        if deep:
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = _three(width, width, stride, before)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(outputs)
        else:
            self.conv1 = _three(inputs, width, stride, before)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = _three(width, width, 1, after)
            self.bn2 = nn.BatchNorm2d(width)
        self.deep = deep
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        around = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.deep:
            x = self.bn3(self.conv3(F.relu(x)))
        return F.relu(x + around)


class ResNet(nn.Module):
    """ResNet-18, or if it is ``deep`` ResNet-50, without its end (He et al., 2016), dilated as Kurin et al. have it.

    The last two of four stages do not halve their maps; their convolutions reach two and four times as far instead.
    To ``features`` channels, 512 or 2048, at an eighth of the image's height and width.
    """

    def __init__(self, *, deep: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for number, blocks in enumerate((3, 4, 6, 3) if deep else (2, 2, 2, 2)):
            width, dilation = 64 << number, (1, 1, 2, 4)[number]
            stage = []
            for place in range(blocks):
                stride = 2 if (number, place) == (1, 0) else 1
                before = max(dilation // 2, 1) if place == 0 else dilation
                stage.append(_Block(channels, width, deep, stride, (before, dilation)))
                channels = 4 * width if deep else width
            self.add_module(f"layer{number + 1}", nn.Sequential(*stage))
        self.features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Features of images ``[N, 3, H, W]``."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, 2, 1)
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        return x


class _Pooled(nn.Module):
    """Averages over so many by so many parts of a map, brought back to its size."""

    def __init__(self, inputs: int, outputs: int, parts: int) -> None:
        super().__init__()
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(parts), _convolved(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) == 1:
            raise InputError(
                "batch_size=1: these heads normalise averages over an image by its batch, expected 2 or more"
            )
        return F.interpolate(self.pooled(x), x.shape[-2:], mode="bilinear", align_corners=False)


class _Beside(nn.Module):
    """What several modules make of one input, channel by channel."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], 1)


def aspp(inputs: int, outputs: int, *, dropout: float = 0.0) -> nn.Module:
    """The head of DeepLab v3 (Chen et al., 2017), atrous spatial pyramid pooling, with Kurin et al.'s one dropout."""
    reaching = [_convolved(inputs, 256, 3, dilation) for dilation in (12, 24, 36)]
    beside = _Beside([_convolved(inputs, 256, 1), *reaching, _Pooled(inputs, 256, 1)])
    last = [_convolved(256, 256, 3), nn.Conv2d(256, outputs, 1)]
    return nn.Sequential(beside, _convolved(5 * 256, 256, 1), nn.Dropout(dropout), *last)


def pyramid(inputs: int, outputs: int, *, dropout: float = 0.0) -> nn.Module:
    """The head of PSPNet (Zhao et al., 2017), pyramid pooling, as Sener & Koltun (2018) have it; dropout is ours."""
    beside = _Beside([nn.Identity(), *(_Pooled(inputs, 512, parts) for parts in (1, 2, 3, 6))])
    middle = _convolved(inputs + 4 * 512, 512, 3)
    return nn.Sequential(beside, middle, nn.Dropout(dropout), nn.Conv2d(512, outputs, 1))


class UNet(nn.Module):
    """U-Net (Ronneberger et al., 2015) as Pascal et al. have it: all of it is shared, to 64 channels at every pixel.

    Evaluated, it normalises by averages of training; theirs does by the evaluated batch.
    """

    def __init__(self) -> None:
        super().__init__()

        def twice(inputs: int, middle: int, outputs: int) -> nn.Module:
            return nn.Sequential(_convolved(inputs, middle, 3, bias=True), _convolved(middle, outputs, 3, bias=True))

        widths = (3, 64, 128, 256, 512, 512)
        self.down = nn.ModuleList(twice(i, o, o) for i, o in pairwise(widths))
        self.up = nn.ModuleList(twice(2 * i, i, o) for i, o in ((512, 256), (256, 128), (128, 64), (64, 64)))

    def forward(self, images: Tensor) -> Tensor:
        """Features of images ``[N, 3, H, W]``."""
        levels: list[Tensor] = []
        for block in self.down:
            levels.append(block(F.max_pool2d(levels[-1], 2) if levels else images))
        x = levels.pop()
        for block in self.up:
            across = levels.pop()
            grown = F.interpolate(x, across.shape[-2:], mode="bilinear", align_corners=True)
            x = block(torch.cat([across, grown], 1))
        return x


class SegNet(nn.Module):
    """SegNet (Badrinarayanan et al., 2017) as Liu et al. (2019, MTAN) share it, to 64 channels at every pixel.

    Height and width are multiples of 32. It is the network without their attention.
    """

    def __init__(self) -> None:
        super().__init__()

        def stage(inputs: int, outputs: int, count: int) -> nn.Module:
            steps = [_convolved(inputs, outputs, 3, bias=True)]
            return nn.Sequential(*steps, *(_convolved(outputs, outputs, 3, bias=True) for _ in range(count - 1)))

        widths, counts = (64, 128, 256, 512, 512), (2, 2, 3, 3, 3)
        self.down = nn.ModuleList(map(stage, (3, *widths[:-1]), widths, counts))
        self.up = nn.ModuleList(map(stage, widths[::-1], (*widths[-2::-1], 64), counts[::-1]))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images ``[N, 3, H, W]``."""
        if images.shape[-2] % 32 or images.shape[-1] % 32:
            size = f"{images.shape[-2]}x{images.shape[-1]}"
            raise InputError(f"network=segnet halves images five times; {size} pixels are no multiples of 32")
        x, places = images, []
        for block in self.down:
            x, place = F.max_pool2d(block(x), 2, return_indices=True)
            places.append(place)
        for block in self.up:
            x = block(F.max_unpool2d(x, places.pop(), [2, 2]))
        return x


def _segnet_head(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, outputs, 1))
