"""The precision of products: what it is on which device, where it holds, and what it leaves alone."""

import platform
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from torch import Tensor

from mtrl import combiners
from mtrl.errors import InputError
from mtrl.gradients import TaskBatched, precision
from mtrl.gradients.layers import EnsembleLayerNorm
from mtrl.gradients.precision import float32_products, has_bf16, has_tf32, inner_products, precision_of
from tests.products import MATMUL, Products

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives the CPU these units, and the GPU this capability."""

    def give(*names: str, capability: tuple[int, int] = (7, 5)) -> None:
        monkeypatch.setattr(precision, "_cpu_has", names.__contains__)
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return give


def test_auto_is_the_fastest_that_has_units(units: Callable[..., None]) -> None:
    for names, expected in (((), "fp32"), (("avx512_bf16",), "bf16"), (("amx_tile",), "bf16"), (("amx_fp16",), "fp32")):
        units(*names)
        assert precision_of("auto", CPU) == expected
    for capability, expected in (((7, 5), "fp32"), ((8, 0), "tf32"), ((9, 0), "tf32")):
        units(capability=capability)
        assert precision_of("auto", CUDA) == expected
        assert has_bf16(CUDA) == has_tf32(CUDA) == (expected == "tf32")
    assert precision_of("auto", torch.device("meta")) == "fp32"


def test_tf32_is_refused_in_one_line_where_there_is_none(units: Callable[..., None]) -> None:
    units("avx512_bf16")
    with pytest.raises(InputError, match=r"^precision=tf32 is not there on cpu: it needs AMX-FP16 .* bf16 is what .*$"):
        precision_of("tf32", CPU)
    with pytest.raises(InputError, match=r"^precision=tf32 is not there on cuda: it needs compute capability 8\.0"):
        precision_of("tf32", CUDA)
    with pytest.raises(InputError, match=r"needs CUDA$"):
        precision_of("tf32", torch.device("meta"))
    units("amx_fp16", capability=(8, 0))
    assert precision_of("tf32", CPU) == precision_of("tf32", CUDA) == "tf32"
    assert precision_of("bf16", torch.device("meta")) == "bf16"  # emulated where there are no units


def test_what_pytorch_is_told_is_taken_back() -> None:
    told = [MATMUL.fp32_precision]
    with float32_products(CPU, tf32=True):
        told.append(MATMUL.fp32_precision)
        with suppress(ZeroDivisionError), float32_products(CPU, tf32=False):
            told.append(MATMUL.fp32_precision)
            raise ZeroDivisionError
        told.append(MATMUL.fp32_precision)
    assert told == [MATMUL.fp32_precision, "tf32", "ieee", "tf32"]


@pytest.mark.parametrize("limit", [10**9, 1])
def test_gramians_are_in_float32_whatever_products_are(limit: int) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 1))
    gradients = TaskBatched(network, 3, memory_limit=limit)
    for _ in range(2):  # the first checks promises
        with float32_products(CPU, tf32=True), Products() as products:
            with gradients.record():
                losses = network(torch.randn(3, 4, 5)).square().mean((1, 2))
            assert products.told == ["tf32"] * 2
            products.told.clear()
            gradients.backward(losses, combiners.make("mgda", 3))
    # One pass for the outputs' gradients, one product per layer (twice when streaming), and J J^T (by layer) in two.
    assert products.told.count("ieee") == (2 if limit > 1 else 4)
    assert products.told.count("tf32") >= 3
    with float32_products(CPU, tf32=True), Products() as products:
        inner_products(torch.randn(2, 9))
    assert products.told == ["ieee"] * 2


def test_what_combines_the_jacobian_does_it_in_float32() -> None:
    network = torch.nn.Linear(5, 1)
    gradients, combiner = TaskBatched(network, 3), combiners.make("moco", 3, seed=0)
    with float32_products(CPU, tf32=True), Products() as products:
        with gradients.record():
            losses = network(torch.randn(3, 4, 5)).square().mean((1, 2))
        products.told.clear()
        gradients.backward(losses, combiner, insight=True)
    assert products.told[0] == "tf32"
    assert products.told.count("ieee") >= 2


@pytest.mark.parametrize("size", [1, 2])
def test_normalisation_goes_on_in_the_type_of_its_input(size: int) -> None:
    torch.manual_seed(0)
    norm = EnsembleLayerNorm(size, 64)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(size, 3, 5, 64).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    exact = x.detach().double().requires_grad_()
    scale, shift = (p.detach().double().requires_grad_() for p in norm.parameters())
    centred = exact - exact.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * scale[:, None, None]
    expected = expected + shift[:, None, None]
    direction = torch.randn(y.shape)
    found = torch.autograd.grad(y, [x, *norm.parameters()], direction.bfloat16())
    wanted = torch.autograd.grad(expected, [exact, scale, shift], direction.bfloat16().double())
    for one, other in zip([y, *found], [expected, *wanted], strict=True):
        assert _distance(one, other) < 2**-7
    assert [gradient.dtype for gradient in found] == [torch.bfloat16, torch.float32, torch.float32]


def _distance(one: Tensor, other: Tensor) -> float:
    return float(((one.double() - other).norm() / other.norm()).detach())
