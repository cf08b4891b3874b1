"""Sites with a structure of their own: simplex, order, correlation, mixture, Gaussian process, states and lags."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


def blood_types(counts: Tensor) -> None:
    """Frequencies of the alleles A, B and O behind the four blood types, under Hardy-Weinberg equilibrium."""
    a, b, o = pyro.sample("alleles", dist.Dirichlet(torch.ones(3))).unbind(-1)
    types = torch.stack([a * a + 2 * a * o, b * b + 2 * b * o, 2 * a * b, o * o], -1)
    pyro.sample("obs", dist.Multinomial(int(counts.sum()), types), obs=counts)


def wine_correlation(columns: Tensor) -> None:
    """Mean, scales and correlations of five raw columns; the sds of the means differ by more than a thousand."""
    dim = columns.shape[1]
    mean = pyro.sample("mean", dist.Normal(0.0, 1000.0).expand([dim]).to_event(1))
    scale = pyro.sample("scale", dist.HalfCauchy(10.0).expand([dim]).to_event(1))
    factor = pyro.sample("factor", dist.LKJCholesky(dim, 2.0))
    with pyro.plate("wines", len(columns)):
        pyro.sample("obs", dist.MultivariateNormal(mean, scale_tril=scale[..., None] * factor), obs=columns)


def coal_mining_process(inputs: Tensor, counts: Tensor) -> None:
    """Poisson counts whose log rate is a Gaussian process with unknown amplitude and lengthscale."""
    level = pyro.sample("level", dist.Normal(0.0, 2.0))
    amplitude = pyro.sample("amplitude", dist.HalfNormal(1.0))
    lengthscale = pyro.sample("lengthscale", dist.LogNormal(0.7, 0.5))
    distance = (inputs[:, None] - inputs) / lengthscale
    covariance = amplitude**2 * torch.exp(-0.5 * distance**2) + 1e-4 * torch.eye(len(inputs))
    with pyro.plate("spans", len(inputs)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        log_rate = level + torch.linalg.cholesky(covariance) @ z
        pyro.sample("obs", dist.Poisson(log_rate.exp()), obs=counts)


def galaxies_mixture(velocity: Tensor) -> None:
    """Three Gaussians with ordered means, the memberships summed out."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 2.0)))
    first_and_log_gaps = dist.Normal(torch.tensor([10.0, 2.0, 2.0]), torch.tensor([5.0, 1.0, 1.0])).to_event(1)
    ordered = dist.transforms.OrderedTransform()
    mean = pyro.sample("mean", dist.TransformedDistribution(first_and_log_gaps, [ordered]))
    scale = pyro.sample("scale", dist.LogNormal(0.5, 0.5).expand([3]).to_event(1))
    components = dist.Normal(mean, scale)
    with pyro.plate("galaxies", len(velocity)):
        pyro.sample("obs", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=velocity)


def earthquakes_states(counts: Tensor) -> None:
    """A hidden Markov chain of three Poisson rates in increasing order, summed out by the forward recursion."""
    with pyro.plate("states", 3):
        transition = pyro.sample("transition", dist.Dirichlet(1.0 + 7.0 * torch.eye(3)))
    first_and_log_gaps = dist.Normal(torch.tensor([2.5, -0.7, -0.7]), torch.tensor([0.5, 0.5, 0.5])).to_event(1)
    ordered = dist.transforms.OrderedTransform()
    log_rate = pyro.sample("log_rate", dist.TransformedDistribution(first_and_log_gaps, [ordered]))
    emission = dist.Poisson(log_rate.exp()).log_prob(counts[:, None])
    log_transition = transition.log()
    alpha = emission[0] - torch.log(torch.tensor(3.0))
    for t in range(1, len(counts)):
        alpha = torch.logsumexp(alpha[:, None] + log_transition, 0) + emission[t]
    pyro.factor("likelihood", torch.logsumexp(alpha, 0))


def lynx_arma(y: Tensor) -> None:
    """ARMA(2, 1) with priors that know nothing of stationarity: for |theta| > 1 the residuals grow exponentially."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    error = torch.zeros(())
    errors = []
    for t in range(2, len(y)):
        error = y[t] - mu - phi[0] * y[t - 1] - phi[1] * y[t - 2] - theta * error
        errors.append(error)
    with pyro.plate("years", len(errors)):
        pyro.sample("obs", dist.Normal(y[2:] - torch.stack(errors), sigma), obs=y[2:])
