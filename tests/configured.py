"""Training's configuration, composed as on the command line."""

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import scripts.train  # noqa: F401  # it registers the configuration's schema
from scripts.configuration import TrainConfig
from scripts.entry import CONFIGS


def configured(*overrides: str) -> TrainConfig:
    """What ``scripts/train.py`` makes of its command line."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        config = OmegaConf.to_object(compose("train", list(overrides)))
    assert isinstance(config, TrainConfig)
    return config
