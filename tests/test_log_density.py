"""The log density of a model against Pyro's own, a density written by hand, and finite differences."""

from __future__ import annotations

import math
import os
import random
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_flows_vi.infer import LogDensity
from pyro_flows_vi.infer.start import require_finite_start

Model = Callable[..., Any]


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def supports(y: Tensor) -> None:
    """One site for each kind of support."""
    real = pyro.sample("real", dist.StudentT(4.0, 0.3, 1.2))
    positive = pyro.sample("positive", dist.Gamma(2.0, 1.5))
    unit = pyro.sample("unit", dist.Beta(2.0, 3.0))
    between = pyro.sample("between", dist.Uniform(-1.0, 2.5))
    above = pyro.sample("above", dist.Pareto(1.3, 3.0))
    simplex = pyro.sample("simplex", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    corr = pyro.sample("corr", dist.LKJCholesky(3, torch.tensor(2.0)))
    ordered = pyro.sample(
        "ordered",
        dist.TransformedDistribution(
            dist.Normal(torch.zeros(3), 1.0).to_event(1), [dist.transforms.OrderedTransform()]
        ),
    )
    vector = pyro.sample("vector", dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 0.4))
    loc = real + between + unit * above + corr[2, 0] * vector.sum() + (simplex * ordered).sum()
    pyro.deterministic("loc", loc)
    pyro.sample("y", dist.Normal(loc, positive), obs=y)


def plates(y: Tensor) -> None:
    """Nested plates, events in plates, scaled and masked sites, latent and observed."""
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("groups", 4, dim=-2), poutine.scale(scale=0.7):
        offset = pyro.sample("offset", dist.Normal(0.0, scale))
        with poutine.mask(mask=torch.tensor([True, False, True, True])[:, None]):
            share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, 2] = False
    with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 5, dim=-1), poutine.mask(mask=mask):
        pyro.sample("y", dist.Normal(offset + share[..., :1], 0.5), obs=y)


def factors(y: Tensor) -> None:
    """A factor, a sequential plate and a site without influence on the data."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    for i in pyro.plate("steps", 3):
        z = pyro.sample(f"z{i}", dist.LogNormal(w[0], 1.0))
        pyro.sample(f"y{i}", dist.Poisson(z), obs=torch.tensor(float(i)))
    pyro.factor("penalty", -0.3 * w.square().sum() * y.mean())


def reworded(y: Tensor) -> None:
    """What vmap does not know: writes into fresh tensors, by masks, and in distributions that do such things."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    simplex = pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))
    state = torch.zeros(4)
    for t in range(4):
        state[t] = (state[t - 1] if t else 1.0) + slope[0] * y[t]
    filled = y.to(slope).clone()
    filled[torch.tensor([False, True, False, True])] = slope[1:]
    total = torch.zeros(())
    total += slope.sum()
    loose = slope.exp() + 1.0
    loose[loose > 2.0] = 2.0
    pyro.factor("writes", -0.1 * (filled * state).square().sum() - total.square() - loose.sum())
    grade, cuts = torch.tensor([0, 1, 2, 1]), torch.tensor([-1.0, 1.0])
    pyro.sample("grade", dist.OrderedLogistic(slope[:1] * filled, cuts), obs=grade)
    counts = torch.tensor([3.0, 0.0, 4.0])
    pyro.sample("counts", dist.Multinomial(int(counts.sum()), simplex), obs=counts)


centred = poutine.reparam(plates, config={"offset": LocScaleReparam(0.3), "share": None})

MODELS: dict[str, tuple[Model, Tensor]] = {
    "supports": (supports, torch.tensor([0.4, -1.0, 2.0])),
    "plates": (plates, torch.randn(4, 5, generator=torch.Generator().manual_seed(0))),
    "factors": (factors, torch.tensor([0.5, 1.5])),
    "reworded": (reworded, torch.tensor([0.5, 1.5, -1.0, 0.3])),
    "reparam": (centred, torch.randn(4, 5, generator=torch.Generator().manual_seed(1))),
}


def potential(model: Model, data: Tensor, latent: Tensor, log_density: LogDensity) -> tuple[Tensor, Tensor]:
    """Minus Pyro's potential energy and its gradient, particle by particle."""
    _, potential_fn, _, _ = initialize_model(model, (data,))
    rows = latent.clone().requires_grad_()
    values = torch.stack([-potential_fn(log_density.layout.split(row)) for row in rows])
    return values.detach(), torch.autograd.grad(values.sum(), rows)[0]


