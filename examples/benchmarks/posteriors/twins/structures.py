"""Sites with a structure of their own: simplex, order, correlation, mixture, Gaussian process, states and lags."""

from __future__ import annotations

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array, lax
from jax.scipy.special import logsumexp


def blood_types(counts: Array) -> None:
    """Frequencies of the alleles A, B and O behind the four blood types, under Hardy-Weinberg equilibrium."""
    a, b, o = numpyro.sample("alleles", dist.Dirichlet(jnp.ones(3)))
    types = jnp.stack([a * a + 2 * a * o, b * b + 2 * b * o, 2 * a * b, o * o], -1)
    numpyro.sample("obs", dist.Multinomial(int(counts.sum()), types), obs=counts)


def wine_correlation(columns: Array) -> None:
    """Mean, scales and correlations of five raw columns; the sds of the means differ by more than a thousand."""
    dim = columns.shape[1]
    mean = numpyro.sample("mean", dist.Normal(0.0, 1000.0).expand([dim]).to_event(1))
    scale = numpyro.sample("scale", dist.HalfCauchy(10.0).expand([dim]).to_event(1))
    factor = numpyro.sample("factor", dist.LKJCholesky(dim, 2.0))
    with numpyro.plate("wines", len(columns)):
        numpyro.sample("obs", dist.MultivariateNormal(mean, scale_tril=scale[..., None] * factor), obs=columns)


def coal_mining_process(inputs: Array, counts: Array) -> None:
    """Poisson counts whose log rate is a Gaussian process with unknown amplitude and lengthscale."""
    level = numpyro.sample("level", dist.Normal(0.0, 2.0))
    amplitude = numpyro.sample("amplitude", dist.HalfNormal(1.0))
    lengthscale = numpyro.sample("lengthscale", dist.LogNormal(0.7, 0.5))
    distance = (inputs[:, None] - inputs) / lengthscale
    covariance = amplitude**2 * jnp.exp(-0.5 * distance**2) + 1e-4 * jnp.eye(len(inputs))
    with numpyro.plate("spans", len(inputs)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        log_rate = level + jnp.linalg.cholesky(covariance) @ z
        numpyro.sample("obs", dist.Poisson(jnp.exp(log_rate)), obs=counts)


def galaxies_mixture(velocity: Array) -> None:
    """Three Gaussians with ordered means, the memberships summed out."""
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.full((3,), 2.0)))
    first_and_log_gaps = dist.Normal(jnp.array([10.0, 2.0, 2.0]), jnp.array([5.0, 1.0, 1.0])).to_event(1)
    ordered = dist.transforms.OrderedTransform()
    mean = numpyro.sample("mean", dist.TransformedDistribution(first_and_log_gaps, [ordered]))
    scale = numpyro.sample("scale", dist.LogNormal(0.5, 0.5).expand([3]).to_event(1))
    components = dist.Normal(mean, scale)
    with numpyro.plate("galaxies", len(velocity)):
        numpyro.sample("obs", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=velocity)


def earthquakes_states(counts: Array) -> None:
    """A hidden Markov chain of three Poisson rates in increasing order, summed out by the forward recursion."""
    with numpyro.plate("states", 3):
        transition = numpyro.sample("transition", dist.Dirichlet(1.0 + 7.0 * jnp.eye(3)))
    first_and_log_gaps = dist.Normal(jnp.array([2.5, -0.7, -0.7]), jnp.array([0.5, 0.5, 0.5])).to_event(1)
    ordered = dist.transforms.OrderedTransform()
    log_rate = numpyro.sample("log_rate", dist.TransformedDistribution(first_and_log_gaps, [ordered]))
    emission = dist.Poisson(jnp.exp(log_rate)).log_prob(counts[:, None])
    log_transition = jnp.log(transition)

    def forward(alpha: Array, row: Array) -> tuple[Array, None]:
        return logsumexp(alpha[:, None] + log_transition, 0) + row, None

    alpha, _ = lax.scan(forward, emission[0] - jnp.log(3.0), emission[1:])
    numpyro.factor("likelihood", logsumexp(alpha, 0))


def lynx_arma(y: Array) -> None:
    """ARMA(2, 1) with priors that know nothing of stationarity: for |theta| > 1 the residuals grow exponentially."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = numpyro.sample("phi", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))

    def residual(error: Array, known: Array) -> tuple[Array, Array]:
        error = known - theta * error
        return error, error

    _, errors = lax.scan(residual, jnp.zeros(()), y[2:] - mu - phi[0] * y[1:-1] - phi[1] * y[:-2])
    with numpyro.plate("years", len(errors)):
        numpyro.sample("obs", dist.Normal(y[2:] - errors, sigma), obs=y[2:])
