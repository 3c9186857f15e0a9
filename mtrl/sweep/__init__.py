"""Sweeps: the runs of a Hydra multirun, each in a process of its own, whichever launcher started it.

A process of its own gives a run its own threads, memory and GPU, and lets it fail alone. Processes talk through a
folder beside the run directories: a laptop, a Slurm queue and a Ray cluster with a shared file system look the same.
"""
