"""AutoFlow and its named kin: what they start as, which models they take, how they are used and kept."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Importance,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal, init_to_value
from pyro.infer.reparam import LocScaleReparam, NeuTraReparam
from torch import Tensor

from pyro_flows_vi import flows, guides
from pyro_flows_vi.guides import AutoFlow, AutoIAF
from pyro_flows_vi.guides._steps import EvenLinear
from pyro_flows_vi.infer import fit
from pyro_flows_vi.transforms import AffineCoupling

FAMILIES = [getattr(guides, name) for name in guides.__all__ if name != "AutoAmortizedFlow"]


def gaussian(data: Tensor) -> Tensor:
    """A mean and its posterior: precision 1 + n, mean sum / (1 + n)."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Normal(loc, 1.0), obs=data)
    return loc


def two_sites() -> None:
    pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("plate", 3):
        pyro.sample("y", dist.LogNormal(0.0, 1.0))


def moving(top: float = 2.0) -> None:
    """The bound of x is another site; that of z is another site and an argument."""
    high = pyro.sample("high", dist.Gamma(4.0, 2.0))
    x = pyro.sample("x", dist.Uniform(0.0, high))
    with pyro.plate("plate", 3):
        z = pyro.sample("z", dist.Uniform(-x, torch.as_tensor(top)))
    pyro.deterministic("gap", high - x)
    pyro.sample("obs", dist.Normal(x + z.sum(-1), 1.0), obs=torch.tensor(1.0))


def train(
    model: Callable[..., Any], guide: Any, *args: Any, steps: int = 3, elbo: Any = None, lr: float = 0.01
) -> list:
    svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), elbo or Trace_ELBO())
    return [svi.step(*args) for _ in range(steps)]


def assert_finite(values: list[float]) -> None:
    assert torch.tensor(values).isfinite().all(), values


# -- the start ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_start(family: type[AutoFlow]) -> None:
    """Parameters after setup; medians at init_loc_fn, standard deviations near init_scale."""
    values = {"x": torch.tensor([3.0, -400.0]), "y": torch.tensor([0.1, 1.0, 20.0])}
    guide = family(two_sites, init_loc_fn=init_to_value(values=values), init_scale=0.01).setup()
    assert guide.transform is not None and sum(p.numel() for p in guide.parameters()) > 0
    for name, median in guide.median().items():
        torch.testing.assert_close(median, values[name], rtol=1e-4, atol=1e-4)
    latent = guide.rsample_and_log_prob(2000)[0]
    assert float(latent.detach().std(0).min()) > 0.008 and float(latent.detach().std(0).max()) < 0.012


def test_options_reach_the_flow() -> None:
    guide = AutoFlow(two_sites, "sylvester", num_transforms=2, form="householder", dense=False).setup()
    assert guide.transform is not None and guide.transform[0].form == "householder"
    assert not guide.affine.dense and len(guide.transform) == 3


