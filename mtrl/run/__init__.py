"""Run directories: configuration, metrics, checkpoints, progress."""
