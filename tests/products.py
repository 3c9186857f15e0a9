"""What PyTorch is told of the precision of products while something is computed on the CPU."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

MATMUL: Any = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009 - unknown to the type checker
"""Where it is told."""


class Products(TorchDispatchMode):
    """Remembers it at each product of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        if function.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "mv"):
            self.told.append(MATMUL.fp32_precision)
        return function(*arguments, **(options or {}))