@pytest.mark.parametrize(
    "options", [{"flow": "noflow"}, {"hidden": 3}, {"init_scale": 0.0}, {"init_scale": "wide"}, {"num_transforms": 0}]
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        AutoFlow(two_sites, **options)


def test_steps_move_outputs_alike() -> None:
    """The same function as the layer, and one sign step moves it by no more than share * (mean |x| + 1) * lr."""
    layer = torch.nn.Linear(64, 3)
    even = EvenLinear(layer, share=0.25)
    x = torch.rand(5, 64)
    before = even(x)
    torch.testing.assert_close(before, layer(x))
    with torch.no_grad():
        for parameter in even.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(even(x) - before, (0.025 * (x.mean(-1, keepdim=True) + 1)).expand(5, 3))


# -- kinds of models -----------------------------------------------------------------------------------------


class PositiveOrdered(dist.TransformedDistribution):
    """Says that its values are ordered; by the last transform alone they would only be positive."""

    support = dist.constraints.positive_ordered_vector


SUPPORTS = {
    "positive": dist.Gamma(2.0, 1.0),
    "unit interval": dist.Beta(2.0, 3.0),
    "simplex": dist.Dirichlet(torch.ones(4)),
    "correlation": dist.LKJCholesky(3, 2.0),
    "interval": dist.Uniform(-3.0, 7.0),
    "greater than": dist.Pareto(2.0, 3.0),
    "ordered": dist.TransformedDistribution(
        dist.Normal(torch.zeros(3), 1.0).to_event(1), [dist.transforms.OrderedTransform()]
    ),
    "positive ordered": PositiveOrdered(
        dist.Normal(torch.zeros(3), 1.0).to_event(1),
        [dist.transforms.OrderedTransform(), dist.transforms.ExpTransform()],
    ),
    "positive definite": dist.InverseGamma(torch.tensor([2.0, 3.0]), 1.0).to_event(1),
    "circular": dist.VonMises(0.0, 1.0),
    "batch of simplexes": dist.Dirichlet(torch.ones(2, 3)).to_event(1),
}


@pytest.mark.parametrize("kind", SUPPORTS)
def test_supports(kind: str) -> None:
    prior = SUPPORTS[kind]

    def model() -> None:
        value = pyro.sample("value", prior)
        pyro.sample("obs", dist.Normal(value.sum(), 1.0), obs=torch.tensor(1.0))

    guide = AutoIAF(model, init_scale=0.5)
    assert_finite(train(model, guide))
    draws = guide.sample_posterior(50)["value"]
    assert draws.shape == (50, *prior.shape()) and bool(prior.support.check(draws).all())
    assert bool(prior.support.check(guide.median()["value"]).all())
    with torch.no_grad():
        trace = poutine.trace(guide).get_trace()
        trace.compute_log_prob()
        latent = trace.nodes["_AutoIAF_latent"]["value"]
    torch.testing.assert_close(trace.nodes["_AutoIAF_latent"]["log_prob"], guide.log_prob(latent[None])[0])


def test_bounds_that_depend_on_sites() -> None:
    guide = AutoFlow(moving, num_transforms=2, init_scale=0.5)
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    assert_finite(train(moving, guide, elbo=elbo))
    draws = guide.sample_posterior(200)
    assert bool(((draws["x"] > 0) & (draws["x"] < draws["high"])).all())
    assert bool(((-draws["x"][:, None] < draws["z"]) & (draws["z"] < 2.0)).all())
    torch.testing.assert_close(draws["gap"], draws["high"] - draws["x"])
    trace = poutine.trace(guide).get_trace()
    model_trace = poutine.trace(poutine.replay(moving, trace)).get_trace()
    assert torch.isfinite(model_trace.log_prob_sum())  # as the model itself sees them: inside the bounds
    assert guide.median()["x"] < guide.median()["high"]
    quantiles = guide.quantiles([0.1, 0.9])
    exact = guide.sample_posterior(4000)["x"].quantile(torch.tensor([0.1, 0.9]))
    torch.testing.assert_close(quantiles["x"], exact, rtol=0.1, atol=0.05)


def test_bounds_that_depend_on_arguments() -> None:
    guide = AutoFlow(moving, num_transforms=2, init_scale=1.0).setup(torch.tensor(2.0))
    assert float(guide.sample_posterior(200, torch.tensor(50.0))["z"].max()) > 2.0
    predicted = Predictive(moving, guide=guide, num_samples=20)(torch.tensor(50.0))
    assert float(predicted["z"].max()) > 2.0


def test_log_density_of_moving_supports() -> None:
    """With the guide as a proposal, the mean weight of a model without data is 1."""

    def model() -> None:
        high = pyro.sample("high", dist.Uniform(1.0, 2.0))
        pyro.sample("x", dist.Uniform(0.0, high))

    guide = AutoFlow(model, num_transforms=2, init_scale=1.5).setup()
    with torch.no_grad(), pyro.plate("particles", 4000):
        trace = poutine.trace(guide).get_trace()
        model_trace = poutine.trace(poutine.replay(model, trace)).get_trace()
        trace.compute_log_prob()
        model_trace.compute_log_prob()
    log_q = sum(trace.nodes[name]["log_prob"] for name in ("_AutoFlow_latent", "high", "x"))
    weight = (sum(model_trace.nodes[name]["log_prob"] for name in ("high", "x")) - log_q).exp()
    assert abs(float(weight.mean()) - 1.0) < 4.0 * float(weight.std()) / 4000**0.5 < 0.1


def test_plates_masks_scales_and_arguments() -> None:
    def model(x: Tensor, keep: Tensor, weight: float = 1.0) -> None:
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("groups", 2, dim=-2), pyro.plate("rows", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, scale).mask(keep))
            pyro.deterministic("double", 2.0 * z)
            with poutine.mask(mask=keep), poutine.scale(scale=weight):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x, keep = torch.randn(2, 3), torch.rand(2, 3) > 0.3
    guide = AutoFlow(model, num_transforms=2)
    losses = train(model, guide, x, keep, elbo=Trace_ELBO(num_particles=3, vectorize_particles=True))
    assert_finite(losses)
    draws = guide.sample_posterior(7, x, keep)
    assert draws["z"].shape == (7, 2, 3) and "x" not in draws
    torch.testing.assert_close(draws["double"], 2.0 * draws["z"])
    assert guide.sample_posterior(2, x, keep, 0.5)["z"].shape == (2, 2, 3)


