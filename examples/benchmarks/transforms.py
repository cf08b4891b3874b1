"""Forward, log-determinant and backward of one layer at a time, against Pyro, zuko and normflows."""

from __future__ import annotations

import argparse
import gc
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import normflows
import pyro.distributions.transforms as pyro_transforms
import torch
import zuko
from measure import RECORDS, beside_peers, clock_for, write_record
from torch import Tensor, nn

from pyro_flows_vi import transforms as ours

BATCH = 1000
DIMS = (2, 64, 256)
OURS, TORCH = "ours", "ours, as a torch transform"
WIDTH = 16  # sigmoids of each coordinate

Pair = tuple[Tensor, Tensor]
Competitor = tuple[nn.Module, Callable[[Tensor], Pair]]


def hidden(dim: int) -> int:
    """The width of both hidden layers of every network; Pyro refuses a width below D."""
    return max(64, dim)


def reflections(dim: int) -> int:
    """Pyro's default up to eight: its chain at D = 256 would be 129 reflections long."""
    return min(dim // 2 + 1, 8)


def by_pair(flow: nn.Module) -> Competitor:
    return flow, flow.forward_and_log_det


def by_torch(transform: Any) -> Competitor:
    def call(x: Tensor) -> Pair:
        y = transform(x)
        return y, transform.log_abs_det_jacobian(x, y)

    return transform, call


def by_zuko(lazy: nn.Module) -> Competitor:
    return lazy, lambda x: lazy().call_and_ladj(x)


def by_call(module: nn.Module) -> Competitor:
    return module, module


def planar(dim: int) -> dict[str, Competitor]:
    return {
        OURS: by_pair(ours.Planar(dim)),
        "Pyro": by_torch(pyro_transforms.planar(dim)),
        "normflows": by_call(normflows.flows.Planar((dim,), act="tanh")),
    }


def radial(dim: int) -> dict[str, Competitor]:
    return {
        OURS: by_pair(ours.Radial(dim)),
        "Pyro": by_torch(pyro_transforms.radial(dim)),
        "normflows": by_call(normflows.flows.Radial((dim,))),
    }


def sylvester(dim: int) -> dict[str, Competitor]:
    return {
        OURS: by_pair(ours.Sylvester(dim, form="householder", num_reflections=reflections(dim))),
        "Pyro": by_torch(pyro_transforms.sylvester(dim, reflections(dim))),
    }


def householder(dim: int) -> dict[str, Competitor]:
    return {
        OURS: by_pair(ours.Householder(dim, num_reflections=reflections(dim))),
        "Pyro": by_torch(pyro_transforms.householder(dim, reflections(dim))),
    }


def lu(dim: int) -> dict[str, Competitor]:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lu = nn.Parameter(torch.eye(dim))

        def forward(self) -> zuko.transforms.LULinearTransform:
            return zuko.transforms.LULinearTransform(self.lu)

    return {
        OURS: by_pair(ours.LULinear(dim)),
        "zuko": by_zuko(Lazy()),
        # without the permutation, and in the direction of the products
        "normflows": by_call(normflows.flows.LULinearPermute(dim).linear),
    }


def affine_autoregressive(dim: int) -> dict[str, Competitor]:
    width = hidden(dim)
    masked = normflows.flows.MaskedAffineAutoregressive(dim, width, num_blocks=1, use_residual_blocks=False)
    first = masked.autoregressive_net.initial_layer
    masked.autoregressive_net.initial_layer = nn.Sequential(first, nn.ReLU())  # as in the others; it has none there
    return {
        OURS: by_pair(ours.AffineAutoregressive(dim, hidden_dims=(width, width))),
        "Pyro": by_torch(pyro_transforms.affine_autoregressive(dim, [width, width])),
        "zuko": by_zuko(zuko.flows.autoregressive.MaskedAutoregressiveTransform(dim, hidden_features=(width, width))),
        "normflows": by_call(masked),
    }


def deep_sigmoidal(dim: int) -> dict[str, Competitor]:
    width = hidden(dim)
    competitors = {
        OURS: by_pair(ours.NeuralAutoregressive(dim, hidden_dims=(width, width), width=WIDTH)),
        "Pyro": by_torch(pyro_transforms.neural_autoregressive(dim, [width, width], width=WIDTH)),
    }
    if dim <= 64:  # it takes five times as long as the others
        naf = zuko.flows.NAF(dim, transforms=1, signal=WIDTH, hidden_features=(width, width))
        competitors["zuko"] = by_zuko(naf.transform)
    return competitors


def block_autoregressive(dim: int) -> dict[str, Competitor]:
    return {
        OURS: by_pair(ours.BlockAutoregressive(dim, residual="gated")),
        "Pyro": by_torch(pyro_transforms.block_autoregressive(dim, residual="gated")),
    }


def _residual(dim: int, **options: Any) -> dict[str, Competitor]:
    width = hidden(dim)
    net = normflows.nets.LipschitzMLP([dim, width, width, dim])
    return {
        OURS: by_pair(ours.Residual(dim, hidden_dims=(width, width), **options)),
        "normflows": by_call(normflows.flows.Residual(net, reverse=False)),
    }


def residual_exact(dim: int) -> dict[str, Competitor]:
    return _residual(dim)


def residual_roulette(dim: int) -> dict[str, Competitor]:
    # the law of normflows: two terms, then a geometric number of at least one more, with mean two
    return _residual(dim, log_det="roulette", num_terms=3, rate=0.5)


#: the makers by name, with the largest D that is measured
FAMILIES: dict[str, tuple[Callable[[int], dict[str, Competitor]], int]] = {
    "planar": (planar, 256),
    "radial": (radial, 256),
    "Householder Sylvester": (sylvester, 256),
    "Householder": (householder, 256),
    "LU": (lu, 256),
    "affine autoregressive": (affine_autoregressive, 256),
    "deep sigmoidal": (deep_sigmoidal, 256),
    "block autoregressive": (block_autoregressive, 256),
    "residual, exact": (residual_exact, 64),
    "residual, roulette": (residual_roulette, 64),
}


def task(competitor: Competitor, x: Tensor) -> Callable[[], object]:
    """A call that no cache can answer: each has an input tensor of its own."""
    module, call = competitor
    parameters = [p for p in module.parameters() if p.requires_grad]

    def run() -> object:
        fresh = x.detach().requires_grad_()
        y, log_det = call(fresh)
        loss = 0.5 * y.square().sum() - log_det.sum()
        return torch.autograd.grad(loss, [fresh, *parameters], allow_unused=True)

    return run


def measure(family: str, dim: int, repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.randn(BATCH, dim)
    competitors = FAMILIES[family][0](dim)
    competitors[TORCH] = by_torch(competitors[OURS][0])
    tasks = {name: task(each, x) for name, each in competitors.items()}
    found, (ratio, wrapped) = beside_peers(tasks, (OURS, TORCH), repeats, clock)
    gc.collect()
    return {"family": family, "dim": dim, **found, "ratio": ratio, "ratio_as_torch_transform": wrapped}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15, help="turns of each competitor; a third at D = 256")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), metavar="F")
    parser.add_argument("--dims", nargs="+", type=int, default=list(DIMS))
    parser.add_argument("--out", type=Path, default=RECORDS / "transforms.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    clock = clock_for(options.threads)
    rows: list[dict[str, Any]] = []
    for family in options.families:
        for dim in options.dims:
            if dim > FAMILIES[family][1]:
                continue
            repeats = options.repeats if dim <= 64 else max(3, options.repeats // 3)
            row = measure(family, dim, repeats, clock)
            rows.append(row)
            write_record(options.out, {"batch": BATCH, "clock": clock.__name__, "rows": rows})
            times = ", ".join(f"{name} {1e3 * value:.3g} ms" for name, value in row["seconds"].items())
            print(f"{family:24} {dim:4} {row['ratio']:6.2f} x {row['fastest_peer']:10} {times}", flush=True)
    print(f"median ratio {statistics.median(row['ratio'] for row in rows):.2f}")


if __name__ == "__main__":
    main()
