"""Mixture-CDF flows on their three bases."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch.distributions import Beta

from pyro_flows_vi.density.cdf_flow import LogitBeta, cdf_flow
from pyro_flows_vi.testing import randomize

BASES: tuple[Literal["normal", "uniform", "beta"], ...] = ("normal", "uniform", "beta")


def _flow(input_dim: int, base: Literal["normal", "uniform", "beta"], kind: Literal["gaussian", "logistic"]):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    law = cdf_flow(input_dim, base, kind, components=3, hidden_dims=(5,))
    randomize(law.transforms[0], 0.5)
    return law


@pytest.mark.parametrize("kind", ["gaussian", "logistic"])
@pytest.mark.parametrize("base", BASES)
def test_integrates_to_one(base: Literal["normal", "uniform", "beta"], kind: Literal["gaussian", "logistic"]) -> None:
    law = _flow(1, base, kind)
    y = torch.linspace(-80.0, 80.0, 40001)[:, None]
    assert torch.trapezoid(law.log_prob(y).exp(), y[:, 0]).item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("base", BASES)
def test_integrates_to_one_in_the_plane(base: Literal["normal", "uniform", "beta"]) -> None:
    law = _flow(2, base, "gaussian")
    y = torch.linspace(-25.0, 25.0, 401)
    grid = torch.stack(torch.meshgrid(y, y, indexing="ij"), -1)
    mass = torch.trapezoid(torch.trapezoid(law.log_prob(grid).exp(), y), y)
    assert mass.item() == pytest.approx(1.0, abs=1e-4)


def test_uniform_and_normal_bases_give_the_mixture_itself() -> None:
    laws = [_flow(2, base, "gaussian") for base in ("normal", "uniform")]
    for law in laws:  # the same raw numbers: the links differ in their start only
        randomize(law.transforms[0], 0.5, torch.Generator().manual_seed(1))
    y = 3.0 * torch.randn(20, 2)
    torch.testing.assert_close(laws[0].log_prob(y), laws[1].log_prob(y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (2.0, 2.0), (0.5, 3.0)])
def test_logit_beta_is_the_logit_of_a_beta(a: float, b: float) -> None:
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    law = LogitBeta(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
    expected = Beta(law.a, law.b).log_prob(u) + u.log() + torch.log1p(-u)
    torch.testing.assert_close(law.log_prob(torch.logit(u)), expected)
    torch.manual_seed(0)
    draws = torch.sigmoid(law.sample((40_000,)))
    error = (a * b / (a + b) ** 2 / (a + b + 1.0) / 40_000) ** 0.5
    assert abs(draws.mean().item() - a / (a + b)) < 4.0 * error


def test_far_out_the_density_is_not_cut() -> None:
    law = _flow(1, "beta", "logistic")
    values = law.log_prob(torch.tensor([[-1e4], [-1e3], [1e3], [1e4]]))
    assert values.isfinite().all()
    assert values[0] < values[1] < -100.0 and values[3] < values[2] < -100.0


def test_draws_agree_with_the_density() -> None:
    law = _flow(2, "uniform", "logistic")
    y = law.sample((200,))
    z = law.transforms[0].inv(y)
    u = torch.sigmoid(z)
    assert ((u > 0.0) & (u < 1.0)).all()
    assert abs(u.mean().item() - 0.5) < 4.0 * (1.0 / 12.0 / 400.0) ** 0.5
    assert law.log_prob(y).isfinite().all()


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="base"):
        cdf_flow(2, "cauchy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="concentration"):
        cdf_flow(2, "beta", concentration=(0.0, 1.0))
