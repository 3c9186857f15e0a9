"""Stopping a run on request."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def on_stop_request(
    stop: Callable[[int], None], numbers: Iterable[int] = (signal.SIGINT, signal.SIGTERM)
) -> Iterator[None]:
    """Calls a function with the number of the first such signal; a second one acts as if nobody listened."""
    with ExitStack() as restore:

        def handle(number: int, _: object) -> None:
            restore.close()
            stop(number)

        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                restore.callback(signal.signal, number, signal.getsignal(number))
                signal.signal(number, handle)
        yield
