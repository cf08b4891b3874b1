"""Continuous flows: closed forms, estimators, energies, memory and failures, in float64."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormalizingFlow
from torch import Tensor, nn

from pyro_flows_vi import flows, testing
from pyro_flows_vi.density import fit_reverse, reverse_density, target
from pyro_flows_vi.guides import AutoFlow
from pyro_flows_vi.infer import ELBO, fit
from pyro_flows_vi.nets.velocity import ACTIVATIONS, VelocityNet, divergence
from pyro_flows_vi.transforms.compose import Compose
from pyro_flows_vi.transforms.continuous import Continuous, Energies, regularisation


@pytest.fixture(autouse=True)
def float64() -> None:
    torch.set_default_dtype(torch.float64)


def bent(dim: int = 3, context_dim: int | None = None, scale: float = 0.7, **options: Any) -> Continuous:
    """A flow far from its start."""
    options = {"hidden_dims": (6, 5), "solver": "dopri8", "tolerance": 1e-9} | options
    flow = Continuous(dim, context_dim, **options)
    testing.randomize(flow, scale, torch.Generator().manual_seed(3))
    return flow


# -- the network ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden_dims", [(), (5,), (5, 4), (5, 4, 6)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_divergence_is_the_trace_of_the_jacobian(activation: str, hidden_dims: tuple[int, ...]) -> None:
    net = testing.randomize(VelocityNet(3, hidden_dims, activation=activation), 0.8)
    x, time = torch.randn(4, 3), torch.tensor(0.3)
    _, linearisation = net.linearise(time, x, net.tensors())
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: net.linearise(time, v, net.tensors())[0]))(x)
    torch.testing.assert_close(linearisation.jacobian().expand(4, 3, 3), jacobian)
    torch.testing.assert_close(divergence(linearisation).expand(4), jacobian.diagonal(dim1=1, dim2=2).sum(1))


# -- the map ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["dopri5", "dopri8", "rk4"])
def test_linear_dynamics_are_a_matrix_exponential(solver: str) -> None:
    """dz/dt = A z + t w + b, as one linear equation of the vector (z, t, 1)."""
    flow = bent(3, hidden_dims=(), solver=solver, num_steps=100, tolerance=1e-10, time=1.5).eval()
    (matrix,), (bias,), weight = flow.net.weights, flow.net.biases, flow.net.time_weight
    generator = torch.zeros(5, 5)
    generator[:3] = torch.cat([matrix, weight[:, None], bias[:, None]], dim=1).detach()
    generator[3, 4] = 1.0
    x = torch.randn(4, 3)
    start = torch.cat([x, torch.zeros(4, 1), torch.ones(4, 1)], dim=1)
    exact = (start @ torch.matrix_exp(1.5 * generator).T)[:, :3]
    y, log_det = flow.forward_and_log_det(x)
    torch.testing.assert_close(y, exact, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(log_det, 1.5 * matrix.diagonal().sum().expand(4), rtol=1e-7, atol=1e-7)
    back, same = flow.inverse_and_log_det(exact)
    torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(same, log_det, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_contract_over_a_long_path(activation: str) -> None:
    flow = bent(2, 3, activation=activation, time=0.6).eval()
    x, context = torch.randn(2, 3, 2), torch.randn(3, 3)
    assert (flow.forward_and_log_det(x, context)[0] - x).abs().max() > 0.3
    testing.check_log_det(flow, x, context, tolerance=1e-6)
    testing.check_inverse(flow, x, context, tolerance=1e-6)
    testing.check_inverse_gradients(flow, x, context, tolerance=1e-6)


def test_float32_and_bfloat16() -> None:
    flow = bent(3, 2).eval()
    x, context = torch.randn(10, 3), torch.randn(10, 2)
    exact = flow.forward_and_log_det(x, context)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.2)):
        flow = flow.to(dtype)
        for got, expected in zip(flow.forward_and_log_det(x.to(dtype), context.to(dtype)), exact, strict=True):
            assert got.dtype == dtype
            torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


def test_the_density_integrates_to_one() -> None:
    flow = bent(2, scale=0.5, tolerance=1e-5, solver="dopri5").eval()
    base = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    density = torch.distributions.TransformedDistribution(base, [flow])
    axis = torch.linspace(-9.0, 9.0, 91)
    with torch.no_grad():
        mass = density.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1.0, abs=1e-3)


def test_rk4_is_compiled_without_a_graph_break() -> None:
    torch._dynamo.reset()
    flow = bent(3, 2, solver="rk4", num_steps=1, hidden_dims=(4,)).eval()
    x, context = torch.randn(4, 3), torch.randn(4, 2)
    compiled = torch.compile(flow.forward_and_log_det, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(x, context), flow.forward_and_log_det(x, context), strict=True):
        torch.testing.assert_close(got, expected)


def test_memory_does_not_depend_on_the_number_of_steps() -> None:
    def saved_and_evaluations(solver: str, tolerance: float, num_steps: int = 1) -> tuple[int, int]:
        flow, total, evaluations = bent(3, solver=solver, tolerance=tolerance, num_steps=num_steps), 0, 0
        linearise = flow.net.linearise

        def counted(*arguments: Any) -> Any:
            nonlocal evaluations
            evaluations += 1
            return linearise(*arguments)

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        flow.net.linearise = counted  # type: ignore[method-assign]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            flow.forward_and_log_det(x)
        return total, evaluations

    x = torch.randn(16, 3)
    (few, coarse), (many, fine) = (saved_and_evaluations("dopri5", tolerance) for tolerance in (1e-2, 1e-8))
    assert few == many > 0 and fine > 3 * coarse
    assert saved_and_evaluations("rk4", 1e-2, 40)[0] > 10 * many  # the price of fixed steps


# -- estimates ----------------------------------------------------------------------------------------------


def test_exact_log_det_is_honest() -> None:
    for options, in_training in (
        ({}, True),
        ({"hidden_dims": (4, 4, 4)}, False),
        ({"hidden_dims": (4, 4, 4), "trace": "exact"}, True),
        ({"trace": "hutchinson"}, False),
    ):
        flow = Continuous(2, **options)  # type: ignore[arg-type]
        chain = Compose([flow.inv])
        assert (flow.exact_log_det, flow.inv.exact_log_det, chain.exact_log_det) == (in_training,) * 3
        assert flow.eval().exact_log_det


@pytest.mark.parametrize("noise", ["rademacher", "normal"])
def test_hutchinson_is_unbiased_in_value_and_gradient(noise: str) -> None:
    flow = bent(3, 2, trace="hutchinson", noise=noise, tolerance=1e-5, solver="dopri5", time=0.3).train()
    x, context = torch.randn(3, requires_grad=True), torch.randn(2)
    many = x.expand(1000, 3)  # each has noise of its own
    values = flow.forward_and_log_det(many, context)[1]
    per_draw = torch.autograd.grad(values.sum(), many)[0]
    truth = flow.eval().forward_and_log_det(x, context)[1]
    (expected,) = torch.autograd.grad(truth, x)
    assert values.std() > 1e-3  # there is something to average
    assert abs(values.mean() - truth) < 4.0 * values.std() / math.sqrt(1000)
    assert ((per_draw.mean(0) - expected).abs() < 4.5 * per_draw.std(0) / math.sqrt(1000)).all()


# -- energies -----------------------------------------------------------------------------------------------


def test_energies_are_the_quadrature_of_the_path() -> None:
    flow = bent(2, 3, time=0.8).eval()
    x, context = torch.randn(4, 2), torch.randn(4, 3)
    # Gauss-Legendre on a path that is solved to every node anew.
    nodes, weights = (torch.as_tensor(v) for v in torch_legendre(12))
    kinetic, jacobian = torch.zeros(4), torch.zeros(4)
    for node, weight in zip(0.4 * (nodes + 1.0), 0.4 * weights, strict=True):
        part = bent(2, 3, time=float(node)).eval()
        place = part.forward_and_log_det(x, context)[0]
        velocity, linearisation = flow.net.linearise(node, place, flow.net.tensors(), flow.net.shift(context))
        kinetic = kinetic + weight * velocity.square().sum(-1)
        jacobian = jacobian + weight * linearisation.jacobian().square().sum((-2, -1))
    energies = flow.energies(x, context)
    torch.testing.assert_close(energies.kinetic, kinetic, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(energies.jacobian, jacobian, rtol=1e-5, atol=1e-6)
    mapped = torch.func.vmap(flow.energies)(x, context)
    torch.testing.assert_close(mapped.jacobian, energies.jacobian)


def torch_legendre(count: int) -> tuple[Any, Any]:
    import numpy as np

    return np.polynomial.legendre.leggauss(count)


def test_the_penalty_is_read_once_with_its_graph() -> None:
    flow = bent(2, kinetic=0.5, jacobian=0.25, solver="dopri5", tolerance=1e-6, time=0.3).train()
    x = torch.randn(2000, 2)
    with torch.no_grad():
        plain = flow.eval().energies(x)
    with pytest.raises(RuntimeError, match="no pass in training mode"):
        flow.regularisation()
    flow.train()
    y, log_det = flow.forward_and_log_det(x)
    penalty = flow.regularisation()
    exact = (0.5 * plain.kinetic + 0.25 * plain.jacobian).mean()
    assert float((penalty - exact).detach().abs()) < 0.05 * float(exact)  # 2000 noise vectors
    assert all(float(g.abs().max()) > 0.0 for g in torch.autograd.grad(penalty, [*flow.net.weights]))
    with pytest.raises(RuntimeError, match="read the penalty once"):
        flow.regularisation()
    flow.inverse_and_log_det(y.detach())  # the same path the other way
    assert float((flow.regularisation() - exact).detach().abs()) < 0.05 * float(exact)
    torch.testing.assert_close(log_det, flow.eval().forward_and_log_det(x)[1], rtol=1e-5, atol=1e-5)  # other steps


def test_the_penalty_of_a_chain() -> None:
    chain = flows.build("ffjord", 2, num_transforms=2, hidden_dims=(4,), kinetic=1.0).train()
    x = torch.randn(5, 2)
    chain.forward_and_log_det(x)
    total = regularisation(chain)
    middle = chain[0].forward_and_log_det(x)[0]
    expected = chain[0].energies(x).kinetic.mean() + chain[1].energies(middle).kinetic.mean()
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)
    assert float(regularisation(flows.build("planar", 2))) == 0.0
    assert float(Continuous(2).regularisation()) == 0.0
    torch.func.vmap(chain.forward_and_log_det)(x)  # leaves nothing behind
    with pytest.raises(RuntimeError, match="no pass"):
        regularisation(chain)


def bend(x: Tensor) -> None:
    """A banana far off, to which a flow has a long way to go."""
    u = pyro.sample("u", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    bent = torch.stack([u[..., 0], u[..., 1] - u[..., 0] ** 2], -1)
    pyro.sample("x", dist.Normal(bent, 0.3).to_event(1), obs=x)


def paths(guide: nn.Module) -> Energies:
    """Of draws of a fitted guide."""
    (step,) = [module for module in guide.modules() if isinstance(module, Continuous)]
    with torch.no_grad():
        energies = step.eval().energies(torch.randn(500, 2))
    step.train()
    return Energies(*(energy.mean() for energy in energies))


@pytest.mark.parametrize("objective", [None, ELBO()])
def test_fit_adds_the_penalty_of_a_guide(objective: Any) -> None:
    x, found = torch.tensor([1.0, -0.5]), {}
    for weight in (0.0, 3.0):
        torch.manual_seed(0)
        options: dict[str, Any] = {"hidden_dims": (8,), "solver": "rk4", "num_steps": 4}
        guide = AutoFlow(bend, "ffjord", 1, **options, kinetic=weight, jacobian=weight).setup(x)
        rules: dict[str, Any] = {"max_steps": 80, "num_particles": 32, "restarts": 1, "learning_rate": 0.03}
        result = fit(bend, guide, x, objective=objective, seed=0, progress=False, compile=False, **rules)
        found[weight] = paths(guide)
        assert -5.0 < result.elbo < 0.0  # of the bound alone
    assert found[3.0].kinetic < 0.3 * found[0.0].kinetic
    assert found[3.0].jacobian < 0.3 * found[0.0].jacobian


def test_a_penalty_is_in_no_graph() -> None:
    x = torch.tensor([1.0, -0.5])
    guide = AutoFlow(bend, "ffjord", 1, hidden_dims=(4,), solver="rk4", num_steps=2, kinetic=1.0)
    quiet: dict[str, Any] = {"restarts": 1, "num_particles": 4, "seed": 0, "progress": False}
    with pytest.raises(ValueError, match=r"compile='trace' cannot be had: the penalty of a continuous flow"):
        fit(bend, guide, x, compile="trace", max_steps=1, **quiet)
    fit(bend, guide, x, compile=True, max_steps=310, **quiet)  # which goes without


def test_the_way_to_a_score_has_no_penalty_of_its_own() -> None:
    flow = bent(2, kinetic=0.5, jacobian=0.25).train()
    x = torch.randn(50, 2)
    torch.manual_seed(1)
    y, _ = flow.forward_and_log_det(x)
    expected = torch.autograd.grad(flow.regularisation(), [*flow.net.weights])
    torch.manual_seed(1)
    again, _, score = flow.forward_and_score(x, -x)
    found = torch.autograd.grad(flow.regularisation(), [*flow.net.weights])
    torch.testing.assert_close(again, y)
    torch.testing.assert_close(found, expected)
    y = y.detach().requires_grad_()
    base, log_det = flow.inverse_and_log_det(y)
    (direct,) = torch.autograd.grad((-0.5 * base.square().sum(-1) - log_det).sum(), y)
    torch.testing.assert_close(score, direct, rtol=1e-4, atol=1e-5)


def test_reverse_fits_and_pyro_guides_have_the_penalty_too() -> None:
    x = torch.tensor([1.0, -0.5])
    made = reverse_density("ffjord", 2, num_transforms=1, hidden_dims=(4,), solver="rk4", num_steps=2, kinetic=1.0)
    fit_reverse(made.eval(), target("u2").log_prob, max_steps=3, num_particles=8, seed=0, progress=False)
    options: dict[str, Any] = {"hidden_dims": (4,), "solver": "rk4", "num_steps": 2, "kinetic": 1e4}
    pyro.set_rng_seed(0)
    guide = AutoNormalizingFlow(bend, lambda dim: Continuous(dim, **options))
    guide(x)
    before = paths(guide).kinetic
    fit(bend, guide, x, num_particles=4, max_steps=40, seed=0, progress=False)
    assert paths(guide).kinetic < 0.3 * before


# -- failures -------------------------------------------------------------------------------------------------


def test_dynamics_that_are_too_fast_raise() -> None:
    flow = bent(2, scale=300.0, max_steps=20, solver="dopri5").eval()
    for method in (flow.forward_and_log_det, flow.inverse_and_log_det):
        with pytest.raises(RuntimeError, match=r"dopri5 does not get from .* more than 20 steps\. The dynamics"):
            method(torch.randn(5, 2))
    with torch.no_grad():
        flow.net.weights[0][0, 0] = torch.nan
    with pytest.raises(RuntimeError, match="does not get from"):
        flow.forward_and_log_det(torch.randn(5, 2))
    with pytest.raises(ValueError, match="NaN or infinite"):
        flow.forward_and_log_det(torch.full((2,), torch.nan))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"activation": "relu"}, "activation"),
        ({"solver": "euler"}, "solver"),
        ({"trace": "none"}, "trace"),
        ({"noise": "uniform"}, "noise"),
        ({"time": 0.0}, "time"),
        ({"time": math.inf}, "time"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": 1.0}, "tolerance"),
        ({"max_steps": 0}, "max_steps"),
        ({"num_steps": 0}, "num_steps"),
        ({"kinetic": -1.0}, "kinetic"),
        ({"jacobian": math.nan}, "jacobian"),
        ({"hidden_dims": (0,)}, "hidden_dims"),
    ],
)
def test_bad_options(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Continuous(3, **options)
