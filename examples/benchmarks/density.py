"""log_prob of density estimators and its gradient to all parameters, against Pyro, zuko, nflows and normflows."""

from __future__ import annotations

import argparse
import gc
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nflows.flows
import nflows.transforms as nflows_transforms
import normflows
import pyro.distributions as dist
import pyro.distributions.transforms as pyro_transforms
import torch
import zuko
from measure import RECORDS, beside_peers, clock_for, write_record
from nflows.distributions.normal import StandardNormal
from pyro.nn import AutoRegressiveNN, DenseNN
from torch import Tensor, nn

from pyro_flows_vi import transforms as ours
from pyro_flows_vi.density import FlowDensity
from pyro_flows_vi.nets.dense import MLP
from pyro_flows_vi.transforms import Flow

BATCH = 1000
DIMS = (2, 8, 64)
OURS, TORCH = "ours", "ours, as a Pyro distribution"
STEPS, BINS, BOUND, SIGMOIDS, TOLERANCE = 2, 8, 3.0, 16, 1e-5

#: a module and the log-density of points ``(batch, D)`` under it
Competitor = tuple[nn.Module, Callable[[Tensor], Tensor]]


def width(dim: int) -> int:
    """Of both hidden layers of every network."""
    return max(64, dim)


def as_transforms(steps: Sequence[Any], dim: int) -> Competitor:
    """Pyro's transforms, through which data go forwards, with the order turned between them."""
    reverse = pyro_transforms.Permute(torch.arange(dim).flip(0))
    chain = [part for step in steps for part in (step.inv, reverse)][:-1]
    base = dist.Normal(torch.zeros(dim), 1.0).to_event(1)
    return nn.ModuleList(steps), lambda x: dist.TransformedDistribution(base, chain).log_prob(x)


def as_nflows(steps: Sequence[nn.Module], dim: int) -> Competitor:
    """The density of nflows, which takes data through its transforms forwards."""
    reverse = nflows_transforms.ReversePermutation(dim)
    chain = [part for step in steps for part in (step, reverse)][:-1]
    density = nflows.flows.Flow(nflows_transforms.CompositeTransform(chain), StandardNormal([dim]))
    return density, density.log_prob


def as_normflows(steps: Sequence[nn.Module], dim: int, turn: bool = True) -> Competitor:
    """The density of normflows, which takes data through its flows backwards: those whose cheap direction is forwards
    are turned, by a class of its own."""
    if turn:
        steps = [normflows.flows.Reverse(step) for step in steps]
    chain = [part for step in steps for part in (step, normflows.flows.Permute(dim, mode="swap"))][:-1]
    density = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(dim, trainable=False), chain)
    return density, density.log_prob


def as_ours(steps: Sequence[Flow], dim: int, turn: bool = True) -> dict[str, Competitor]:
    """Our density estimator, and the same chain in a distribution of Pyro."""
    chain = [part for step in steps for part in (step, ours.reverse(dim))][:-1] if turn else list(steps)
    density = FlowDensity(ours.Compose(chain), standardise=False)
    base = dist.Normal(torch.zeros(dim), 1.0).to_event(1)
    distribution = dist.TransformedDistribution(base, [density.transform])
    return {OURS: (density, density.log_prob), TORCH: (density, distribution.log_prob)}


def as_zuko(flow: nn.Module) -> Competitor:
    return flow, lambda x: flow().log_prob(x)


def coupled_zuko(dim: int, **settings: Any) -> Competitor:
    """The density of zuko with couplings of the first half, whose ready-made flows take every other coordinate."""
    steps = repeated(zuko.flows.GeneralCouplingTransform, dim, mask=torch.arange(dim) < dim // 2, **settings)
    reverse = zuko.lazy.UnconditionalTransform(
        zuko.transforms.PermutationTransform, torch.arange(dim).flip(0), buffer=True
    )
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(dim), torch.ones(dim), buffer=True
    )
    return as_zuko(zuko.flows.Flow([part for step in steps for part in (step, reverse)][:-1], base))