def points(log_density: LogDensity, count: int = 5, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(count, log_density.latent_dim)


@pytest.mark.parametrize("name", MODELS)
def test_value_and_gradient_are_those_of_pyros_potential(name: str) -> None:
    model, data = MODELS[name]
    log_density = LogDensity(model, data)
    for scale in (0.5, 2.0):
        latent = points(log_density, scale=scale)
        value, gradient = potential(model, data, latent, log_density)
        ours, score = log_density.value_and_score(latent)
        torch.testing.assert_close(ours, value)
        torch.testing.assert_close(score, gradient)
    assert log_density.vectorized
    assert log_density.trace


@pytest.mark.parametrize("name", MODELS)
def test_graph_vmap_and_loop_agree(name: str) -> None:
    model, data = MODELS[name]
    graph, vmap, loop = LogDensity(model, data), LogDensity(model, data, trace=False), LogDensity(model, data)
    loop._particles.vectorized = False
    latent = points(graph)
    expected, expected_score = graph.value_and_score(latent)
    for other in (vmap, loop):
        value, score = other.value_and_score(latent)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(score, expected_score)
    for log_density in (graph, vmap, loop):
        rows = latent.clone().requires_grad_()
        weights = torch.arange(1.0, 6.0)
        value = log_density(rows)
        torch.testing.assert_close(value, expected)
        (gradient,) = torch.autograd.grad((weights * value).sum(), rows)
        torch.testing.assert_close(gradient, weights[:, None] * expected_score)
        with torch.no_grad():
            assert not log_density(rows).requires_grad


def moving_bounds(low: Tensor) -> None:
    a = pyro.sample("a", dist.Uniform(low, low + 2.0))
    b = pyro.sample("b", dist.Uniform(a, 3.0 * a))
    pyro.sample("c", dist.Pareto(b, 3.0))


def right_graph(model: Model, y: Tensor, latent: Tensor) -> torch.fx.Graph:
    """The graph of a log density, whose value and gradient are those of Pyro's potential."""
    log_density = LogDensity(model, y)
    expected, gradient = potential(model, y, latent, log_density)
    value, score = log_density.value_and_score(latent)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(score, gradient)
    graph = log_density._graph(latent)[0]
    assert isinstance(graph, torch.fx.GraphModule)
    return graph.graph


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bernoulli_likelihood_is_two_kernels_each_way_and_right_at_any_logit(dtype: torch.dtype) -> None:
    y = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0], dtype=dtype)

    def model(y: Tensor) -> None:
        logits = pyro.sample("logits", dist.Normal(torch.zeros(6, dtype=dtype), 100.0).to_event(1))
        with pyro.plate("rows", 6):
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    latent = torch.tensor([[0.3, -2.0, 39.0, 41.0, -500.0, -60.0], [-1.0, 700.0, -0.01, -35.0, 2.0, 3.0]], dtype=dtype)
    nodes = right_graph(model, y, latent).nodes
    names = [str(node.target) for node in nodes]
    assert names.count("aten.softplus.default") == names.count("aten.softplus_backward.default") == 1
    assert not any("exp" in name and "expand" not in name for name in names)


def test_functions_of_a_repeated_scale_are_computed_once() -> None:
    y = torch.linspace(-1.0, 2.0, 7)

    def model(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 7):
            pyro.sample("y", dist.Normal(slope * torch.arange(7.0), scale), obs=y)

    latent = torch.tensor([[0.3, -2.0], [-1.0, 0.7], [2.0, 0.1]])
    nodes = right_graph(model, y, latent).nodes
    functions = [n for n in nodes if n.target in (torch.ops.aten.log.default, torch.ops.aten.pow.Tensor_Scalar)]
    wide = [node for node in functions if node.meta["val"].numel() > 3]
    assert len(functions) > 4 and len(wide) == 2, "the rows' errors are squared, and the slope of that is taken"


