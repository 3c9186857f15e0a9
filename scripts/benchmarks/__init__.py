"""The measurements behind ``scripts/benchmark.py``, one file a command."""
