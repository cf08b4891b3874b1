"""Groups that share strength: eight schools, rats and houses in counties."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor


def eight_schools_centred(errors: Tensor, effects: Tensor) -> None:
    """The funnel: as tau shrinks, every theta must follow."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(effects)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("obs", dist.Normal(theta, errors), obs=effects)


def eight_schools_noncentred(errors: Tensor, effects: Tensor) -> None:
    """The same posterior in coordinates without the funnel."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(effects)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(mu + tau * eta, errors), obs=effects)


def rats(days: Tensor, weights: Tensor) -> None:
    """A growth line for each of 30 rats: 65 latent numbers on the data's own scale."""
    mu_level = pyro.sample("mu_level", dist.Normal(0.0, 1000.0))
    mu_rate = pyro.sample("mu_rate", dist.Normal(0.0, 100.0))
    sd_level = pyro.sample("sd_level", dist.HalfCauchy(25.0))
    sd_rate = pyro.sample("sd_rate", dist.HalfCauchy(2.5))
    sigma = pyro.sample("sigma", dist.HalfCauchy(25.0))
    rats_plate = pyro.plate("rats", len(weights), dim=-2)
    with rats_plate:
        level = pyro.sample("level", dist.Normal(mu_level, sd_level))
        rate = pyro.sample("rate", dist.Normal(mu_rate, sd_rate))
    with rats_plate, pyro.plate("ages", len(days), dim=-1):
        pyro.sample("obs", dist.Normal(level + rate * (days - days.mean()), sigma), obs=weights)


def radon_like(county: Tensor, uranium: Tensor, floor: Tensor, log_radon: Tensor) -> None:
    """An intercept and a slope for each county, centred, in counties of 2 to 40 houses: 70 latent numbers."""
    mu_intercept = pyro.sample("mu_intercept", dist.Normal(0.0, 5.0))
    mu_slope = pyro.sample("mu_slope", dist.Normal(0.0, 5.0))
    gamma = pyro.sample("gamma", dist.Normal(0.0, 5.0))
    sd_intercept = pyro.sample("sd_intercept", dist.HalfNormal(1.0))
    sd_slope = pyro.sample("sd_slope", dist.HalfNormal(1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
    with pyro.plate("counties", len(uranium)):
        intercept = pyro.sample("intercept", dist.Normal(mu_intercept + gamma * uranium, sd_intercept))
        slope = pyro.sample("slope", dist.Normal(mu_slope, sd_slope))
    with pyro.plate("houses", len(log_radon)):
        pyro.sample("obs", dist.Normal(intercept[county] + slope[county] * floor, sigma), obs=log_radon)
