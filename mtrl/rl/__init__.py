"""The training loop and evaluation, written against small protocols."""