def test_repeated_values_that_a_model_writes_into_are_repeated_no_more() -> None:
    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        scales = scale.expand(3) * 2.0
        scales[0] = 1.0
        matrix = scale.expand(3, 3) + 1.0
        matrix.diagonal().mul_(5.0)
        late = torch.broadcast_tensors(scale, torch.zeros(4))[0].exp()
        late[1:].add_(late[0])
        pyro.factor("f", -(scales**2).sum() - (matrix / 2.0).sin().sum() - (1.0 / late).sum())

    log_density = LogDensity(model)
    u = torch.tensor([[0.3], [-0.8]])
    s = u[:, 0].exp()
    terms = 1.0 + 2.0 * (2.0 * s) ** 2 + 6.0 * ((s + 1.0) / 2.0).sin() + 3.0 * (5.0 * (s + 1.0) / 2.0).sin()
    terms = terms + (-s).exp() * (1.0 + 3.0 / 2.0)
    by_hand = dist.Normal(0.0, 1.0).log_prob(u[:, 0]) - terms
    torch.testing.assert_close(log_density.value_and_score(u)[0], by_hand)
    torch.testing.assert_close(log_density(u), by_hand)


def test_a_repeated_scalar_keeps_its_precision() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1))
        weight = torch.tensor(0.1, dtype=torch.float64).expand(3)
        pyro.factor("f", ((weight * 1.0) * x.float()).sum())

    torch.set_default_dtype(torch.float32)
    assert LogDensity(model).value_and_score(torch.ones(2, 3))[0].dtype == torch.float64


def test_repeats_are_those_of_the_values_and_of_nothing_else() -> None:
    """By the run without a graph, which computes everything as it is written."""

    def squares(row: Tensor) -> Tensor:
        wide = row.expand(3) * 2.0
        wide[0] = 1.0  # within a vmap of the model's own
        return (wide**2).sum() + wide.exp().sum()

    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with torch.no_grad():
            still = dist.Normal(x, torch.ones(2, 3))
            fixed = x.expand(2, 3)
        terms = [
            still.log_prob(torch.zeros(2, 3)),
            (fixed * 2.0).exp(),
            torch.vmap(squares)(x[:2]),
            torch.broadcast_to(input=x, size=(2, 3)) ** 3,
            torch.add(x.expand(2, 3), other=torch.ones(2, 3)) * x,
            torch.add(x.expand(2, 3), x[0], alpha=3.0).sin(),
            torch.div(x.expand(2, 3), 0.1, rounding_mode="floor") * x,
            1.0 - x.expand(2, 3),
            1.0 / (2.0 + x.expand(2, 3) ** 2),
            2.0 ** torch.broadcast_tensors(x.expand(2, 3), torch.zeros(4, 2, 3))[0],
            torch.nn.functional.softplus(x.expand(2, 3), beta=2.0),
            torch.broadcast_tensors(x[:, None], x.expand(3, 3) * 1.5)[0] / 3.0,
        ]
        pyro.factor("f", -sum(term.sum() for term in terms))

    density = LogDensity(model)
    u = torch.tensor([[0.3, -0.8, 1.1], [-0.2, 0.4, 0.9]])
    value, score = density.value_and_score(u)
    assert density._graphs and not density._particles._widen, "there is a graph, of the first wording"
    expected = LogDensity(model, trace=False).value_and_score(u)
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(score, expected[1])


def test_gradients_within_a_model_by_repeated_values() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        slope = torch.func.grad(lambda t: (t.expand(3) ** 3).sum())(x)
        pyro.factor("f", -slope)

    u = torch.tensor([[0.3], [-0.8]])
    by_hand = dist.Normal(0.0, 1.0).log_prob(u[:, 0]) - 9.0 * u[:, 0] ** 2
    torch.testing.assert_close(LogDensity(model).value_and_score(u)[0], by_hand)


def test_supports_that_depend_on_latents_against_a_density_by_hand() -> None:
    low = torch.tensor(1.5)
    log_density = LogDensity(moving_bounds, low)
    u = points(log_density, scale=1.5).requires_grad_()
    s = torch.sigmoid(u)
    a = low + 2.0 * s[:, 0]
    b = a + 2.0 * a * s[:, 1]
    c = b + u[:, 2].exp()
    # the uniform densities cancel with the widths of the bijections
    by_hand = (
        (s[:, :2].log() + (1.0 - s[:, :2]).log()).sum(-1) + math.log(3.0) + 3.0 * b.log() - 4.0 * c.log() + u[:, 2]
    )
    torch.testing.assert_close(log_density(u), by_hand)
    score = torch.autograd.grad(by_hand.sum(), u)[0]
    torch.testing.assert_close(log_density.value_and_score(u)[1], score)
    values = log_density.constrain(u.detach())
    torch.testing.assert_close(values["b"], b.detach())
    torch.testing.assert_close(values["c"], c.detach())


