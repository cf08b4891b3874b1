"""The guides of Pyro and NumPyro on a posterior of the suite, each with sensible settings.

All get the same budget: 5000 steps of the reparametrised ELBO with 16 vectorised particles, Adam from 0.01 falling to
0.001. Pyro vectorises only models whose arithmetic broadcasts over a batch on the left; the others run with one
particle. Pyro's flow guides train in float32, its default, like ours; NumPyro's likewise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

STEPS, PARTICLES, FIRST_RATE, LAST_RATE = 5000, 16, 0.01, 0.001
NUM_DRAWS = 20_000
Outcome = tuple[dict[str, Tensor], Tensor, dict[str, Any]]


def pyro_guides(feasible: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """The guides of Pyro by name, each to be made for a model; ``feasible`` says where they start."""
    from pyro.distributions.transforms import block_autoregressive, iterated
    from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal, AutoNormalizingFlow

    return {
        "AutoNormal": partial(AutoNormal, init_loc_fn=feasible),
        "AutoMultivariateNormal": partial(AutoMultivariateNormal, init_loc_fn=feasible),
        "AutoIAFNormal": partial(AutoIAFNormal, num_transforms=2),
        "AutoNormalizingFlow-bnaf": partial(
            AutoNormalizingFlow, init_transform_fn=lambda dim: iterated(1, block_autoregressive, dim)
        ),
    }


def pyro_optimizer() -> Any:
    """Adam whose step size is the last one after ``STEPS``."""
    from pyro.optim import ClippedAdam

    return ClippedAdam({"lr": FIRST_RATE, "lrd": (LAST_RATE / FIRST_RATE) ** (1 / STEPS)})


NUMPYRO = ("numpyro-AutoIAFNormal", "numpyro-AutoBNAFNormal")
METHODS = ("AutoNormal", "AutoMultivariateNormal", "AutoIAFNormal", "AutoNormalizingFlow-bnaf", *NUMPYRO)


def run_peer(posterior: Any, method: str, seed: int, feasible: Callable[..., Any]) -> Outcome:
    """Draws by site, log weights, and how the fit went."""
    if method not in METHODS:
        raise ValueError(f"expected a method among ours, {', '.join(METHODS)}; got {method!r}")
    if method in NUMPYRO:
        return _run_numpyro(posterior, method.removeprefix("numpyro-"), seed)
    return _run_pyro(posterior, pyro_guides(feasible)[method], seed)


def pyro_svi(posterior: Any, make_guide: Callable[..., Any], seed: int) -> tuple[Any, Any, int]:
    """A fresh guide, its SVI, and its particles: one where the model cannot be vectorised."""
    import pyro
    from pyro import poutine
    from pyro.infer import SVI, Trace_ELBO

    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide, elbo = make_guide(posterior.model), Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True)
    try:
        with poutine.block():
            elbo.loss(posterior.model, guide, *posterior.args)
    except (IndexError, RuntimeError):  # a model that does not broadcast over particles
        pyro.clear_param_store()
        guide, elbo = make_guide(posterior.model), Trace_ELBO()
    return guide, SVI(posterior.model, guide, pyro_optimizer(), elbo), elbo.num_particles


def _run_pyro(posterior: Any, make_guide: Callable[..., Any], seed: int) -> Outcome:
    from pyro_flows_vi.infer import diagnose, draw_weighted

    guide, svi, particles = pyro_svi(posterior, make_guide, seed)
    bad = sum(not np.isfinite(svi.step(*posterior.args)) for _ in range(STEPS))
    draws = draw_weighted(posterior.model, guide, *posterior.args, num_draws=NUM_DRAWS)
    report = {"steps": STEPS, "skipped": bad, "particles": particles}
    return (
        draws.values,
        draws.log_weights,
        report | {"diagnose": lambda: diagnose(posterior.model, guide, *posterior.args, seed=seed)},
    )


def _run_numpyro(posterior: Any, name: str, seed: int) -> Outcome:
    import jax
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO, autoguide, init_to_feasible
    from numpyro.infer.util import initialize_model

    model, data = posterior.numpyro_model, posterior.data()
    guide = getattr(autoguide, name)(model, init_loc_fn=init_to_feasible)
    rates = numpyro.optim.optimizers.exponential_decay(FIRST_RATE, STEPS, LAST_RATE / FIRST_RATE)
    svi = SVI(model, guide, numpyro.optim.ClippedAdam(rates), Trace_ELBO(num_particles=PARTICLES))
    fitted = svi.run(jax.random.PRNGKey(seed), STEPS, *data, progress_bar=False)
    flow = guide.get_posterior(fitted.params)
    potential = initialize_model(jax.random.PRNGKey(0), model, model_args=data).potential_fn

    def one(key: Any) -> tuple[Any, Any]:
        latent, intermediates = flow.sample_with_intermediates(key)
        return latent, -potential(guide._unpack_latent(latent)) - flow.log_prob(latent, intermediates)

    latents, log_weights = jax.lax.map(one, jax.random.split(jax.random.PRNGKey(seed + 1), NUM_DRAWS))
    values = jax.vmap(guide._unpack_and_constrain, (0, None))(latents, fitted.params)
    draws = {site: torch.from_numpy(np.array(value)) for site, value in values.items()}
    bad = int((~np.isfinite(np.array(fitted.losses))).sum())
    return draws, torch.from_numpy(np.array(log_weights)), {"steps": STEPS, "skipped": bad, "particles": PARTICLES}
