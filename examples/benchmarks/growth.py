"""Growth of cost: passes of flows with D, depth and points; a step of a fit also with particles and rows of data.

Each size is twice the last (four times, for points, particles and rows), until a call takes longer than ``--longest``
seconds, and four at least. The slope is the least-squares line through the logarithms, over the sizes that take at
least four times as long as the smallest, so that overhead is a minor part, and at least the last three.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from elbo_models import work
from elbo_step import ours
from measure import RECORDS, clock_for, interleaved, megabytes, write_record
from transforms import by_pair, task

from pyro_flows_vi import flows
from pyro_flows_vi.infer import ELBO

#: where the other axes are, and for the inverses, of which some are searched for
AT = {"D": 64, "transforms": 1, "points": 256, "particles": 64, "rows": 256}
INVERSE_DIM = 16
#: sizes on an axis
LEAST = 4
HIDDEN = (128, 128)
#: options of each family, and the power of D that its arithmetic has at most, at fixed widths
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "planar": ({}, 1),
    "sylvester": ({"rank": 8}, 1),
    "iaf": ({"hidden_dims": HIDDEN}, 1),
    "naf": ({"hidden_dims": HIDDEN}, 1),
    "realnvp": ({"hidden_dims": HIDDEN}, 1),
    "nsf": ({"hidden_dims": HIDDEN}, 2),  # the LU layer is a matrix
    "residual": ({"hidden_dims": HIDDEN, "log_det": "exact"}, 2),  # the whole Jacobian, and its determinant
}
#: settings of glibc's allocator: by default it gives large tensors back to the system, which clears their pages anew
ALLOCATOR = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
SEQUENTIAL = ("iaf", "naf")
PASS, INVERSE, STEP = "forward, log-determinant, backward", "inverse", "step of a fit"
#: the first size on each axis, the ratio of two sizes, and the last one
AXES = {
    "D": (8, 2, 2048),
    "transforms": (1, 2, 32),
    "points": (16, 4, 2**16),
    "particles": (4, 4, 2**16),
    "rows": (64, 4, 2**18),
}
#: of which the peak of memory is measured
MEMORY = {"particles": (1024, 4096, 16384), "rows": (4096, 16384, 65536)}


def sizes(axis: str) -> Iterator[int]:
    """Those of an axis, from small to large."""
    size, factor, last = AXES[axis]
    while size <= last:
        yield size
        size *= factor


def flow_call(family: str, inverse: bool, axis: str, size: int) -> Callable[[], object]:
    """A pass of a flow at a size."""
    torch.manual_seed(0)
    at = {**AT, "D": INVERSE_DIM if inverse else AT["D"], axis: size}
    flow = flows.build(family, at["D"], num_transforms=at["transforms"], **FAMILIES[family][0])
    x = torch.randn(at["points"], at["D"])
    if not inverse:
        return task(by_pair(flow), x)

    def call() -> object:
        with torch.no_grad():
            return flow.inverse_and_log_det(x)

    return call


def step_call(axis: str, size: int) -> Callable[[], object]:
    """One step of a fit of an IAF guide to a regression, in the eager loop."""
    torch.manual_seed(0)
    at = {**AT, axis: size}
    regression = work(at["D"], at["rows"])._replace(hidden=list(HIDDEN))
    return ours(regression, False, at["particles"], ELBO(), at["transforms"], 1)[0]


def slope(sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, int]:
    """The slope of the logarithms, and over how many of the last sizes."""
    used = max(3, sum(cost >= 4.0 * costs[0] for cost in costs))
    x, y = (torch.tensor(values[-used:], dtype=torch.float64).log() for values in (sizes, costs))
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum()), len(x)


def measure(
    make: Callable[[str, int], Callable[[], object]],
    axis: str,
    longest: float,
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, Any]:
    """Seconds along an axis."""
    tasks: dict[str, Callable[[], object]] = {}
    for size in sizes(axis):
        call = make(axis, size)
        call()
        began = clock()
        call()
        tasks[str(size)] = call
        if clock() - began > longest and len(tasks) >= LEAST:
            break
    seconds = interleaved(tasks, repeats, clock=clock)
    found = [int(size) for size in seconds]
    value, used = slope(found, list(seconds.values()))
    row = {"axis": axis, "sizes": found, "seconds": list(seconds.values())}
    return {**row, "slope": value, "used": used}


def cases() -> Iterator[tuple[str, str, str, int, Callable[[str, int], Callable[[], object]]]]:
    """Every line of the figure: what, which pass, the axis, the power that its arithmetic has, and its calls."""
    for family, (_, power) in FAMILIES.items():
        for inverse in (False, True) if family in SEQUENTIAL else (False,):
            for axis, expected in (("D", power), ("transforms", 1), ("points", 1)):

                def make(axis: str, size: int, family: str = family, inverse: bool = inverse) -> Callable[[], object]:
                    return flow_call(family, inverse, axis, size)

                yield family, INVERSE if inverse else PASS, axis, expected, make
    for axis in ("D", "transforms", "particles", "rows"):
        yield "iaf", STEP, axis, 1, step_call


def peak(axis: str, size: int) -> float:
    """MiB of the peak of memory of steps, over that before them: a process of its own, which has seen no other."""
    command = [sys.executable, __file__, "--child", axis, str(size)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return float(done.stdout)


def child(axis: str, size: int) -> None:
    """Two steps, and what they took; what is there before them is that of the smallest size."""
    step_call(axis, AXES[axis][0])()
    before = megabytes()
    step = step_call(axis, size)
    for _ in range(2):
        step()
    print(megabytes() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--longest", type=float, default=0.3, help="seconds of a call after which no larger size is tried"
    )
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), metavar="F")
    parser.add_argument("--out", type=Path, default=RECORDS / "growth.json")
    parser.add_argument("--child", nargs=2, metavar=("AXIS", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    if options.child:
        child(options.child[0], int(options.child[1]))
        return
    clock = clock_for(options.threads)
    record: dict[str, Any] = {
        "clock": clock.__name__,
        "at": AT,
        "inverse_dim": INVERSE_DIM,
        "allocator": ALLOCATOR,
        "rows": [],
        "memory": [],
    }
    for name, kind, axis, expected, make in cases():
        if name not in options.families:
            continue
        began = time.perf_counter()
        found = measure(make, axis, options.longest, options.repeats, clock)
        row = {"name": name, "pass": kind, "expected": expected, **found}
        record["rows"].append(row)
        write_record(options.out, record)
        print(
            f"{name:10} {kind:36} {axis:10} up to {row['sizes'][-1]:6}: {row['slope']:5.2f} over {row['used']} sizes, "
            f"at most {expected} expected ({time.perf_counter() - began:.0f} s)",
            flush=True,
        )
    for axis, chosen in MEMORY.items():
        peaks = [peak(axis, size) for size in chosen]
        value, _ = slope(chosen, peaks)
        record["memory"].append({"axis": axis, "sizes": chosen, "mib": peaks, "slope": value})
        print(f"peak memory by {axis}: {peaks} MiB, slope {value:.2f}", flush=True)
    write_record(options.out, record)


if __name__ == "__main__":
    main()
