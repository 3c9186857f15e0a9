"""One agent, many tasks: per-task gradients and the methods that combine them."""

__version__ = "0.1.0"
