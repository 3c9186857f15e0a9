"""Supervised benchmarks, one a file."""
