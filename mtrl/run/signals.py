"""Stopping a run on request."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_stop_request(stop: Callable[[int], None]) -> Iterator[None]:
    """Calls ``stop`` with the number of the first SIGINT or SIGTERM; a second one acts as if nobody listened."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, _: object) -> None:
        restore()
        stop(number)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
