"""Ctrl+C and SIGTERM while training: the loop asks after each step whether to stop.

Invariant: the handlers that were installed before are installed again afterwards.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def catch_stop_signals(print_notice: bool = True) -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether Ctrl+C or SIGTERM came.

    A second signal ends the process at once.     Outside the main thread, where Python allows no
    handlers, none is installed.

    Args:
        print_notice: whether the first signal prints a line to standard error.

    Raises:
        KeyboardInterrupt: a second signal came.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return

    def handle(number: int, frame: object) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()
        if print_notice:
            os.write(2, b"\nstopping after this step, saving first (once more to stop at once)\n")

    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield requested.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