def test_sequential_plates() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        for i in pyro.plate("steps", 3):
            x = pyro.sample(f"y_{i}", dist.Normal(x, 1.0).expand([1 + i]).to_event(1))[..., 0]
        pyro.sample("obs", dist.Normal(x, 1.0), obs=torch.tensor(1.0))

    for elbo in (Trace_ELBO(), TraceGraph_ELBO()):
        assert_finite(train(model, AutoIAF(model), elbo=elbo))

    def subsampled() -> None:
        for i in pyro.plate("steps", 3, subsample_size=2):
            pyro.sample(f"y_{i}", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"'y_.' is in the sequential, subsampled plate 'steps'"):
        AutoIAF(subsampled).setup()


def test_reparametrised_model() -> None:
    def model() -> None:
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("schools", 4):
            theta = pyro.sample("theta", dist.Normal(0.0, tau))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=torch.arange(4.0))

    decentred = poutine.reparam(model, {"theta": LocScaleReparam(0.0)})
    guide = AutoFlow(decentred, num_transforms=2)
    assert_finite(train(decentred, guide))
    assert guide.sample_posterior(5)["theta_decentered"].shape == (5, 4)


@pytest.mark.parametrize("other", [AutoDelta, AutoNormal])
def test_part_of_a_list(other: type) -> None:
    guide = AutoGuideList(two_sites)
    guide.append(AutoFlow(poutine.block(two_sites, expose=["x"]), num_transforms=2))
    guide.append(other(poutine.block(two_sites, hide=["x"])))
    guide[0].setup()  # before the list itself has seen the model
    assert_finite(train(two_sites, guide))
    assert set(guide.median()) == {"x", "y"}


def test_discrete_sites_are_enumerated_or_refused() -> None:
    @config_enumerate
    def model(data: Tensor) -> None:
        locs = pyro.sample("locs", dist.Normal(torch.tensor([-2.0, 2.0]), 1.0).to_event(1))
        with pyro.plate("data", len(data)):
            which = pyro.sample("which", dist.Categorical(torch.ones(2)))
            pyro.sample("obs", dist.Normal(locs[which], 1.0), obs=data)

    data = torch.tensor([-2.0, -1.5, 2.0, 2.5])
    with pytest.raises(ValueError, match="which"):
        AutoFlow(model).setup(data)
    guide = AutoFlow(poutine.block(model, hide=["which"]), num_transforms=2)
    assert_finite(train(model, guide, data, elbo=TraceEnum_ELBO(max_plate_nesting=1)))
    assert set(guide.sample_posterior(3, data)) == {"locs"}


def test_models_that_no_guide_fits() -> None:
    with pytest.raises(ValueError, match="no latent sites"):
        AutoFlow(lambda: None).setup()
    guide = AutoFlow(lambda: pyro.sample("p", dist.ProjectedNormal(torch.ones(3))))
    with pytest.raises(ValueError, match="ProjectedNormalReparam"):
        guide.setup()
    assert guide.prototype_trace is None  # and may be tried again


def test_model_with_parameters_of_its_own() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        z = pyro.sample("z", dist.Normal(loc, scale))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = AutoFlow(model, num_transforms=2)
    train(model, guide, torch.tensor(3.0))
    assert pyro.param("loc") != 0.0
    assert copy.deepcopy(guide)(torch.tensor(3.0))["z"].isfinite()


# -- arguments of other shapes -------------------------------------------------------------------------------


def test_data_of_another_size() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = AutoFlow(model, num_transforms=2).setup(torch.randn(4))
    guide(torch.randn(4))
    with pytest.raises(ValueError, match=r"site 'z' of shape \(4,\).* \(6,\)"):
        guide(torch.randn(6))
    with pytest.raises(ValueError, match="site 'z'"):
        guide.sample_posterior(3, torch.randn(6))


