"""A device that is not the host, on any machine: its tensors are the CPU's in disguise, called ``meta``.

Operations that mix devices are refused as on a GPU, what waits for the device is counted, and every value is what the
CPU computes: what runs there has to equal what runs here bit for bit.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import pytest
import torch
from torch.optim import optimizer
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

AWAY = torch.device("meta")
_aten = torch.ops.aten
_COPIES = (_aten.copy_.default, _aten._to_copy.default, _aten._foreach_copy_.default)
_READS = (_aten._local_scalar_dense, _aten.nonzero, _aten._unique2, _aten.masked_select, _aten.is_nonzero, _aten.equal)


class Away(torch.Tensor):
    """A tensor on the other device."""

    inner: torch.Tensor  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Away":
        made: Away = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=AWAY,
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Away({self.inner})"

    def tolist(self) -> Any:
        """As every device's tensors: through the host."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})


class Generator(torch.Generator):
    """The CPU's generator, which says that it is on the device that it was made for."""

    def __new__(cls, device: Any = "cpu") -> Self:
        return super().__new__(cls, "cpu")  # type: ignore[call-arg]

    def __init__(self, device: Any = "cpu") -> None:
        self._device = torch.device(device)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it says it is."""
        return self._device

    def manual_seed(self, seed: int) -> Self:
        """Itself, not what it disguises."""
        super().manual_seed(seed)
        return self


class AnotherDevice(TorchDispatchMode):
    """The time in which there is such a device.

    Attributes:
        waits: the operations so far that waited for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._alone = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        away, target = any(isinstance(leaf, Away) for leaf in leaves), kwargs.get("device")
        to_away = away if target is None else torch.device(target).type == AWAY.type
        reads = away and _reads(func, args, to_away)
        if reads:
            self.waits.append(str(func))
        if self._alone and func.namespace == "aten" and (reads or not to_away or (leaves and not away)):
            raise RuntimeError(f"{func} involves the host")
        return _run(func, args, kwargs)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Refuses what waits for the device, sends to it or computes beside it: no graph of a GPU could hold it."""
        self._alone = True
        try:
            yield
        finally:
            self._alone = False


@pytest.fixture
def another_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[AnotherDevice]:
    """Such a device, with generators and fused optimizers."""
    supported = optimizer._get_fused_kernels_supported_devices  # type: ignore[attr-defined]
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [*supported(), AWAY.type])
    monkeypatch.setattr(torch, "Generator", Generator)
    with AnotherDevice() as device:
        yield device


def on_host(state: Any) -> Any:
    """A tree of tensors, copied to the CPU."""
    return tree_map_only(torch.Tensor, lambda tensor: tensor.detach().cpu().clone(), state)


def through_a_file(state: Any) -> Any:
    """A tree of tensors, as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(on_host(state), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(one: Any, other: Any) -> bool:
    """Whether two trees hold the same numbers, wherever they are."""
    pairs = zip(*(tree_leaves(on_host(tree)) for tree in (one, other)), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def _reads(func: Any, args: Any, to_away: bool) -> bool:
    """Whether a result, or its shape, reaches the host."""
    if func.overloadpacket is _aten.index:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    into_host = func is _aten.copy_.default and not isinstance(args[0], Away)
    return func.overloadpacket in _READS or into_host or (func is _aten._to_copy.default and not to_away)


def _reshape(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Gives the disguise the shape that what is below it was given in place."""
    before = torch._C._meta_in_tls_dispatch_include()
    with no_dispatch():
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            func(*args, **kwargs)
        finally:
            torch._C._set_meta_in_tls_dispatch_include(before)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    away = any(isinstance(tensor, Away) for tensor in tensors)
    target = kwargs.get("device")
    to_away = away if target is None else torch.device(target).type == AWAY.type
    if away and func not in _COPIES and any(t.dim() and not isinstance(t, Away) for t in tensors):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device")
    bare_args, bare_kwargs = tree_map_only(Away, lambda tensor: tensor.inner, (args, kwargs))
    if to_away and target is not None:
        bare_kwargs["device"] = "cpu"
    made = func(*bare_args, **bare_kwargs)
    if func is _aten._to_copy.default and made is bare_args[0]:
        made = made.clone()
    schema = func._schema.arguments
    named = [*zip(schema, args, strict=False), *((a, kwargs[a.name]) for a in schema if a.name in kwargs)]
    written = [value for argument, value in named if argument.alias_info is not None and argument.alias_info.is_write]
    if not func._schema.returns:
        return None
    if away and torch.Tag.inplace_view in func.tags:
        _reshape(func, args, kwargs)
    if written:  # in place: what was given comes back
        return written[0] if len(written) == 1 else tuple(written)
    return tree_map_only(torch.Tensor, Away, made) if to_away else made
