"""The agents that are choices of ``agent=NAME``."""

import dataclasses

import pytest

from agents.sac import SACConfig
from mtrl.run.directory import flatten
from scripts.configuration import WITHOUT
from tests.configured import configured


def test_the_default_is_that_of_kurin() -> None:
    assert configured("benchmark=mt10").agent == configured("benchmark=mt10", "agent=kurin").agent == SACConfig()


@pytest.mark.parametrize("name", ["large", "cpu"])
def test_the_newer_ones_balance_tasks_by_construction(name: str) -> None:
    config = configured("benchmark=mt10", f"agent={name}")
    agent = config.agent
    assert (agent.critic_loss, agent.reward_scale, agent.critic.block) == ("categorical", "return", "residual")
    assert agent.critic.layer_norm
    assert config.updates_per_step > 1


def test_every_part_is_a_key_of_its_own() -> None:
    changed = ["agent.critic.hidden_sizes=[64,64]", "agent.critics=3", "agent.twins=min", "updates_per_step=0.5"]
    config = configured("benchmark=mt10", "agent=large", *changed)
    assert dataclasses.asdict(config.agent)["critic"]["hidden_sizes"] == [64, 64]
    assert (config.agent.critics, config.agent.twins, config.updates_per_step) == (3, "min", 0.5)


@pytest.mark.parametrize("name", [name for name in WITHOUT if name != "nothing"])
def test_an_element_is_taken_away_alone(name: str) -> None:
    kurin, large = (
        flatten(dataclasses.asdict(configured("benchmark=mt10", f"agent={own}"))) for own in ("kurin", "large")
    )
    found = flatten(dataclasses.asdict(configured("benchmark=mt10", "agent=large", f"without={name}")))
    changed = {key: value for key, value in found.items() if value != large.get(key, ...)}
    assert set(changed) <= set(WITHOUT[name])
    assert all(found[key] == kurin[key] for key in WITHOUT[name])


def test_without_nothing_an_agent_is_as_it_is() -> None:
    assert configured("benchmark=quickstart", "agent=cpu", "without=nothing") == configured(
        "benchmark=quickstart", "agent=cpu"
    )
    assert configured("agent=cpu", "without=updates", "updates_per_step=3").updates_per_step == 3


def test_a_benchmark_says_more_of_its_batch_than_an_agent() -> None:
    assert configured("benchmark=mt50", "agent=cpu").batch_size == 26


def test_runs_of_before_there_was_a_choice_of_method_are_those_of_combined() -> None:
    assert configured("benchmark=mt10").method is configured("benchmark=mt10", "method=combined").method is None
    assert configured("method=combined", "combiner=pcgrad").method_name == "pcgrad"
    config = configured("method=individual_steps", "method.groups=2")
    assert config.method is not None
    assert (config.method.name, config.method.groups, config.method_name) == ("individual_steps", 2, "individual_steps")
