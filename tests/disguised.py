"""A device that is not the host, on any machine: its tensors are the CPU's in disguise, called ``meta``.

Operations that mix devices are refused as on a GPU, and every value is what the CPU computes.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

AWAY = torch.device("meta")
_COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


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

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})


class AnotherDevice(TorchDispatchMode):
    """The time in which there is such a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    away = any(isinstance(tensor, Away) for tensor in tensors)
    target = kwargs.get("device")
    to_away = away if target is None else torch.device(target) == AWAY
    if away and func not in _COPIES and any(t.dim() and not isinstance(t, Away) for t in tensors):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device")
    bare_args, bare_kwargs = tree_map_only(Away, lambda tensor: tensor.inner, (args, kwargs))
    if target is not None:
        bare_kwargs["device"] = "cpu"
    made = func(*bare_args, **bare_kwargs)
    if func is torch.ops.aten._to_copy.default and made is bare_args[0]:
        made = made.clone()
    schema = func._schema.arguments
    named = [*zip(schema, args, strict=False), *((a, kwargs[a.name]) for a in schema if a.name in kwargs)]
    written = [value for argument, value in named if argument.alias_info is not None and argument.alias_info.is_write]
    if written:  # in place: what was given comes back
        return written[0] if len(written) == 1 else tuple(written)
    return tree_map_only(torch.Tensor, Away, made) if to_away else made
