"""Functions of tensors as CUDA graphs: one launch each, however many operations they are; what goes to and fro."""

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

WARM_UP = 3
"""Calls before the capture: libraries choose and allocate what they need when first called."""
NOT_CAPTURED = "not captured as a CUDA graph: "
"""How a warning of it begins."""


class Graphs:
    """Functions as CUDA graphs from their fourth call on; they can use what others have left in memory.

    A function takes trees of tensors, always of the same shapes, on the device or `pinned`, and reads nothing back
    from the device. What it returns is overwritten by its next call. Where one cannot be captured, all stay as they
    are, said in one warning.

    Args:
        functions: what to capture.
        device: where they compute.
        generator: what they draw from.
        optimizers: whose steps they take.
    """

    def __init__(
        self,
        functions: Sequence[Callable[..., Any]],
        device: torch.device,
        generator: torch.Generator,
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        self.device, self.generator, self.optimizers = device, generator, optimizers
        self.failed = False
        with torch.cuda.device(device):
            self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.functions = [_Graphed(function, self) for function in functions]


class _Graphed:
    def __init__(self, function: Callable[..., Any], graphs: Graphs) -> None:
        self.function, self.graphs, self.calls = function, graphs, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.result: Any = None

    def __call__(self, *arguments: Any) -> Any:
        if self.graphs.failed:
            return self.function(*arguments)
        if self.graph is None and self.calls < WARM_UP:
            self.calls += 1
            return self._beside(arguments)
        if self.graph is not None:
            if self.inputs:
                torch._foreach_copy_(self.inputs, tree_flatten(arguments)[0], non_blocking=True)
        elif not self._capture(arguments):
            return self.function(*arguments)
        assert self.graph is not None
        self.graph.replay()
        return self.result

    def _beside(self, arguments: Any) -> Any:
        """The function as it is, on the stream of the capture."""
        with torch.cuda.device(self.graphs.device):
            caller, stream = torch.cuda.current_stream(), self.graphs.stream
            stream.wait_stream(caller)
            with torch.cuda.stream(stream):
                result = self.function(*arguments)
            caller.wait_stream(stream)
        return result

    def _capture(self, arguments: Any) -> bool:
        """Captures the function for these arguments, without effect; whether that went well."""
        leaves, shape = tree_flatten(arguments)
        inputs, graph = [leaf.to(self.graphs.device, copy=True) for leaf in leaves], torch.cuda.CUDAGraph()
        graph.register_generator_state(self.graphs.generator)
        parameters = [p for o in self.graphs.optimizers for group in o.param_groups for p in group["params"]]
        filled = [parameter.grad for parameter in parameters]
        try:
            # A capture that fails leaves its stream the current one; the outer context puts the caller's back.
            with no_collection(), torch.cuda.device(self.graphs.device), torch.cuda.stream(self.graphs.stream):
                _set_capturable(self.graphs.optimizers, True)
                with torch.cuda.graph(graph, stream=self.graphs.stream):
                    result = self.function(*tree_unflatten(inputs, shape))
        except RuntimeError as error:
            self.graphs.failed = True
            for parameter, gradient in zip(parameters, filled, strict=True):
                parameter.grad = gradient
            renew(self.graphs.generator)
            first = error.__context__ or error  # ending a capture that failed raises once more
            warn(f"the capture failed ({str(first).splitlines()[0]})")
            return False
        finally:
            _set_capturable(self.graphs.optimizers, False)
        self.graph, self.inputs, self.result = graph, inputs, result
        return True


@contextmanager
def no_collection() -> Iterator[None]:
    """No garbage is collected: CUDA refuses to free a graph, of an agent that is gone, while another is captured."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def warn(reason: str) -> None:
    """Says that functions are launched operation by operation."""
    warnings.warn(f"{NOT_CAPTURED}{reason}", stacklevel=3)


def renew(generator: torch.Generator) -> None:
    """Frees a GPU's generator of a capture that failed: torch before 2.13 leaves it refusing to draw outside of one."""
    if generator.device.type == "cuda":
        fresh = torch.Generator(generator.device)
        fresh.set_state(generator.get_state())
        generator.graphsafe_set_state(fresh.graphsafe_get_state())


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's in memory from which a GPU fetches it while the host goes on; others as they are."""
    return tensor.pin_memory() if device.type == "cuda" and not tensor.is_cuda else tensor


class OnItsWay:
    """A tensor that a GPU sends to the host while both go on."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.arrival: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self.tensor = tensor.to("cpu", non_blocking=True)
            self.arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.arrival.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> Tensor:
        """The tensor on the host."""
        if self.arrival is not None:
            self.arrival.synchronize()
        return self.tensor.cpu()


def _set_capturable(optimizers: Sequence[torch.optim.Optimizer], value: bool) -> None:
    """Optimizers want to know: set, they refuse graphs no longer, and warn of every step outside of one."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["capturable"] = value
