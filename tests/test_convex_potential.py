"""Convex potential flows: the potential's derivatives, a closed form, hard inverses, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pyro_flows_vi import flows, testing
from pyro_flows_vi.nets.convex import ConvexNet
from pyro_flows_vi.numerics.krylov import lanczos_log_and_solve
from pyro_flows_vi.transforms.convex_potential import ConvexPotential


@pytest.fixture(autouse=True)
def float64() -> None:
    torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize("hidden_dims", [(5,), (5, 4), (5, 4, 6)])
def test_gradient_and_curvature_are_those_of_the_potential(hidden_dims: tuple[int, ...]) -> None:
    net = testing.randomize(ConvexNet(3, hidden_dims, context_dim=2), 1.0)
    x, context, v = torch.randn(4, 3), torch.randn(4, 2), torch.randn(4, 3)
    gradient, curvature = net(x, context)
    hessian = curvature.hessian()
    torch.testing.assert_close(gradient, torch.func.vmap(torch.func.grad(net.potential))(x, context))
    torch.testing.assert_close(hessian, torch.func.vmap(torch.func.jacrev(torch.func.grad(net.potential)))(x, context))
    torch.testing.assert_close(curvature.product(v), (hessian @ v[..., None])[..., 0])
    assert torch.linalg.eigvalsh(hessian).min() >= net.strength() * (1.0 - 1e-9)


@pytest.mark.parametrize("scale", [3.0, 20.0])
@pytest.mark.parametrize("context_dim", [None, 2])
def test_contract_at_large_parameters(context_dim: int | None, scale: float) -> None:
    flow = testing.randomize(ConvexPotential(3, context_dim, (6, 5)), scale).eval()
    x = 3.0 * torch.randn(2, 4, 3)
    context = None if context_dim is None else torch.randn(4, context_dim)
    testing.check_inverse(flow, x, context, tolerance=1e-9)
    testing.check_log_det(flow, x, context, tolerance=1e-9)


def test_a_quadratic_potential_is_a_scaling() -> None:
    flow = ConvexPotential(3, hidden_dims=(4,))
    with torch.no_grad():
        flow.net.raw_strength.fill_(1.7)
        flow.net.raw_output.fill_(-800.0)  # a softplus of which is zero
    x = torch.randn(5, 3)
    strength = torch.nn.functional.softplus(torch.tensor(1.7))
    y, log_det = flow.forward_and_log_det(x)
    torch.testing.assert_close(y, strength * x)
    torch.testing.assert_close(log_det, 3.0 * strength.log().expand(5))
    torch.testing.assert_close(flow.inverse_and_log_det(y)[0], x)


def test_the_map_is_monotone_and_its_jacobian_symmetric() -> None:
    flow = testing.randomize(ConvexPotential(4, hidden_dims=(8, 8)), 1.5)
    x, other = torch.randn(2, 50, 4)
    apart = flow(x) - flow(other)
    assert (((x - other) * apart).sum(-1) > 0).all()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: flow.forward_and_log_det(v)[0]))(x)
    torch.testing.assert_close(jacobian, jacobian.mT)


def test_far_targets_have_a_preimage() -> None:
    flow = testing.randomize(ConvexPotential(3, hidden_dims=(6, 5)), 2.0)
    y = 1e6 * torch.randn(20, 3)
    x, _ = flow.inverse_and_log_det(y)
    torch.testing.assert_close(flow(x), y, rtol=1e-12, atol=1e-6)


def test_the_density_integrates_to_one() -> None:
    flow = testing.randomize(ConvexPotential(2, hidden_dims=(6, 5)), 0.7)
    base = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    axis = torch.linspace(-15.0, 15.0, 151)
    for transform in (flow, flow.inv):
        density = torch.distributions.TransformedDistribution(base, [transform])
        with torch.no_grad():
            mass = density.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * (axis[1] - axis[0]) ** 2
        assert mass.item() == pytest.approx(1.0, abs=2e-3)


def test_float32_inverse() -> None:
    flow = testing.randomize(ConvexPotential(3, 2, (6, 5)), 1.0).float()
    x, context = torch.randn(100, 3).float(), torch.randn(100, 2).float()
    y = flow.forward_and_log_det(x, context)[0]
    again = flow.forward_and_log_det(flow.inverse_and_log_det(y, context)[0], context)[0]
    assert float((again - y).detach().abs().max()) < 1e-5 * (1.0 + float(y.detach().abs().max()))


def test_an_inverse_that_is_not_found_raises() -> None:
    flow = testing.randomize(ConvexPotential(3, hidden_dims=(6, 5), max_iterations=1), 2.0)
    with pytest.raises(RuntimeError, match="inverse of a convex potential flow: no convergence in 1 iterations"):
        flow.inverse_and_log_det(10.0 * torch.randn(5, 3))
    with pytest.raises(ValueError, match="NaN or infinite"):
        flow.inverse_and_log_det(torch.full((3,), torch.nan))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"hidden_dims": ()}, "hidden_dims"),
        ({"log_det": "cg"}, "log_det"),
        ({"num_products": 0}, "num_products"),
        ({"max_iterations": 0}, "max_iterations"),
    ],
)
def test_bad_options(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ConvexPotential(3, **options)


def test_lanczos_log_and_solution_against_eigenvalues() -> None:
    root = torch.randn(2, 40, 40) / 40**0.5
    matrix, v = root @ root.mT + 0.5 * torch.eye(40), torch.randn(2, 40)
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    exact = ((vectors.mT @ v[..., None])[..., 0].square() * eigenvalues.log()).sum(-1)
    errors = []
    for count in (5, 10, 40):
        value, solution = lanczos_log_and_solve(lambda w: (matrix @ w[..., None])[..., 0], v, count)
        errors.append(float((value - exact).abs().max()))
    assert errors[1] < 0.1 * errors[0] and errors[2] < 1e-9
    torch.testing.assert_close((matrix @ solution[..., None])[..., 0], v)
    value, solution = lanczos_log_and_solve(lambda w: 3.0 * w, v, 40)  # exhausted after one product
    torch.testing.assert_close(value, v.square().sum(-1) * math.log(3.0))
    torch.testing.assert_close(solution, v / 3.0)


def test_the_estimate_is_unbiased_in_value_and_gradient() -> None:
    flow = testing.randomize(ConvexPotential(4, hidden_dims=(6, 5), log_det="lanczos"), 1.0).train()
    x = torch.randn(4, requires_grad=True)
    many = x.expand(1000, 4)  # each has noise of its own
    values = flow.forward_and_log_det(many)[1]
    (per_draw,) = torch.autograd.grad(values.sum(), many)
    assert not flow.exact_log_det and flow.eval().exact_log_det
    truth = flow.forward_and_log_det(x)[1]
    (expected,) = torch.autograd.grad(truth, x)
    assert values.std() > 1e-3  # there is something to average
    assert abs(values.mean() - truth) < 4.0 * values.std() / math.sqrt(1000)
    assert ((per_draw.mean(0) - expected).abs() < 4.5 * per_draw.std(0) / math.sqrt(1000)).all()


def test_registry() -> None:
    flow = flows.build("convex-potential", 10, context_dim=4, num_transforms=3).eval()
    x, context = torch.randn(20, 10), torch.randn(20, 4)
    y, log_det = flow.forward_and_log_det(x, context)
    assert (y - x).abs().max() < 0.2 and log_det.abs().max() < 0.2