def repeated(make: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
    return [make(*args, **options) for _ in range(STEPS)]


def with_rectifier(step: nn.Module) -> nn.Module:
    """The masked networks of normflows have no activation after their first layer; all others have."""
    net: Any = step.autoregressive_net
    net.initial_layer = nn.Sequential(net.initial_layer, nn.ReLU())
    return step


def maf(dim: int) -> dict[str, Competitor]:
    h = width(dim)
    options = {"num_blocks": 1, "use_residual_blocks": False}
    masked = repeated(normflows.flows.MaskedAffineAutoregressive, dim, h, **options)
    pyro_steps = repeated(pyro_transforms.affine_autoregressive, dim, [h, h])
    return {
        **as_ours([step.inv for step in repeated(ours.AffineAutoregressive, dim, hidden_dims=(h, h))], dim),
        "Pyro": as_transforms(pyro_steps, dim),
        "zuko": as_zuko(zuko.flows.MAF(dim, transforms=STEPS, hidden_features=(h, h))),
        "nflows": as_nflows(repeated(nflows_transforms.MaskedAffineAutoregressiveTransform, dim, h, **options), dim),
        "normflows": as_normflows([with_rectifier(step) for step in masked], dim),
    }


def nsf_autoregressive(dim: int) -> dict[str, Competitor]:
    h = width(dim)
    options = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND, "num_blocks": 1, "use_residual_blocks": False}
    spline = repeated(
        normflows.flows.neural_spline.autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive, dim, h, **options
    )

    def pyro_step() -> Any:  # its helper makes a parameter that only splines of the other order use
        net = AutoRegressiveNN(dim, [h, h], param_dims=[BINS, BINS, BINS - 1])
        return pyro_transforms.SplineAutoregressive(dim, net, BINS, BOUND, order="quadratic")

    steps = repeated(ours.SplineAutoregressive, dim, hidden_dims=(h, h), bins=BINS, bound=BOUND)
    masked = nflows_transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
    return {
        **as_ours([step.inv for step in steps], dim),
        "Pyro": as_transforms(repeated(pyro_step), dim),
        "zuko": as_zuko(zuko.flows.NSF(dim, bins=BINS, transforms=STEPS, hidden_features=(h, h))),
        "nflows": as_nflows(repeated(masked, dim, h, **options), dim),
        "normflows": as_normflows([with_rectifier(step) for step in spline], dim),
    }


class Dense(MLP):
    """The plain network of our couplings for those of nflows and normflows, which would bring residual ones."""

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        return super().forward(x)


def realnvp(dim: int) -> dict[str, Competitor]:
    h, half = width(dim), dim // 2

    def net(in_dim: int, out_dim: int) -> nn.Module:
        return Dense(in_dim, out_dim, (h, h), nn.SiLU)

    def pyro_step() -> Any:
        dense = DenseNN(half, [h, h], [dim - half, dim - half], nonlinearity=nn.SiLU())
        return pyro_transforms.AffineCoupling(half, dense)

    mask = torch.arange(dim) >= half
    blocks = [normflows.flows.AffineCouplingBlock(net(half, 2 * (dim - half))) for _ in range(STEPS)]
    return {
        **as_ours([ours.AffineCoupling(dim, hidden_dims=(h, h), step=k) for k in range(STEPS)], dim, turn=False),
        "Pyro": as_transforms(repeated(pyro_step), dim),
        "zuko": coupled_zuko(dim, hidden_features=(h, h), activation=nn.SiLU),
        "nflows": as_nflows(repeated(nflows_transforms.AffineCouplingTransform, mask, net), dim),
        "normflows": as_normflows(blocks, dim, turn=False),
    }


def nsf_coupling(dim: int) -> dict[str, Competitor]:
    h, half = width(dim), dim // 2

    def net(in_dim: int, out_dim: int) -> nn.Module:
        return Dense(in_dim, out_dim, (h, h), nn.SiLU)

    def pyro_step() -> Any:
        sizes = [(dim - half) * count for count in (BINS, BINS, BINS - 1)]
        dense = DenseNN(half, [h, h], sizes, nonlinearity=nn.SiLU())
        return pyro_transforms.SplineCoupling(dim, half, dense, BINS, BOUND, order="quadratic", identity=True)

    mask = torch.arange(dim) >= half
    spline = {"univariate": zuko.transforms.MonotonicRQSTransform, "shapes": [(BINS,), (BINS,), (BINS - 1,)]}
    options = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
    other = normflows.flows.neural_spline.coupling.PiecewiseRationalQuadraticCoupling
    steps = [ours.SplineCoupling(dim, hidden_dims=(h, h), bins=BINS, bound=BOUND, step=k) for k in range(STEPS)]
    return {
        **as_ours(steps, dim, turn=False),
        "Pyro": as_transforms(repeated(pyro_step), dim),
        "zuko": coupled_zuko(dim, hidden_features=(h, h), activation=nn.SiLU, **spline),
        "nflows": as_nflows(
            repeated(nflows_transforms.PiecewiseRationalQuadraticCouplingTransform, mask, net, **options), dim
        ),
        "normflows": as_normflows(repeated(other, mask, net, **options), dim),
    }


