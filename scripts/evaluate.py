"""Evaluates a finished or running run: ``python scripts/evaluate.py run=runs/x episodes=50``."""

from dataclasses import dataclass
from pathlib import Path

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress

from mtrl.analysis.training_report import print_success
from mtrl.errors import InputError
from mtrl.experiment.checkpoints import Checkpoints
from mtrl.experiment.command_line import one_line_errors, run
from mtrl.experiment.files import write_json
from mtrl.rl.evaluation import evaluate
from scripts.composition import CONFIGS, device_of, load_config, make_agent, make_evaluation_environments


@dataclass
class EvaluateConfig:
    """The configuration of this script."""

    run: str = MISSING
    episodes: int = 50
    device: str = "auto"
    num_workers: int | None = None
    debug: bool = False

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.episodes < 1:
            raise InputError(f"episodes: expected an integer of at least 1, got {self.episodes}")


ConfigStore.instance().store("evaluate_schema", EvaluateConfig)


def evaluate_run(options: EvaluateConfig) -> None:
    """Loads the newest checkpoint's policy, plays the evaluation episodes, writes ``evaluation-<step>.json``."""
    directory = Path(options.run)
    trained = load_config(directory)
    trained.num_workers = options.num_workers
    loaded = Checkpoints(directory / "checkpoints").load()
    if loaded is None:
        raise InputError(f"run '{directory}' has no checkpoint yet: wait for the first one")
    step, state = loaded
    agent = make_agent(trained, state["tasks"], device_of(options.device), capacity=1)
    agent.load_policy(state["agent"])
    torch.set_num_threads(1)  # one observation per task is too little to share
    total = options.episodes * len(state["tasks"])
    console = Console(stderr=True)
    with (
        make_evaluation_environments(trained, state["tasks"]) as environments,
        Progress(console=console, disable=not console.is_terminal) as progress,
    ):
        bar = progress.add_task("evaluating", total=total)
        result = evaluate(
            agent.act_deterministically,
            environments,
            options.episodes,
            lambda finished: progress.update(bar, completed=sum(finished)),
        )
    print_success(result.success_rates, result.success_mean, options.episodes, Console())
    file = directory / f"evaluation-{step}.json"
    write_json(
        file,
        {
            "step": step,
            "episodes": options.episodes,
            "success_mean": result.success_mean,
            "success": result.success_rates,
        },
    )
    Console().print(f"written to {file}", highlight=False, soft_wrap=True)


@hydra.main(version_base="1.3", config_path=CONFIGS, config_name="evaluate")
def main(config: DictConfig) -> None:
    """Checks the options and evaluates."""
    with one_line_errors(debug=config.debug):
        if OmegaConf.is_missing(config, "run"):
            raise InputError("name the run to evaluate: run=DIRECTORY")
        checked = OmegaConf.to_object(config)
        assert isinstance(checked, EvaluateConfig)
        evaluate_run(checked)


if __name__ == "__main__":
    run(main)
