"""Regressions: raw columns, flat priors, heavy tails, shrinkage, counts, grades and survival times."""

from __future__ import annotations

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints


def diabetes_raw(columns: Array, target: Array) -> None:
    """Linear regression on raw columns, the priors as wide as the columns are unequal."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1000.0))
    with numpyro.plate("columns", columns.shape[1]):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1000.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(50.0))
    with numpyro.plate("patients", len(target)):
        numpyro.sample("obs", dist.Normal(intercept + columns @ slope, sigma), obs=target)


def linnerud_flat(columns: Array, target: Array) -> None:
    """Linear regression without proper priors: flat in the coefficients and in sigma."""
    coefficients = numpyro.sample("coefficients", dist.ImproperUniform(constraints.real_vector, (), (4,)))
    sigma = numpyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    mean = coefficients[0] + columns @ coefficients[1:]
    with numpyro.plate("men", len(target)):
        numpyro.sample("obs", dist.Normal(mean, sigma), obs=target)


def breast_cancer_logistic(columns: Array, benign: Array) -> None:
    """Logistic regression on raw columns, where radius, perimeter and area say nearly the same."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 100.0))
    with numpyro.plate("columns", columns.shape[1]):
        slope = numpyro.sample("slope", dist.Normal(0.0, 100.0))
    with numpyro.plate("tumours", len(benign)):
        numpyro.sample("obs", dist.Bernoulli(logits=intercept + columns @ slope), obs=benign)


def breast_cancer_perimeter(columns: Array, perimeter: Array) -> None:
    """A law of geometry seen through noise: slopes hundreds of their sds from zero."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 100.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 100.0).expand([columns.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.Exponential(0.1))
    with numpyro.plate("tumours", len(perimeter)):
        numpyro.sample("obs", dist.Normal(intercept + columns @ slope, sigma), obs=perimeter)


def stack_loss_student(columns: Array, loss: Array) -> None:
    """Robust regression of 21 raw rows with outliers; the degrees of freedom are unknown."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 100.0))
    with numpyro.plate("columns", columns.shape[1]):
        slope = numpyro.sample("slope", dist.Normal(0.0, 10.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(5.0))
    nu = numpyro.sample("nu", dist.Gamma(2.0, 0.1))
    with numpyro.plate("days", len(loss)):
        numpyro.sample("obs", dist.StudentT(nu, intercept + columns @ slope, sigma), obs=loss)


def diabetes_horseshoe(columns: Array, target: Array) -> None:
    """Sparse regression: a half-Cauchy scale for all, and a half-t scale with five degrees of freedom for each.

    With one degree of freedom, the horseshoe proper, the local scales have no variance; with three it exists, but no
    run of Markov chains could measure it.
    """
    tau = numpyro.sample("tau", dist.HalfCauchy(0.1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("columns", columns.shape[1]):
        scale = numpyro.sample("scale", dist.FoldedDistribution(dist.StudentT(5.0)))
        slope = numpyro.sample("slope", dist.Normal(0.0, tau * scale))
    with numpyro.plate("patients", len(target)):
        numpyro.sample("obs", dist.Normal(columns @ slope, sigma), obs=target)


def diabetes_ordinal(columns: Array, grade: Array) -> None:
    """Ordered logit: four cutpoints in increasing order and four slopes."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([columns.shape[1]]).to_event(1))
    first_and_log_gaps = dist.Normal(jnp.array([-2.0, 0.0, 0.0, 0.0]), 1.5).to_event(1)
    ordered = dist.transforms.OrderedTransform()
    cutpoints = numpyro.sample("cutpoints", dist.TransformedDistribution(first_and_log_gaps, [ordered]))
    with numpyro.plate("patients", len(grade)):
        numpyro.sample("obs", dist.OrderedLogistic(columns @ slope, cutpoints), obs=grade)


def insect_sprays(spray: Array, count: Array) -> None:
    """Negative binomial counts: a mean for each spray, one overdispersion."""
    level = numpyro.sample("level", dist.Normal(2.0, 2.0))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    concentration = numpyro.sample("concentration", dist.Gamma(2.0, 0.1))
    with numpyro.plate("sprays", 6):
        log_mean = numpyro.sample("log_mean", dist.Normal(level, spread))
    rate = concentration / jnp.exp(log_mean)[spray]
    with numpyro.plate("plots", len(count)):
        numpyro.sample("obs", dist.GammaPoisson(concentration, rate), obs=count)


def remission_weibull(arm: Array, weeks: Array, seen: Array, first: Array) -> None:
    """Weibull times after a guaranteed span, one for each arm, that cannot exceed the first week on record.

    The shape stays above one: below, the likelihood has a pole where a span ends in the first week.
    """
    shape = numpyro.sample("shape", dist.Uniform(1.0, 5.0))
    with numpyro.plate("arms", 2):
        scale = numpyro.sample("scale", dist.LogNormal(2.5, 1.0))
        guarantee = numpyro.sample("guarantee", dist.Uniform(jnp.zeros_like(first), first))
    since = (weeks - guarantee[arm]) / scale[arm]
    log_survival = -(since**shape)
    log_hazard = jnp.log(shape / scale[arm]) + (shape - 1.0) * jnp.log(since)
    numpyro.factor("likelihood", (log_survival + jnp.where(seen, log_hazard, 0.0)).sum())
