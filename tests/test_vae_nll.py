"""The importance-weighted estimate: against evidence in closed form, and its promises about chunks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pyro_flows_vi import flows
from pyro_flows_vi.transforms.planar import Planar
from pyro_flows_vi.vae import (
    VAE,
    Encoding,
    FlowPosterior,
    Gaussian,
    build_vae,
    evaluation,
    nll,
    protocol,
    row,
)

PIXELS, LATENT, NOISE = 5, 2, 0.7


def linear_gaussian(flow: str | None = None, *, widen: float = 1.0, orthogonal: bool = False) -> VAE:
    r"""x = W z + b + noise; q has the posterior's mean and ``widen`` times the diagonal of its covariance.

    With orthogonal columns of W the true posterior is diagonal, and ``widen=1`` makes it exact.
    """
    w = torch.randn(PIXELS, LATENT, dtype=torch.float64)
    if orthogonal:
        w = torch.linalg.qr(w)[0] * torch.tensor([1.5, 0.4], dtype=torch.float64)
    b = torch.randn(PIXELS, dtype=torch.float64)
    precision = torch.eye(LATENT, dtype=torch.float64) + w.T @ w / NOISE**2
    covariance = torch.linalg.inv(precision)
    gain = covariance @ w.T / NOISE**2
    chain = None if flow is None else flows.build(flow, LATENT, context_dim=PIXELS, num_transforms=2).double()
    q = FlowPosterior(nn.Identity(), PIXELS, LATENT, chain).double()
    decoder = nn.Linear(LATENT, PIXELS).double()
    with torch.no_grad():
        decoder.weight.copy_(w)
        decoder.bias.copy_(b)
        q.heads.weight.copy_(torch.cat([gain, torch.zeros(LATENT, PIXELS, dtype=torch.float64)]))
        q.heads.bias.copy_(torch.cat([-gain @ b, (widen * covariance.diagonal()).log()]))
        for parameter in () if chain is None else chain.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return VAE(q, decoder, Gaussian(NOISE))


def evidence(vae: VAE, x: Tensor) -> Tensor:
    w, b = vae.decoder.weight.detach(), vae.decoder.bias.detach()  # type: ignore[operator, union-attr]
    covariance = w @ w.T + NOISE**2 * torch.eye(PIXELS, dtype=torch.float64)  # type: ignore[operator]
    return torch.distributions.MultivariateNormal(b, covariance).log_prob(x)


def test_the_exact_posterior_gives_the_evidence_with_one_sample() -> None:
    vae = linear_gaussian(orthogonal=True)
    x = torch.randn(4, PIXELS, dtype=torch.float64)
    estimate = nll(vae, x, 1)
    assert torch.allclose(estimate.log_evidence, evidence(vae, x), atol=1e-10)
    assert torch.allclose(estimate.elbo, estimate.log_evidence, atol=1e-10)
    assert nll(vae, x, 100).ess_min == pytest.approx(100, rel=1e-9)
    assert nll(vae, x, 100).nll_mc_se < 1e-6


@pytest.mark.parametrize("flow", [None, "planar", "iaf", "naf", "residual"])
def test_meets_the_closed_form_evidence(flow: str | None) -> None:
    vae = linear_gaussian(flow, widen=1.5)
    x = torch.randn(20, PIXELS, dtype=torch.float64)
    estimate = nll(vae, x, 2000, seed=3)
    truth = evidence(vae, x)
    assert 0 < estimate.nll_mc_se < 0.02
    assert abs(estimate.nll + float(truth.mean())) < 5 * estimate.nll_mc_se
    per_image = (1 / estimate.ess - 1 / 2000).sqrt()
    assert bool(((estimate.log_evidence - truth).abs() < 6 * per_image).all())
    assert estimate.negative_elbo > estimate.nll


def test_the_monte_carlo_error_is_that_between_seeds() -> None:
    vae = linear_gaussian(widen=2.0)
    x = torch.randn(10, PIXELS, dtype=torch.float64)
    runs = [nll(vae, x, 200, seed=seed) for seed in range(40)]
    spread = torch.tensor([run.nll for run in runs]).std()
    claimed = sum(run.nll_mc_se for run in runs) / len(runs)
    assert 0.6 < float(spread) / claimed < 1.6  # the spread of 40 values is known to about 11 %


def test_standard_errors_are_over_the_images() -> None:
    vae = linear_gaussian(widen=2.0)
    estimate = nll(vae, torch.randn(50, PIXELS, dtype=torch.float64), 20)
    assert estimate.nll == pytest.approx(-float(estimate.log_evidence.mean()))
    assert estimate.nll_se == pytest.approx(float(estimate.log_evidence.std()) / math.sqrt(50))
    assert estimate.negative_elbo_se == pytest.approx(float(estimate.elbo.std()) / math.sqrt(50))
    assert math.isnan(nll(vae, torch.randn(1, PIXELS, dtype=torch.float64), 20).nll_se)


def test_the_bound_tightens_with_more_samples() -> None:
    vae = linear_gaussian(widen=6.0)
    x = torch.randn(200, PIXELS, dtype=torch.float64)
    truth = -float(evidence(vae, x).mean())
    bounds = [nll(vae, x, k, seed=5) for k in (1, 5, 50, 500)]
    values = [estimate.nll for estimate in bounds]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(bounds[0].negative_elbo)
    assert values[0] - truth > 10 * (values[-1] - truth) > -0.5
    assert all(1 <= float(b.ess.min()) <= float(b.ess.max()) <= b.num_samples + 1e-9 for b in bounds)


@pytest.mark.parametrize("name", ["none", "planar-10", "sylvester-householder", "iaf", "naf", "residual"])
def test_chunks_do_not_change_the_result(name: str) -> None:
    vae = build_vae(protocol("demo"), row(name), (8, 8))
    x = torch.rand(5, 64).round()
    whole = nll(vae, x, 130, seed=1, memory=1 << 30)
    assert torch.equal(whole.log_evidence, nll(vae, x, 130, seed=1, memory=1 << 30).log_evidence)
    for memory in (1, 1 << 19):
        pieces = nll(vae, x, 130, seed=1, memory=memory)
        assert torch.allclose(whole.log_evidence, pieces.log_evidence, rtol=2e-6)
        assert torch.allclose(whole.ess, pieces.ess, rtol=1e-3)


def test_an_images_noise_depends_on_its_place_only() -> None:
    vae = linear_gaussian(widen=2.0)
    x = torch.randn(6, PIXELS, dtype=torch.float64)
    few, many = nll(vae, x[:2], 60), nll(vae, x, 60)
    assert torch.allclose(few.log_evidence, many.log_evidence[:2], rtol=1e-12)
    twice = nll(vae, x[:1].expand(2, -1), 60)
    assert not torch.allclose(twice.log_evidence[0], twice.log_evidence[1])
    assert not torch.allclose(nll(vae, x, 60, seed=1).log_evidence, many.log_evidence)


def test_more_samples_go_on_where_fewer_stopped() -> None:
    vae = linear_gaussian(widen=2.0)
    x = torch.randn(3, PIXELS, dtype=torch.float64)
    sums = [nll(vae, x, k).elbo * k for k in (70, 71)]
    one = sums[1] - sums[0]  # the log weight of the 71st draw
    again = nll(vae, x, 72).elbo * 72 - sums[1]
    assert not torch.allclose(one, again)
    assert torch.allclose(nll(vae, x, 71, memory=1).elbo * 71 - nll(vae, x, 70).elbo * 70, one, atol=1e-8)


def test_an_interrupted_estimate_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "GROUP", 2)
    vae = linear_gaussian("planar", widen=2.0)
    x = torch.randn(7, PIXELS, dtype=torch.float64)
    whole, partial = nll(vae, x, 60), tmp_path / "run.nll"
    encoded: list[int] = []

    def encode(images: Tensor) -> Encoding:
        if len(encoded) == 5:  # the check, the probe, and three groups of images
            raise MemoryError
        encoded.append(len(images))
        return FlowPosterior.encode(vae.posterior, images)

    monkeypatch.setattr(vae.posterior, "encode", encode)
    with pytest.raises(MemoryError):
        nll(vae, x, 60, partial=partial)
    assert encoded == [1, 1, 2, 2, 2] and partial.exists()
    encoded.clear()
    with pytest.raises(ValueError, match=r"run\.nll.*num_samples: expected 61, got 60"):
        nll(vae, x, 61, partial=partial)
    encoded.clear()
    again = nll(vae, x, 60, partial=partial)
    assert encoded == [1, 1, 1] and not partial.exists()
    assert torch.equal(again.log_evidence, whole.log_evidence) and again.summary() == whole.summary()


def test_modes_and_random_state_come_back() -> None:
    vae = build_vae(protocol("demo"), row("residual", log_det="roulette"), (8, 8)).train()
    vae.decoder.eval()
    modes = {name: module.training for name, module in vae.named_modules()}
    assert vae.posterior.flow is not None and not vae.posterior.flow.exact_log_det
    x = torch.rand(2, 64).round()
    state = torch.get_rng_state()
    first = nll(vae, x, 50)
    assert torch.equal(first.log_evidence, nll(vae, x, 50).log_evidence)  # exact, so no roulette in it
    assert {name: module.training for name, module in vae.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), state)


class Estimated(Planar):
    """A flow that admits that its log-determinant is an estimate."""

    exact_log_det = False


def test_an_estimated_log_determinant_is_refused() -> None:
    vae = VAE(FlowPosterior(nn.Linear(6, 4), 4, 2, Estimated(2, 4)), nn.Linear(2, 6))
    with pytest.raises(ValueError, match="exact log-determinant"):
        nll(vae, torch.zeros(1, 6), 10)


def test_bad_input() -> None:
    vae = linear_gaussian()
    x = torch.randn(3, PIXELS, dtype=torch.float64)
    for count in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="num_samples to be a positive integer"):
            nll(vae, x, count)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \(N, D\)"):
        nll(vae, x[0])
    with pytest.raises(ValueError, match="at least one image"):
        nll(vae, x[:0])
    with pytest.raises(ValueError, match="finite pixels"):
        nll(vae, x / 0)
    with pytest.raises(ValueError, match=r"the encoder can take, got torch\.float32"):
        nll(vae, x.float())
    with torch.no_grad():
        vae.posterior.heads.bias[0] = math.inf
    with pytest.raises(ValueError, match=r"posterior\.heads\.bias"):
        nll(vae, x)


def test_weights_that_overflow_are_reported() -> None:
    vae = linear_gaussian()
    x = torch.zeros(3, PIXELS, dtype=torch.float64)
    x[1, 0] = 1e200
    with pytest.raises(ValueError, match="image 1: expected finite importance weights"):
        nll(vae, x, 10)


def test_summary_is_json() -> None:
    summary = nll(linear_gaussian(), torch.randn(3, PIXELS, dtype=torch.float64), 10).summary()
    assert {"nll", "nll_se", "nll_mc_se", "negative_elbo", "ess_median", "num_samples"} <= set(summary)
    assert all(isinstance(value, (int, float)) for value in summary.values())


@pytest.mark.parametrize("network", ["mlp", "gated-conv"])
def test_images_of_another_width(network: str) -> None:
    settings = protocol("demo", network=network)
    vae = build_vae(settings, row("planar-10"), (28, 28)).train()
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"expected images that the encoder can take, got .* of shape \(3, 64\)"):
        nll(vae, torch.zeros(3, 64), 10)
    assert vae.posterior.heads.training and torch.equal(torch.get_rng_state(), state)
