"""Ctrl-C and SIGTERM as requests: the step at hand is finished and saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """The signal that asked for a stop, or None."""

    signum: int | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within it the first SIGINT or SIGTERM is noted in the yielded request; a second one acts at once.

    In a thread other than the main one, where Python takes no handlers, nothing is caught.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    before = {signum: signal.getsignal(signum) for signum in caught}

    def note(signum: int, frame: FrameType | None) -> None:
        request.signum = signum
        for each in caught:
            signal.signal(each, before[each])

    for signum in caught:
        signal.signal(signum, note)
    try:
        yield request
    finally:
        for signum in caught:
            signal.signal(signum, before[signum])
