"""The order of the suite: files of long tests first, so that in the end no worker has one left alone."""

import pytest

LONG = {"integration", "property", "reliability"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the folders with long tests first; within them, and among the others, the order stays."""
    items.sort(key=lambda item: LONG.isdisjoint(item.path.parts))
