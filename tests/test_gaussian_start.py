"""The Gaussian stage and the Laplace approximation against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

from pyro_flows_vi.infer import LogDensity, start
from pyro_flows_vi.infer.gaussian import fit_gaussian
from pyro_flows_vi.infer.start import gaussian_start, laplace_start, summits


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def gaussian_target(
    dim: int, condition: float, seed: int = 0
) -> tuple[Tensor, Tensor, Callable[..., tuple[Tensor, Tensor]]]:
    """Mean, covariance and log density of a Gaussian whose covariance has a given condition number."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    spectrum = torch.logspace(0.0, -math.log10(condition), dim)
    covariance, precision = (axes * spectrum) @ axes.T, (axes / spectrum) @ axes.T
    mean = 3.0 * torch.randn(dim, generator=generator)

    def value_and_score(u: Tensor) -> tuple[Tensor, Tensor]:
        score = -(u - mean) @ precision
        return 0.5 * ((u - mean) * score).sum(-1), score

    return mean, covariance, value_and_score


def log_normaliser(covariance: Tensor) -> float:
    return 0.5 * float(torch.logdet(2.0 * math.pi * covariance))


def relative_error(covariance: Tensor, scale_tril: Tensor) -> float:
    """The largest |log| of an eigenvalue of the one covariance in units of the other."""
    whitened = torch.linalg.solve(torch.linalg.cholesky(covariance), scale_tril)
    return float(2.0 * torch.linalg.svdvals(whitened).log().abs().max())


@pytest.mark.parametrize("condition", [1.0, 1e4, 1e8])
@pytest.mark.parametrize("distance", [1.0, 1e4])
def test_a_gaussian_target_is_met_exactly(condition: float, distance: float) -> None:
    mean, covariance, target = gaussian_target(6, condition)
    tril = torch.linalg.cholesky(covariance)
    start = mean + distance * tril @ torch.ones(6)  # in units of the target's own scales
    fit = fit_gaussian(target, start, 0.1 * torch.eye(6))
    error = torch.linalg.solve_triangular(tril, (fit.loc - mean)[:, None], upper=False)
    assert float(error.abs().max()) < 1e-5
    assert relative_error(covariance, fit.scale_tril) < 1e-5
    assert abs(fit.elbo - log_normaliser(covariance)) < 1e-5
    assert fit.converged and fit.elbo_se < 1e-5


def test_starts_hundreds_of_units_from_a_narrow_target() -> None:
    mean, covariance, target = gaussian_target(4, 1e6)
    fit = fit_gaussian(target, torch.full((4,), 500.0), 0.1 * torch.eye(4))
    error = torch.linalg.solve(torch.linalg.cholesky(covariance), fit.loc - mean)
    assert float(error.abs().max()) < 1e-4 and relative_error(covariance, fit.scale_tril) < 1e-4


def test_the_diagonal_form_has_the_precisions_of_the_target() -> None:
    mean, covariance, target = gaussian_target(5, 30.0)
    fit = fit_gaussian(target, torch.zeros(5), torch.full((5,), 0.1), num_particles=4096)
    # the best diagonal Gaussian in the sense of the ELBO has the mean, and one over the diagonal of the precision
    precision = torch.linalg.inv(covariance)
    best = precision.diagonal().rsqrt()
    shortfall = 0.5 * float((fit.loc - mean) @ precision @ (fit.loc - mean))
    gap = 0.5 * float(torch.logdet(torch.diag(best.square()) @ precision))
    assert fit.scale_tril.shape == (5,)
    assert float((fit.scale_tril / best).log().abs().max()) < 0.05
    assert shortfall < 0.3  # where sampling noise hides the last gains in the mean
    assert abs(fit.elbo - (log_normaliser(covariance) + gap - shortfall)) < 5.0 * fit.elbo_se


