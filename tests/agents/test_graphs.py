"""The captured update against the update as it is: its pieces, their capture and replay, with graphs on the CPU."""

import copy
import gc
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from agents.objectives import Objectives, Told
from agents.sac import MultiTaskSAC, NetworkConfig, Pieces
from mtrl import combiners
from mtrl.errors import RunError
from mtrl.gradients import TaskBatched
from mtrl.gradients.graphs import WARM_UP, renew
from tests.agents.test_sac import ACTION, OBSERVATION, break_loss, fill, make_agent, transition

UPDATES = 20
METHODS = [
    "unitary",
    "uncertainty",
    "rlw_normal",
    "random_grad_drop",
    "pcgrad",
    "gradvac",
    "mgda",
    "nash_mtl",
    "cagrad",
    "graddrop",
    "moco",
    "famo",
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"per_task_temperature": True, "max_gradient_norm": 0.5, "critic": NetworkConfig(layer_norm=True)},
    {
        "critic": NetworkConfig(block="residual", layer_norm=True, weight_decay=0.1),
        "critic_loss": "categorical",
        "twins": "mean",
        "reward_scale": "return",
        "n_step": 3,
    },
    {"weight_decay_mode": "decoupled", "task_encoding": "none", "reward_scale": "none", "rescale": False},
    {"task_encoding": "embedding", "max_gradient_norm": 0.5},
]


def make(combiner: str, **options: Any) -> MultiTaskSAC:
    """An agent after its first update."""
    agent = make_agent(combiner, **options)
    fill(agent)
    agent.update()
    return agent


def graphed(agent: MultiTaskSAC) -> MultiTaskSAC:
    """Has the agent capture what it does, as on CUDA."""
    agent.make_pieces = agent.graphed_pieces  # type: ignore[method-assign]
    agent.pieces = agent.make_pieces()
    return agent


def captured(agent: MultiTaskSAC) -> list[bool]:
    """Which pieces are graphs by now."""
    return [getattr(piece, "graph", None) is not None for piece in agent.pieces]


def unchecked(agent: MultiTaskSAC) -> MultiTaskSAC:
    """Has the agent find out about its gradients as a captured update does: with the next one."""
    step = agent.pieces.step
    agent.pieces = agent.pieces._replace(step=lambda: step())
    return agent


def state(agent: MultiTaskSAC) -> list[torch.Tensor]:
    """All that an update changes, in one order."""
    found: list[torch.Tensor] = []

    def collect(part: object) -> None:
        if isinstance(part, torch.Tensor):
            found.append(part.clone())
        elif isinstance(part, dict):
            for value in part.values():
                collect(value)
        elif isinstance(part, list):
            for value in part:
                collect(value)

    collect(agent.state_dict())
    return found


def broken(told: Told) -> Told:
    """As of losses that are not finite."""
    return told._replace(numbers=told.numbers * math.nan)


class NoHostReads(TorchDispatchMode):
    """Fails where an operator's result has to reach the host, or its shape depends on values."""

    FORBIDDEN = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "unique", "masked_select")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.FORBIDDEN:
            raise RuntimeError(f"{name} waits for the device")
        if name == "_to_copy" and kwargs.get("device", args[0].device) != args[0].device:
            raise RuntimeError("a tensor changes its device")
        return func(*args, **(kwargs or {}))


class NoHostCopies(TorchFunctionMode):
    """Fails where Python asks for values; on the CPU, a copy to the host is no operator."""

    FORBIDDEN = ("cpu", "numpy", "tolist", "item", "__bool__", "__float__", "__int__", "__index__", "__array__", "cuda")

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.FORBIDDEN:
            raise RuntimeError(f"{name} waits for the device")
        targets = [*args[1:], *(kwargs or {}).values()] if name == "to" else []
        if any(isinstance(target, str) for target in targets):
            raise RuntimeError("a tensor changes its device")
        return func(*args, **(kwargs or {}))


def same_versions(calls: list[tuple[Any, Any, Any, Any]]) -> AbstractContextManager[None]:
    """Autograd sees nothing of what a graph does to its memory."""
    tensors = {id(leaf): leaf for _, *rest in calls for leaf in tree_leaves(rest) if isinstance(leaf, torch.Tensor)}
    return torch.autograd._unsafe_preserve_version_counter(tuple(tensors.values()))  # type: ignore[attr-defined]


