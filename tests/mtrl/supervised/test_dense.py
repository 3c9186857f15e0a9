"""Tasks with a target at every pixel: metrics against NumPy on the whole split, augmentation, networks."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mtrl.errors import InputError
from mtrl.supervised.dense import ScaleAndFlip, distance, mask, normals, offsets, segmentation
from mtrl.supervised.dense_networks import ResNet, SegNet, UNet, aspp, dense_model, load, pyramid
from mtrl.supervised.tasks import seen, task_loss

CPU = torch.device("cpu")


def measured(task, outputs, targets, size=3):
    """All metrics of a task over batches of a size, as an evaluation takes them."""
    meters = {metric.name: metric.meter(task, CPU) for metric in task.metrics}
    for some, wanted in zip(outputs.split(size), targets.split(size), strict=True):
        found = seen(task, some, wanted)
        for meter in meters.values():
            if len(found.targets):
                meter.update(found.outputs, found.targets)
    return {name: meter.compute() for name, meter in meters.items()}


def directions(task):
    return {metric.name: metric.higher_is_better for metric in task.metrics}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_classes_are_judged_by_one_confusion_matrix():
    """Not by a mean over images or batches, nor with a class that is nowhere, which would make it NaN or smaller."""
    outputs = noise(7, 5, 4, 6)
    outputs[:, 4] -= 100  # never predicted
    labels = torch.randint(-1, 4, (7, 4, 6), generator=torch.Generator().manual_seed(1))  # never there
    labels[0] = -1
    found = measured(segmentation(5), outputs, labels)
    there = labels.numpy() >= 0
    predicted, true = outputs.argmax(1).numpy()[there], labels.numpy()[there]
    matrix = np.zeros((5, 5))
    np.add.at(matrix, (true, predicted), 1)
    unions = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    assert unions[4] == 0
    assert found["miou"] == pytest.approx((np.diag(matrix)[:4] / unions[:4]).mean())
    assert found["pixel_accuracy"] == pytest.approx(np.diag(matrix).sum() / matrix.sum())
    assert directions(segmentation(5)) == {"miou": True, "pixel_accuracy": True}


def test_errors_are_pooled_over_pixels_whatever_the_batches():
    targets = noise(7, 1, 4, 6, seed=1).abs() + 0.1
    targets[torch.rand(targets.shape, generator=torch.Generator().manual_seed(2)) < 0.4] = torch.nan
    targets[2] = torch.nan  # an image without any depth
    targets[3, 0, 1:] = torch.nan
    targets[4, 0, 0, 0] = 0.0  # infinitely far: no relative error
    outputs = noise(7, 1, 4, 6)
    there = ~targets.isnan().numpy()
    errors = np.abs(outputs.numpy() - targets.numpy())
    for size in (1, 3, 7):
        found = measured(distance(2.5, "_px"), outputs, targets, size)
        assert found["abs_error_px"] == pytest.approx(2.5 * errors[there].mean())
        far = targets.numpy() > 0
        assert found["rel_error"] == pytest.approx((errors[far] / targets.numpy()[far]).mean())
    assert directions(distance()) == {"abs_error": False, "rel_error": False}
    outputs[0] = torch.nan  # not taken for a missing target
    assert np.isnan(measured(distance(), outputs, targets)["abs_error"])


def test_offsets_are_neither_cut_to_integers_nor_is_250_missing():
    targets = torch.tensor([[250.0, 0.5], [-0.4, torch.nan]]).view(1, 1, 2, 2).repeat(1, 2, 1, 1)
    found = measured(offsets(), torch.zeros(1, 2, 2, 2), targets)
    assert found == {"offset_error": pytest.approx((250 + 0.5 + 0.4) / 3)}


def test_angles_are_pooled_over_pixels_and_medians_of_batches_are_named_so():
    targets = F.normalize(noise(7, 3, 4, 5, seed=1), dim=1)
    targets[:, :, 0, 0] = torch.tensor([1.0, -1.0, 0.0]) / 2**0.5  # a normal though its components add up to 0
    hidden = torch.rand(7, 1, 4, 5, generator=torch.Generator().manual_seed(2)) < torch.arange(7).view(7, 1, 1, 1) / 8
    hidden[:, :, 0, 0] = False
    targets = targets.masked_fill(hidden, torch.nan)
    outputs = 3 * (targets.nan_to_num() + 0.4 * noise(7, 3, 4, 5))
    true, given = (values.permute(0, 2, 3, 1).double().numpy() for values in (targets, outputs))
    cosines = (true * given).sum(-1) / np.linalg.norm(given, axis=-1)
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    pooled = angles[~np.isnan(angles)]
    found = measured(normals(), outputs, targets)
    assert found["angle_mean"] == pytest.approx(pooled.mean(), rel=1e-4)
    assert found["angle_median"] == pytest.approx(np.median(pooled), rel=1e-4)
    by_batch = [np.nanmedian(batch) for batch in (angles[:3], angles[3:6], angles[6:])]
    assert found["angle_batch_median"] == pytest.approx(np.mean(by_batch), rel=1e-4)
    assert abs(found["angle_batch_median"] - found["angle_median"]) > 0.1
    for name, limit in (("within_11_25", 11.25), ("within_22_5", 22.5), ("within_30", 30.0)):
        assert found[name] == pytest.approx((pooled < limit).mean())
        assert 0 < found[name] < 1
    assert measured(normals(), 100 * outputs, targets) == pytest.approx(found, rel=1e-4)
    assert [name for name, higher in directions(normals()).items() if higher] == [
        "within_11_25",
        "within_22_5",
        "within_30",
    ]
    assert float(normals().loss(outputs, targets)) == pytest.approx(1 - np.nanmean(cosines), rel=1e-4)


def test_masks_are_judged_over_the_split_and_by_image():
    logits, targets = noise(7, 1, 4, 6), (noise(7, 1, 4, 6, seed=1) > 0.3).float()
    targets[2] = 0
    found = measured(mask(), logits, targets)
    predicted, there = logits.numpy() > 0, targets.numpy() > 0
    both, any_ = predicted & there, predicted | there
    assert found["iou"] == pytest.approx(both.sum() / any_.sum())
    ratios = [both[n].sum() / any_[n].sum() for n in range(7) if there[n].any()]
    assert found["image_iou"] == pytest.approx(np.mean(ratios))
    assert found["pixel_accuracy"] == pytest.approx((predicted == there).mean())


@pytest.mark.parametrize("kind", ["labels", "distance", "offsets", "normals"])
def test_pixels_without_a_target_have_no_part_in_the_loss(kind):
    task = {"labels": segmentation(4), "distance": distance(), "offsets": offsets(), "normals": normals()}[kind]
    channels = {"labels": 4, "distance": 1, "offsets": 2, "normals": 3}[kind]
    outputs = noise(3, channels, 4, 5).requires_grad_()
    if kind == "labels":
        targets = torch.randint(0, 4, (3, 4, 5), generator=torch.Generator().manual_seed(1))
        targets[0], targets[1, 0] = -1, -1
    else:
        targets = F.normalize(noise(3, channels, 4, 5, seed=1), dim=1)
        targets[0], targets[1, :, 0] = torch.nan, torch.nan
    (task_loss(task, outputs, targets)).backward()
    gradient = outputs.grad
    assert gradient is not None
    assert bool(gradient.isfinite().all())
    assert not gradient[0].any()
    assert not gradient[1, :, 0].any()
    assert bool(gradient[1, :, 1:].any())
    assert task.present(targets).tolist() == pytest.approx([0, 0.75, 1])
    nothing = task_loss(task, outputs, targets[:1].expand(3, *targets.shape[1:]))
    assert float(torch.autograd.grad(nothing, outputs)[0].abs().sum()) in (0.0, outputs.numel())  # of 0 by all outputs


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "message"),
    [
        (segmentation(3), (1, 3, 2, 2), torch.tensor([[[0, 1], [2, 3]]]), "label 3 is none of 0 to 2, or -1"),
        (segmentation(3), (1, 3, 2, 2), torch.tensor([[[0, 1], [2, -2]]]), "label -2 is none"),
        (segmentation(3), (1, 3, 2, 2), torch.zeros(1, 2, 2), "of type int64, got .* of torch.float32"),
        (segmentation(3), (1, 3, 2, 2), torch.zeros(1, 2, 3).long(), r"expected labels \[1, 2, 2\]"),
        (distance(), (1, 1, 2, 2), torch.zeros(1, 2, 2), r"the head gives \[1, 2, 2\], but a target is \[2, 2\]"),
        (mask(), (1, 1, 2, 2), torch.full((1, 1, 2, 2), 2.0), "record 0 has target 2, expected 0 or 1"),
    ],
)
def test_targets_that_do_not_fit_are_refused(task, outputs, targets, message):
    with pytest.raises(InputError, match=message):
        task.check(torch.zeros(outputs), targets)


def coordinates(height, width):
    """Row and column of every pixel."""
    return torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")


def test_augmentation_changes_targets_with_their_image():
    """Every pixel says where it is from, in the image and in every target: they have to agree afterwards."""
    height, width = 30, 60
    rows, columns = coordinates(height, width)
    image = torch.stack([rows, columns, torch.zeros_like(rows)])
    normal = F.normalize(torch.stack([columns + 1, rows + 1, torch.full_like(rows, 20)]), dim=0)
    targets = {
        "labels": (columns // 4).long(),
        "mask": (rows > 9).float()[None],
        "depth": columns[None] + 1,
        "disparity": columns[None],
        "offsets": torch.stack([rows - 11, columns - 22]),
        "normals": normal,
    }
    augment = ScaleAndFlip({name: name for name in targets})  # type: ignore[misc]
    scales, flips, corners = set(), set(), set()
    for seed in range(60):
        torch.manual_seed(seed)
        changed, found = augment(image, targets)
        row, column = changed[0], changed[1]
        flipped = bool(column[0, 0] > column[0, -1])
        scale = (width - 1) / abs(float(column[0, 0] - column[0, -1]))  # corners come onto corners
        scale = min((1.0, 1.2, 1.5), key=lambda s: abs(s - scale))
        scales.add(scale)
        flips.add(flipped)
        corners.add((float(row.min()), float(column.min())))
        assert found["labels"].dtype == torch.long
        assert bool(((found["labels"] * 4 <= column + 1) & (column - 1 <= found["labels"] * 4 + 4)).all())
        assert set(found["mask"].unique().tolist()) <= {0.0, 1.0}
        assert bool((found["mask"][0][row > 10.6] == 1).all())
        assert (found["depth"][0] * scale - 1 - column).abs().max() < 1.01
        assert (found["disparity"][0] / scale - column).abs().max() < 1.01
        sign = -1 if flipped else 1
        assert (found["offsets"][0] / scale + 11 - row).abs().max() < 1.01
        assert (sign * found["offsets"][1] / scale + 22 - column).abs().max() < 1.01
        assert (found["normals"].norm(dim=0) - 1).abs().max() < 1e-5
        expected = F.normalize(torch.stack([sign * (column + 1), row + 1, torch.full_like(row, 20)]), dim=0)
        assert (found["normals"] - expected).abs().max() < 0.02
    assert scales == {1.0, 1.2, 1.5}
    assert flips == {True, False}
    assert len(corners) > 20


def test_augmentation_keeps_bytes_and_what_is_missing():
    normal = F.normalize(torch.ones(3, 30, 60), dim=0)
    normal[:, :, 30:] = torch.nan
    augment = ScaleAndFlip({"normals": "normals"})
    lacking = []
    for seed in range(12):
        torch.manual_seed(seed)
        image, found = augment(torch.full((3, 30, 60), 200, dtype=torch.uint8), {"normals": normal})
        assert image.dtype == torch.uint8
        assert bool((image == 200).all())
        there = ~found["normals"].isnan().any(0)
        assert (found["normals"][:, there].norm(dim=0) - 1).abs().max() < 1e-5
        lacking.append(float((~there).float().mean()))
    assert 0.1 < min(lacking) < max(lacking) < 0.9


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_networks_have_the_papers_parameters():
    """As many as torchvision documents for its models of the same name, or by the layers of the authors' code."""
    assert parameters(ResNet(deep=False)) == 11_689_512 - 513_000  # without the classifier of 1,000 classes
    deep = ResNet(deep=True)
    assert parameters(deep) == 25_557_032 - 2_049_000
    auxiliary = 9 * 1024 * 256 + 2 * 256 + 256 * 21 + 21
    assert parameters(deep) + parameters(aspp(2048, 21)) + auxiliary == 42_004_074  # deeplabv3_resnet50
    pooled = 4 * (2048 * 512 + 1024)
    assert parameters(pyramid(2048, 19)) == pooled + 9 * (2048 + 2048) * 512 + 1024 + 512 * 19 + 19

    def convolutions(pairs):
        return sum(9 * i * o + 3 * o for i, o in pairs)  # with biases, and normalised

    down = [(3, 64), (64, 64), (64, 128), (128, 128)]
    for i, o in ((128, 256), (256, 512), (512, 512)):
        down += [(i, o), (o, o), (o, o)]
    up = [(64, 64), (64, 64), (128, 64), (64, 64)]
    for i, o in ((256, 128), (512, 256), (512, 512)):
        up += [(i, o), (o, o), (o, o)]
    assert parameters(SegNet()) == convolutions(down + up)
    widths = (3, 64, 128, 256, 512, 512)
    down = [pair for i, o in pairwise(widths) for pair in ((i, o), (o, o))]
    up = [(1024, 512), (512, 256), (512, 256), (256, 128), (256, 128), (128, 64), (128, 64), (64, 64)]
    assert parameters(UNet()) == convolutions(down + up)


@pytest.mark.parametrize("deep", [False, True])
def test_a_dilated_network_sees_what_the_plain_one_sees_and_more(deep):
    """At every fourth place its features are those of the network whose last two stages halve their maps."""
    torch.manual_seed(0)
    network = ResNet(deep=deep).eval()
    images = noise(1, 3, 64, 96)
    with torch.no_grad():
        dilated = network(images)
        assert dilated.shape == (1, network.features, 8, 12)
        for name in ("layer3", "layer4"):
            stage = network.get_submodule(name)
            for module in stage.modules():
                if isinstance(module, nn.Conv2d):
                    module.dilation, module.padding = (1, 1), tuple(side // 2 for side in module.kernel_size)
            first = stage.get_submodule("0")
            for part in (first.get_submodule("conv2" if deep else "conv1"), first.get_submodule("downsample.0")):
                assert isinstance(part, nn.Conv2d)
                part.stride = (2, 2)
        plain = network(images)
    assert plain.shape == (1, network.features, 2, 3)
    assert torch.allclose(dilated[..., ::4, ::4], plain, rtol=1e-3, atol=1e-5 * float(plain.max()))


@pytest.mark.parametrize(
    ("network", "head", "size"),
    [
        ("resnet18", "aspp", (64, 96)),
        ("resnet18", "pyramid", (8, 12)),
        ("unet", "aspp", (64, 96)),
        ("segnet", "aspp", (64, 96)),
    ],
)
def test_every_network_answers_at_every_pixel_and_learns(network, head, size):
    torch.manual_seed(0)
    model = dense_model(network, {"segmentation": 5, "depth": 1}, size, head=head, dropout=0.2)
    outputs = model(noise(2, 3, 64, 96))
    assert {task: list(maps.shape) for task, maps in outputs.items()} == {
        "segmentation": [2, 5, *size],
        "depth": [2, 1, *size],
    }
    sum(maps.square().mean() for maps in outputs.values()).backward()  # type: ignore[union-attr]
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert dropouts
    assert all(module.p == 0.2 for module in dropouts)


def test_networks_refuse_what_they_cannot_take():
    with pytest.raises(InputError, match="batch_size=1: these heads normalise averages"):
        aspp(8, 2)(torch.zeros(1, 8, 4, 4))
    with pytest.raises(InputError, match="64x80 pixels are no multiples of 32"):
        SegNet()(torch.zeros(1, 3, 64, 80))


def test_weights_are_those_of_a_file(tmp_path):
    """The names are torchvision's: spelt out here, as its file has them."""
    network = ResNet(deep=False)
    names = set(network.state_dict())
    block = ["conv1.weight", "conv2.weight", "bn1.weight", "bn1.running_mean", "bn2.bias", "bn2.num_batches_tracked"]
    assert {f"layer{stage}.{place}.{name}" for stage in range(1, 5) for place in range(2) for name in block} < names
    assert {"conv1.weight", "bn1.running_var", "layer2.0.downsample.0.weight", "layer4.0.downsample.1.bias"} < names
    assert "layer1.0.downsample.0.weight" not in names
    assert "layer1.0.downsample.0.weight" in ResNet(deep=True).state_dict()
    saved = {name: torch.full_like(tensor, 3) for name, tensor in network.state_dict().items()}
    saved |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    path = tmp_path / "resnet18.pth"
    torch.save({name: tensor for name, tensor in saved.items() if "num_batches" not in name}, path)  # as older files
    model = dense_model("resnet18", {"depth": 1}, (8, 8), weights=str(path))
    assert all(bool((parameter == 3).all()) for parameter in model.encoder.parameters())
    for change, message in (
        ({"layer4.1.conv2.weight": torch.zeros(512, 256, 3, 3)}, r"layer4.1.conv2.weight is \[512, 256, 3, 3\] in"),
        ({"layer5.weight": torch.zeros(1)}, "has layer5.weight, which the network has not"),
        ({"bn1.bias": None}, "bn1.bias is missing in"),
    ):
        torch.save({name: tensor for name, tensor in (saved | change).items() if tensor is not None}, path)
        with pytest.raises(InputError, match=message):
            load(network, path)
    with pytest.raises(InputError, match="are for resnet18 and resnet50, not unet"):
        dense_model("unet", {"depth": 1}, (8, 8), weights=str(path))


class Harm:
    def __reduce__(self):
        return open, ("harm", "w")


@pytest.mark.parametrize("content", [b"<html>", b"", pickle.dumps(Harm(), 2)])
def test_a_file_that_is_no_weights_runs_nothing(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as weights alone") as caught:
        load(ResNet(deep=False), path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()
    with pytest.raises(InputError, match="cannot be read"):
        load(ResNet(deep=False), tmp_path / "none.pth")
