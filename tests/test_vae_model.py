"""The VAE's pieces: gated networks, likelihoods, the flow posterior, and Pyro against the plain tensors."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyro_flows_vi import flows
from pyro_flows_vi.nets.gated import GatedConvDecoder, GatedConvEncoder, GatedLinear, GatedMLP
from pyro_flows_vi.vae import (
    VAE,
    Bernoulli,
    Categorical,
    FlowPosterior,
    Gaussian,
    Likelihood,
    build_vae,
    protocol,
    row,
)

FLOWS = {
    "none": None,
    "planar": {"num_transforms": 2},
    "sylvester": {"num_transforms": 2, "form": "householder"},
    "iaf": {"num_transforms": 2, "gated": True},
    "naf": {"num_transforms": 2, "width": 4},
    "residual": {"num_transforms": 2},
}


def posterior(name: str = "planar", pixels: int = 6, latent: int = 3, **options: str) -> FlowPosterior:
    """A small posterior in float64, away from its initialisation."""
    settings = FLOWS[name]
    flow = None if settings is None else flows.build(name, latent, context_dim=5, **settings)  # type: ignore[arg-type]
    result = FlowPosterior(GatedMLP(pixels, [5]), 5, latent, flow, **options).double()
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.normal_(0.0, 0.5)
    return result


def small_vae(name: str = "planar", **options: object) -> VAE:
    return VAE(posterior(name), nn.Linear(3, 6).double(), **options)  # type: ignore[arg-type]


def binary(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64).round()


# -- networks ---------------------------------------------------------------------------------------------


def test_gated_linear_is_linear_times_sigmoid() -> None:
    layer = GatedLinear(4, 3)
    x = torch.randn(7, 4)
    w, v = layer.linear.weight.chunk(2)
    b, c = layer.linear.bias.chunk(2)
    assert torch.allclose(layer(x), (x @ w.T + b) * torch.sigmoid(x @ v.T + c), atol=1e-6)


@pytest.mark.parametrize("shape", [(28, 28), (28, 20), (8, 8)])
@pytest.mark.parametrize("batch", [(3,), (2, 3)])
def test_gated_convolutions_have_the_published_sizes(shape: tuple[int, int], batch: tuple[int, ...]) -> None:
    pixels = shape[0] * shape[1]
    assert GatedConvEncoder(shape, 256)(torch.zeros(*batch, pixels)).shape == (*batch, 256)
    assert GatedConvDecoder(64, shape)(torch.zeros(*batch, 64)).shape == (*batch, pixels)


def test_conv_decoder_keeps_a_pixels_numbers_together() -> None:
    decoder = GatedConvDecoder(2, (4, 4), params_per_pixel=3)
    with torch.no_grad():
        last = decoder.layers[-1]
        last.weight.zero_()  # type: ignore[operator, union-attr]
        last.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))  # type: ignore[operator, union-attr]
    assert torch.equal(decoder(torch.randn(2)), torch.tensor([1.0, 2.0, 3.0]).repeat(16))


def test_conv_networks_say_what_size_they_need() -> None:
    with pytest.raises(ValueError, match="multiples of 4, got 27 x 28"):
        GatedConvEncoder((27, 28))


# -- likelihoods ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "likelihood", [Bernoulli(), Categorical(5), Gaussian(), Gaussian(0.3)], ids=lambda v: type(v).__name__
)
def test_log_prob_is_that_of_the_distribution(likelihood: Likelihood) -> None:
    params = torch.randn(4, 3, likelihood.num_params(6), dtype=torch.float64)
    x = likelihood.sample(params[0])
    likelihood.check(x)
    expected = likelihood.distribution(params).log_prob(likelihood.observed(x))
    assert expected.shape == (4, 3)
    assert torch.allclose(likelihood.log_prob(params, x), expected)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Categorical(5), Gaussian()], ids=lambda v: type(v).__name__)
def test_mean_is_that_of_the_samples(likelihood: Likelihood) -> None:
    params = torch.randn(likelihood.num_params(3), dtype=torch.float64)
    draws = likelihood.sample(params.expand(20_000, -1))
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - likelihood.mean(params)).abs() < 5 * error).all()


def test_categorical_default_has_256_levels() -> None:
    assert Categorical().num_params(560) == 560 * 256


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, 1.1])
@pytest.mark.parametrize("likelihood", [Bernoulli(), Categorical()], ids=lambda v: type(v).__name__)
def test_pixels_out_of_range(likelihood: Likelihood, bad: float) -> None:
    x = torch.zeros(2, 3)
    x[1, 2] = bad
    with pytest.raises(ValueError, match="expects pixels between 0 and 1, got values from"):
        likelihood.check(x)


@pytest.mark.parametrize("levels", [2.5, 1, True, "256"])
def test_levels_are_an_integer_of_at_least_two(levels: Any) -> None:
    with pytest.raises(ValueError, match="expected levels to be an integer of at least 2, got"):
        Categorical(levels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_between_two_levels(dtype: torch.dtype) -> None:
    grid = torch.arange(256, dtype=dtype) / 255
    Categorical().check(grid)
    Categorical(17).check(torch.arange(17, dtype=dtype) / 16)
    grid[[3, 5]] += 0.5 / 255
    with pytest.raises(ValueError, match=r"expects pixels k / 255 with k = 0, \.\.\., 255, got 2 values between these"):
        Categorical().check(grid)
    with pytest.raises(ValueError, match="got 15 values between"):  # all but black and white
        Categorical().check(torch.arange(17, dtype=dtype) / 16)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_gaussian_pixels_must_be_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="finite pixels"):
        Gaussian().check(torch.tensor([[0.0, bad]]))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_gaussian_scale(scale: float) -> None:
    with pytest.raises(ValueError, match="positive finite scale"):
        Gaussian(scale)


# -- posterior --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOWS)
def test_log_q_is_the_density_of_the_draws(name: str) -> None:
    """Against the determinant of the autograd Jacobian of z with respect to the noise."""
    q = posterior(name).eval()
    encoding = q.encode(torch.randn(1, 6, dtype=torch.float64))
    eps = torch.randn(1, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda e: q.transform(encoding, e)[0].squeeze(0), eps).squeeze()
    expected = dist.Normal(0.0, 1.0).log_prob(eps).sum() - torch.linalg.slogdet(jacobian).logabsdet
    assert torch.allclose(q.transform(encoding, eps)[1], expected, atol=1e-9)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("head", ["log", "softplus"])
def test_condition_is_the_same_distribution(name: str, head: str) -> None:
    q = posterior(name, variance_head=head).eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    z, log_q = q.rsample_and_log_prob(x, (2,))
    distribution = q.condition(x)
    assert z.shape == (2, 4, 3) and log_q.shape == (2, 4)
    assert distribution.batch_shape == (4,) and distribution.event_shape == (3,)
    assert torch.allclose(distribution.log_prob(z.detach()), log_q, atol=1e-6)


@pytest.mark.parametrize("name", FLOWS)
def test_everything_is_trained(name: str) -> None:
    vae = small_vae(name)
    (-vae.elbo(binary(8, 6)).elbo().mean()).backward()
    without = [key for key, p in vae.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert not without


def test_a_flow_need_not_be_amortised() -> None:
    q = FlowPosterior(nn.Linear(6, 5), 5, 3, flows.build("planar", 3, num_transforms=2)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    z, log_q = q.rsample_and_log_prob(x, (2,))
    assert torch.allclose(q.condition(x).log_prob(z.detach()), log_q)


def test_variances_far_below_one_keep_their_gradient() -> None:
    q = posterior("none", variance_head="softplus")
    with torch.no_grad():
        q.heads.weight.zero_()
        q.heads.bias.fill_(-800.0)
    log_scale = q.encode(torch.zeros(1, 6, dtype=torch.float64)).log_scale
    log_scale.sum().backward()
    assert torch.allclose(log_scale, torch.full_like(log_scale, -400.0))
    assert torch.allclose(q.heads.bias.grad[3:], torch.full((3,), 0.5, dtype=torch.float64))  # type: ignore[index]


def test_posterior_doors() -> None:
    encoder = nn.Linear(6, 5)
    with pytest.raises(ValueError, match="input_dim=3"):
        FlowPosterior(encoder, 5, 3, flows.build("planar", 2, context_dim=5))
    with pytest.raises(ValueError, match=r"context_dim=5 .*got 4"):
        FlowPosterior(encoder, 5, 3, flows.build("planar", 3, context_dim=4))
    with pytest.raises(ValueError, match=r"features of shape \(\*batch, 4\) \(feature_dim\) .* got \(2, 5\)"):
        FlowPosterior(encoder, 4, 3).encode(torch.zeros(2, 6))
    with pytest.raises(ValueError, match="'log' or 'softplus', got 'exp'"):
        FlowPosterior(encoder, 5, 3, variance_head="exp")


def test_in_a_guide_of_ones_own() -> None:
    """An encoder of the user's, in the user's guide, with the user's model."""
    encoder = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(-2))
    q = FlowPosterior(encoder, 16, 2, flows.build("iaf", 2, context_dim=16, num_transforms=2))
    data = torch.randn(10, 1, 6)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("obs", dist.Normal(w.sum(-1, keepdim=True), 1.0).expand([len(x), 6]).to_event(1), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        pyro.module("q", q)
        with pyro.plate("data", len(x)):
            pyro.sample("w", q.condition(x))

    before = {name: p.detach().clone() for name, p in q.named_parameters()}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(data) for _ in range(3)]
    assert all(math.isfinite(loss) for loss in losses)
    assert all(not torch.equal(before[name], p) for name, p in q.named_parameters())


