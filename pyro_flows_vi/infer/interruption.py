"""Ctrl-C at a moment when the state is whole."""

from __future__ import annotations

import signal
import threading
from typing import Any

__all__ = ["Interruption", "TrainingInterrupted"]


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or a termination signal ended the training; the state was saved, where a file was given."""


class Interruption:
    """Ctrl-C and SIGTERM become a request that the loop reads between two steps; a second one acts at once.

    Only in the main thread, where signals can be handled; elsewhere they act as they always do.
    """

    def __init__(self) -> None:
        self.requested = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._request)
        return self

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        signal.signal(number, self.before[number] or signal.SIG_DFL)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)