def test_a_target_that_is_not_gaussian_gets_the_best_gaussian() -> None:
    # v = u + log(x) with x ~ Gamma(a): log density a v - e^v - lgamma(a); the best Gaussian by quadrature-free algebra:
    # stationarity gives exp(m + s^2 / 2) = a and s^2 = 1 / a
    a = torch.tensor([2.0, 7.0])

    def target(u: Tensor) -> tuple[Tensor, Tensor]:
        return (a * u - u.exp() - torch.lgamma(a)).sum(-1), a - u.exp()

    fit = fit_gaussian(target, torch.zeros(2), 0.1 * torch.eye(2), num_particles=8192)
    torch.testing.assert_close(fit.loc, a.log() - 0.5 / a, atol=0.02, rtol=0.0)
    torch.testing.assert_close(fit.scale_tril @ fit.scale_tril.T, torch.diag(1.0 / a), atol=0.02, rtol=0.0)


def diabetes() -> tuple[Tensor, Tensor]:
    table = load_diabetes(scaled=False)
    columns = torch.cat([torch.ones(len(table.target), 1), torch.as_tensor(table.data)], dim=1)
    return columns, torch.as_tensor(table.target)


def regression(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 200.0).to_event(1))
    pyro.sample("y", dist.Normal(x @ w, 54.0).to_event(1), obs=y)


def closed_form(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float]:
    precision = x.T @ x / 54.0**2 + torch.eye(x.shape[1]) / 200.0**2
    covariance = torch.linalg.inv(precision)
    marginal = 200.0**2 * x @ x.T + 54.0**2 * torch.eye(len(y))
    evidence = dist.MultivariateNormal(torch.zeros(len(y)), marginal).log_prob(y)
    return covariance @ (x.T @ y) / 54.0**2, covariance, float(evidence)


def test_a_regression_on_unscaled_columns() -> None:
    x, y = diabetes()
    mean, covariance, evidence = closed_form(x, y)
    sds = covariance.diagonal().sqrt()
    assert sds.max() / sds.min() > 250  # or else the test is about nothing
    log_density = LogDensity(regression, x, y)
    fits = gaussian_start(log_density, log_density.initial(), 0.1 * torch.eye(11), restarts=2)
    assert fits[0].elbo >= fits[1].elbo - 1e-6
    for fit in fits:
        assert float(((fit.loc - mean) / sds).abs().max()) < 1e-4
        assert relative_error(covariance, fit.scale_tril) < 1e-4
        assert abs(fit.elbo - evidence) < 1e-3


def test_laplace_on_a_regression_on_unscaled_columns() -> None:
    x, y = diabetes()
    mean, covariance, _ = closed_form(x, y)
    mode, tril = laplace_start(LogDensity(regression, x, y), torch.zeros(11), max_steps=2000)
    assert relative_error(covariance, tril) < 1e-3
    assert float(((mode - mean) / covariance.diagonal().sqrt()).abs().max()) < 0.05