class GraphOnCPU(NoHostReads):
    """What `torch.cuda.CUDAGraph` promises: a capture changes nothing, a replay repeats it on the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.generators: list[torch.Generator] = []
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)

    def __enter__(self) -> Any:
        self.drawn = [generator.get_state() for generator in self.generators]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for memory, before in self.before.values():
            memory.copy_(before)
        for generator, drawn in zip(self.generators, self.drawn, strict=True):
            generator.set_state(drawn)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "generator" not in (kwargs or {}) or self.generators, "an unknown generator draws"
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for memory in [tensor.untyped_storage() for tensor in tree_leaves(value)]:
                    if memory.data_ptr() not in self.before:
                        self.before[memory.data_ptr()] = memory, memory.clone()
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func.namespace == "aten" and torch.Tag.inplace_view not in func.tags:
            self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        with torch.no_grad(), same_versions(self.calls):
            for func, args, kwargs, out in self.calls:
                again = func(*args, **kwargs)
                if any(result.alias_info is None for result in func._schema.returns):
                    for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                        if new is not None:
                            old.copy_(new.view(old.shape))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's part of the capture, on the CPU."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", GraphOnCPU)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: graph)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize(
    ("combiner", "options"),
    [*((method, OPTIONS[0]) for method in METHODS), *product(["uncertainty", "mgda"], OPTIONS[1:])],
)
def test_the_captured_update_is_the_update(combiner: str, options: dict[str, Any]) -> None:
    eager, agent = make(combiner, **options), graphed(make(combiner, **options))
    for update in range(UPDATES):
        insight = update == 7  # as it is, in between
        assert captured(agent) == [update > WARM_UP] * len(agent.pieces)
        assert agent.update(insight=insight) == eager.update(insight=insight)
        for one in (eager, agent):
            one.remember(*transition(np.random.default_rng(update)))
        seen = transition(np.random.default_rng(update))[0]
        assert np.array_equal(agent.act(seen), eager.act(seen))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state(agent), state(eager), strict=True))


@pytest.mark.usefixtures("graphs")
def test_no_garbage_is_collected_during_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, enabled = graphed(make("unitary")), list[bool]()
    begin = GraphOnCPU.__enter__

    def enter(graph: GraphOnCPU) -> Any:
        enabled.append(gc.isenabled())
        return begin(graph)

    monkeypatch.setattr(GraphOnCPU, "__enter__", enter)
    for _ in range(WARM_UP + 1):
        agent.update()
    assert enabled == [False] * len(agent.pieces[2:])
    assert gc.isenabled()


@pytest.mark.usefixtures("graphs")
def test_restored_state_is_captured_anew() -> None:
    agent, other = make("pcgrad"), make("pcgrad")
    graphed(agent)
    for _ in range(WARM_UP + 2):
        agent.update()
    other.load_state_dict(copy.deepcopy(agent.state_dict()))
    agent.load_state_dict(copy.deepcopy(agent.state_dict()))
    for _ in range(WARM_UP + 2):
        agent.update()
        other.update()
    assert captured(agent)[2:] == [True] * len(agent.pieces[2:])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state(agent), state(other), strict=True))


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("name", Pieces._fields)
def test_a_failed_capture_is_said_in_one_line_and_changes_nothing(name: str) -> None:
    eager, agent = make("mgda"), graphed(make("mgda"))
    piece: Any = getattr(agent.pieces, name)
    function = piece.function

    def wait(*args: Any) -> Any:
        result = function(*args)
        agent.log_alpha.item()
        return result

    def live(one: MultiTaskSAC, steps: int) -> None:
        for step in range(steps):
            one.update()
            seen = transition(np.random.default_rng(step))
            one.act(seen[0])
            one.remember(*seen)

    piece.function = wait
    live(agent, WARM_UP)
    message = r"^not captured as a CUDA graph: the capture failed \(.*waits for the device\)$"
    with pytest.warns(UserWarning, match=message) as said:
        live(agent, 1)
    live(agent, 1)
    assert len(said) == 1
    live(eager, WARM_UP)
    live(eager, 1)
    live(eager, 1)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state(agent), state(eager), strict=True))
    assert not any(group["capturable"] for o in agent.optimizers.values() for group in o.param_groups)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("updates", range(WARM_UP + 2))
def test_after_an_update_that_failed_all_is_captured_anew(updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    agents = make("mgda"), graphed(make("mgda"))
    for agent in agents:
        for _ in range(updates):
            agent.update()
        with monkeypatch.context() as patch:
            weigh = agent.objectives.weigh
            patch.setattr(agent.objectives, "weigh", lambda name, told, w=weigh: w(name, broken(told)))
            with pytest.raises(RunError, match="non-finite loss of task"):
                agent.update()
        for _ in range(WARM_UP + 2):
            agent.update()
    assert captured(agents[1])[2:] == [True] * len(agents[1].pieces[2:])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*map(state, agents), strict=True))


@pytest.mark.usefixtures("graphs")
def test_what_an_update_returns_is_not_overwritten_by_the_next() -> None:
    agent = make("mgda")
    graphed(agent)
    for _ in range(WARM_UP + 1):
        agent.update()
    first = agent.update()
    before = {key: float(value) for key, value in first.items()}
    agent.update()
    assert {key: float(value) for key, value in first.items()} == before


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "clipped", "large", "decoupled", "embedding"])
@pytest.mark.parametrize("combiner", ["unitary", "uncertainty", "pcgrad", "famo"])
@pytest.mark.parametrize("memory_limit", [0, 1 << 30], ids=["streamed", "kept"])
def test_the_pieces_never_wait_for_the_device(combiner: str, options: dict[str, Any], memory_limit: int) -> None:
    agent = make(combiner, **options)
    for network in agent.objectives.networks.values():
        network.memory_limit = memory_limit
    agent.update()
    critic = agent.objectives.networks["critic"]
    memory, pieces = critic._memory.data_ptr(), agent.pieces
    weights, observations = torch.ones(len(agent.tasks)), torch.ones(len(agent.tasks), OBSERVATION)
    rows = torch.zeros(len(agent.tasks), 2 * OBSERVATION + ACTION + 3, dtype=torch.float64)
    with NoHostReads(), NoHostCopies():
        pieces.explore(observations)
        pieces.critic(agent.replay.draw(agent.batch_size, agent.generator))
        pieces.actor()
        pieces.combine_critic(weights)
        pieces.combine_actor(weights)
        pieces.step()
        pieces.write(rows)
    assert critic._memory.data_ptr() == memory


@pytest.mark.parametrize("read", [lambda x: x.item(), lambda x: bool(x > 0), lambda x: x.cpu(), lambda x: x.to("cpu")])
def test_reads_by_the_host_are_noticed(read: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(RuntimeError, match=r"device"), NoHostReads(), NoHostCopies():
        read(torch.ones(()) * 2)


@pytest.mark.parametrize("combiner", ["unitary", "mgda"])
@pytest.mark.parametrize("objective", ["critic", "actor"])
def test_a_loss_that_is_not_finite_is_named_and_not_applied(
    combiner: str, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = unchecked(make(combiner))
    break_loss(objective, monkeypatch)
    before = state(agent)
    with pytest.raises(RunError, match=rf"non-finite loss of task 'push-v3' in the {objective} .*'{combiner}'"):
        agent.update()
    unchanged_but_for_the_draws(agent, before)


def unchanged_but_for_the_draws(agent: MultiTaskSAC, before: list[torch.Tensor]) -> None:
    for ours, theirs in zip(state(agent), before, strict=True):
        assert ours.dtype == torch.uint8 or torch.equal(ours, theirs)


@pytest.mark.parametrize("reported_by", ["update", "state_dict"])
@pytest.mark.parametrize("objective", ["critic", "actor"])
def test_a_gradient_that_is_not_finite_is_not_applied_and_reported_later(objective: str, reported_by: str) -> None:
    agent = unchecked(make("unitary"))
    before = state(agent)
    network = getattr(agent, objective)
    weight = next(network.parameters())
    hook = weight.register_hook(lambda gradient: gradient * math.inf)
    agent.update()
    hook.remove()
    with pytest.raises(RunError, match=rf"non-finite gradient in the {objective} objective under combiner 'unitary'"):
        getattr(agent, reported_by)()
    unchanged_but_for_the_draws(agent, before)
    agent.update()  # said once
    assert not torch.equal(state(agent)[0], before[0])


def test_no_graph_of_the_gpu_can_hold_it() -> None:
    networks = {side: TaskBatched(torch.nn.Linear(2, 2), 3) for side in ("critic", "actor")}

    def obstacle(**options: int) -> str | None:
        made = {side: combiners.make("mgda", 3, **options) for side in networks}
        device = torch.device("cpu")
        return Objectives(["a", "b", "c"], networks, made, max_norm=None, device=device).obstacle()

    assert obstacle() is None
    assert obstacle(every=2) == "combiner 'mgda' does not look at the same in every update"


def test_a_generator_is_as_before_after_a_capture_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    class OfAGPU:
        """A generator whose state, by reference, a capture has marked."""

        device = torch.device("cuda")

        def __init__(self, device: torch.device) -> None:
            self.shared = SimpleNamespace(drawn=0, marked=False)

        def get_state(self) -> int:
            return self.shared.drawn

        def set_state(self, drawn: int) -> None:
            self.shared.drawn = drawn

        def graphsafe_get_state(self) -> "OfAGPU":
            return self

        def graphsafe_set_state(self, other: "OfAGPU") -> None:
            self.shared = other.shared

    generator: Any = OfAGPU(torch.device("cuda"))
    generator.shared = SimpleNamespace(drawn=7, marked=True)
    monkeypatch.setattr(torch, "Generator", OfAGPU)
    renew(generator)
    assert vars(generator.shared) == {"drawn": 7, "marked": False}