def test_what_a_model_draws_on_the_way_differs_between_particles() -> None:
    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.deterministic("replicate", loc + torch.randn(()))

    log_density = LogDensity(model)
    values = log_density.constrain(torch.zeros(4000, 1))
    assert abs(values["replicate"].std().item() - 1.0) < 0.06
    torch.testing.assert_close(log_density(torch.zeros(3, 1)), dist.Normal(0.0, 1.0).log_prob(torch.zeros(3)))


@pytest.mark.parametrize("name", [*MODELS, "moving"])
def test_constrain_and_unconstrain_are_inverse(name: str) -> None:
    model, data = (moving_bounds, torch.tensor(1.5)) if name == "moving" else MODELS[name]
    log_density = LogDensity(model, data)
    latent = points(log_density)
    values = log_density.constrain(latent)
    assert {site.name: values[site.name].shape[1:] for site in log_density.layout} == {
        site.name: site.shape for site in log_density.layout
    }
    for i, row in enumerate(latent):
        torch.testing.assert_close(log_density.unconstrain({k: v[i] for k, v in values.items()}), row)


def test_deterministic_sites_come_with_the_latents() -> None:
    log_density = LogDensity(*MODELS["supports"])
    values = log_density.constrain(points(log_density))
    v = values
    loc = v["real"] + v["between"] + v["unit"] * v["above"] + v["corr"][:, 2, 0] * v["vector"].sum(-1)
    torch.testing.assert_close(v["loc"], loc + (v["simplex"] * v["ordered"]).sum(-1))


@pytest.mark.parametrize("name", ["supports", "plates", "factors"])
def test_log_likelihood_against_poutine(name: str) -> None:
    model, data = MODELS[name]
    log_density = LogDensity(model, data)
    latent = points(log_density)
    likelihoods, values = log_density.log_likelihood(latent), log_density.constrain(latent)
    for i in range(len(latent)):
        conditioned = poutine.condition(model, {site.name: values[site.name][i] for site in log_density.layout})
        trace = poutine.trace(conditioned).get_trace(data)
        trace.compute_log_prob()
        observed = {k for k in trace.observation_nodes if k not in values}
        assert set(likelihoods) == observed
        for site in observed:  # neither is scaled; a masked entry counts nothing
            torch.testing.assert_close(likelihoods[site][i], trace.nodes[site]["log_prob"])


def test_log_likelihood_leaves_out_the_factor_of_a_subsample() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with poutine.scale(scale=10.0):
            pyro.sample("x", dist.Normal(loc, 1.0).expand(x.shape).to_event(0), obs=x)

    x = torch.tensor([0.0, 1.0])
    found = LogDensity(model, x).log_likelihood(torch.zeros(1, 1))["x"]
    torch.testing.assert_close(found, dist.Normal(0.0, 1.0).log_prob(x)[None])


# -- second derivatives ------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", [True, False], ids=["graph", "vmap"])
def test_second_derivatives_are_right(trace: bool) -> None:
    model, data = MODELS["factors"]
    log_density = LogDensity(model, data, trace=trace)
    point = points(log_density, 1)[0]

    def value(u: Tensor) -> Tensor:
        return log_density(u[None])[0] + u.square().sum()  # the second term alone would make the result a quiet half

    hessian = torch.autograd.functional.hessian(value, point)
    step = 1e-5 * torch.eye(len(point))
    scores = log_density.value_and_score(torch.cat([point + step, point - step]))[1]
    rows = (scores[: len(point)] - scores[len(point) :]) / 2e-5
    torch.testing.assert_close(hessian, rows + 2.0 * torch.eye(len(point)), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(torch.func.jacrev(torch.func.grad(value))(point), hessian)


# -- graphs ------------------------------------------------------------------------------------------


def regression(x: Tensor, y: Tensor, scale: float = 1.0) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[-1]), 1.0).to_event(1))
    pyro.sample("y", dist.Normal((x * w).sum(-1), scale).to_event(1), obs=y)


