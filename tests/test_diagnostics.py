"""Verdicts on guides whose faults are known, and estimates against closed forms."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

from pyro_flows_vi.guides import AutoFlow
from pyro_flows_vi.infer.diagnostics import diagnose
from pyro_flows_vi.infer.gaussian import GaussianFit
from pyro_flows_vi.infer.importance import draw_weighted, resample
from pyro_flows_vi.infer.log_density import LogDensity
from pyro_flows_vi.infer.modes import missed_shares
from pyro_flows_vi.infer.pareto import effective_size, psis, tail_share
from pyro_flows_vi.infer.plateau import Plateau
from pyro_flows_vi.infer.problems import FlowProblem
from pyro_flows_vi.infer.report import Report
from pyro_flows_vi.infer.training import Training

DIM, NOISE = 4, 0.5


def data() -> Tensor:
    return torch.linspace(-1.0, 2.0, DIM, dtype=torch.float64)


def conjugate(x: Tensor) -> None:
    with pyro.plate("rows", DIM):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, NOISE), obs=x)


VARIANCE = 1.0 / (1.0 + NOISE**-2)
SD = math.sqrt(VARIANCE)


def posterior_mean(x: Tensor) -> Tensor:
    return x * VARIANCE / NOISE**2


def log_evidence(x: Tensor) -> float:
    return float(dist.Normal(torch.zeros_like(x), math.sqrt(1.0 + NOISE**2)).log_prob(x).sum())


def shifted_and_scaled(shift: float = 0.0, scale: float = 1.0) -> Callable[[Tensor], None]:
    """A guide beside the conjugate posterior, by this many of its sds."""

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", DIM):
            pyro.sample("z", dist.Normal(posterior_mean(x) + shift * SD, scale * SD))

    return guide


def test_exact_guide_is_trusted() -> None:
    x = data()
    report = diagnose(conjugate, shifted_and_scaled(), x, num_draws=1000, seed=0)
    assert report.verdict == "trust", str(report)
    assert report.ess == pytest.approx(1000, rel=1e-6)
    assert report.elbo == pytest.approx(log_evidence(x), abs=1e-9)
    assert report.iw_elbo == pytest.approx(log_evidence(x), abs=1e-9)
    assert len(report.modes) == 1 and not report.missed
    assert torch.allclose(report.modes[0].values["z"], posterior_mean(x), atol=1e-3)
    assert report.modes[0].share == pytest.approx(report.modes[0].guide_share, abs=0.03)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 20.0), (10.0, 20.0), (10.0, 1.0), (2.0, 1.0), (0.0, 0.3)], ids=str)
def test_bad_guides_are_not_trusted(shift: float, scale: float) -> None:
    report = diagnose(conjugate, shifted_and_scaled(shift, scale), data(), num_draws=2000, seed=0, modes=False)
    assert report.verdict == "do not trust", str(report)


def test_too_wide_and_off_is_seen_though_khat_is_low() -> None:
    """Ten sds off and far too wide: the tail of the weights is bounded, so k-hat alone would trust it."""
    report = diagnose(conjugate, shifted_and_scaled(10.0, 20.0), data(), num_draws=4000, seed=1, modes=False)
    assert report.ess < 400 and report.gap > 1.0
    assert any("worth only" in why for why in report.reasons)


def test_a_little_too_wide_is_good_after_resampling() -> None:
    x, guide = data(), shifted_and_scaled(0.3, 1.4)
    report = diagnose(conjugate, guide, x, seed=0, modes=False)
    assert report.verdict == "do not trust without importance resampling", str(report)
    site = report.sites["z"]
    assert (site.weighted_mean - posterior_mean(x)).abs().max() < 4 * SD / math.sqrt(report.ess)
    assert (site.mean_move - 0.3).abs().max() < 0.15
    assert (site.log_sd_ratio - math.log(1.4)).abs().max() < 0.15
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kept = resample(draw_weighted(conjugate, guide, x), 1000)
    assert (kept.values["z"].mean(0) - posterior_mean(x)).abs().max() < 5 * SD / math.sqrt(1000)
    assert (kept.values["z"].std(0) / SD).log().abs().max() < 0.12


def test_estimates_meet_the_closed_forms() -> None:
    """For q = N(m + s SD, (c SD)^2): KL(q || p) = D / 2 (c^2 + s^2 - 1 - log c^2)."""
    x, shift, scale = data(), 0.2, 1.2
    report = diagnose(conjugate, shifted_and_scaled(shift, scale), x, seed=3, modes=False)
    divergence = 0.5 * DIM * (scale**2 + shift**2 - 1.0 - math.log(scale**2))
    assert abs(report.iw_elbo - log_evidence(x)) < 4 * report.iw_elbo_se
    assert abs(report.elbo - log_evidence(x) + divergence) < 4 * report.elbo_se
    assert abs(report.gap - divergence) < 4 * report.gap_se


def test_heavy_tails_are_not_trusted() -> None:
    def model() -> None:
        pyro.sample("z", dist.StudentT(1.0, torch.zeros(6), 1.0).to_event(1))

    def guide() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(6), 1.0).to_event(1))

    report = diagnose(model, guide, seed=0, modes=False)
    assert report.verdict == "do not trust" and report.khat > 0.7


def two_modes() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1000.0))
    parts = dist.Normal(torch.tensor([-300.0, 0.0]), 1.0).log_prob(z) + torch.tensor([0.7, 0.3]).log()
    pyro.factor("mixture", parts.logsumexp(-1))


def test_missed_mode_is_found_without_the_guide() -> None:
    def guide() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    blind = diagnose(two_modes, guide, seed=0, modes=False, num_draws=1000)
    assert blind.verdict == "trust", "the weights of draws from one mode cannot see the other"
    report = diagnose(two_modes, guide, seed=0, num_draws=1000)
    assert report.verdict == "do not trust" and len(report.missed) == 1, str(report)
    assert float(report.missed[0].values["z"]) == pytest.approx(-300.0, abs=0.1)
    assert report.missed[0].share == pytest.approx(0.7, abs=0.05)


def test_what_a_fit_tells_is_heeded() -> None:
    x, guide = data(), shifted_and_scaled()
    fit = SimpleNamespace(converged=False, stop_reason="max_steps", skipped_steps=3, restart_elbos=[-3.0, -3.1])
    report = diagnose(conjugate, guide, x, fit=fit, num_draws=500, modes=False)
    assert report.verdict == "do not trust" and "max_steps" in report.reasons[0]
    apart = SimpleNamespace(converged=True, restart_elbos=[-3.0, -300.0], elbo_se=0.1)
    report = diagnose(conjugate, guide, x, fit=apart, num_draws=500, modes=False)
    assert report.verdict == "do not trust" and "disagree" in report.reasons[0]
    confirmed = diagnose(conjugate, guide, x, fit=apart, num_draws=500, seed=0)
    assert confirmed.verdict == "trust", str(confirmed)
    apart.restart_missed = [0.0, 0.0]
    report = diagnose(conjugate, guide, x, fit=apart, num_draws=500, modes=False)
    assert report.verdict == "trust", "it was looked at where the other restart ended"
    apart.restart_missed = [0.0, 0.3]
    report = diagnose(conjugate, guide, x, fit=apart, num_draws=500, seed=0)
    assert report.verdict == "do not trust" and "30.0 % of the mass" in report.reasons[0]


def test_what_a_guide_lacks_about_other_gaussians() -> None:
    class AtZero:
        def rsample_and_log_prob(self, count: int) -> tuple[Tensor, Tensor]:
            z = torch.randn(count, 1)
            return z, dist.Normal(0.0, 1.0).log_prob(z)[:, 0]

    def gaussian(loc: float, scale: float) -> GaussianFit:
        return GaussianFit(torch.tensor([loc]), torch.tensor([scale]), -1.0, 0.1, 10, True)

    torch.manual_seed(0)
    others = [gaussian(-300.0, 1.0), gaussian(-300.0, 2.0), gaussian(0.3, 1.0), gaussian(150.0, 3.0)]
    missed, wide, own, nowhere = missed_shares(LogDensity(two_modes), AtZero(), others)
    assert missed == pytest.approx(0.7, abs=0.02) and wide == pytest.approx(0.7, abs=0.05)
    assert own == nowhere == 0.0


def test_rounding_makes_no_mass_that_a_guide_lacks() -> None:
    """A zero that is the difference of numbers of 1e10, at which single precision has steps of a thousand."""

    def rounding() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        large = 1.0 + 1e9 * x.square() * torch.sigmoid(50.0 * (x - 6.0))
        pyro.factor("zero", large * large.log() - math.log(2.0) * (large * large.log2()))

    class AtZero:
        def rsample_and_log_prob(self, count: int) -> tuple[Tensor, Tensor]:
            z = torch.randn(count, 1).clamp(max=5.0)
            return z, dist.Normal(0.0, 1.0).log_prob(z)[:, 0]

    torch.manual_seed(0)
    density = LogDensity(rounding)
    assert float(density(torch.linspace(6.5, 7.5, 50)[:, None]).max()) > 100.0
    away = GaussianFit(torch.tensor([7.0]), torch.tensor([0.3]), 0.0, 0.1, 9, True)
    assert missed_shares(density, AtZero(), [away]) == [0.0]


@pytest.mark.parametrize("kind", ["single only", "refuses", "counts", "regression"])
def test_a_mode_is_missed_in_either_precision(kind: str) -> None:
    """Also where the model runs in one only, and where rounding moves the whole density by many nats."""
    weight = torch.ones(1, 1)

    def two(weights: Tensor, counts: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(1, dtype=torch.float32), 100.0).to_event(1))
        if kind == "refuses":
            assert x.dtype == torch.float32
        if kind == "counts":
            pyro.sample(
                "y", dist.Poisson(torch.full((), 1e6, dtype=x.dtype)).expand([len(counts)]).to_event(1), obs=counts
            )
        place = (weight if kind == "single only" else weights if kind == "regression" else torch.ones_like(x)[None]) @ x
        pyro.factor("f", -0.5 * (place.abs() - 30.0).square().sum())

    class AtOne:
        def rsample_and_log_prob(self, count: int) -> tuple[Tensor, Tensor]:
            z = 30.0 + torch.randn(count, 1)
            return z, dist.Normal(30.0, 1.0).log_prob(z)[:, 0]

    other = GaussianFit(torch.tensor([-30.0]), torch.tensor([1.0]), 0.0, 0.1, 9, True)
    torch.manual_seed(0)
    density = LogDensity(two, torch.ones(1, 1), torch.poisson(torch.full((100,), 1e6)))
    assert missed_shares(density, AtOne(), [other]) == [pytest.approx(0.5, abs=0.03)]


def test_a_look_at_other_gaussians_leaves_the_generator_alone() -> None:
    guide = AutoFlow(two_modes, "planar", num_transforms=1).setup()
    training = Training(FlowProblem(guide, LogDensity(two_modes), None, 8, None))
    training.configure(None, None, None, 10.0, Plateau(), 10, 5)
    here, there = (
        GaussianFit(torch.full((1,), at), torch.ones(1), elbo, 0.1, 10, True)
        for at, elbo in ((0.0, 0.0), (-300.0, -2.0))
    )
    state = torch.get_rng_state()
    shares = training.missed([here, there])
    assert shares[0] == 0.0 and shares[1] > 0.5 and torch.equal(torch.get_rng_state(), state)
    assert training.missed([here, here]) == training.missed([here]) == []


@pytest.mark.parametrize("k", [0.3, 0.6, 0.9])
def test_the_share_of_a_tail_against_pareto_weights(k: float) -> None:
    """Of weights w = U^-k, a part p lies above p^-k, and exceeds it by k p^(1 - k) / (1 - k) of a mean 1 / (1 - k)."""
    weights = -k * torch.linspace(0.0, 1.0, 20_001, dtype=torch.float64)[1:].log()
    weights[0] = weights[1]  # the largest one decides nothing
    part = 3.0 * math.sqrt(20_000) / 20_000
    mean = float(weights.exp().mean()) * (1.0 - k)
    assert tail_share(weights, k) * mean == pytest.approx(k * part ** (1.0 - k), rel=0.02)
    assert tail_share(weights, 1.0) == math.inf
    assert tail_share(0.01 * torch.linspace(0.0, 1.0, 4000), 0.95) < 0.01


def test_a_heavy_tail_with_nothing_in_it_is_not_serious() -> None:
    """Weights 1 + c U^-0.85 of a uniform U, whose tail has no variance, however small c is."""

    def report(c: float) -> Report:
        def model() -> None:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            beyond = torch.special.erfc(z.abs() / math.sqrt(2.0)).clamp(min=1e-30)
            pyro.factor("tail", (c * beyond.pow(-0.85)).log1p())

        return diagnose(model, normal_guide, seed=2, modes=False)

    small, large = report(1e-3), report(1.0)
    assert small.khat > 0.7 and large.khat > 0.7
    assert small.verdict == "do not trust without importance resampling" and "lies in the tail" in small.reasons[0]
    assert large.verdict == "do not trust"


def bounded(bad: float) -> Callable[[], None]:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(z > 0, 0.0, bad))

    return model


def normal_guide() -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))


def test_draws_without_density_or_number_are_counted() -> None:
    report = diagnose(bounded(-math.inf), normal_guide, seed=0, modes=False)
    assert report.verdict == "do not trust without importance resampling", str(report)
    assert report.empty == pytest.approx(2000, abs=200) and report.blamed == ["wall"]
    assert report.elbo == -math.inf
    assert report.iw_elbo == pytest.approx(math.log(0.5), abs=5 * report.iw_elbo_se)
    assert report.sites["z"].weighted_mean == pytest.approx(math.sqrt(2.0 / math.pi), abs=0.07)
    report = diagnose(bounded(math.nan), normal_guide, seed=0, modes=False)
    assert report.verdict == "do not trust" and "'wall'" in report.reasons[0]
    json.dumps(report.as_dict(), allow_nan=False)


def test_no_finite_weight_is_an_error_that_names_the_site() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("wall", z * math.nan)

    with pytest.raises(ValueError, match="'wall'"):
        diagnose(model, normal_guide, num_draws=100)


def test_guides_that_do_not_fit_are_errors_that_name_the_site() -> None:
    x = data()

    def without(x: Tensor) -> None: ...

    def extra(x: Tensor) -> None:
        shifted_and_scaled()(x)
        pyro.sample("other", dist.Normal(0.0, 1.0))

    def augmented(x: Tensor) -> None:
        pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        shifted_and_scaled()(x)

    def subsampled(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("rows", DIM, subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    with pytest.raises(ValueError, match="does not draw the latent site 'z'"):
        draw_weighted(conjugate, without, x)
    with pytest.raises(ValueError, match="a site 'other' that the model does not have"):
        draw_weighted(conjugate, extra, x)
    with pytest.raises(ValueError, match="integral over 'noise'"):
        draw_weighted(conjugate, augmented, x)
    with pytest.raises(ValueError, match="point estimate of 'z'"):
        draw_weighted(conjugate, AutoDelta(conjugate), x)
    with pytest.raises(ValueError, match="plate 'rows' is subsampled"):
        draw_weighted(subsampled, AutoNormal(subsampled), x)
    with pytest.raises(ValueError, match="at least 100, got 10"):
        diagnose(conjugate, without, x, num_draws=10)


@pytest.mark.parametrize("make", [AutoNormal, AutoMultivariateNormal, lambda m, **k: AutoFlow(m, "iaf", **k)])
def test_weights_of_autoguides_meet_the_evidence(make: Callable[..., Callable[[Tensor], None]]) -> None:
    """Transformed sites, where the guide's density has a Jacobian: z = exp(u), so the evidence is the same integral."""
    x = data()

    def model(x: Tensor) -> None:
        with pyro.plate("rows", DIM):
            z = pyro.sample("z", dist.LogNormal(torch.zeros_like(x), 1.0))
            pyro.deterministic("log z", z.log())
            pyro.sample("x", dist.Normal(z.log(), NOISE), obs=x)

    guide = make(model, init_loc_fn=init_to_value(values={"z": posterior_mean(x).exp()}), init_scale=1.3 * SD)
    draws = draw_weighted(model, guide, x, num_draws=3000)
    assert draws.latent is not None and draws.latent.shape == (3000, DIM)
    assert torch.allclose(draws.values["log z"], draws.latent)
    log_weights, khat = psis(draws.log_weights)
    estimate = float(torch.logsumexp(draws.log_weights, 0)) - math.log(3000)
    assert estimate == pytest.approx(log_evidence(x), abs=4.0 / math.sqrt(effective_size(log_weights)))
    assert khat < 0.5


