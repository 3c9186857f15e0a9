"""Writes a run's policy as one small file: ``python scripts/export.py run=runs/x out=policy.pt``.

It holds ``network``, the arguments of `agents.networks.Actor`; ``weights``, its state; and ``tasks``, in the order of
the first dimension of what it acts on. ``torch.load(file, weights_only=True)`` reads it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import MISSING

from agents.networks import Actor
from mtrl.run.files import write_atomically
from scripts.build import make_family
from scripts.configuration import load_config
from scripts.entry import hydra_main, run
from scripts.evaluate import stored_policy


@dataclass
class ExportConfig:
    """The configuration of this script."""

    run: str = MISSING
    which: str = "last"
    out: str = "policy.pt"
    debug: bool = False


def export(options: ExportConfig) -> None:
    """Writes one of the policies that a run has kept."""
    trained = load_config(Path(options.run))
    step, weights = stored_policy(Path(options.run), options.which)
    family = make_family(trained)
    network = trained.agent.arguments(len(family.tasks), *family.sizes())["actor"]
    Actor(**network).load_state_dict(weights)
    policy = {"network": network, "weights": weights, "tasks": family.tasks, "step": step}
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(options.out), lambda file: torch.save(policy, file))
    print(f"the policy of step {step:,} of {options.run} is in {options.out}")


main = hydra_main(
    ExportConfig, "export", export, about=__doc__, run="name the run whose policy to write: run=DIRECTORY"
)

if __name__ == "__main__":
    run(main)
