"""Distribution functions of mixtures: densities against torch's own, far tails against arbitrary precision."""

from __future__ import annotations

import math
from typing import Literal

import mpmath
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from pyro_flows_vi import flows
from pyro_flows_vi.numerics.gaussian import log_mills, log_survival, upper_quantile
from pyro_flows_vi.testing import randomize
from pyro_flows_vi.transforms import Elementwise, MixtureAutoregressive
from pyro_flows_vi.transforms.elementwise import MixtureCDF

mpmath.mp.dps = 60
Kind = Literal["logistic", "gaussian"]
Link = Literal["logit", "normal"]
KINDS: tuple[Kind, ...] = ("logistic", "gaussian")
LINKS: tuple[Link, ...] = ("logit", "normal")


def _params(m: MixtureCDF, scale: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(m.num_params, generator=generator, dtype=torch.float64)


def _tails(m: MixtureCDF, params: Tensor, x: float) -> tuple[mpmath.mpf, mpmath.mpf, mpmath.mpf]:
    """F, 1 - F and f at x, in sixty digits."""
    below = above = density = mpmath.mpf(0)
    for log_weight, mean, scale in zip(*(part.tolist() for part in m.mixture(params)), strict=True):
        u = (mpmath.mpf(x) - mpmath.mpf(mean)) / mpmath.mpf(scale)
        w = mpmath.exp(log_weight)
        if m.kind == "logistic":
            left, right = 1 / (1 + mpmath.exp(-u)), 1 / (1 + mpmath.exp(u))
            peak = left * right
        else:
            left, right = (mpmath.erfc(v / mpmath.sqrt(2)) / 2 for v in (-u, u))
            peak = mpmath.npdf(u)
        below, above, density = below + w * left, above + w * right, density + w * peak / scale
    return below, above, density


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("x", [-300.0, -20.0, -1.0, 0.3, 7.0, 90.0])
def test_values_and_slopes_in_the_far_tails(kind: Kind, link: Link, x: float) -> None:
    m = MixtureCDF(3, kind, link)
    params = _params(m)
    below, above, density = _tails(m, params, x)
    if link == "logit":
        expected = mpmath.log(below) - mpmath.log(above)
        log_slope = mpmath.log(density) - mpmath.log(below) - mpmath.log(above)
    else:
        expected = mpmath.mpf(_normal_quantile(min(below, above))) * (-1 if below < above else 1)
        log_slope = mpmath.log(density) + expected**2 / 2 + mpmath.log(2 * mpmath.pi) / 2
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        y, slope = m.forward_and_log_slope(torch.tensor([x], dtype=dtype), params.to(dtype))
        assert abs(y.item() - float(expected)) <= tolerance * max(1.0, abs(float(expected)))
        assert abs(slope.item() - float(log_slope)) <= 10 * tolerance * max(1.0, abs(float(log_slope)))


def _normal_quantile(tail: mpmath.mpf) -> mpmath.mpf:
    """The y > 0 whose upper tail is that small."""
    start = mpmath.sqrt(max(mpmath.mpf("0.01"), -2 * mpmath.log(2 * tail)))
    return mpmath.findroot(lambda y: mpmath.log(mpmath.erfc(y / mpmath.sqrt(2)) / 2) - mpmath.log(tail), start)


@pytest.mark.parametrize("size", [1e2, 1e6, 1e15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_tails_are_lines(kind: Kind, dtype: torch.dtype, size: float) -> None:
    m = MixtureCDF(3, kind)
    params = _params(m).to(dtype)
    x = torch.tensor([-size, size], dtype=dtype, requires_grad=True)
    y, log_slope = m.forward_and_log_slope(x, params)
    widest = m.mixture(params)[2].max()
    assert (log_slope + widest.log()).abs().max() <= 2.0 / size + 1e-4  # the widest component is all there is
    torch.testing.assert_close(y, x / widest, rtol=20.0 / size + 1e-4, atol=0.0)
    (gradient,) = torch.autograd.grad(log_slope.sum(), x)
    assert gradient.isfinite().all() and gradient.abs().max() < 1e-2
    back, _ = m.inverse_and_log_slope(y.detach(), params)
    torch.testing.assert_close(back, x.detach(), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: Kind, link: Link) -> None:
    m = MixtureCDF(2, kind, link, rescale=True)
    x = torch.tensor([-6.0, -0.4, 2.0], dtype=torch.float64, requires_grad=True)
    params = _params(m).requires_grad_()
    assert torch.autograd.gradcheck(m.forward_and_log_slope, (x, params))
    assert torch.autograd.gradgradcheck(m.forward_and_log_slope, (x, params))
    assert torch.autograd.gradcheck(m.inverse_and_log_slope, (x, params))


def test_the_normal_tail() -> None:
    x = torch.tensor([-30.0, -3.0, -1e-3, 0.0, 0.5, 8.0, 29.9, 30.1, 200.0], dtype=torch.float64)
    tails = [mpmath.erfc(mpmath.mpf(v) / mpmath.sqrt(2)) / 2 for v in x.tolist()]
    mills = [tail / mpmath.npdf(v) for tail, v in zip(tails, x.tolist(), strict=True)]
    for function, values, slopes in (
        (log_survival, tails, [-1 / m for m in mills]),
        (log_mills, mills, [v - 1 / m for v, m in zip(x.tolist(), mills, strict=True)]),
    ):
        point = x.clone().requires_grad_()
        value = function(point)
        (slope,) = torch.autograd.grad(value.sum(), point)
        expected = torch.tensor([float(mpmath.log(v)) for v in values], dtype=torch.float64)
        torch.testing.assert_close(value.detach(), expected, rtol=1e-12, atol=1e-15)
        expected = torch.tensor([float(s) for s in slopes], dtype=torch.float64)
        torch.testing.assert_close(slope, expected, rtol=1e-9, atol=0.0)
    y = torch.tensor([0.0, 1e-3, 0.7, 5.0, 40.0, 1e5, 1e150], dtype=torch.float64)
    torch.testing.assert_close(upper_quantile(log_survival(y)), y, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("input_dim", [1, 2])
def test_density_is_that_of_torch_mixtures(input_dim: int) -> None:
    """The flow turned round, on a normal base, against conditionals that torch puts together."""
    flow = randomize(MixtureAutoregressive(input_dim, hidden_dims=(6,), components=3).double(), 0.7)
    y = 3.0 * torch.randn(50, input_dim, dtype=torch.float64)
    base = Normal(torch.zeros((), dtype=torch.float64), 1.0)
    z, log_det = flow.forward_and_log_det(y)
    by_flow = base.log_prob(z).sum(-1) + log_det
    log_weight, mean, scale = flow.map.mixture(flow.net(y).mT)
    batch = (*y.shape, 3)
    components = Normal(mean.expand(batch), scale.expand(batch))
    by_hand = MixtureSameFamily(Categorical(logits=log_weight.expand(batch)), components)
    torch.testing.assert_close(by_flow, by_hand.log_prob(y).sum(-1), rtol=1e-10, atol=1e-10)


def test_maf_mog_is_maf_on_a_base_of_mixtures() -> None:
    flow = randomize(flows.build("maf-mog", 3, num_transforms=2, components=4).double(), 0.3)
    y = torch.randn(20, 3, dtype=torch.float64)
    x, log_det = flow.inverse_and_log_det(y)
    by_flow = Normal(0.0, 1.0).log_prob(x).sum(-1) - log_det
    first, mixture, *maf = list(flow[0])
    middle, log_maf = y, torch.zeros(20, dtype=torch.float64)
    for step in reversed(maf):
        middle, part = step.inverse_and_log_det(middle)
        log_maf = log_maf + part
    log_weight, mean, scale = mixture.flow.map.mixture(mixture.flow.net(middle).mT)
    conditionals = MixtureSameFamily(Categorical(logits=log_weight), Normal(mean, scale))
    torch.testing.assert_close(by_flow, conditionals.log_prob(middle).sum(-1) - log_maf, rtol=1e-10, atol=1e-10)
    assert (flow.fast_forward, flow.fast_inverse) == (False, True)
    assert first.input_dim == 3


def test_one_component_is_an_affine_map() -> None:
    for kind in KINDS:
        m = MixtureCDF(1, kind)
        params = _params(m)
        _, mean, scale = m.mixture(params)
        x = torch.linspace(-9.0, 9.0, 7, dtype=torch.float64)
        y, log_slope = m.forward_and_log_slope(x, params)
        torch.testing.assert_close(y, (x - mean) / scale)
        torch.testing.assert_close(log_slope, (-scale.log()).expand(7))


@pytest.mark.parametrize("bad", [{"components": 0}, {"kind": "student"}, {"link": "probit"}])
def test_bad_settings(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        MixtureCDF(**bad)  # type: ignore[arg-type]


def test_a_flow_that_makes_two_modes() -> None:
    """Two components far apart: the inverse of the map sends half of the base to each."""
    flow = Elementwise(1, map=MixtureCDF(2, "gaussian")).double()
    far = 2.0 * math.sinh(2.5)  # whose tempered value is 5
    with torch.no_grad():
        flow.params.params.copy_(torch.tensor([[0.0, -far, far, 0.0, 0.0, 0.0, 0.0]]))
    y = flow.inv(torch.tensor([[-0.6], [0.6]], dtype=torch.float64))
    torch.testing.assert_close(flow.map.mixture(flow.params()["params"])[1], torch.tensor([[-5.0, 5.0]]).double())
    assert abs(y[0].item() + 5.0) < 1.0 and abs(y[1].item() - 5.0) < 1.0
