"""Stopping a run on request."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def on_stop_request(stop: Callable[[int], None]) -> Iterator[None]:
    """Calls a function with the number of the first SIGINT or SIGTERM; a second one acts as if nobody listened."""
    with ExitStack() as restore:

        def handle(number: int, _: object) -> None:
            restore.close()
            stop(number)

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                restore.callback(signal.signal, number, signal.getsignal(number))
                signal.signal(number, handle)
        yield
