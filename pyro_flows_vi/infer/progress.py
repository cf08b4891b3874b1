"""One progress bar for everything that takes long: lively on a terminal, sparing in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm

__all__ = ["progress_bar"]

#: seconds between two lines where the output is not a terminal
LOG_INTERVAL = 30.0


def progress_bar(total: int, label: str, unit: str, shown: bool = True, done: int = 0) -> Any:
    """A tqdm bar on the standard error stream, to be used in a ``with`` statement.

    Args:
        total: units until the end.
        label: text before the bar.
        unit: what is counted.
        shown: ``False`` for a bar that shows nothing.
        done: units that an earlier session has done.
    """
    interval = 0.1 if sys.stderr.isatty() else LOG_INTERVAL
    return tqdm(
        total=total,
        initial=done,
        desc=label,
        unit=unit,
        disable=not shown,
        mininterval=interval,
        dynamic_ncols=True,
    )