# -- VAE --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("likelihood", [Bernoulli(), Categorical(3), Gaussian()], ids=lambda v: type(v).__name__)
def test_pyro_gives_the_same_elbo_and_gradient(name: str, likelihood: Likelihood) -> None:
    vae = VAE(posterior(name).eval(), nn.Linear(3, likelihood.num_params(6)).double(), likelihood)
    x = binary(4, 6)
    pyro.set_rng_seed(1)
    Trace_ELBO().differentiable_loss(vae.model, vae.guide, x).backward()
    svi = {key: p.grad.clone() for key, p in vae.named_parameters()}  # type: ignore[union-attr]
    pyro.set_rng_seed(1)
    loss = Trace_ELBO().loss(vae.model, vae.guide, x)
    pyro.set_rng_seed(1)
    z = poutine.trace(vae.guide).get_trace(x).nodes["z"]["value"].detach()

    encoding = vae.posterior.encode(x)
    flow = vae.posterior.flow
    z0 = z if flow is None else flow.inverse_and_log_det(z, encoding.features)[0]
    eps = ((z0 - encoding.loc) / encoding.log_scale.exp()).detach()
    vae.zero_grad()
    elbo = vae.terms(x, *vae.posterior.transform(encoding, eps)).elbo().sum()
    (-elbo).backward()
    assert elbo.item() == pytest.approx(-loss, abs=1e-5)
    for key, p in vae.named_parameters():
        assert torch.allclose(p.grad, svi[key], atol=1e-5), key  # type: ignore[arg-type]


