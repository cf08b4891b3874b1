"""Groups that share strength: eight schools, rats and houses in counties."""

from __future__ import annotations

import numpyro
import numpyro.distributions as dist
from jax import Array


def eight_schools_centred(errors: Array, effects: Array) -> None:
    """The funnel: as tau shrinks, every theta must follow."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(effects)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("obs", dist.Normal(theta, errors), obs=effects)


def eight_schools_noncentred(errors: Array, effects: Array) -> None:
    """The same posterior in coordinates without the funnel."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(effects)):
        eta = numpyro.sample("eta", dist.Normal(0.0, 1.0))
        numpyro.sample("obs", dist.Normal(mu + tau * eta, errors), obs=effects)


def rats(days: Array, weights: Array) -> None:
    """A growth line for each of 30 rats: 65 latent numbers on the data's own scale."""
    mu_level = numpyro.sample("mu_level", dist.Normal(0.0, 1000.0))
    mu_rate = numpyro.sample("mu_rate", dist.Normal(0.0, 100.0))
    sd_level = numpyro.sample("sd_level", dist.HalfCauchy(25.0))
    sd_rate = numpyro.sample("sd_rate", dist.HalfCauchy(2.5))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(25.0))
    rats_plate = numpyro.plate("rats", len(weights), dim=-2)
    with rats_plate:
        level = numpyro.sample("level", dist.Normal(mu_level, sd_level))
        rate = numpyro.sample("rate", dist.Normal(mu_rate, sd_rate))
    with rats_plate, numpyro.plate("ages", len(days), dim=-1):
        numpyro.sample("obs", dist.Normal(level + rate * (days - days.mean()), sigma), obs=weights)


def radon_like(county: Array, uranium: Array, floor: Array, log_radon: Array) -> None:
    """An intercept and a slope for each county, centred, in counties of 2 to 40 houses: 70 latent numbers."""
    mu_intercept = numpyro.sample("mu_intercept", dist.Normal(0.0, 5.0))
    mu_slope = numpyro.sample("mu_slope", dist.Normal(0.0, 5.0))
    gamma = numpyro.sample("gamma", dist.Normal(0.0, 5.0))
    sd_intercept = numpyro.sample("sd_intercept", dist.HalfNormal(1.0))
    sd_slope = numpyro.sample("sd_slope", dist.HalfNormal(1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("counties", len(uranium)):
        intercept = numpyro.sample("intercept", dist.Normal(mu_intercept + gamma * uranium, sd_intercept))
        slope = numpyro.sample("slope", dist.Normal(mu_slope, sd_slope))
    with numpyro.plate("houses", len(log_radon)):
        numpyro.sample("obs", dist.Normal(intercept[county] + slope[county] * floor, sigma), obs=log_radon)
