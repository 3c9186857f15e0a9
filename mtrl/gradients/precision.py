"""The precision of matrix products: what a device has units for, and how PyTorch is told."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mtrl.errors import InputError

CHUNK = 4096
"""How many columns of a Jacobian are multiplied at once for the Gramian."""

PRECISIONS = ("fp32", "tf32", "bf16")
"""float32; float32 whose products are taken of numbers rounded to 10 bits; bfloat16 by autocast."""


def precision_of(name: str, device: torch.device) -> str:
    """The precision that ``auto`` means on a device, and any other name as it is.

    A CPU with units for bfloat16 uses them: an update's products take half the time there. A GPU with TF32 uses that:
    it costs no operation more, where autocast adds casts to updates that are short of launches already.

    Raises:
        InputError: if the device has no such products.
    """
    if name == "auto":
        if device.type == "cpu":
            return "bf16" if has_bf16(device) else "fp32"
        return "tf32" if has_tf32(device) else "fp32"
    if name == "tf32" and not has_tf32(device):
        needed = {
            "cuda": "compute capability 8.0 or newer",
            "cpu": "AMX-FP16 and torch 2.9 or newer; bf16 is what other CPUs have units for",
        }
        raise InputError(f"precision=tf32 is not there on {device}: it needs {needed.get(device.type, 'CUDA')}")
    return name


def has_tf32(device: torch.device) -> bool:
    """Whether PyTorch takes float32 products in TF32 there when told so (on CPUs, oneDNN does with AMX-FP16 alone)."""
    if device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and hasattr(torch.backends, "fp32_precision") and _cpu_has("amx_fp16")


def has_bf16(device: torch.device) -> bool:
    """Whether there are units for bfloat16; without, such products are emulated, and slow."""
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and platform.machine() in ("aarch64", "arm64"):
        there: Any = torch.backends.mkldnn
        return bool(there.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return device.type == "cpu" and (_cpu_has("amx_tile") or _cpu_has("avx512_bf16"))


def _cpu_has(units: str) -> bool:
    ask = getattr(torch.cpu, f"_is_{units}_supported", None)  # not in every version
    return ask is not None and bool(ask())


@contextmanager
def float32_products(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """Products of float32 tensors on this kind of device are taken in TF32 in here, or in float32."""
    setting, name, values = _setting(device)
    before = getattr(setting, name)
    setattr(setting, name, values[tf32])
    try:
        yield
    finally:
        setattr(setting, name, before)


def inner_products(rows: Tensor, before: Tensor | None = None, others: Tensor | None = None) -> Tensor:
    """``rows others^T``, ``[T, T]``, plus what came ``before``, in the precision of its numbers whatever products have.

    The others are the same rows, unless they are given.

    As the sum of products of `CHUNK` columns. One product of few rows and a million columns may be left to a single
    processor of a GPU; on a CPU it adds up in one float32 after the other, and loses two digits more.
    """
    whole = rows.shape[1] // CHUNK * CHUNK
    both = rows, rows if others is None else others
    left, right = (one[:, :whole].view(len(one), whole // CHUNK, CHUNK).transpose(0, 1) for one in both)
    with float32_products(rows.device, tf32=False):
        found = torch.addmm(torch.bmm(left, right.mT).sum(0), both[0][:, whole:], both[1][:, whole:].T)
    return found if before is None else before + found


def _setting(device: torch.device) -> tuple[Any, str, tuple[Any, Any]]:
    """Where PyTorch keeps it: the object, the attribute's name, and its values for float32 and for TF32."""
    backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    if hasattr(torch.backends, "fp32_precision"):
        return backend.matmul, "fp32_precision", ("ieee", "tf32")
    return torch.backends.cuda.matmul, "allow_tf32", (False, True)  # before torch 2.9, which CPUs knew nothing of
