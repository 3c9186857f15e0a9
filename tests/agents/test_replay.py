import warnings

import pytest
import torch

from agents import replay
from agents.replay import Batch, ReplayBuffer
from mtrl.errors import InputError

CPU = torch.device("cpu")
TASKS, OBSERVATION, ACTION = 3, 5, 2
GAMMA = 0.9
NEVER = torch.zeros(TASKS, dtype=torch.bool)


def make(capacity: int = 7, n_step: int = 1) -> ReplayBuffer:
    return ReplayBuffer(TASKS, capacity, OBSERVATION, ACTION, CPU, discount=GAMMA, n_step=n_step)


def transition(number: int, rewards: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Fields that tell which task and which transition they are of."""
    label = 100.0 * torch.arange(TASKS) + number
    return (
        label.unsqueeze(1).expand(TASKS, OBSERVATION),
        label.unsqueeze(1).expand(TASKS, ACTION),
        label.double() if rewards is None else rewards,
        label.unsqueeze(1).expand(TASKS, OBSERVATION) + 0.5,
        torch.tensor([number % 2 == 0] * TASKS),
    )


def fill(buffer: ReplayBuffer, count: int) -> None:
    for number in range(count):
        buffer.add(*transition(number), ended=NEVER)


def test_a_batch_has_an_equal_slice_of_each_task_and_keeps_transitions_together() -> None:
    buffer = make()
    fill(buffer, 5)
    batch = buffer.sample(64, torch.Generator().manual_seed(0))
    assert batch.observations.shape == (TASKS, 64, OBSERVATION)
    label = batch.observations[..., 0]
    assert torch.equal(label // 100, torch.arange(TASKS).float().unsqueeze(1).expand(TASKS, 64))
    assert set((label % 100).unique().tolist()) == {0, 1, 2, 3, 4}
    assert torch.equal(batch.rewards, label)
    assert torch.equal(batch.actions[..., 0], label)
    assert torch.equal(batch.next_observations[..., 0], label + 0.5)
    assert torch.equal(batch.discounts, GAMMA * (label % 2 != 0).float())


@pytest.mark.parametrize("n_step", [1, 3, 30])
@pytest.mark.parametrize("count", [5, 20, 21, 47])
def test_n_steps_end_where_the_episode_or_what_is_stored_does(n_step: int, count: int) -> None:
    """Against a naive walk along the history, which the ring holds the last 20 of."""
    buffer, random = make(20, n_step), torch.Generator().manual_seed(count)
    buffer.fields.rewards.fill_(torch.nan)  # as memory can be that nothing was written to
    history: list[list[dict[str, float | bool]]] = [[] for _ in range(TASKS)]
    for number in range(count):
        fields = transition(number, torch.rand(TASKS, generator=random).double())
        ended = torch.rand(TASKS, generator=random) < 0.15
        terminated = ended & (torch.rand(TASKS, generator=random) < 0.5)
        broken = (torch.rand(TASKS, generator=random) < 0.1) & (number > 0)
        buffer.add(*fields[:4], terminated, ended=ended, broken=broken)
        for task, past in enumerate(history):
            row = {"label": 100 * task + number, "reward": float(fields[2][task].float()), "over": bool(ended[task])}
            row |= {"terminated": bool(terminated[task])}
            if broken[task]:  # the last once more, alone
                past[-1]["over"], row = True, past[-1] | {"over": True}
            past.append(row)
        if number == 2:
            buffer.begins[1] = history[1][-1]["over"] = True
    batch = buffer.sample(200, torch.Generator().manual_seed(0))
    for task, past in enumerate(history):
        expected = set()
        for first in range(max(0, count - 20), count):
            summed, discount, row = 0.0, 1.0, past[first]
            for row in past[first : first + n_step]:
                summed, discount = summed + discount * row["reward"], discount * GAMMA
                if row["over"]:
                    break
            discount = 0.0 if row["terminated"] else discount
            expected.add((past[first]["label"], round(summed, 4), row["label"] + 0.5, round(discount, 4)))
        named = (batch.observations[task, :, 0], batch.rewards[task], batch.next_observations[task, :, 0])
        found = zip(*(field.tolist() for field in (*named, batch.discounts[task])), strict=True)
        assert {(s, round(r, 4), s2, round(discount, 4)) for s, r, s2, discount in found} == expected


def test_the_ring_holds_the_last_transitions() -> None:
    buffer = make(capacity=7)
    fill(buffer, 17)
    assert len(buffer) == 7
    labels = buffer.sample(500, torch.Generator().manual_seed(0)).rewards % 100
    assert set(labels.unique().tolist()) == set(range(10, 17))


def test_raw_rewards_are_stored_and_sampled_and_their_moments_kept() -> None:
    """Against a naive recomputation over what the ring holds, at very different scales and offsets."""
    buffer = make(capacity=50)
    generator = torch.Generator().manual_seed(1)
    scale, offset = torch.tensor([1e-3, 1.0, 50.0]), torch.tensor([10.0, 0.0, -1e3])
    history = []
    for number in range(180):
        rewards = (torch.randn(TASKS, generator=generator) * scale + offset).double()
        history.append(rewards.float())
        buffer.add(*transition(number, rewards), ended=NEVER)
        if number in (0, 1, 30, 49, 50, 51, 120, 179):
            held = torch.stack(history[-50:], 1)
            assert torch.equal(buffer.fields.rewards[:, : len(buffer)].sort().values, held.sort().values)
            naive = held.double().std(1, correction=0)
            expected = torch.where(naive > 0, naive, 1.0)
            torch.testing.assert_close(buffer.reward_std(), expected, rtol=1e-6, atol=0)
            torch.testing.assert_close(buffer.reward_mean(), held.double().mean(1), rtol=1e-6, atol=1e-9)
    batch = buffer.sample(1000, torch.Generator().manual_seed(2))
    raw = torch.stack(history[-50:], 1)
    for task in range(TASKS):
        assert set(batch.rewards[task].unique().tolist()) <= set(raw[task].tolist())


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_constant_rewards_have_no_scale(value: float) -> None:
    buffer = make(capacity=4)
    for number in range(11):
        buffer.add(*transition(number, torch.full((TASKS,), value)), ended=NEVER)
    assert torch.equal(buffer.reward_std(), torch.ones(TASKS, dtype=torch.float64))


def test_an_empty_buffer_refuses_to_sample() -> None:
    with pytest.raises(InputError, match="empty"):
        make().sample(1, torch.Generator())


def test_memory_is_stated_and_refused_before_it_is_taken() -> None:
    buffer = make(capacity=11)
    assert sum(field.nbytes for field in buffer.fields) == ReplayBuffer.bytes_needed(TASKS, 11, OBSERVATION, ACTION)
    with pytest.raises(InputError, match=r"GiB.*lower agent.buffer_size"):
        ReplayBuffer(50, 10**10, 39, 4, CPU, discount=GAMMA)


@pytest.mark.parametrize(("device_free", "host_free", "expected"), [(9, 0, "cuda"), (8, 9, "cpu"), (8, 8, None)])
def test_what_does_not_fit_on_the_device_goes_to_the_host(
    device_free: int, host_free: int, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = ReplayBuffer.bytes_needed(1, 1, 1, 1)
    free = {"cuda": device_free + needed - 9, "cpu": host_free + needed - 9}
    monkeypatch.setattr(replay, "free_memory", lambda device: free[device.type])
    cuda = torch.device("cuda")
    if expected is None:
        with pytest.raises(InputError, match=r"the host has 0.00 GiB free; lower agent.buffer_size"):
            ReplayBuffer.check_memory(1, 1, 1, 1, cuda)
    else:
        assert ReplayBuffer.check_memory(1, 1, 1, 1, cuda) == needed
        assert replay.storage_device(needed, cuda).type == expected


def test_a_buffer_in_host_memory_says_so_and_sends_mini_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = torch.device("meta")  # a device that is not the host, and that any machine has
    monkeypatch.setattr(replay, "free_memory", lambda device: 10**6 if device == CPU else 0)
    with pytest.warns(
        UserWarning, match=r"^the replay buffer of 0.00 GiB does not fit on meta beside .* GiB: it lives in host"
    ):
        buffer = ReplayBuffer(TASKS, 7, OBSERVATION, ACTION, elsewhere, discount=GAMMA)
    fill(buffer, 9)
    assert {field.device for field in buffer.fields} == {CPU}
    batch = buffer.sample(4, torch.Generator())
    assert {getattr(batch, name).device for name in Batch._fields} == {elsewhere}
    assert torch.equal(buffer.last()[2], transition(8)[2].float())


@pytest.mark.parametrize(("spare", "where"), [(0, "meta"), (-1, "cpu")])
def test_what_updates_take_stays_free(spare: int, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    free = ReplayBuffer.bytes_needed(TASKS, 7, OBSERVATION, ACTION) + 100 + spare
    monkeypatch.setattr(replay, "free_memory", lambda device: 10**6 if device == CPU else free)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = ReplayBuffer(TASKS, 7, OBSERVATION, ACTION, torch.device("meta"), discount=GAMMA, reserve=100)
    assert buffer.storage.type == where


def test_mt50_with_four_million_transitions_fits_into_two_gib() -> None:
    assert ReplayBuffer.bytes_needed(50, 4_000_000 // 50, 39, 4) < 2 * 2**30


@pytest.mark.parametrize("count", [3, 7, 20])
def test_slices_and_state_restore_the_buffer_bit_for_bit(count: int) -> None:
    buffer, ends = make(7, n_step=3), torch.tensor([True, False, False])
    fill(buffer, count - 1)
    buffer.add(*transition(count - 1), ended=ends)
    copy = make(7, n_step=3)
    copy.restore(max(0, count - 7), buffer.slice(0, count))
    copy.load_state_dict(buffer.state_dict())
    for more in range(count, count + 3):
        buffer.add(*transition(more), ended=NEVER)
        copy.add(*transition(more), ended=NEVER)
    one = buffer.sample(40, torch.Generator().manual_seed(3))
    other = copy.sample(40, torch.Generator().manual_seed(3))
    for name in Batch._fields:
        assert torch.equal(getattr(one, name), getattr(other, name))


def test_last_gives_the_transition_added_last() -> None:
    buffer = make(capacity=7)
    fill(buffer, 9)
    assert torch.equal(buffer.last()[2], transition(8)[2].float())
