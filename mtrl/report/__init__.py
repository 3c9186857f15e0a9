"""Figures and tables over runs."""