def test_minibatches_of_observations_only() -> None:
    guide = AutoFlow(gaussian, num_transforms=2).setup(torch.randn(10))
    for size in (3, 4, 3):
        assert guide(torch.randn(size))["loc"].shape == ()


def test_structure_by_argument() -> None:
    def model(slope: bool) -> None:
        pyro.sample("b", dist.Normal(0.0, 1.0), obs=None if slope else torch.tensor(0.0))
        pyro.sample("a", dist.Normal(0.0, 1.0))

    guide = AutoFlow(model, num_transforms=2).setup(True)
    with pytest.raises(ValueError, match=r"latent site 'b'.*observes it"):
        guide(False)


def test_looks_use_up_no_random_numbers() -> None:
    guide = AutoFlow(gaussian, num_transforms=2).setup(torch.zeros(4))
    torch.manual_seed(0)
    expected = guide(torch.zeros(4))["loc"]
    torch.manual_seed(0)
    assert torch.equal(guide(torch.zeros(7))["loc"], expected)


# -- uses ----------------------------------------------------------------------------------------------------


OBJECTIVES = {
    "Trace": Trace_ELBO(),
    "Trace, vectorised": Trace_ELBO(num_particles=5, vectorize_particles=True),
    "TraceGraph": TraceGraph_ELBO(num_particles=5, vectorize_particles=True),
    "TraceMeanField": TraceMeanField_ELBO(),
    "TraceEnum": TraceEnum_ELBO(num_particles=5, vectorize_particles=True),
    "Renyi": RenyiELBO(alpha=0.5, num_particles=5, vectorize_particles=True),
    "JitTrace": JitTrace_ELBO(num_particles=5, vectorize_particles=True, ignore_jit_warnings=True),
}


@pytest.mark.parametrize("family", [AutoFlow, guides.AutoNAF, guides.AutoIAF])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.filterwarnings("ignore")
def test_objectives(objective: str, family: type[AutoFlow]) -> None:
    data = torch.randn(5)
    elbo = copy.deepcopy(OBJECTIVES[objective])
    elbo.strict_enumeration_warning = False
    guide = family(gaussian, num_transforms=1)
    assert_finite(train(gaussian, guide, data, elbo=elbo))
    assert all(p.grad is None or p.grad.isfinite().all() for p in guide.parameters())


def test_recovers_a_gaussian_posterior() -> None:
    data = torch.tensor([1.0, 2.0, 3.0])
    guide = AutoFlow(gaussian, num_transforms=1)
    elbo = Trace_ELBO(num_particles=32, vectorize_particles=True)
    train(gaussian, guide, data, steps=120, elbo=elbo, lr=0.05)
    low, mid, high = guide.quantiles([0.158655, 0.5, 0.841345])["loc"]
    assert abs(float(mid) - 1.5) < 0.1 and abs(float(high - low) / 2 - 0.5) < 0.07


def test_predictive_in_parallel() -> None:
    data = torch.randn(5)
    guide = AutoFlow(gaussian, num_transforms=2).setup(data)
    one = Predictive(gaussian, guide=guide, num_samples=4, return_sites=["loc", "obs"])(data)
    all_at_once = Predictive(gaussian, guide=guide, num_samples=4, parallel=True, return_sites=["loc", "obs"])(data)
    assert one["obs"].shape == all_at_once["obs"].shape == (4, 5)


def test_neutra() -> None:
    data = torch.tensor([1.0, 2.0, 3.0])
    guide = AutoFlow(gaussian, num_transforms=1, init_scale=0.5).setup(data)
    neutra = NeuTraReparam(guide.requires_grad_(False))
    nuts = NUTS(
        poutine.reparam(gaussian, config=lambda _: neutra),
        max_tree_depth=2,
        step_size=0.7,
        adapt_step_size=False,
        adapt_mass_matrix=False,
    )
    mcmc = MCMC(nuts, num_samples=60, warmup_steps=20, disable_progbar=True)
    mcmc.run(data)
    loc = neutra.transform_sample(mcmc.get_samples()["loc_shared_latent"])["loc"]
    assert abs(float(loc.mean()) - 1.5) < 0.5 and 0.2 < float(loc.std()) < 0.9