def test_rebind_changes_the_data_without_a_new_graph() -> None:
    x, y = torch.randn(2, 6, 3), torch.randn(2, 6)
    log_density = LogDensity(regression, x[0], y[0])
    latent = points(log_density)
    first = log_density.value_and_score(latent)
    (graph,) = log_density._graphs.values()
    second = log_density.rebind(x[1], y[1]).value_and_score(latent)
    assert list(log_density._graphs.values()) == [graph]
    fresh = LogDensity(regression, x[1], y[1], trace=False).value_and_score(latent)
    torch.testing.assert_close(second, fresh)
    assert not torch.allclose(first[0], second[0])
    log_density.value_and_score(latent[:2])
    assert len(log_density._graphs) == 2, "another number of particles takes another graph"


def test_rebind_to_other_shapes_and_other_numbers_is_right() -> None:
    x, y = torch.randn(6, 3), torch.randn(6)
    log_density = LogDensity(regression, x, y, scale=1.0)
    latent = points(log_density)
    log_density.value_and_score(latent)
    for args, scale in (((x, y), 2.0), ((x[:4], y[:4]), 2.0), ((x[:4], y[:4]), 3)):
        found = log_density.rebind(*args, scale=scale).value_and_score(latent)
        torch.testing.assert_close(found, LogDensity(regression, *args, scale=scale).value_and_score(latent))


def test_rebind_to_mutable_arguments_is_right() -> None:
    array = torch.randn(3).numpy()

    def model(x: Any) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc, 1.0).expand([3]).to_event(1), obs=torch.as_tensor(x))

    log_density = LogDensity(model, array)
    first = log_density.value_and_score(torch.zeros(2, 1))[1]
    array += 1.0
    torch.testing.assert_close(log_density.rebind(array).value_and_score(torch.zeros(2, 1))[1], first + 3.0)


def test_rebind_refuses_arguments_that_change_the_latents() -> None:
    x, y = torch.randn(6, 3), torch.randn(6)
    log_density = LogDensity(regression, x, y)
    with pytest.raises(ValueError, match=r"'w' had the shapes \[\(3,\), \(2,\)\]"):
        log_density.rebind(x[:, :2], y)
    with pytest.raises(ValueError, match="structure"):
        log_density.rebind(x)
    torch.testing.assert_close(log_density(torch.zeros(1, 3)), LogDensity(regression, x, y)(torch.zeros(1, 3)))


def test_randomness_of_a_subsample_is_drawn_anew_and_unbiased() -> None:
    data = torch.randn(10)

    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample_size=4) as rows:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=data[rows])

    log_density = LogDensity(model)
    values = torch.stack([log_density.value_and_score(torch.zeros(3, 1))[0] for _ in range(300)])
    torch.testing.assert_close(values, values[:, :1].expand_as(values))  # one minibatch for all particles
    whole = dist.Normal(0.0, 1.0).log_prob(data).sum() + dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0))
    error = values[:, 0].std() / 300**0.5
    assert error > 0 and abs(values[:, 0].mean() - whole) < 4 * error


