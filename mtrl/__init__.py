"""One agent, many tasks: per-task gradients and the methods that combine them."""

__version__ = "0.2.0"
