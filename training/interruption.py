"""Ctrl-C and SIGTERM as requests: the current step is finished and saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """The signal that asks for a stop, or 0."""

    signum: int = 0


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within it the first SIGINT or SIGTERM is noted in the yielded request; a second one acts at once.

    A signal that the process ignores, as under nohup, or that a handler outside of Python takes, is left alone. In a
    thread other than the main one, where Python takes no handlers, nothing is caught.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    found = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    handlers = {signum: handler for signum, handler in found.items() if handler not in (None, signal.SIG_IGN)}

    def restore() -> None:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)

    def note(signum: int, frame: FrameType | None) -> None:
        request.signum = signum
        restore()

    for signum in handlers:
        signal.signal(signum, note)
    try:
        yield request
    finally:
        restore()
