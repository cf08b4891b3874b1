"""Interleaved timing: every competitor once, again and again, so that a noisy machine is noisy for all of them."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import pyro_flows_vi
from pyro_flows_vi.infer.checkpoint import write_atomically

#: where the records are kept
RECORDS = Path(__file__).resolve().parents[2] / "docs/records/benchmarks"
PEERS = ("pyro-flows-vi", "pyro-ppl", "zuko", "normflows", "nflows", "numpyro", "jax", "torch", "numpy")


def interleaved(
    tasks: Mapping[str, Callable[[], object]],
    repeats: int = 15,
    min_seconds: float = 0.02,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """The median seconds of one call of each task; the tasks take turns, in an order that rotates.

    Args:
        tasks: name -> a call.
        repeats: how many turns each task gets.
        min_seconds: a turn repeats its call until it is at least so long.
        clock: for one thread, ``time.process_time`` leaves out what other programs take.
    """
    counts = {}
    for name, task in tasks.items():
        task()  # warm up: allocations, lazy initialisation
        started = clock()
        task()
        counts[name] = max(1, round(min_seconds / max(clock() - started, 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in tasks}
    order = list(tasks)
    for turn in range(repeats):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            started = clock()
            for _ in range(counts[name]):
                tasks[name]()
            times[name].append((clock() - started) / counts[name])
    return {name: statistics.median(values) for name, values in times.items()}


def beside_peers(
    tasks: Mapping[str, Callable[[], object]], ours: Sequence[str], repeats: int, clock: Callable[[], float]
) -> tuple[dict[str, Any], list[float]]:
    """The seconds of all tasks and the fastest peer, for a record; and each of ``ours`` over that peer."""
    seconds = interleaved(tasks, repeats, clock=clock)
    fastest = min((name for name in seconds if name not in ours), key=seconds.__getitem__)
    return {"seconds": seconds, "fastest_peer": fastest}, [seconds[name] / seconds[fastest] for name in ours]


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


def megabytes() -> float:
    """The peak of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, ru_maxrss begins with the peak of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def clock_for(threads: int) -> Callable[[], float]:
    """Processor time where there is one thread, so that a busy machine does not matter; else the time of day."""
    return time.process_time if threads == 1 else time.perf_counter


def write_record(path: Path, results: dict[str, Any]) -> None:
    """Write results with the machine they are from, whole or not at all."""
    record = {"version": pyro_flows_vi.__version__, "machine": machine(), **results}
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
