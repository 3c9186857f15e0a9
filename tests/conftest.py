"""Of the whole suite: the order, and what signals do.

Files of long tests come first, so that in the end no worker has one left alone.
"""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

LONG = {"integration", "property", "reliability"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the folders with long tests first; within them, and among the others, the order stays."""
    items.sort(key=lambda item: LONG.isdisjoint(item.path.parts))


@pytest.fixture(scope="session", autouse=True)
def _nothing_ignored() -> Iterator[None]:
    """Below nohup SIGHUP is ignored, and below a script's ``&`` SIGINT: by processes that tests start, too."""
    own: dict[signal.Signals, Any] = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