def test_laplace_against_the_closed_form_of_a_gamma() -> None:
    def model() -> None:
        pyro.sample("x", dist.Gamma(torch.tensor([3.0, 9.0]), torch.tensor([0.5, 2.0])).to_event(1))

    # of u = log x the mode is log(a / b) and minus the Hessian there is a
    mode, tril = laplace_start(LogDensity(model), torch.zeros(2))
    torch.testing.assert_close(mode, torch.tensor([3.0 / 0.5, 9.0 / 2.0]).log(), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(tril, torch.diag(torch.tensor([3.0, 9.0]).rsqrt()), atol=1e-5, rtol=0.0)
    assert (tril.diagonal() > 0).all()


def test_laplace_where_the_curvature_has_the_wrong_sign() -> None:
    def model() -> None:
        u = pyro.sample("u", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("saddle", u[0].square() - 0.1 * u[0] ** 4)

    # at the symmetric start the gradient along u_0 is 0: the search ends on the saddle
    _, tril = laplace_start(LogDensity(model), torch.tensor([0.0, 0.5]))
    assert tril.isfinite().all()
    torch.testing.assert_close(tril.abs().diagonal(), torch.tensor([1.0, 1.0]), atol=1e-4, rtol=0.0)


def test_fits_are_reproducible_by_their_generator() -> None:
    _, _, target = gaussian_target(3, 10.0)
    first, second = (
        fit_gaussian(target, torch.zeros(3), torch.full((3,), 0.1), generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert torch.equal(first.loc, second.loc) and first.elbo == second.elbo


def test_a_density_with_a_hole_is_met_with_a_narrower_start() -> None:
    def target(u: Tensor) -> tuple[Tensor, Tensor]:
        value, score = -0.5 * u.square().sum(-1), -u
        return torch.where(u.norm(dim=-1) < 4.0, value, -torch.inf), score

    fit = fit_gaussian(target, torch.zeros(2), 30.0 * torch.eye(2))
    torch.testing.assert_close(fit.scale_tril, torch.eye(2), atol=0.1, rtol=0.0)


@pytest.mark.parametrize("what", ["value", "score"])
def test_a_start_that_is_not_finite(what: str) -> None:
    def target(u: Tensor) -> tuple[Tensor, Tensor]:
        value, score = -0.5 * u.square().sum(-1), -u
        return (value * torch.nan, score) if what == "value" else (value, score * torch.inf)

    with pytest.raises(ValueError, match=r"not finite around the start.*init_loc_fn"):
        fit_gaussian(target, torch.zeros(2), torch.eye(2))


def test_gaussian_start_goes_on_from_the_starts_that_work_and_fails_only_if_none_does() -> None:
    def model(wall: float) -> None:
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(u < wall, 0.0, -torch.inf))

    assert gaussian_start(LogDensity(model, 10.0), torch.zeros(1), 0.1 * torch.eye(1), restarts=2)
    with pytest.raises(ValueError, match="'wall' is not finite"):
        gaussian_start(LogDensity(model, -1e9), torch.zeros(1), 0.1 * torch.eye(1), restarts=2)


def test_gaussian_start_finds_the_heavier_of_two_modes_wherever_the_guide_starts() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 20.0).expand([2]).to_event(1))
        light, heavy = (dist.Normal(at, 1.0).log_prob(x).sum() for at in (0.0, 20.0))
        pyro.factor("modes", torch.logaddexp(light + math.log(0.01), heavy + math.log(0.99)))

    log_density = LogDensity(model)
    for seed in range(3):
        torch.manual_seed(seed)
        best, *others = gaussian_start(log_density, torch.zeros(2), 0.1 * torch.eye(2), restarts=2)
        torch.testing.assert_close(best.loc, torch.full((2,), 20.0), rtol=0.01, atol=0.1)
        torch.testing.assert_close(others[0].loc, torch.zeros(2), rtol=0.0, atol=0.1)  # the guide's own
    assert summits(log_density, torch.zeros(2), 0) == []


def test_summits_of_one_height_are_told_apart_by_the_valley_between() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 3.0).expand([4]).to_event(1))
        wide, narrow = dist.Normal(2.0, 0.8).log_prob(x).sum(), dist.Normal(-2.0, 0.4).log_prob(x).sum()
        pyro.factor("modes", torch.logaddexp(wide + 2.4, narrow) + 0.5 * x.square().sum() / 9.0)

    torch.manual_seed(0)
    log_density = LogDensity(model)
    first, second = summits(log_density, torch.zeros(4), 2)
    torch.testing.assert_close(first.sign(), -second.sign())
    best, *_ = gaussian_start(log_density, torch.full((4,), -2.0), 0.1 * torch.eye(4), restarts=3)
    assert bool((best.loc > 0).all())  # lower, and heavier


def test_there_are_as_many_starts_as_asked_for() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(0.0, 20.0).expand([2]).to_event(1))

    log_density = LogDensity(model)
    assert len(summits(log_density, torch.zeros(2), 40)) == 40


def test_a_hopeless_start_takes_no_random_numbers_from_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    def model() -> None:
        pyro.sample("x", dist.StudentT(4.0, torch.zeros(3), 1.0).to_event(1))

    states = []
    for max_steps in (2, 50):
        monkeypatch.setattr(start, "fit_gaussian", partial(fit_gaussian, max_steps=max_steps))
        torch.manual_seed(5)
        gaussian_start(LogDensity(model), torch.zeros(3), torch.eye(3), 3)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
