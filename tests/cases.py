"""The named cases that the property tests run over: a new flow adds one line here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pyro_flows_vi import flows
from pyro_flows_vi.nets.conv import PointwiseConvNet, ResidualConvNet
from pyro_flows_vi.transforms import (
    ActNorm,
    Affine,
    AffineAutoregressive,
    AffineCoupling,
    Autoregressive,
    BlockAutoregressive,
    Compose,
    Continuous,
    ConvexPotential,
    Coupling,
    Elementwise,
    Flow,
    Householder,
    LULinear,
    MixtureAutoregressive,
    MixtureCoupling,
    MonotonicAutoregressive,
    NeuralAutoregressive,
    Planar,
    Radial,
    Residual,
    SumOfSquaresAutoregressive,
    Sylvester,
    permute,
    reverse,
)
from pyro_flows_vi.transforms.elementwise import (
    CubicSpline,
    LinearSpline,
    MixtureCDF,
    MonotonicNetwork,
    QuadraticSpline,
    RationalQuadraticSpline,
    SumOfSquares,
)
from pyro_flows_vi.transforms.elementwise.affine import AffineMap
from pyro_flows_vi.transforms.image import (
    Conv1x1,
    ConvResidual,
    ImageCoupling,
    PatchAutoregressive,
    channel_mask,
    checkerboard_mask,
)

Case = Callable[[int, "int | None"], Flow]

#: name -> (input_dim, context_dim) -> one layer
LAYERS: dict[str, Case] = {
    "planar": lambda d, c: Planar(d, c),
    "planar-3-steps": lambda d, c: Planar(d, c, num_transforms=3),
    "radial": lambda d, c: Radial(d, c),
    "sylvester-orthogonal": lambda d, c: Sylvester(d, c),
    "sylvester-householder": lambda d, c: Sylvester(d, c, form="householder"),
    "sylvester-householder-rank-1": lambda d, c: Sylvester(d, c, form="householder", rank=1),
    "sylvester-triangular": lambda d, c: Sylvester(d, c, form="triangular", reverse=True),
    "affine-coupling": lambda d, c: AffineCoupling(d, c, (6,)),
    "affine-coupling-second": lambda d, c: AffineCoupling(d, c, step=1),
    "affine-coupling-given": lambda d, c: AffineCoupling(d, c, (6,), given=[d - 1] if d > 1 else []),
    "affine-coupling-damped": lambda d, c: AffineCoupling(d, c, (6,), damped=True),
    "affine-coupling-interleaved": lambda d, c: AffineCoupling(d, c, (6,), step=3, interleaved=True),
    "additive-coupling": lambda d, c: AffineCoupling(d, c, (6,), additive=True, step=2),
    "affine": lambda d, c: Affine(d, 0.5, 2.0),
    "affine-tails": lambda d, c: Affine(d, 0.5, 2.0, tails=True),
    "affine-diagonal-tails": lambda d, c: Affine(d, dense=False, tails=True),
    "affine-diagonal": lambda d, c: Affine(d, dense=False),
    "affine-autoregressive": lambda d, c: AffineAutoregressive(d, c),
    "affine-autoregressive-gated": lambda d, c: AffineAutoregressive(d, c, gated=True),
    "affine-autoregressive-damped": lambda d, c: AffineAutoregressive(d, c, damped=True),
    "affine-autoregressive-2-layers": lambda d, c: AffineAutoregressive(d, c, (7, 9)),
    "dsf": lambda d, c: NeuralAutoregressive(d, c, (6,), width=5),
    "dsf-elu": lambda d, c: NeuralAutoregressive(d, c, (6,), width=5, activation="ELU"),
    "dsf-leaky-relu": lambda d, c: NeuralAutoregressive(d, c, (6,), width=5, activation="LeakyReLU"),
    "dsf-tanh": lambda d, c: NeuralAutoregressive(d, c, (6,), width=5, activation="tanh"),
    "ddsf": lambda d, c: NeuralAutoregressive(d, c, (3,), width=4, depth=2),
    "bnaf": lambda d, c: BlockAutoregressive(d, c, hidden_factors=(4, 4)),
    "bnaf-normal": lambda d, c: BlockAutoregressive(d, c, hidden_factors=(4,), residual="normal"),
    "bnaf-plain": lambda d, c: BlockAutoregressive(d, c, hidden_factors=(4,), residual=None),
    "residual": lambda d, c: Residual(d, c),
    "residual-inf": lambda d, c: Residual(d, c, norm="inf"),
    "continuous-adaptive": lambda d, c: Continuous(d, c, (6,), solver="dopri8", tolerance=1e-9, time=0.03),
    "continuous-rk4": lambda d, c: Continuous(d, c, (6,), solver="rk4", num_steps=10, time=0.01),
    "convex-potential": lambda d, c: ConvexPotential(d, c, (6, 5)),
    "householder": lambda d, c: Householder(d, c),
    "householder-3": lambda d, c: Householder(d, c, num_reflections=3),
    "lu": lambda d, c: LULinear(d, c),
    "actnorm": lambda d, c: ActNorm(d, c),
    "spline-linear": lambda d, c: Elementwise(d, c, map=LinearSpline(5)),
    "spline-quadratic": lambda d, c: Elementwise(d, c, map=QuadraticSpline(5, bound=2.0)),
    "spline-cubic": lambda d, c: Elementwise(d, c, map=CubicSpline(5)),
    "spline-rational": lambda d, c: Elementwise(d, c, (4,), map=RationalQuadraticSpline(5)),
    "coupling-spline-linear": lambda d, c: Coupling(d, c, (6,), map=LinearSpline(4)),
    "coupling-spline-quadratic": lambda d, c: Coupling(d, c, (6,), map=QuadraticSpline(4), step=1),
    "coupling-spline-cubic": lambda d, c: Coupling(d, c, (6,), map=CubicSpline(4, bound=1.0), step=2),
    "coupling-spline-rational": lambda d, c: Coupling(d, c, (6,), map=RationalQuadraticSpline(4)),
    "autoregressive-spline-linear": lambda d, c: Autoregressive(d, c, (6,), map=LinearSpline(4)),
    "autoregressive-spline-quadratic": lambda d, c: Autoregressive(d, c, (6,), map=QuadraticSpline(2)),
    "autoregressive-spline-cubic": lambda d, c: Autoregressive(d, c, (6,), map=CubicSpline(3)),
    "autoregressive-spline-rational": lambda d, c: Autoregressive(d, c, (6,), map=RationalQuadraticSpline(4)),
    "mixture-cdf-logistic": lambda d, c: Elementwise(d, c, map=MixtureCDF(4)),
    "mixture-cdf-gaussian": lambda d, c: Elementwise(d, c, map=MixtureCDF(4, "gaussian")),
    "mixture-cdf-logistic-normal": lambda d, c: Elementwise(d, c, map=MixtureCDF(3, "logistic", "normal")),
    "mixture-cdf-gaussian-logit": lambda d, c: Elementwise(d, c, map=MixtureCDF(3, "gaussian", "logit")),
    "mixture-autoregressive": lambda d, c: MixtureAutoregressive(d, c, (6,), components=4),
    "mixture-coupling": lambda d, c: MixtureCoupling(d, c, (6,), components=4),
    "sos": lambda d, c: SumOfSquaresAutoregressive(d, c, (6,), degree=3),
    "sos-elementwise": lambda d, c: Elementwise(d, c, map=SumOfSquares(2, 1)),
    "umnn": lambda d, c: MonotonicAutoregressive(d, c, (6,), (5, 5), embedding_dim=3),
    "umnn-clenshaw-curtis": lambda d, c: Coupling(d, c, (6,), map=MonotonicNetwork((5,), 2, rule="clenshaw-curtis")),
    # images of one pixel, and of one row
    "conv1x1-plain": lambda d, c: Conv1x1((d, 1, 1), c, form="plain"),
    "conv1x1-row": lambda d, c: Conv1x1((1, 1, d), c),
    "image-coupling": lambda d, c: ImageCoupling(
        channel_mask((d, 1, 1), 1), AffineMap(), partial(PointwiseConvNet, hidden_channels=8), c
    ),
    "image-coupling-row": lambda d, c: ImageCoupling(
        checkerboard_mask((1, 1, d)) if d > 1 else channel_mask((1, 1, 1)),
        AffineMap(),
        partial(ResidualConvNet, hidden_channels=6, blocks=1),
        c,
    ),
    "conv-residual-row": lambda d, c: ConvResidual((1, 1, d), c, (6, 6)),
    "patch-autoregressive": lambda d, c: PatchAutoregressive(d, c, heads=2, head_dim=4, depth=1),
    "permute": lambda d, c: permute(d),
    "compose": lambda d, c: Compose([Planar(d, c), reverse(d), Sylvester(d, c), Radial(d, c).inv]),
    "inverse-of-sylvester": lambda d, c: Sylvester(d, c).inv,
}

#: a solver's tolerance at which a chain meets that of the tests, and a path that it can solve quickly
OPTIONS: dict[str, dict[str, Any]] = {"ffjord": {"hidden_dims": (6,), "tolerance": 1e-9, "time": 0.02}}
#: outside its box a spline is a line, and its network gets no gradient: a box that holds the points of every step
OPTIONS |= {name: {"bound": 6.0, "hidden_dims": (12,)} for name in ("nsf", "nsf-ar", "nsf-iaf")}
#: three steps in a row of wide networks with random weights leave the range of float32
OPTIONS["maf-mog"] = {"hidden_dims": (8,), "components": 4}

#: one solution costs as much as a hundred passes: these are checked at one batch shape, which has all that there is
SLOW = {"continuous-adaptive", "continuous-rk4", "recipe-ffjord", "recipe-flow++", "recipe-residual-image"}

#: name -> chain of two steps from the registry
RECIPES: dict[str, Case] = {
    name: lambda d, c, name=name: flows.build(name, d, c, num_transforms=2, **OPTIONS.get(name, {}))  # type: ignore[misc]
    for name in flows.names()
}

CASES: dict[str, Case] = LAYERS | {f"recipe-{name}": case for name, case in RECIPES.items()}
