"""Whether a Pyro model and guide may be run for many particles at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

__all__ = ["particle_elbo"]


def particle_elbo(
    model: Callable[..., Any], guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any], num_particles: int
) -> Trace_ELBO:
    """Pyro's ELBO with all particles in one run where that run gives what single runs give, else one by one.

    Pyro's particles are one more batch dimension, which a model has to know of: ``w.sum()`` in a model
    would sum over them too, without any error.
    """
    if num_particles == 1:
        return Trace_ELBO()
    try:
        with poutine.block(), torch.no_grad(), torch.random.fork_rng():
            pair = Trace_ELBO(num_particles=2, vectorize_particles=True)
            together, apart = _log_densities(pair, model, guide, args, kwargs)
        if torch.allclose(together, apart, rtol=1e-3, atol=1e-3):
            return Trace_ELBO(num_particles=num_particles, vectorize_particles=True)
        reason = f"their log densities are {together.tolist()}, and those of single runs {apart.tolist()}"
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
    warnings.warn(
        f"the model and the guide cannot run for all particles at once, and run once for each, which is slow: {reason}",
        stacklevel=5,
    )
    return Trace_ELBO(num_particles=num_particles)


def _log_densities(
    elbo: Any, model: Callable[..., Any], guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The log densities of model and guide at two particles, in one run and added up over two."""
    shapes = {name: site["value"].shape for name, site in _latents(poutine.trace(guide).get_trace(*args, **kwargs))}
    scored, drawn = next(iter(elbo._get_traces(model, guide, args, kwargs)))
    apart = torch.zeros(2)
    for particle in range(2):
        values = {
            name: value if value.shape == shapes[name] else value[particle].reshape(shapes[name])
            for name, value in ((name, site["value"]) for name, site in _latents(drawn))
        }
        for i, fn in enumerate((model, guide)):
            run = poutine.trace(poutine.condition(fn, values)).get_trace(*args, **kwargs)
            apart[i] += run.log_prob_sum()
    return torch.stack([torch.as_tensor(t.log_prob_sum()) for t in (scored, drawn)]).to(apart), apart


def _latents(trace: Any) -> list[tuple[str, Any]]:
    return [(name, trace.nodes[name]) for name in trace.stochastic_nodes]