def test_elbo_weighs_the_divergence() -> None:
    vae = small_vae()
    terms = vae.elbo(binary(4, 6), num_samples=7)
    assert terms.elbo().shape == (7, 4)
    assert torch.equal(terms.elbo(0.0), terms.log_likelihood)
    assert torch.allclose(terms.elbo(0.5), terms.log_likelihood + 0.5 * (terms.log_prior - terms.log_q))


def test_default_prior_is_standard_normal() -> None:
    vae = small_vae()
    z = torch.randn(5, 3, dtype=torch.float64)
    assert torch.allclose(vae.log_prior(z), vae.prior.log_prob(z))


def test_a_prior_with_parameters_is_trained() -> None:
    flow = flows.build("planar", 3, num_transforms=2).double()
    base = dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1)
    vae = small_vae(prior=dist.TransformedDistribution(base, [flow]))
    vae.elbo(binary(4, 6)).elbo().sum().backward()
    assert {id(p) for p in flow.parameters()} <= {id(p) for p in vae.parameters()}
    assert all(p.grad is not None for p in flow.parameters())
    assert Trace_ELBO().loss(vae.model, vae.guide, binary(4, 6)) > 0


def test_prior_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"vectors of 3 .*event_shape \(2,\)"):
        small_vae(prior=dist.Normal(torch.zeros(2), 1.0).to_event(1))


def test_samples_and_reconstructions() -> None:
    vae = small_vae("iaf")
    assert set(vae.sample(20).unique().tolist()) <= {0.0, 1.0}
    assert vae.sample(4, mean=True).shape == (4, 6)
    reconstruction = vae.reconstruct(binary(5, 6))
    assert reconstruction.shape == (5, 6) and not reconstruction.requires_grad
    assert bool(((reconstruction > 0) & (reconstruction < 1)).all())


def test_bad_parameters_are_named() -> None:
    vae = small_vae()
    vae.check_parameters()
    with torch.no_grad():
        vae.decoder.bias[1] = math.nan  # type: ignore[index, operator]
    with pytest.raises(ValueError, match=r"NaN or infinite values in decoder\.bias"):
        vae.check_parameters()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, 6), "at least one image"),
        (torch.zeros(2, 6, dtype=torch.uint8), "floating point"),
        (torch.full((2, 6), math.nan), "NaN"),
    ],
)
def test_bad_images(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_vae().check(x)


@pytest.mark.parametrize("name", ["mlp", "gated-conv", "demo"])
def test_protocols_build_their_networks(name: str) -> None:
    settings = protocol(name)
    vae = build_vae(settings, row("planar-10"), (28, 28))
    assert vae.elbo(torch.zeros(2, 784)).elbo().shape == (2,)
    assert vae.posterior.latent_dim == {"mlp": 40, "gated-conv": 64, "demo": 8}[name]


def test_the_seed_decides_the_initial_parameters() -> None:
    state = torch.get_rng_state()
    first, again, other = (build_vae(protocol("demo"), row("iaf"), (8, 8), seed=s).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["posterior.heads.weight"], other["posterior.heads.weight"])


def test_categorical_frey_faces() -> None:
    vae = build_vae(protocol("gated-conv", likelihood="categorical"), row("none"), (28, 20))
    assert vae.elbo(torch.rand(1, 560)).elbo().shape == (1,)


@pytest.mark.parametrize("width", [1, 5])
def test_a_decoder_of_another_width_is_refused(width: int) -> None:
    vae = VAE(FlowPosterior(nn.Linear(6, 4), 4, 2), decoder=nn.Linear(2, width))
    with pytest.raises(ValueError, match=f"expected 6 numbers from the decoder.*got {width}"):
        vae.elbo(torch.zeros(3, 6))
