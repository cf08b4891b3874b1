"""Integrals of positive networks: the rules, Leibniz' gradient, the accuracy that the map states."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from pyro_flows_vi.numerics.quadrature import RULES, clenshaw_curtis, gauss_legendre, integral
from pyro_flows_vi.testing import randomize
from pyro_flows_vi.transforms.elementwise import MonotonicNetwork


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 8, 9, 30])
def test_rules_are_exact_for_polynomials(num_nodes: int) -> None:
    for rule, degree in ((gauss_legendre, 2 * num_nodes - 1), (clenshaw_curtis, num_nodes - 1)):
        nodes, weights = rule(num_nodes)
        assert len(nodes) == num_nodes and min(weights) > 0.0
        for power in range(degree + 1):
            assert sum(w * t**power for t, w in zip(nodes, weights, strict=True)) == pytest.approx(1.0 / (power + 1))


@pytest.mark.parametrize("name", RULES)
def test_convergence_is_geometric(name: str) -> None:
    """For 1 / (1 + u^2) on [0, 2], with the poles at ±i, each ten nodes gain a known factor."""
    upper = torch.tensor([2.0], dtype=torch.float64)
    errors = [
        abs(integral(lambda u: 1.0 / (1.0 + u * u), upper, (), RULES[name](n)).item() - math.atan(2.0))
        for n in (6, 12, 18)
    ]
    radius = abs(complex(-1.0, 1.0) + (complex(-1.0, 1.0) ** 2 - 1.0) ** 0.5)  # of the ellipse through i on [-1, 1]
    radius = max(radius, 1.0 / radius)
    factor = radius ** (12 if name == "gauss-legendre" else 6)
    for before, after in itertools.pairwise(errors):
        assert after < 20.0 * before / factor


def _function(u: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.exp(a.unsqueeze(-1) * u) + b * u.square()


def test_leibniz_gradients() -> None:
    upper = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([0.3, -0.7, 0.2], dtype=torch.float64, requires_grad=True)
    b = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def area(upper: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return integral(_function, upper, (a, b), gauss_legendre(20))

    torch.testing.assert_close(area(upper, a, b), (torch.exp(a * upper) - 1.0) / a + b * upper**3 / 3.0)
    assert torch.autograd.gradcheck(area, (upper, a, b))
    assert torch.autograd.gradgradcheck(area, (upper, a, b))
    (slope,) = torch.autograd.grad(area(upper, a.detach(), b.detach()).sum(), upper)
    assert torch.equal(slope, _function(upper.unsqueeze(-1), a, b).squeeze(-1).detach())  # exactly, whatever the rule


def test_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    upper = torch.linspace(-1.0, 2.0, 7, dtype=torch.float64)
    results = []
    for size in (1, 40, 10_000):
        monkeypatch.setattr("pyro_flows_vi.numerics.quadrature.CHUNK", size)
        a = torch.full((7,), 0.3, dtype=torch.float64, requires_grad=True)
        area = integral(_function, upper, (a, torch.ones((), dtype=torch.float64)), clenshaw_curtis(17))
        results.append((area.detach(), *torch.autograd.grad(area.sum(), a)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-14, atol=1e-14)


def _saved_bytes(nodes: int) -> int:
    """What the graph of the forward map keeps."""
    torch.manual_seed(0)
    m = MonotonicNetwork((16, 16), nodes=nodes)
    x, params = torch.randn(200, 3), torch.randn(200, 3, m.num_params, requires_grad=True)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = m.forward_and_log_slope(x, params)
    del result
    return sum(kept.values())


def test_memory_does_not_grow_with_the_nodes() -> None:
    assert _saved_bytes(80) == _saved_bytes(10)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scale", [None, 0.5, 2.0])
@pytest.mark.parametrize("hidden_dims", [(16,), (32, 32)])
def test_value_against_adaptive_quadrature(hidden_dims: tuple[int, ...], scale: float | None, rule: str) -> None:
    torch.manual_seed(0)
    m = MonotonicNetwork(hidden_dims, rule=rule).double()  # type: ignore[arg-type]
    if scale is not None:
        randomize(m, scale)
    params = (1.0 if scale is None else scale) * torch.randn(m.num_params, dtype=torch.float64)

    m.requires_grad_(False)

    def slope(x: float) -> float:
        return float(m.forward_and_log_slope(torch.tensor([x], dtype=torch.float64), params)[1].exp())

    for x in (-8.0, 2.5):
        y = float(m.forward_and_log_slope(torch.tensor([x], dtype=torch.float64), params)[0])
        true = float(params[0]) + quad(slope, 0.0, x, epsabs=0.0, epsrel=1e-10, limit=200)[0]
        assert abs(y - true) < 1e-8 * max(1.0, abs(true))


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_slopes_are_within_the_range(scale: float) -> None:
    torch.manual_seed(0)
    m = randomize(MonotonicNetwork((8, 8), range=3.0).double(), scale)
    assert isinstance(m, MonotonicNetwork)
    x = torch.linspace(-100.0, 100.0, 401, dtype=torch.float64)
    y, log_slope = m.forward_and_log_slope(x, scale * torch.randn(m.num_params, dtype=torch.float64))
    assert log_slope.max() - log_slope.min() < 6.0
    assert (y.diff() > 0).all()


def test_gradients_of_the_map() -> None:
    torch.manual_seed(0)
    m = randomize(MonotonicNetwork((4, 3), 2).double(), 1.0)
    assert isinstance(m, MonotonicNetwork)
    x = torch.tensor([-2.0, 0.1, 1.3], dtype=torch.float64, requires_grad=True)
    params = torch.randn(3, m.num_params, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(m.forward_and_log_slope, (x, params))
    assert torch.autograd.gradcheck(m.inverse_and_log_slope, (x, params))


@pytest.mark.parametrize(
    "bad", [{"rule": "simpson"}, {"hidden_dims": ()}, {"nodes": 0}, {"frequency": 0.0}, {"range": -1.0}]
)
def test_bad_settings(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        MonotonicNetwork(**bad)  # type: ignore[arg-type]
