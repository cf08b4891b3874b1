"""Defects known of the flows that ship with Pyro 1.9.2, one test each: none of them may show here."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import ComposeTransformModule, iterated
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow

from pyro_flows_vi import flows
from pyro_flows_vi import transforms as T
from pyro_flows_vi.testing import randomize

FACTORIES = {
    "planar": T.planar,
    "radial": T.radial,
    "sylvester": T.sylvester,
    "affine_autoregressive": T.affine_autoregressive,
    "neural_autoregressive": T.neural_autoregressive,
    "block_autoregressive": T.block_autoregressive,
    "householder": T.householder,
    "residual": T.residual,
}
CONDITIONAL = {
    "planar": T.conditional_planar,
    "radial": T.conditional_radial,
    "sylvester": T.conditional_sylvester,
    "affine_autoregressive": T.conditional_affine_autoregressive,
    "neural_autoregressive": T.conditional_neural_autoregressive,
    "block_autoregressive": T.conditional_block_autoregressive,
    "householder": T.conditional_householder,
    "residual": T.conditional_residual,
}
every_flow = pytest.mark.parametrize("name", FACTORIES)


def normal(n: int) -> dist.Distribution:
    return dist.Normal(torch.zeros(n), torch.ones(n)).to_event(1)


def autograd_log_det(flow: T.Flow, x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.slogdet(torch.autograd.functional.jacobian(lambda v: flow(v), x))[1]


def model() -> None:
    with pyro.plate("p", 3):
        pyro.sample("x", dist.Normal(torch.tensor([1.0, 2.0, 3.0]), 1.0))


def fit(guide: AutoNormalizingFlow, steps: int, particles: int = 16) -> list[float]:
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), elbo)
    return [svi.step() for _ in range(steps)]


# -- wrong densities -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.01, 0.5, 1.0, 2.0])
def test_1_sylvester_log_det(scale: float) -> None:
    flow = randomize(T.sylvester(4, 2).double(), scale)
    x = torch.randn(4, dtype=torch.float64)
    torch.testing.assert_close(flow.log_abs_det_jacobian(x, flow(x)), autograd_log_det(flow, x))


def test_1_sylvester_never_folds_the_plane() -> None:
    for seed in range(100):
        torch.manual_seed(seed)
        flow = randomize(T.sylvester(2, 1).double(), 1.5)
        x = 2.0 * torch.randn(50, 2, dtype=torch.float64)
        jacobian = torch.func.vmap(torch.func.jacrev(lambda v: flow.forward_and_log_det(v)[0]))(x)  # noqa: B023
        assert (torch.linalg.det(jacobian) > 0).all()


def test_2_sylvester_with_saturated_diagonals_is_finite() -> None:
    flow = T.Sylvester(2, form="triangular")
    with torch.no_grad():
        flow.params.get_parameter("r").copy_(torch.diag(torch.full((2,), 20.0)))
        flow.params.get_parameter("inner_diagonal").fill_(-20.0)
        flow.params.get_parameter("b").zero_()
    assert flow.forward_and_log_det(torch.zeros(2))[1].isfinite()


def test_3_planar_saturated_or_without_direction_is_finite() -> None:
    flow = T.planar(2)
    with torch.no_grad():
        flow.params.get_parameter("w").copy_(torch.tensor([[1.0, 0.0]]))
        flow.params.get_parameter("u").copy_(torch.tensor([[-120.0, 0.0]]))
    assert flow.forward_and_log_det(torch.zeros(2))[1].isfinite()
    with torch.no_grad():
        flow.params.get_parameter("w").zero_()
    y, log_det = flow.forward_and_log_det(torch.randn(2))
    assert y.isfinite().all() and log_det == 0
    log_det.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in flow.parameters())


@every_flow
def test_4_log_det_is_of_its_arguments(name: str) -> None:
    flow = FACTORIES[name](2)
    x, other = torch.randn(2), torch.randn(5, 2)
    y = flow(x)
    before = flow.log_abs_det_jacobian(x, y)
    flow(other)
    assert torch.equal(flow.log_abs_det_jacobian(x, y), before)


@every_flow
def test_5_nothing_saturates_in_float32(name: str) -> None:
    flow = FACTORIES[name](2)
    x = torch.tensor([[0.0], [20.0], [40.0], [100.0], [1e4]]).expand(5, 2)
    y, log_det = flow.forward_and_log_det(x)
    single = FACTORIES[name](1) if name != "householder" else T.planar(1)
    line = torch.linspace(-1e3, 1e3, 401)[:, None]
    image = single.forward_and_log_det(line)[0]
    assert (image.diff(dim=0) > 0).all()
    assert y.isfinite().all() and log_det.isfinite().all()
    assert (y[1:] - y[:-1]).norm(dim=-1).min() > 1.0


@pytest.mark.parametrize("residual", [None, "normal", "gated"])
def test_7_block_autoregressive_is_onto(residual: str | None) -> None:
    flow = T.block_autoregressive(2, residual=residual)
    for sign in (-1.0, 1.0):
        assert (sign * flow(torch.full((2,), sign * 1e6)) > 1e3).all()


# -- inverses --------------------------------------------------------------------------------------------


@every_flow
def test_11_every_flow_has_an_inverse(name: str) -> None:
    flow = FACTORIES[name](3).double().eval()
    y = torch.randn(20, 3, dtype=torch.float64)
    torch.testing.assert_close(flow(flow.inv(y).clone()), y)


@every_flow
def test_12_inverse_in_float64(name: str) -> None:
    flow = FACTORIES[name](3).double()
    assert flow.inv(torch.randn(3, dtype=torch.float64)).dtype == torch.float64


# -- the cache -------------------------------------------------------------------------------------------


@every_flow
def test_13_a_score_after_sample_has_its_gradient(name: str) -> None:
    flow = FACTORIES[name](2)
    law = dist.TransformedDistribution(normal(2), [flow])
    y = law.sample((8,))
    if name != "householder":
        assert law.log_prob(y).requires_grad
    torch.testing.assert_close(law.log_prob(y), law.log_prob(y.clone()), atol=1e-4, rtol=1e-4)


@every_flow
def test_14_a_loop_over_fixed_data_steps_twice(name: str) -> None:
    flow = FACTORIES[name](2)
    law = dist.TransformedDistribution(normal(2), [flow.inv])
    x, optimiser = torch.randn(10, 2), torch.optim.Adam(flow.parameters())
    for _ in range(3):
        optimiser.zero_grad()
        (-law.log_prob(x).mean() + 0.0 * sum(p.sum() for p in flow.parameters())).backward()
        optimiser.step()


def test_14_a_second_backward_through_a_kept_sample_of_data() -> None:
    flow, x = T.planar(2), torch.randn(10, 2)
    y = flow(x)
    y.sum().backward()
    flow.log_abs_det_jacobian(x, y).sum().backward()  # computed anew, since that graph is spent


@every_flow
@torch.no_grad()
def test_15_the_score_is_fresh_after_an_update(name: str) -> None:
    flow, x = FACTORIES[name](2).eval(), torch.randn(10, 2)
    law = dist.TransformedDistribution(normal(2), [flow.inv])
    law.log_prob(x)
    y = flow(x)
    randomize(flow, 0.5)
    torch.testing.assert_close(law.log_prob(x), law.log_prob(x.clone()))
    torch.testing.assert_close(flow.log_abs_det_jacobian(x, y), flow.forward_and_log_det(x)[1])


@pytest.mark.parametrize("change", ["fused", "data"])
def test_15_the_score_is_fresh_after_a_change_that_raises_no_version(change: str) -> None:
    flow, x = flows.build("iaf", 2), torch.randn(10, 2)
    y = flow(x)
    if change == "fused":
        optimiser = torch.optim.Adam(flow.parameters(), lr=1.0, fused=True)
        flow.forward_and_log_det(x)[1].sum().backward()
        optimiser.step()
    else:
        for parameter in flow.parameters():
            parameter.data.neg_()
    torch.testing.assert_close(flow.log_abs_det_jacobian(x, y), flow.forward_and_log_det(x)[1])


@every_flow
def test_16_copies_after_a_call(name: str) -> None:
    flow = FACTORIES[name](4)
    small = len(pickle.dumps(flow))
    x = torch.randn(10_000, 4)
    y = flow(x)
    assert len(pickle.dumps(flow)) == small
    assert torch.equal(copy.deepcopy(flow).eval()(x), copy.deepcopy(flow).eval()(x))
    assert y.shape == x.shape


@every_flow
def test_17_no_batch_and_no_graph_outlives_its_user(name: str) -> None:
    flow = FACTORIES[name](3)
    gc.collect()
    gc.disable()  # reference counts alone have to do
    try:
        x = torch.randn(1000, 3, requires_grad=True)
        y = flow(x)
        references = [weakref.ref(y), weakref.ref(x)]
        del x, y
        assert [r() for r in references] == [None, None]
        law = dist.TransformedDistribution(normal(3), [flow.inv])
        data = torch.randn(1000, 3)
        references = [weakref.ref(data)]
        law.log_prob(data)
        del data
        assert references[0]() is None
    finally:
        gc.enable()


@every_flow
def test_18_with_cache(name: str) -> None:
    flow = FACTORIES[name](3)
    assert flow.with_cache(0) is flow
    composed = ComposeTransformModule([flow, FACTORIES[name](3)], cache_size=1)
    assert composed(torch.randn(5, 3)).shape == (5, 3)


# -- modules ---------------------------------------------------------------------------------------------


@every_flow
def test_19_the_inverse_keeps_its_parameters(name: str) -> None:
    flow = FACTORIES[name](3)
    count = len(list(flow.parameters()))
    assert count > 0
    for module in (flow.inv, ComposeTransformModule([flow.inv]), T.Compose([flow.inv]), T.Compose([flow]).inv):
        assert len(list(module.parameters())) == count
    reloaded = FACTORIES[name](3)
    reloaded.inv.load_state_dict(flow.inv.state_dict())
    x = torch.randn(5, 3)
    torch.testing.assert_close(reloaded.eval()(x), flow.eval()(x))


def test_19_a_guide_of_an_inverse_is_trained() -> None:
    guide = AutoNormalizingFlow(model, lambda d: T.affine_autoregressive(d).inv)
    fit(guide, 3)
    assert len(pyro.get_param_store().keys()) > 0


def test_20_a_chain_is_one_list() -> None:
    parts = [T.planar(2), T.permute(2, torch.tensor([1, 0])), T.planar(2)]
    chain = T.Compose(parts)
    assert len(chain) == 3 and list(chain) == parts
    assert [type(part) for part in chain[:2]] == [T.Planar, T.Permute]


@every_flow
def test_21_device_follows_the_input(name: str) -> None:
    flow = FACTORIES[name](3).eval().to("meta")
    assert flow(torch.randn(5, 3, device="meta")).device.type == "meta"


@every_flow
def test_22_bfloat16(name: str) -> None:
    flow = FACTORIES[name](4).eval().to(torch.bfloat16)
    assert flow(torch.randn(5, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


@every_flow
def test_23_vmap(name: str) -> None:
    flow = FACTORIES[name](4).eval()
    x = torch.randn(5, 4)
    torch.testing.assert_close(torch.func.vmap(flow)(x), flow(x))


@every_flow
def test_24_the_sign_of_a_one_dimensional_flow(name: str) -> None:
    flow = randomize(FACTORIES[name](1).double().eval(), 0.5)
    y = flow(torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None])
    assert (flow.sign * y.diff(dim=0) > 0).all()
    assert flow.inv.sign == T.Compose([flow]).sign == flow.sign
    with pytest.raises(ValueError, match="input_dim=1"):
        _ = FACTORIES[name](2).sign


# -- contexts --------------------------------------------------------------------------------------------


def test_6_normalisation_knows_no_batch() -> None:
    flow = randomize(flows.build("actnorm", 3, num_transforms=1), 0.5)
    x = torch.randn(5, 3)
    y, log_det = flow.forward_and_log_det(x)
    alone = [flow.forward_and_log_det(row[None]) for row in x]
    torch.testing.assert_close(torch.cat([part for part, _ in alone]), y)
    torch.testing.assert_close(torch.cat([part for _, part in alone]), log_det)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_8_a_linear_flow_is_inverted_at_any_norm(scale: float) -> None:
    flow = randomize(flows.build("lu", 4, num_transforms=1).double(), scale)
    x = torch.randn(7, 4, dtype=torch.float64)
    torch.testing.assert_close(flow.inverse_and_log_det(flow.forward_and_log_det(x)[0])[0], x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spline", ["rational-quadratic", "quadratic", "linear", "cubic"])
def test_9_splines_in_float32_with_steep_bins(spline: str) -> None:
    flow = randomize(flows.build("nsf", 1, num_transforms=1, spline=spline), 3.0)
    x = torch.linspace(-4.0, 4.0, 2001)[:, None]
    y, log_det = flow.forward_and_log_det(x)
    back = flow.inverse_and_log_det(y)[0]
    assert bool((y.diff(dim=0) >= 0).all() & back.isfinite().all())
    resolution = 1e-5 * (1.0 + y.abs() + x.abs()) * (1.0 + torch.exp(-log_det)[:, None])  # what y's digits know of x
    assert bool(((back - x).abs() <= resolution).all())


def test_10_a_polynomial_starts_near_the_identity() -> None:
    x = torch.randn(200, 4)
    y, log_det = flows.build("sos", 4).forward_and_log_det(x)
    assert (y - x).abs().median() < 0.01
    assert abs((0.5 * (y.square() - x.square()).sum(-1) - log_det).mean().item()) < 0.2  # of a loss of about 2


@pytest.mark.parametrize("name", ["lu", "glow"])
def test_27_log_det_with_a_batch_of_contexts(name: str) -> None:
    flow = randomize(flows.build(name, 4, context_dim=2, num_transforms=1), 0.1)
    y, log_det = flow.forward_and_log_det(torch.randn(4), torch.randn(3, 2, 2))
    assert y.shape == (3, 2, 4) and log_det.shape == (3, 2)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_25_every_context_has_a_draw_of_its_own(name: str) -> None:
    flow = CONDITIONAL[name](4, 3).eval()
    law = dist.ConditionalTransformedDistribution(normal(4), [flow])
    given = law.condition(torch.randn(5, 3))
    assert given.batch_shape == (5,) and given.event_shape == (4,)
    y = given.rsample((2,))
    assert y.shape == (2, 5, 4) and given.log_prob(y).shape == (2, 5)
    same = law.condition(torch.ones(5, 3)).rsample()
    assert len(torch.unique(same[:, 0])) == 5  # one context five times, five draws


@pytest.mark.parametrize("name", CONDITIONAL)
def test_26_a_conditioned_flow_is_a_module_and_gradients_reach_the_context(name: str) -> None:
    flow = CONDITIONAL[name](2, 3)
    context = torch.randn(3, requires_grad=True)
    bound = flow.condition(context)
    assert len(list(bound.parameters())) == len(list(flow.parameters())) > 0
    bound(torch.randn(7, 2)).square().sum().backward()
    assert context.grad is not None and (context.grad != 0).any()


# -- guides ----------------------------------------------------------------------------------------------


def test_30_documented_calls_run() -> None:
    guide = AutoNormalizingFlow(model, partial(iterated, 2, T.block_autoregressive))
    assert all(torch.isfinite(torch.tensor(fit(guide, 2))))


@every_flow
def test_33_a_reloaded_flow_is_the_same_map(name: str) -> None:
    recipe = {"neural_autoregressive": "naf", "affine_autoregressive": "iaf", "block_autoregressive": "bnaf"}
    torch.manual_seed(0)
    flow = flows.build(recipe.get(name, name), 3).eval()
    torch.manual_seed(1)
    fresh = flows.build(recipe.get(name, name), 3).eval()
    fresh.load_state_dict(flow.state_dict())
    x = torch.randn(5, 3)
    torch.testing.assert_close(fresh(x), flow(x))


def test_33_a_random_permutation_is_in_the_state() -> None:
    one, other = T.permute(8), T.permute(8)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.permutation, other.permutation)


@pytest.mark.parametrize("name", [n for n in flows.names() if n not in ("householder", "lu", "actnorm")])
def test_34_a_chain_moves_every_coordinate(name: str) -> None:
    flow = randomize(flows.build(name, 3, num_transforms=4).double().eval(), 0.2)
    x = torch.randn(20, 3, dtype=torch.float64)
    y, _ = flow.forward_and_log_det(x)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: flow.forward_and_log_det(v)[0]))(x)
    assert ((y - x).abs() > 1e-4).any(0).all()
    assert (jacobian.abs().mean(0) > 1e-6).sum() > 3  # and not each by itself


def test_34_a_guide_reaches_every_mean() -> None:
    guide = AutoNormalizingFlow(model, lambda d: flows.build("sylvester", d, num_transforms=2))
    fit(guide, 250)
    mean = torch.stack([guide()["x"] for _ in range(300)]).mean(0)
    torch.testing.assert_close(mean, torch.tensor([1.0, 2.0, 3.0]), atol=0.5, rtol=0.0)


@pytest.mark.parametrize("log_scale", [-20.0, -7.0, 7.0, 20.0])
def test_35_a_scale_has_neither_floor_nor_ceiling(log_scale: float) -> None:
    flow = T.affine_autoregressive(3).double()
    assert flow.net.last is not None
    with torch.no_grad():
        flow.net.last.weight.zero_()
        flow.net.last.bias[3:] = 4.0 * torch.sinh(torch.tensor(log_scale / 4.0, dtype=torch.float64))
    x = torch.randn(10, 3, dtype=torch.float64)
    y, log_det = flow.forward_and_log_det(x)
    torch.testing.assert_close(y, x * torch.tensor(log_scale, dtype=torch.float64).exp())
    torch.testing.assert_close(log_det, torch.full((10,), 3.0 * log_scale, dtype=torch.float64))
    torch.testing.assert_close(flow.inverse_and_log_det(y)[0], x)