def test_branches_on_the_data_are_vectorised_and_hold_for_these_data() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc, 1.0 if float(x) > 0 else 2.0), obs=x)

    log_density = LogDensity(model, torch.tensor(1.0))
    latent = torch.randn(4, 1)
    for x, scale in ((1.0, 1.0), (1.0, 1.0), (-1.0, 2.0), (2.0, 1.0)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            value = log_density.rebind(torch.tensor(x)).value_and_score(latent)[0]
        by_hand = dist.Normal(0.0, 1.0).log_prob(latent[:, 0]) + dist.Normal(latent[:, 0], scale).log_prob(
            torch.tensor(x)
        )
        torch.testing.assert_close(value, by_hand)
    assert log_density.vectorized


def test_a_graph_that_holds_values_of_the_data_knows_them_changed_in_place() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.factor("x", -(loc - float(x)).square())

    x = torch.tensor(1.0)
    log_density, latent = LogDensity(model, x), torch.randn(4, 1)
    log_density.value_and_score(latent)
    x.fill_(3.0)
    value = log_density.value_and_score(latent)[0]
    torch.testing.assert_close(value, dist.Normal(0.0, 1.0).log_prob(latent[:, 0]) - (latent[:, 0] - 3.0).square())
    assert log_density.trace


def test_values_that_are_drawn_are_not_held_by_a_graph() -> None:
    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.factor("noise", loc * int(torch.randint(1000, ())))

    log_density, latent = LogDensity(model), torch.ones(1, 1)
    assert len({log_density.value_and_score(latent)[0].item() for _ in range(5)}) > 1


def test_noise_of_numpy_and_states_of_a_model_are_not_held_by_a_graph() -> None:
    data, runs = torch.arange(100.0), [0]

    def minibatches() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        rows = torch.as_tensor(np.random.choice(100, 3))
        with pyro.plate("data", 100, subsample=rows):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=data[rows])

    def without_effect_at_the_origin() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.factor("noise", loc * random.random())

    def annealed() -> None:
        runs[0] += 1
        with poutine.scale(scale=1.0 - 0.5 ** runs[0]):
            pyro.sample("loc", dist.Normal(0.0, 1.0))

    for model, latent in ((minibatches, 1.0), (without_effect_at_the_origin, 0.0), (annealed, 1.0)):
        log_density = LogDensity(model)
        log_density.value_and_score(torch.full((2, 1), latent))
        assert not log_density.trace and log_density.vectorized
        assert len({log_density.value_and_score(torch.ones(2, 1))[0][0].item() for _ in range(5)}) > 1


HAS_COMPILER = any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name)


@pytest.mark.filterwarnings("ignore:.*deprecated")  # torch's inductor uses what torch has deprecated
@pytest.mark.skipif(
    not (HAS_COMPILER and os.environ.get("PYRO_FLOWS_VI_COMPILE")),
    reason="takes a C++ compiler and a minute: set PYRO_FLOWS_VI_COMPILE=1",
)
def test_compiled_equals_eager() -> None:
    x, y = torch.randn(2, 6, 3), torch.randn(2, 6)
    eager, compiled = LogDensity(regression, x[0], y[0]), LogDensity(regression, x[0], y[0], compile=True)
    latent = points(eager)
    torch.testing.assert_close(compiled.value_and_score(latent), eager.value_and_score(latent))
    eager.rebind(x[1], y[1])
    torch.testing.assert_close(compiled.rebind(x[1], y[1]).value_and_score(latent), eager.value_and_score(latent))


# -- models that are not vectorised ------------------------------------------------------------------


def test_a_branch_on_a_latent_falls_back_with_one_warning() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        scale = 1.0 if loc > 0 else 3.0
        pyro.deterministic("scale", torch.as_tensor(scale))
        pyro.sample("x", dist.Normal(loc, scale), obs=x)

    x = torch.tensor(0.7)
    log_density = LogDensity(model, x)
    latent = torch.tensor([[1.0], [-1.0], [0.5], [-2.0]])
    loc = latent[:, 0].clone().requires_grad_()
    by_hand = dist.Normal(0.0, 1.0).log_prob(loc) + dist.Normal(loc, torch.where(loc > 0, 1.0, 3.0)).log_prob(x)
    (gradient,) = torch.autograd.grad(by_hand.sum(), loc)
    with pytest.warns(UserWarning, match=r"cannot be vectorised.*once per particle") as caught:
        value, score = log_density.value_and_score(latent)
    assert len(caught) == 1
    torch.testing.assert_close(value, by_hand.detach())
    torch.testing.assert_close(score[:, 0], gradient)
    rows = latent.clone().requires_grad_()  # and silently from then on
    torch.testing.assert_close(torch.autograd.grad(log_density(rows).sum(), rows)[0], score)
    torch.testing.assert_close(log_density.constrain(latent)["scale"], torch.tensor([1.0, 3.0, 1.0, 3.0]))


def test_the_first_fall_back_may_be_in_constrain() -> None:
    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.deterministic("sign", torch.tensor(1.0 if loc > 0 else -1.0))

    with pytest.warns(UserWarning, match="cannot be vectorised"):
        values = LogDensity(model).constrain(torch.tensor([[2.0], [-2.0]]))
    assert values["sign"].tolist() == [1.0, -1.0]


def test_an_error_of_the_models_own_is_raised_as_it_is() -> None:
    def model(x: Tensor | None = None) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        if pyro.poutine.runtime.am_i_wrapped() and loc.abs().detach().sum() == 7.0:
            raise KeyError("my own")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(KeyError, match="my own"):
            LogDensity(model)(torch.full((1, 1), 7.0))


