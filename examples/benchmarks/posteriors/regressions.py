"""Regressions: raw columns, flat priors, heavy tails, shrinkage, counts, grades and survival times."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor


def diabetes_raw(columns: Tensor, target: Tensor) -> None:
    """Linear regression on raw columns, the priors as wide as the columns are unequal."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1000.0))
    with pyro.plate("columns", columns.shape[1]):
        slope = pyro.sample("slope", dist.Normal(0.0, 1000.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(50.0))
    with pyro.plate("patients", len(target)):
        pyro.sample("obs", dist.Normal(intercept + columns @ slope, sigma), obs=target)


def linnerud_flat(columns: Tensor, target: Tensor) -> None:
    """Linear regression without proper priors: flat in the coefficients and in sigma."""
    coefficients = pyro.sample("coefficients", dist.ImproperUniform(constraints.real_vector, (), (4,)))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    mean = coefficients[0] + columns @ coefficients[1:]
    with pyro.plate("men", len(target)):
        pyro.sample("obs", dist.Normal(mean, sigma), obs=target)


def breast_cancer_logistic(columns: Tensor, benign: Tensor) -> None:
    """Logistic regression on raw columns, where radius, perimeter and area say nearly the same."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 100.0))
    with pyro.plate("columns", columns.shape[1]):
        slope = pyro.sample("slope", dist.Normal(0.0, 100.0))
    with pyro.plate("tumours", len(benign)):
        pyro.sample("obs", dist.Bernoulli(logits=intercept + columns @ slope), obs=benign)


def breast_cancer_perimeter(columns: Tensor, perimeter: Tensor) -> None:
    """A law of geometry seen through noise: slopes hundreds of their sds from zero."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 100.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 100.0).expand([columns.shape[1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.Exponential(0.1))
    with pyro.plate("tumours", len(perimeter)):
        pyro.sample("obs", dist.Normal(intercept + columns @ slope, sigma), obs=perimeter)


def stack_loss_student(columns: Tensor, loss: Tensor) -> None:
    """Robust regression of 21 raw rows with outliers; the degrees of freedom are unknown."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 100.0))
    with pyro.plate("columns", columns.shape[1]):
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(5.0))
    nu = pyro.sample("nu", dist.Gamma(2.0, 0.1))
    with pyro.plate("days", len(loss)):
        pyro.sample("obs", dist.StudentT(nu, intercept + columns @ slope, sigma), obs=loss)


def diabetes_horseshoe(columns: Tensor, target: Tensor) -> None:
    """Sparse regression: a half-Cauchy scale for all, and a half-t scale with five degrees of freedom for each.

    With one degree of freedom, the horseshoe proper, the local scales have no variance; with three it exists, but no
    run of Markov chains could measure it.
    """
    tau = pyro.sample("tau", dist.HalfCauchy(0.1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("columns", columns.shape[1]):
        scale = pyro.sample("scale", dist.FoldedDistribution(dist.StudentT(5.0)))
        slope = pyro.sample("slope", dist.Normal(0.0, tau * scale))
    with pyro.plate("patients", len(target)):
        pyro.sample("obs", dist.Normal(columns @ slope, sigma), obs=target)


def diabetes_ordinal(columns: Tensor, grade: Tensor) -> None:
    """Ordered logit: four cutpoints in increasing order and four slopes."""
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0).expand([columns.shape[1]]).to_event(1))
    first_and_log_gaps = dist.Normal(torch.tensor([-2.0, 0.0, 0.0, 0.0]), 1.5).to_event(1)
    ordered = dist.transforms.OrderedTransform()
    cutpoints = pyro.sample("cutpoints", dist.TransformedDistribution(first_and_log_gaps, [ordered]))
    with pyro.plate("patients", len(grade)):
        pyro.sample("obs", dist.OrderedLogistic(columns @ slope, cutpoints), obs=grade)


def insect_sprays(spray: Tensor, count: Tensor) -> None:
    """Negative binomial counts: a mean for each spray, one overdispersion."""
    level = pyro.sample("level", dist.Normal(2.0, 2.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    concentration = pyro.sample("concentration", dist.Gamma(2.0, 0.1))
    with pyro.plate("sprays", 6):
        log_mean = pyro.sample("log_mean", dist.Normal(level, spread))
    rate = concentration / log_mean.exp()[spray]
    with pyro.plate("plots", len(count)):
        pyro.sample("obs", dist.GammaPoisson(concentration, rate), obs=count)


def remission_weibull(arm: Tensor, weeks: Tensor, seen: Tensor, first: Tensor) -> None:
    """Weibull times after a guaranteed span, one for each arm, that cannot exceed the first week on record.

    The shape stays above one: below, the likelihood has a pole where a span ends in the first week.
    """
    shape = pyro.sample("shape", dist.Uniform(1.0, 5.0))
    with pyro.plate("arms", 2):
        scale = pyro.sample("scale", dist.LogNormal(2.5, 1.0))
        guarantee = pyro.sample("guarantee", dist.Uniform(torch.zeros_like(first), first))
    since = (weeks - guarantee[arm]) / scale[arm]
    log_survival = -(since**shape)
    log_hazard = torch.log(shape / scale[arm]) + (shape - 1.0) * torch.log(since)
    pyro.factor("likelihood", (log_survival + torch.where(seen, log_hazard, 0.0)).sum())
