"""Whether the Pyro and the NumPyro model of a posterior are one: their log joints agree up to a constant."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_feasible
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from .registry import Posterior


def feasible(site: dict[str, Any] | None = None) -> Any:
    """Pyro's ``init_to_feasible``, that serves improper priors too: the image of the origin, without a draw."""
    if site is None or not isinstance(site["fn"], pyro.distributions.ImproperUniform):
        return init_to_feasible(site) if site else feasible
    fn = site["fn"]
    transform = biject_to(fn.support)
    return transform(torch.zeros(transform.inverse_shape(fn.shape())))


def prototype(posterior: Posterior) -> dict[str, dict[str, Any]]:
    """The latent sites of one run of the Pyro model, by name."""
    trace = poutine.trace(InitMessenger(feasible)(posterior.model)).get_trace(*posterior.args)
    return {name: trace.nodes[name] for name in trace.stochastic_nodes if not site_is_subsample(trace.nodes[name])}


def pyro_log_joint(posterior: Posterior, values: Mapping[str, Tensor]) -> float:
    """The log joint of constrained values under the Pyro model, by conditioning alone."""
    trace = poutine.trace(poutine.condition(posterior.model, values)).get_trace(*posterior.args)
    return float(trace.log_prob_sum())


def numpyro_log_joint(posterior: Posterior, values: Mapping[str, np.ndarray]) -> float:
    """The same under the NumPyro model, in its own library's arithmetic."""
    from numpyro.infer.util import log_density

    return float(log_density(posterior.numpyro_model, posterior.data(), {}, dict(values))[0])


@contextmanager
def doubles() -> Any:
    """Both libraries in float64, and back."""
    import jax

    before = torch.get_default_dtype(), jax.config.jax_enable_x64
    torch.set_default_dtype(torch.float64)
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        torch.set_default_dtype(before[0])
        jax.config.update("jax_enable_x64", before[1])


def log_joint_gaps(posterior: Posterior, points: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pyro's log joint less NumPyro's, and Pyro's itself, at random points of the unconstrained space: N(0, 0.7^2).

    Where the models are the same, the first array is constant but for rounding. Both densities are taken in the
    constrained space, so neither library's Jacobians enter.
    """
    with doubles():
        generator = torch.Generator().manual_seed(seed)
        sites = prototype(posterior)
        gaps, levels = [], []
        for _ in range(points):
            values = {}
            for name, site in sites.items():
                transform = biject_to(site["fn"].support)
                z = transform.inv(site["value"])
                values[name] = transform(0.7 * torch.randn(z.shape, generator=generator))
            ours = pyro_log_joint(posterior, values)
            gaps.append(ours - numpyro_log_joint(posterior, {name: v.numpy() for name, v in values.items()}))
            levels.append(ours)
    return np.array(gaps), np.array(levels)
