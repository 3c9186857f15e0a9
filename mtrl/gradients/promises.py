"""What callers of this package promise, checked: losses that train something, precision in use."""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import or_

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from mtrl.errors import InputError

Edge = tuple[Node | None, int]
"""Where a tensor hangs in autograd's graph: what made it (None for a constant), and which of its outputs it is."""


def edges_of(losses: Tensor | Sequence[Tensor]) -> list[Edge]:
    """Where each of T losses hangs in the graph; what `torch.stack` has joined is told apart.

    Raises:
        InputError: if a loss is a constant; as in `torch.autograd.backward`, but the task is named.
    """
    node = losses.grad_fn if isinstance(losses, Tensor) else None
    if node is not None and node.name() == "StackBackward0" and len(node.next_functions) == len(losses):
        edges = list(node.next_functions)
    elif isinstance(losses, Tensor):
        edges = [edge_of(losses)] * len(losses)
    else:
        edges = [edge_of(loss) for loss in losses]
    for task, (node, _) in enumerate(edges):
        if node is None:
            raise InputError(
                f"the loss of task {task} does not depend on any parameter (it is a constant, or was computed under "
                "no_grad); a task without labels in a batch has the loss 0 * outputs.sum()"
            )
    return edges


def edge_of(tensor: Tensor) -> Edge:
    """Where a tensor hangs in the graph."""
    if not tensor.requires_grad:
        return None, 0
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def reached(starts: Sequence[Edge], labels: Mapping[Edge, int], *, through: bool = True) -> list[int]:
    """The labels (bits) of all edges that each start depends on; one walk over the graph.

    Args:
        starts: from where.
        labels: the bits of the edges looked for.
        through: look behind an edge that has a label, too.
    """
    known: dict[Node | None, int] = {None: 0}

    def below(node: Node | None) -> list[Node | None]:
        edges = node.next_functions if node is not None else ()
        return [edge[0] for edge in edges if through or edge not in labels]

    for start, _ in starts:
        waiting = [start]
        while waiting:
            node = waiting[-1]
            later = [] if node in known else [other for other in below(node) if other not in known]
            waiting += later
            if not later:
                waiting.pop()
                if node is not None and node not in known:
                    bits = [labels.get(edge, 0) for edge in node.next_functions]
                    known[node] = reduce(or_, [*bits, *(known[other] for other in below(node))], 0)
    return [known[start[0]] | labels.get(start, 0) for start in starts]


def check_trained(starts: Sequence[Edge], parameters: Iterable[Tensor], kind: str) -> None:
    """Raises `InputError`, which names the task, where a loss depends on none of the parameters of this kind."""
    for task, found in enumerate(reached(starts, {edge_of(parameter): 1 for parameter in parameters})):
        if not found:
            raise InputError(
                f"the loss of task {task} does not depend on any {kind} parameter: it would train none (is there a "
                "detach(), no_grad() or re-entrant checkpoint on its way?)"
            )


def untrained(starts: Sequence[Edge], trained: Iterable[Tensor]) -> list[nn.Parameter]:
    """Parameters that the losses depend on and that are not among those that are trained."""
    known, found = {id(parameter) for parameter in trained}, list[nn.Parameter]()
    seen, waiting = set[Node | None](), [node for node, _ in starts]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [other for other, _ in node.next_functions]
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter) and id(leaf) not in known:
            found.append(leaf)
    return found


def product_precision(tensor: Tensor) -> float:
    """The relative rounding of matrix products of such tensors: by their type, or coarser where torch is told so."""
    precision = torch.finfo(tensor.dtype).eps
    if tensor.dtype != torch.float32:
        return precision
    if hasattr(torch.backends, "fp32_precision"):
        mode = (torch.backends.cuda if tensor.is_cuda else torch.backends.mkldnn).matmul.fp32_precision
    else:  # before torch 2.9
        mode = torch.get_float32_matmul_precision()
    return {"bf16": 2.0**-7, "medium": 2.0**-7, "tf32": 2.0**-10, "high": 2.0**-10}.get(mode, precision)


def offender(starts: Sequence[Edge], parameters: Sequence[Tensor], combined: Sequence[Tensor | None]) -> int | None:
    """The one task whose loss depends on every parameter with a non-finite gradient, if there is one such task."""
    bad = [
        p for p, g in zip(parameters, combined, strict=True) if g is not None and not bool(entries(g).isfinite().all())
    ]
    masks = reached(starts, {edge_of(parameter): 1 << bit for bit, parameter in enumerate(bad)})
    tasks = [task for task, mask in enumerate(masks) if mask == (1 << len(bad)) - 1]
    return tasks[0] if len(tasks) == 1 else None


def entries(gradient: Tensor) -> Tensor:
    """The numbers of a gradient: the values of a sparse one, real and imaginary parts of a complex one."""
    gradient = gradient.coalesce().values() if gradient.is_sparse else gradient
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient
