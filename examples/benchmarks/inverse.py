"""The direction that a flow has to search or to substitute for: samples of autoregressive densities, and root searches.

Ours is checked before it is timed: in double precision the inverse takes the forward map back to its input.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nflows.transforms as nflows_transforms
import normflows
import torch
import zuko
from measure import RECORDS, clock_for, interleaved, write_record
from torch import Tensor, nn

from pyro_flows_vi import transforms as ours
from pyro_flows_vi.testing import randomize

BATCH = 100
OURS, FORWARD = "ours", "ours, forward"
#: a turn is at least so long
MIN_SECONDS = 0.02


def width(dim: int) -> int:
    """Of both hidden layers of every network."""
    return max(64, dim)


def away_from_the_start(flow: ours.Flow) -> ours.Flow:
    """All weights as a linear layer has them at first, which is where the peers start: ours starts at the identity."""
    for layer in flow.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return flow


Competitors = dict[str, Callable[[Tensor], object]]


def by_zuko(lazy: nn.Module) -> Callable[[Tensor], object]:
    return lambda y: lazy().inv(y)


def affine_autoregressive(dim: int) -> tuple[ours.Flow, Competitors]:
    h = width(dim)
    flow = ours.AffineAutoregressive(dim, hidden_dims=(h, h))
    options = {"num_blocks": 1, "use_residual_blocks": False}
    return flow, {
        "zuko": by_zuko(zuko.flows.autoregressive.MaskedAutoregressiveTransform(dim, hidden_features=(h, h))),
        "nflows": nflows_transforms.MaskedAffineAutoregressiveTransform(dim, h, **options).inverse,
    }


def spline_autoregressive(dim: int) -> tuple[ours.Flow, Competitors]:
    h = width(dim)
    flow = ours.SplineAutoregressive(dim, hidden_dims=(h, h), bins=8)
    spline = nflows_transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
    options = {"num_bins": 8, "tails": "linear", "tail_bound": 3.0, "num_blocks": 1, "use_residual_blocks": False}
    return flow, {
        "zuko": by_zuko(zuko.flows.NSF(dim, bins=8, transforms=1, hidden_features=(h, h)).transform),
        "nflows": spline(dim, h, **options).inverse,
    }


def deep_sigmoidal(dim: int) -> tuple[ours.Flow, Competitors]:
    h = width(dim)
    flow = ours.NeuralAutoregressive(dim, hidden_dims=(h, h), width=16)
    naf = zuko.flows.NAF(dim, transforms=1, signal=16, hidden_features=(h, h))
    return flow, {"zuko": by_zuko(naf.transform)}


def planar(dim: int) -> tuple[ours.Flow, Competitors]:
    """The peers have no inverse for tanh; normflows inverts its leaky rectifier in closed form."""
    return ours.Planar(dim), {"normflows, leaky ReLU": normflows.flows.Planar((dim,), act="leaky_relu").inverse}


def sylvester(dim: int) -> tuple[ours.Flow, Competitors]:
    """No peer has an inverse."""
    return ours.Sylvester(dim, form="householder", num_reflections=min(dim // 2 + 1, 8)), {}


#: maker, the dimensions, and the number of turns
FAMILIES: dict[str, tuple[Callable[[int], tuple[ours.Flow, Competitors]], dict[int, int]]] = {
    "affine autoregressive": (affine_autoregressive, {64: 11, 256: 5, 784: 3}),
    "spline autoregressive": (spline_autoregressive, {64: 5, 256: 3}),
    "deep sigmoidal": (deep_sigmoidal, {8: 3}),
    "planar": (planar, {64: 15}),
    "Sylvester": (sylvester, {64: 15}),
}


@torch.no_grad()
def round_trip(flow: ours.Flow, y: Tensor) -> tuple[float, float]:
    """The largest error of y -> x -> y in double precision, and of x in single precision, relative to 1 + |.|."""

    def error(got: Tensor, wanted: Tensor) -> float:
        return float(((got.double() - wanted).abs() / (1.0 + wanted.abs())).max())

    single = flow.inverse_and_log_det(y)[0]
    x = flow.double().inverse_and_log_det(y.double())[0]
    there = flow.forward_and_log_det(x)[0]
    flow.float()
    return error(there, y.double()), error(single, x)


def measure(family: str, dim: int, turns: int, clock: Callable[[], float]) -> dict[str, Any]:
    torch.manual_seed(0)
    flow, peers = FAMILIES[family][0](dim)
    flow = randomize(flow, 0.1) if not peers or "autoregressive" not in family else away_from_the_start(flow)
    y = torch.randn(BATCH, dim)
    errors = round_trip(flow, y)

    def call(function: Callable[[Tensor], object]) -> Callable[[], object]:
        def run() -> object:
            with torch.no_grad():
                return function(y)

        return run

    tasks = {OURS: call(flow.inverse_and_log_det), FORWARD: call(flow.forward_and_log_det)}
    tasks |= {name: call(function) for name, function in peers.items()}
    seconds = interleaved(tasks, turns, MIN_SECONDS, clock=clock)
    gc.collect()
    return {
        "family": family,
        "dim": dim,
        "seconds": seconds,
        "times_faster": {name: seconds[name] / seconds[OURS] for name in peers},
        "passes": seconds[OURS] / seconds[FORWARD],
        "round_trip": errors[0],
        "single_precision": errors[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one turn, and no D above 64")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), metavar="F")
    parser.add_argument("--out", type=Path, default=RECORDS / "inverse.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = clock_for(options.threads)
    rows: list[dict[str, Any]] = []
    for family in options.families:
        for dim, turns in FAMILIES[family][1].items():
            if options.quick and dim > 64:
                continue
            row = measure(family, dim, 1 if options.quick else turns, clock)
            rows.append(row)
            write_record(options.out, {"batch": BATCH, "clock": clock.__name__, "rows": rows})
            faster = ", ".join(f"{ratio:.1f} x {name}" for name, ratio in row["times_faster"].items())
            times = ", ".join(f"{name} {1e3 * value:.3g} ms" for name, value in row["seconds"].items())
            print(
                f"{family:22} {dim:4} {faster} | {row['passes']:.1f} passes, round trip {row['round_trip']:.1e}, "
                f"float32 {row['single_precision']:.1e} | {times}",
                flush=True,
            )


if __name__ == "__main__":
    main()