def test_a_matrix_without_a_factor_costs_its_particle_only() -> None:
    def model(y: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(5.0, 0.1))
        factor = torch.linalg.cholesky(torch.eye(3) + level * torch.ones(3, 3))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), scale_tril=factor), obs=y)

    y = torch.randn(3)
    good, mixed = torch.tensor([[0.5], [2.0]]), torch.tensor([[0.5], [-3.0], [2.0]])
    for log_density in (LogDensity(model, y), LogDensity(model, y, trace=False)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            first_bad = log_density.value_and_score(mixed)
            value, score = log_density.value_and_score(good)
            again = log_density.value_and_score(mixed)
            assert log_density.vectorized
        covariance = torch.eye(3) + good[:, 0, None, None] * torch.ones(3, 3)
        by_hand = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(y)
        torch.testing.assert_close(value, by_hand + dist.Normal(5.0, 0.1).log_prob(good[:, 0]))
        for found in (first_bad, again):
            assert found[0].isnan().tolist() == found[1][:, 0].isnan().tolist() == [False, True, False]
            torch.testing.assert_close(found[0][[0, 2]], value)
            torch.testing.assert_close(found[1][[0, 2]], score)
        assert log_density.vectorized


# -- parameters of the model -------------------------------------------------------------------------


def test_gradients_reach_the_parameters_of_a_model() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.3))
        scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        z = pyro.sample("z", dist.Normal(loc, scale))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    log_density = LogDensity(model, torch.tensor(0.5))
    assert log_density.has_parameters and len(log_density.parameters()) == 2
    latent = torch.randn(4, 1)
    log_density(latent).sum().backward()
    loc, log_scale = torch.tensor(0.3, requires_grad=True), torch.tensor(2.0).log().requires_grad_()
    dist.Normal(loc, log_scale.exp()).log_prob(latent[:, 0]).sum().backward()
    gradients = {round(p.item(), 3): p.grad for p in log_density.parameters()}
    torch.testing.assert_close(gradients, {0.3: loc.grad, round(log_scale.item(), 3): log_scale.grad})
    with torch.no_grad():
        pyro.get_param_store()._params["loc"].add_(1.0)
    by_hand = dist.Normal(1.3, 2.0).log_prob(latent[:, 0]) + dist.Normal(latent[:, 0], 1.0).log_prob(torch.tensor(0.5))
    torch.testing.assert_close(log_density.value_and_score(latent)[0], by_hand)  # no stale graph


# -- improper priors ---------------------------------------------------------------------------------


def test_improper_priors() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.ImproperUniform(constraints.real, (), ()))
        scale = pyro.sample("scale", dist.ImproperUniform(constraints.positive, (), ()))
        w = pyro.sample("w", dist.ImproperUniform(constraints.simplex, (), (3,)))
        with pyro.plate("groups", 2):
            v = pyro.sample("v", dist.ImproperUniform(constraints.real, (), ()))
        pyro.sample("x", dist.Normal(loc + w[0] + v.sum(), scale).expand(x.shape).to_event(1), obs=x)

    x = torch.randn(6)
    log_density = LogDensity(model, x)
    assert [site.shape for site in log_density.layout] == [(), (), (3,), (2,)]
    torch.testing.assert_close(log_density.initial(), torch.zeros(6))
    u = points(log_density)
    v = log_density.constrain(u)
    to_simplex = biject_to(constraints.simplex)
    loc = v["loc"] + v["w"][:, 0] + v["v"].sum(-1)
    by_hand = dist.Normal(loc[:, None], v["scale"][:, None]).log_prob(x).sum(-1) + u[:, 1]
    by_hand = by_hand + to_simplex.log_abs_det_jacobian(u[:, 2:4], to_simplex(u[:, 2:4]))
    torch.testing.assert_close(log_density.value_and_score(u)[0], by_hand)


# -- bad input ---------------------------------------------------------------------------------------


def test_a_model_without_latents() -> None:
    with pytest.raises(ValueError, match=r"no latent sites.*expected at least one"):
        LogDensity(lambda: pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0)))


