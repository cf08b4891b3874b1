"""Splines against interpolation by SciPy, at their knots and in their tails, and the flows that use them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import interpolate
from scipy.special import softmax
from torch import Tensor

from pyro_flows_vi import flows
from pyro_flows_vi import transforms as ours
from pyro_flows_vi.transforms import Autoregressive, Compose, Coupling, Elementwise, LULinear, Reverse
from pyro_flows_vi.transforms.elementwise import CubicSpline, LinearSpline, QuadraticSpline, RationalQuadraticSpline
from pyro_flows_vi.transforms.elementwise._bins import below, find, find_share, share_at, shares, take
from pyro_flows_vi.transforms.elementwise._spline import Spline

BOUND, BINS, FLOOR = 2.0, 6, 1e-3
SPLINES: dict[str, Spline] = {
    "linear": LinearSpline(BINS, BOUND),
    "quadratic": QuadraticSpline(BINS, BOUND),
    "cubic": CubicSpline(BINS, BOUND),
    "rational-quadratic": RationalQuadraticSpline(BINS, BOUND),
}
each = pytest.mark.parametrize("name", SPLINES)
smooth = pytest.mark.parametrize("name", [name for name in SPLINES if name != "linear"])


def raw_parameters(name: str, scale: float = 1.5, batch: tuple[int, ...] = ()) -> Tensor:
    return scale * torch.randn(*batch, SPLINES[name].num_params, dtype=torch.float64)


def knots_of(raw: np.ndarray) -> np.ndarray:
    """The ends of bins whose sizes are a softmax with a floor, in [-B, B]."""
    sizes = FLOOR + (1.0 - len(raw) * FLOOR) * softmax(raw)
    return BOUND * (2.0 * np.concatenate([[0.0], np.cumsum(sizes)]) - 1.0)


def positive(raw: np.ndarray) -> np.ndarray:
    return np.exp(2.0 * np.arcsinh(raw / 2.0))


def independent(name: str, params: Tensor) -> tuple[np.ndarray, np.ndarray, Any]:
    """Knots in x, knots in y and the map between them, by NumPy and SciPy from the same parameters."""
    raw, k = params.numpy(), BINS
    if name == "linear":
        x, y = np.linspace(-BOUND, BOUND, k + 1), knots_of(raw)
        return x, y, lambda t: np.interp(t, x, y)
    x = knots_of(raw[:k])
    if name == "quadratic":
        inner = positive(raw[k:])
        area = lambda slopes: np.trapezoid(slopes, x)  # noqa: E731
        ends, hats = np.eye(k + 1)[[0, k]].sum(0), np.concatenate([[0.0], inner, [0.0]])
        slope = interpolate.make_interp_spline(x, ends + hats * (2.0 * BOUND - area(ends)) / area(hats), k=1)
        curve = slope.antiderivative()
        return x, curve(x) - BOUND, lambda t: curve(t) - BOUND
    y = knots_of(raw[k : 2 * k])
    width, steep = np.diff(x), np.diff(y) / np.diff(x)
    if name == "cubic":
        parabola = (steep[:-1] * width[1:] + steep[1:] * width[:-1]) / (width[:-1] + width[1:])
        inner = np.minimum(np.minimum(2.0 * steep[:-1], 2.0 * steep[1:]), parabola)
        ends = 3.0 * steep[[0, -1]] / (1.0 + 2.0 / positive(raw[2 * k :]))
        slopes = np.concatenate([ends[:1], inner, ends[1:]])
        return x, y, interpolate.CubicHermiteSpline(x, y, slopes)
    d = np.concatenate([[1.0], positive(raw[2 * k :]), [1.0]])
    above = interpolate.BPoly(np.stack([y[:-1] * steep, 0.5 * (y[:-1] * d[1:] + y[1:] * d[:-1]), y[1:] * steep]), x)
    under = interpolate.BPoly(np.stack([steep, 0.5 * (d[:-1] + d[1:]), steep]), x)
    return x, y, lambda t: above(t) / under(t)


@each
def test_against_interpolation_by_scipy(name: str) -> None:
    for _ in range(5):
        params = raw_parameters(name)
        x, y, curve = independent(name, params)
        got, _ = SPLINES[name].forward_and_log_slope(torch.tensor(x), params)
        np.testing.assert_allclose(got, y, atol=1e-12)
        points = np.linspace(-BOUND, BOUND, 501)
        got, log_slope = SPLINES[name].forward_and_log_slope(torch.tensor(points), params)
        np.testing.assert_allclose(got, curve(points), atol=1e-12)
        gap, inside = 1e-6, np.abs(points[:, None] - x).min(1) > 1e-5
        difference = (curve(points + gap) - curve(points - gap)) / (2.0 * gap)
        np.testing.assert_allclose(log_slope.exp()[inside], difference[inside], rtol=1e-5, atol=1e-7)


@each
def test_all_zeros_are_the_identity(name: str) -> None:
    spline = SPLINES[name]
    x = torch.linspace(-5.0, 5.0, 201, dtype=torch.float64)
    assert not spline.initial().any() and len(spline.initial()) == spline.num_params
    for method in (spline.forward_and_log_slope, spline.inverse_and_log_slope):
        y, log_slope = method(x, spline.initial().double())
        torch.testing.assert_close(y, x, rtol=0.0, atol=1e-13)
        torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0.0, atol=1e-13)


@smooth
def test_value_and_slope_are_continuous_across_knots_and_edges(name: str) -> None:
    params = raw_parameters(name)
    knots = torch.tensor(independent(name, params)[0])
    assert len(knots) == BINS + 1
    (y0, s0), (y1, s1) = (SPLINES[name].forward_and_log_slope(knots + e, params) for e in (-1e-11, 1e-11))
    assert ((y1 > y0) & (y1 - y0 < 1e-8)).all()
    torch.testing.assert_close(s0, s1, rtol=0.0, atol=1e-6)
    heights = torch.tensor(independent(name, params)[1])
    (x0, s0), (x1, s1) = (SPLINES[name].inverse_and_log_slope(heights + e, params) for e in (-1e-11, 1e-11))
    assert ((x1 > x0) & (x1 - x0 < 1e-8)).all()
    torch.testing.assert_close(s0, s1, rtol=0.0, atol=1e-6)


@each
def test_tails_are_straight_and_reach_everywhere(name: str) -> None:
    spline, params = SPLINES[name], raw_parameters(name)
    x = torch.tensor([-1e30, -1e4, -BOUND - 1e-3, BOUND + 1e-3, 1e4, 1e30], dtype=torch.float64)
    y, log_slope = spline.forward_and_log_slope(x, params)
    if name == "cubic":  # the tails keep the slope that the cubic has at the edge
        edge = BOUND * x.sign()
        slope = spline.forward_and_log_slope(edge * (1.0 - 1e-12), params)[1]
        torch.testing.assert_close(log_slope, slope, rtol=0.0, atol=1e-9)
        torch.testing.assert_close(y, edge + slope.exp() * (x - edge), rtol=1e-9, atol=1e-9)
    else:
        assert torch.equal(y, x) and not log_slope.any()
    back, same = spline.inverse_and_log_slope(y, params)
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(same, log_slope, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each
def test_inverse_near_knots_and_far_outside(name: str, dtype: torch.dtype) -> None:
    spline, eps = SPLINES[name], torch.finfo(dtype).eps
    for scale in (0.5, 2.0, 20.0):
        params = raw_parameters(name, scale)
        heights = torch.tensor(independent(name, params)[1])
        near = [heights + e for e in (-1e-3, -1e-6, -1e-15, 0.0, 1e-15, 1e-6, 1e-3)]
        y = torch.cat([*near, torch.linspace(-2.0, 2.0, 301), torch.tensor([-1e6, -3.0, 3.0, 1e6])]).to(dtype)
        x, log_slope = spline.inverse_and_log_slope(y, params.to(dtype))
        assert x.isfinite().all() and log_slope.isfinite().all()
        again, forward = spline.forward_and_log_slope(x, params.to(dtype))
        # A rounding of x counts as often as the map is steep there; the slope of a flat tail has a rounding of its own.
        room = 1024.0 * eps * (1.0 + y.abs()) * (1.0 + torch.maximum(log_slope, forward).exp())
        assert ((again - y).abs() <= room).all(), ((again - y).abs() / room).max()


@each
def test_any_parameters_give_finite_values_and_gradients(name: str) -> None:
    spline = SPLINES[name]
    params = (100.0 * torch.randn(200, spline.num_params)).requires_grad_()
    x = torch.linspace(-3.0, 3.0, 200).requires_grad_()
    for method in (spline.forward_and_log_slope, spline.inverse_and_log_slope):
        y, log_slope = method(x[:, None], params[:, None])
        assert y.isfinite().all() and log_slope.isfinite().all()
        for gradient in torch.autograd.grad(y.sum() + log_slope.sum(), [x, params]):
            assert gradient.isfinite().all()
    line = torch.linspace(-3.0, 3.0, 1000).double()
    y = spline.forward_and_log_slope(line, params[0].detach().double())[0]
    assert (y.diff() >= 0).all() and y[0] <= -BOUND and y[-1] >= BOUND


@each
def test_gradients_of_first_and_second_order(name: str) -> None:
    spline = SPLINES[name]
    params = raw_parameters(name, 0.7, (4,)).requires_grad_()
    x = torch.tensor([-3.0, -1.1, 0.37, 1.3], dtype=torch.float64).requires_grad_()

    def forward(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = spline.forward_and_log_slope(x[:, None], params[:, None])
        return y, log_slope

    def inverse(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = spline.inverse_and_log_slope(x[:, None], params[:, None])
        return y, log_slope

    for function in (forward, inverse):
        assert torch.autograd.gradcheck(function, (x, params), atol=1e-6)
        assert torch.autograd.gradgradcheck(function, (x, params), atol=1e-5)


def test_the_gradient_in_one_pass_is_that_of_the_plain_operations() -> None:
    raw = torch.randn(5, 7, 3, dtype=torch.float64).requires_grad_()
    point = torch.rand(7, 3, dtype=torch.float64)
    index, *fused = find_share(raw, point, 0.01)
    sizes = shares(raw, 0.01)
    assert torch.equal(index, find(sizes, point)) and len(index.unique()) == 5
    plain = below(sizes, index), take(sizes, index)
    weights = torch.randn(2, 7, 3, dtype=torch.float64)
    for pair in (fused, share_at(raw, index, 0.01)):
        for a, b in zip(pair, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=0.0, atol=1e-14)
        got, want = (
            torch.autograd.grad((torch.stack([*p]) * weights).sum(), raw, retain_graph=True) for p in (pair, plain)
        )
        torch.testing.assert_close(got, want, rtol=0.0, atol=1e-14)
    assert torch.autograd.gradgradcheck(lambda r: find_share(r, point, 0.01)[1:], raw)


@each
def test_parameters_broadcast(name: str) -> None:
    spline, x = SPLINES[name], torch.randn(4, 5, 3, dtype=torch.float64)
    for batch in ((), (3,), (5, 1), (4, 1, 3)):
        params = raw_parameters(name, batch=batch)
        got = spline.forward_and_log_slope(x, params)
        want = spline.forward_and_log_slope(x, params.expand(4, 5, 3, -1).contiguous())
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=0.0, atol=1e-15)


@pytest.mark.parametrize("kind", [LinearSpline, QuadraticSpline, CubicSpline, RationalQuadraticSpline])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 1}, "bins to be at least 2"),
        ({"bins": 0}, "bins to be a positive integer"),
        ({"bins": 2.5}, "bins to be a positive integer"),
        ({"bound": 0.0}, "bound to be a positive number"),
        ({"bound": math.inf}, "bound to be a positive number"),
        ({"bound": "3"}, "bound to be a positive number"),
        ({"min_size": 0.0}, "between 0 and 1 / bins"),
        ({"bins": 10, "min_size": 0.1}, "between 0 and 1 / bins = 0.1"),
    ],
)
def test_options_that_cannot_be_are_refused(kind: type[Spline], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize("host", [Elementwise, Coupling, Autoregressive])
def test_hosts_want_a_map(host: Any) -> None:
    with pytest.raises(ValueError, match="expected map to be an ElementwiseMap"):
        host(3, map=torch.tanh)


def test_recipes_have_linear_layers_as_the_paper_has() -> None:
    coupling = flows.build("nsf", 4, num_transforms=3, spline="cubic", bins=5)
    assert [type(f).__name__ for f in coupling] == ["LULinear", "SplineCoupling"] * 3 + ["LULinear"]
    steps = [f for f in coupling if isinstance(f, Coupling)]
    assert {type(f.map) for f in steps} == {CubicSpline} and {f.map.bins for f in steps} == {5}
    assert len({tuple(f.order.tolist()) for f in steps}) == 3  # no two steps split alike
    chain = flows.build("nsf-ar", 4, num_transforms=2)
    assert [type(f).__name__ for f in chain] == ["LULinear", "Inverse", "Reverse"] * 2 + ["LULinear"]
    assert chain.fast_inverse and not chain.fast_forward
    sampler = flows.build("nsf-iaf", 4, num_transforms=2)
    assert sampler.fast_forward and not sampler.fast_inverse
    assert isinstance(sampler, Compose) and sum(isinstance(f, (LULinear, Reverse)) for f in sampler) == 5
    with pytest.raises(ValueError, match="'spline' of flow 'nsf': expected one of 'rational-quadratic', 'cubic'"):
        flows.build("nsf", 4, spline="quartic")


@each
def test_densities_integrate_to_one(name: str) -> None:
    y = torch.linspace(-30.0, 30.0, 60001, dtype=torch.float64)
    x, log_slope = SPLINES[name].inverse_and_log_slope(y, raw_parameters(name, 0.8))
    density = torch.exp(-0.5 * x.square() - 0.5 * math.log(2.0 * math.pi) - log_slope)
    assert abs(torch.trapezoid(density, y) - 1.0) < (2e-3 if name == "linear" else 1e-5)  # its density jumps


@pytest.mark.parametrize("name", ["spline", "spline_coupling", "spline_autoregressive"])
def test_factories_take_the_arguments_of_pyro(name: str) -> None:
    plain = getattr(ours, name)(3, count_bins=5, bound=2.0)
    given = getattr(ours, f"conditional_{name}")(3, 2, [6], count_bins=5, bound=2.0, order="quadratic")
    for flow, context_dim in ((plain, None), (given, 2)):
        assert isinstance(flow.map, RationalQuadraticSpline) and (flow.map.bins, flow.map.bound) == (5, 2.0)
        assert (flow.input_dim, flow.context_dim) == (3, context_dim)
    with pytest.raises(ValueError, match=r"expected order to be 'quadratic', .* got 'linear'; .* Pyro calls 'linear'"):
        getattr(ours, name)(3, order="linear")