def naf(dim: int) -> dict[str, Competitor]:
    h = width(dim)
    steps = repeated(ours.NeuralAutoregressive, dim, hidden_dims=(h, h), width=SIGMOIDS)
    pyro_steps = repeated(pyro_transforms.neural_autoregressive, dim, [h, h], width=SIGMOIDS)
    return {
        **as_ours([step.inv for step in steps], dim),
        "Pyro": as_transforms(pyro_steps, dim),
        "zuko": as_zuko(zuko.flows.NAF(dim, transforms=STEPS, signal=SIGMOIDS, hidden_features=(h, h))),
    }


def _ffjord(dim: int, exact: bool) -> dict[str, Competitor]:
    flow = ours.Continuous(dim, hidden_dims=(64, 64), trace="exact" if exact else "hutchinson", tolerance=TOLERANCE)
    settings = {"atol": TOLERANCE, "rtol": TOLERANCE, "exact": exact, "freqs": 1, "activation": nn.Tanh}
    peer = zuko.flows.CNF(dim, hidden_features=(64, 64), **settings)
    with torch.no_grad():  # as ours starts: how many steps a solver takes is a matter of the velocities
        peer.transform.ode[-1].weight.mul_(flow.net.initial_gain)
        peer.transform.ode[-1].bias.zero_()
    return {**as_ours([flow], dim), "zuko": as_zuko(peer)}


def ffjord_exact(dim: int) -> dict[str, Competitor]:
    return _ffjord(dim, True)


def ffjord_hutchinson(dim: int) -> dict[str, Competitor]:
    return _ffjord(dim, False)


FAMILIES: dict[str, Callable[[int], dict[str, Competitor]]] = {
    "MAF": maf,
    "RealNVP": realnvp,
    "NSF, coupling": nsf_coupling,
    "NSF, autoregressive": nsf_autoregressive,
    "NAF": naf,
    "FFJORD, exact trace": ffjord_exact,
    "FFJORD, Hutchinson": ffjord_hutchinson,
}


def task(competitor: Competitor, x: Tensor) -> Callable[[], object]:
    """A call that no cache can answer: each has an input tensor of its own."""
    module, log_prob = competitor
    parameters = [p for p in module.parameters() if p.requires_grad]

    def run() -> object:
        loss = -log_prob(x.clone()).mean()
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    return run


def measure(family: str, dim: int, repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.randn(BATCH, dim)
    tasks = {name: task(each, x) for name, each in FAMILIES[family](dim).items()}
    found, (ratio, wrapped) = beside_peers(tasks, (OURS, TORCH), repeats, clock)
    gc.collect()
    return {"family": family, "dim": dim, **found, "ratio": ratio, "ratio_as_pyro_distribution": wrapped}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=11, help="turns of each competitor; a third at D = 64")
    parser.add_argument("--quick", action="store_true", help="three turns, and D = 2 and 8")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), metavar="F")
    parser.add_argument("--dims", nargs="+", type=int, default=None)
    parser.add_argument("--out", type=Path, default=RECORDS / "density.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    clock = clock_for(options.threads)
    rows: list[dict[str, Any]] = []
    for family in options.families:
        for dim in options.dims or (DIMS[:2] if options.quick else DIMS):
            repeats = 3 if options.quick else max(3, options.repeats // (3 if dim > 8 else 1))
            row = measure(family, dim, repeats, clock)
            rows.append(row)
            write_record(options.out, {"batch": BATCH, "transforms": STEPS, "clock": clock.__name__, "rows": rows})
            times = ", ".join(f"{name} {1e3 * value:.3g} ms" for name, value in row["seconds"].items())
            print(f"{family:20} {dim:4} {row['ratio']:6.2f} x {row['fastest_peer']:10} {times}", flush=True)
    print(f"median ratio {statistics.median(row['ratio'] for row in rows):.2f}")


if __name__ == "__main__":
    main()
