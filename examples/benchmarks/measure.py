"""Interleaved timing: every competitor once, again and again, so that a noisy machine is noisy for all of them."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PEERS = ("pyro-flows-vi", "pyro-ppl", "zuko", "normflows", "nflows", "torch", "numpy")


def interleaved(
    tasks: Mapping[str, Callable[[], object]], repeats: int = 15, min_seconds: float = 0.02
) -> dict[str, float]:
    """The median seconds of one call of each task; the tasks take turns, in an order that rotates.

    Args:
        tasks: name -> a call.
        repeats: how many turns each task gets.
        min_seconds: a turn repeats its call until it is at least so long.
    """
    counts = {}
    for name, task in tasks.items():
        task()  # warm up: allocations, lazy initialisation
        started = time.perf_counter()
        task()
        counts[name] = max(1, round(min_seconds / max(time.perf_counter() - started, 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in tasks}
    order = list(tasks)
    for turn in range(repeats):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            started = time.perf_counter()
            for _ in range(counts[name]):
                tasks[name]()
            times[name].append((time.perf_counter() - started) / counts[name])
    return {name: statistics.median(values) for name, values in times.items()}


def machine() -> dict[str, Any]:
    """What a reader has to know to judge a ratio."""
    installed = {}
    for name in PEERS:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": installed,
    }


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