def test_discrete_latents() -> None:
    def model() -> None:
        pyro.sample("p", dist.Beta(1.0, 1.0))
        pyro.sample("kind", dist.Categorical(torch.ones(3) / 3))

    with pytest.raises(ValueError, match=r"'kind' is discrete.*enumerate"):
        LogDensity(model)


def test_unsupported_supports() -> None:
    with pytest.raises(ValueError, match=r"'direction' has the support .*reparametrise"):
        LogDensity(lambda: pyro.sample("direction", dist.ProjectedNormal(torch.ones(2))))


def test_observed_nan() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("height", dist.Normal(loc, 1.0).expand(x.shape).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"'height' holds 2 NaN among 3 values.*mask"):
        LogDensity(model, torch.tensor([1.0, torch.nan, torch.nan]))


def test_structure_that_changes_from_run_to_run() -> None:
    runs = iter(range(100))

    def model() -> None:
        size = 2 + next(runs) % 2
        pyro.sample("w", dist.Normal(torch.zeros(size), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"structure changes.*'w' had the shapes \[\(2,\), \(3,\)\]"):
        LogDensity(model)


@pytest.mark.parametrize("first", [True, False])
def test_structure_that_depends_on_a_latent_is_found_when_it_changes(first: bool) -> None:
    def model() -> None:
        a = pyro.sample("a", dist.Normal(8.0 if first else -8.0, 1.0))
        if a > 0:
            pyro.sample("b", dist.Normal(0.0, 1.0))

    log_density = LogDensity(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="'b' is not there in every run"):
            log_density(torch.cat([torch.ones(1, log_density.latent_dim), -torch.ones(1, log_density.latent_dim)]))


def test_wrong_shapes_at_the_door() -> None:
    log_density = LogDensity(*MODELS["factors"])
    latent = torch.zeros(log_density.latent_dim)
    for wrong in (latent, latent[None, :-1], latent[None][:0]):
        for call in (log_density, log_density.value_and_score, log_density.constrain, log_density.log_likelihood):
            with pytest.raises(ValueError, match=r"expected latents of shape \(n, 5\)"):
                call(wrong)
    values = {name: v[0] for name, v in log_density.constrain(latent[None]).items()}
    with pytest.raises(ValueError, match="got none for z1"):
        log_density.unconstrain({k: v for k, v in values.items() if k != "z1"})
    with pytest.raises(ValueError, match=r"'w' to have the shape \(2,\), got \(3,\)"):
        log_density.unconstrain({**values, "w": torch.zeros(3)})


def test_a_start_without_density_names_the_sites() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("count", dist.Poisson(loc.square() + 1.0), obs=x)
        pyro.sample("fine", dist.Normal(loc, 1.0), obs=x)

    log_density = LogDensity(model, torch.tensor(-torch.inf))
    assert log_density.blame(torch.zeros(1)) == ["count", "fine"]
    with pytest.raises(ValueError, match=r"'count', 'fine' is not finite at 50 different starts.*init_loc_fn"):
        require_finite_start(log_density, torch.zeros(1))


def test_a_start_is_moved_to_where_there_is_density() -> None:
    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(loc > 0.5, 0.0, -torch.inf))

    log_density = LogDensity(model)
    found = require_finite_start(log_density, torch.zeros(1))
    assert found > 0.5 and log_density(found[None]).isfinite()


def test_labels_name_every_coordinate() -> None:
    layout = LogDensity(*MODELS["factors"]).layout
    assert layout.labels() == ["w[0]", "w[1]", "z0", "z1", "z2"]
    assert "w" in layout and "nothing" not in layout
    assert layout.latent_dim == 5


def test_construction_and_use_leave_handlers_and_parameters_alone() -> None:
    model, data = MODELS["plates"]
    with poutine.trace() as outer:
        log_density = LogDensity(model, data)
        log_density.value_and_score(points(log_density))
        log_density.constrain(points(log_density))
    assert not [name for name in outer.trace.nodes if not name.startswith("_")]
    assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize("trace", [True, False])
def test_modules_in_a_model_leave_no_graph(trace: bool) -> None:
    net = torch.nn.Linear(2, 1)

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("net", net(z).sum())

    density = LogDensity(model, trace=trace)
    for _ in range(2):  # the first call traces
        value, score = density.value_and_score(torch.randn(3, 2))
        assert not value.requires_grad and not score.requires_grad