def test_importance() -> None:
    data = torch.tensor([1.0, 2.0])
    guide = AutoFlow(
        gaussian, num_transforms=2, init_loc_fn=init_to_value(values={"loc": torch.tensor(1.0)}), init_scale=0.6
    )
    evidence = dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + 1.0).log_prob(data)
    got = Importance(gaussian, guide.setup(data), num_samples=100).run(data).get_log_normalizer()
    assert abs(float(got - evidence)) < 0.2


def test_quantiles_of_draws() -> None:
    guide = AutoIAF(two_sites, init_scale=0.7).setup()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    levels = [0.1, 0.5, 0.9]
    quantiles, draws = guide.quantiles(levels), guide.sample_posterior(20000)
    for name, value in draws.items():
        torch.testing.assert_close(quantiles[name], value.quantile(torch.tensor(levels), dim=0), rtol=0.05, atol=0.05)
    with pytest.raises(ValueError, match="between 0 and 1"):
        guide.quantiles([1.5])
    with pytest.raises(ValueError, match="num_samples"):
        guide.sample_posterior(0)


# -- keeping ---------------------------------------------------------------------------------------------------


def trained(family: type[AutoFlow] = AutoFlow) -> AutoFlow:
    guide = family(two_sites, num_transforms=2)
    train(two_sites, guide, steps=2)
    return guide


def same_draws(one: AutoFlow, two: AutoFlow) -> bool:
    draws = []
    for guide in (one, two):
        torch.manual_seed(3)
        draws.append(guide()["y"])
    return torch.equal(*draws)


@pytest.mark.parametrize("family", FAMILIES)
def test_state_dict(family: type[AutoFlow]) -> None:
    guide = trained(family)
    fresh = family(two_sites, num_transforms=2).setup()
    assert not same_draws(fresh, guide)
    fresh.load_state_dict(guide.state_dict())
    assert same_draws(fresh, guide)
    with pytest.raises(ValueError, match="setup"):
        family(two_sites).load_state_dict(guide.state_dict())


@pytest.mark.parametrize("family", [AutoFlow, AutoIAF])
def test_pickle(family: type[AutoFlow]) -> None:
    guide = trained(family)
    loaded = pickle.loads(pickle.dumps(guide))
    assert same_draws(loaded, guide)
    assert guide.model is not None and guide.sample_posterior(2)["x"].shape == (2, 2)  # the first is as it was
    buffer = io.BytesIO()
    torch.save(guide, buffer)
    buffer.seek(0)
    assert same_draws(torch.load(buffer, weights_only=False), guide)
    with pytest.raises(ValueError, match="does not hold the model"):
        loaded.sample_posterior(2)


def test_pickles_hold_no_data() -> None:
    sizes = [len(pickle.dumps(AutoFlow(gaussian, num_transforms=2).setup(torch.randn(n)))) for n in (10, 100_000)]
    assert abs(sizes[1] - sizes[0]) < 1000


def test_deepcopy() -> None:
    guide = trained()
    clone = copy.deepcopy(guide)
    assert same_draws(clone, guide)
    assert clone.model is guide.model and not {id(p) for p in clone.parameters()} & {id(p) for p in guide.parameters()}
    assert clone.sample_posterior(2)["x"].shape == (2, 2)


def test_dtype_and_device() -> None:
    guide = trained().double()
    draws, log_q = guide.rsample_and_log_prob(3)
    assert draws.dtype == log_q.dtype == guide.median()["x"].dtype == guide()["y"].dtype == torch.float64
    assert guide.to(torch.float32)()["y"].dtype == torch.float32
    assert all(t.device.type == "meta" for t in copy.deepcopy(guide).to("meta").state_dict().values())


# -- hierarchies ---------------------------------------------------------------------------------------


def funnel() -> None:
    """Neal's: nine children whose scale is the exponential of their parent. There are no data; the evidence is 1."""
    v = pyro.sample("v", dist.Normal(0.0, 1.5))
    with pyro.plate("children", 9):
        pyro.sample("x", dist.Normal(0.0, (0.5 * v).exp()))


def two_levels(y: Tensor) -> None:
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("regions", 2):
        level = pyro.sample("level", dist.Normal(0.0, spread))
        with pyro.plate("towns", 5):
            town = pyro.sample("town", dist.Normal(level, 1.0))
            pyro.sample("y", dist.Normal(town, noise), obs=y)


