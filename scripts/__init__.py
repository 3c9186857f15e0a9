"""Composition roots: what users run."""