def test_models_that_cannot_be_vectorised_are_run_one_by_one() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z if z > 0 else 2.0 * z, 1.0), obs=torch.tensor(0.3))

    with pytest.warns(UserWarning, match="cannot be vectorised"):
        draws = draw_weighted(model, normal_guide, num_draws=20)
    z = draws.values["z"]
    assert torch.allclose(
        draws.log_weights, dist.Normal(torch.where(z > 0, z, 2 * z), 1.0).log_prob(torch.tensor(0.3)).double()
    )
    assert z.unique().numel() == 20


def test_psis_follows_the_tail_of_the_weights() -> None:
    """Weights of a Pareto law with shape k have k-hat near k; weights that are equal but for little have no tail."""
    uniform = torch.rand(4000, dtype=torch.float64)
    for shape in (0.2, 0.6, 1.0):
        assert psis(-shape * uniform.log())[1] == pytest.approx(shape, abs=0.2)
    log_weights, khat = psis(torch.zeros(100))
    assert khat == 0.0 and torch.allclose(log_weights.exp(), torch.full((100,), 0.01, dtype=torch.float64))
    pareto = -2.0 * uniform.log()
    assert psis(0.01 * pareto / pareto.max())[1] == 0.0 and psis(0.1 * pareto / pareto.max())[1] != 0.0
    spoilt = torch.tensor([0.0, math.nan, -math.inf, math.inf])
    assert psis(spoilt)[0].exp().tolist() == [1.0, 0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="no draw has a finite"):
        psis(spoilt[1:])


def test_resampling_without_replacement_takes_each_draw_once() -> None:
    draws = draw_weighted(conjugate, shifted_and_scaled(0.3, 1.4), data(), num_draws=500)
    kept = resample(draws, 200, replacement=False, generator=torch.Generator().manual_seed(0))
    assert len(kept) == 200 and kept.values["z"].unique(dim=0).shape[0] == 200
    with pytest.raises(ValueError, match="got 501"):
        resample(draws, 501, replacement=False)


def test_report_is_readable_and_repeatable() -> None:
    x, guide = data(), shifted_and_scaled(0.3, 1.4)
    before = torch.get_rng_state()
    report = diagnose(conjugate, guide, x, num_draws=500, seed=5, modes=False)
    assert torch.equal(torch.get_rng_state(), before)
    text = str(report)
    assert text.startswith(f"Verdict: {report.verdict}") and "z[0]" in text and "Next:" in text
    assert text == str(diagnose(conjugate, guide, x, num_draws=500, seed=5, modes=False))
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))["sites"]["z"]["shape"] == [DIM]