def random_walk() -> None:
    x = torch.zeros(())
    for t in range(9):
        x = pyro.sample(f"x{t}", dist.Normal(x, 1.0))


@pytest.mark.parametrize(
    ("model", "args", "parents"),
    [
        (funnel, (), [0]),
        (two_levels, (torch.randn(5, 2),), [0, 2, 3]),  # spread, and level of both regions; not the noise of the data
        (two_sites, (), None),
        (random_walk, (), None),  # all but the last are parents: there is hardly a rest
    ],
)
def test_the_last_coupling_of_a_hierarchy_is_from_the_parents_to_the_rest(
    model: Callable[..., None], args: tuple[Tensor, ...], parents: list[int] | None
) -> None:
    guide = AutoFlow(model).setup(*args)
    assert len(guide.transform[:-1]) == (8 if parents is None else 5)
    last = guide.transform[-2]
    if parents is None:
        parents = AutoFlow(model, num_transforms=8).setup(*args).transform[7].order[: last.num_given].tolist()
    assert last.order[: last.num_given].tolist() == parents
    assert len(AutoFlow(model, num_transforms=3).setup(*args).transform[:-1]) == 3


def test_a_model_that_cannot_be_run_with_gradients_has_no_parents() -> None:
    def model() -> None:
        v = pyro.sample("v", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(torch.as_tensor(v.numpy()), 1.0).expand([4]).to_event(1))

    assert len(AutoFlow(model).setup().transform[:-1]) == 8


def test_a_funnel_is_met_in_its_whole_length() -> None:
    pyro.set_rng_seed(3)
    guide = AutoFlow(funnel)
    result = fit(funnel, guide, seed=0, progress=False, max_steps=600)
    assert -0.05 < result.elbo < 0.01
    v = guide.sample_posterior(20_000)["v"]
    assert abs(float(v.mean())) < 0.06 and abs(math.log(float(v.std()) / 1.5)) < 0.05


def gamma_posterior(count: Tensor) -> None:
    """The rate that a count of 0 leaves at Gamma(1/2, 2), with evidence 2^(-1/2)."""
    rate = pyro.sample("rate", dist.Gamma(0.5, 1.0))
    pyro.sample("count", dist.Poisson(rate), obs=count)


def test_a_single_latent_may_have_any_form() -> None:
    """Couplings have nothing to look at there: the default is a spline, unless another flow is asked for."""
    count = torch.tensor(0.0)
    guide = AutoFlow(gamma_posterior)
    result = fit(gamma_posterior, guide, count, seed=0, progress=False, max_steps=600)
    assert abs(result.elbo + 0.5 * math.log(2.0)) < 2e-3
    rate = guide.sample_posterior(50_000, count)["rate"]
    assert abs(float(rate.mean()) - 0.25) < 0.01 and abs(math.log(float(rate.std()) / math.sqrt(0.125))) < 0.05
    assert guide.flow_name == "nsf"
    for chosen in (AutoFlow(gamma_posterior, "realnvp"), AutoFlow(gamma_posterior, num_transforms=3)):
        assert isinstance(chosen.setup(count).transform[0], AffineCoupling)
    assert isinstance(AutoFlow(two_sites).setup().transform[0], AffineCoupling)


@pytest.mark.parametrize("dim", [2, 3, 9, 10, 17, 100])
def test_couplings_split_into_halves_or_every_other_coordinate(dim: int) -> None:
    def given(**options: Any) -> list[int]:
        step = AffineCoupling(dim, **options)
        return step.order[: step.num_given].tolist()

    assert given() == list(range(-(-dim // 2))) and given(step=1) == list(range(-(-dim // 2), dim))
    assert given(interleaved=True) == list(range(0, dim, 2)) and given(step=1, interleaved=True) == list(
        range(1, dim, 2)
    )
    for interleaved in (False, True):
        splits = [set(given(step=k, interleaved=interleaved)) for k in range(2 * math.ceil(math.log2(dim)))]
        for i, j in itertools.permutations(range(dim), 2):
            assert any(i in split and j not in split for split in splits)


@pytest.mark.parametrize("given", [[0, 0], [3], [0, 1, 2], [-1], [True], 1])
def test_a_split_that_cannot_be_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="given"):
        flows.build("realnvp", 3, given=given)
