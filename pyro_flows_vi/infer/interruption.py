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

    Raises:
        TrainingInterrupted: at the end, if SIGTERM was the request and the loop raised nothing itself: that asks for
            the program to end, and Ctrl-C for what there is so far.
    """

    def __init__(self) -> None:
        self.requested = self.terminated = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._request)
        return self

    def _request(self, number: int, frame: object) -> None:
        self.requested, self.terminated = True, self.terminated or number == signal.SIGTERM
        signal.signal(number, self.before[number] or signal.SIG_DFL)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if self.terminated and kind is None:
            raise TrainingInterrupted("a termination signal ended the training; what it trained holds the best so far")
