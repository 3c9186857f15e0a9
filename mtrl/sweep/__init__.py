"""Sweeps: the runs of a Hydra multirun, each in a process of its own, whichever launcher started it."""
