"""Time to a posterior: our fit, Pyro's AutoIAFNormal to the same ELBO, and NUTS of Pyro and NumPyro.

    python -m examples.benchmarks.posterior_time                # docs/records/benchmarks/posterior_time.json

All times are wall-clock seconds of one thread, one after the other, with tracing and compilation. Ours is
``fit(model, AutoFlow(model), *args)``. Pyro's guide is trained as in ``peers.py``, and on at the last step size; its
ELBO is estimated every hundred steps, off the clock, until it is within ``TOLERANCE`` nats of ours or a multiple of
our time is over. The errors are those of the accuracy table: the worst over all scalars against the reference runs.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_flows_vi.guides import AutoFlow
from pyro_flows_vi.infer import fit

from ..comparison import nuts
from .accuracy import errors_of
from .measure import RECORDS, write_record
from .posteriors import SUITE
from .posteriors.check import feasible

NAMES = (
    "eight_schools_centred",
    "eight_schools_noncentred",
    "remission_weibull",
    "insect_sprays",
    "stack_loss_student",
    "blood_types",
)
#: nats that Pyro's guide may fall short of ours
TOLERANCE = 0.01
WARM_UP, DRAWS, CHAINS = 500, 1000, 4


def worst(name: str, draws: Mapping[str, Tensor]) -> dict[str, float]:
    """The worst errors of a set of draws."""
    errors = errors_of(name, draws).values()
    return {"mean_error": float(max(abs(mean) for mean, _ in errors)), "log_sd_ratio": max(abs(sd) for _, sd in errors)}


def ours(name: str, seed: int) -> dict[str, float]:
    """Our fit."""
    posterior = SUITE[name]
    torch.manual_seed(seed)
    began = time.perf_counter()
    guide = AutoFlow(posterior.model)
    result = fit(posterior.model, guide, *posterior.args, seed=seed, progress=False)
    seconds = time.perf_counter() - began
    draws = guide.sample_posterior(20_000, *posterior.args)
    return {"seconds": seconds, "elbo": result.elbo, "steps": result.steps, **worst(name, draws)}


def pyro_iaf(name: str, seed: int, target: float, limit: float) -> dict[str, Any]:
    """Pyro's guide, until its ELBO reaches the target or its seconds the limit."""
    from pyro_flows_vi.infer import draw_weighted

    from .peers import STEPS, pyro_guides, pyro_svi

    posterior = SUITE[name]
    began, seconds, steps, elbo = time.perf_counter(), 0.0, 0, float("-inf")
    guide, svi, particles = pyro_svi(posterior, pyro_guides(feasible)["AutoIAFNormal"], seed)
    while seconds < limit and elbo < target:
        for _ in range(100):
            svi.step(*posterior.args)
        steps += 100
        if steps == STEPS:  # from here on at the last rate
            for group in (group for each in svi.optim.optim_objs.values() for group in each.param_groups):
                group["lrd"] = 1.0
        seconds += time.perf_counter() - began
        draws = draw_weighted(posterior.model, guide, *posterior.args, num_draws=4000)
        elbo = float(draws.log_weights.double().mean())
        began = time.perf_counter()
    return {"seconds": seconds, "elbo": elbo, "steps": steps, "particles": particles, "reached": elbo >= target}


def pyro_nuts(name: str, seed: int) -> dict[str, Any]:
    """One chain of Pyro's sampler."""
    posterior = SUITE[name]
    chain = nuts(posterior.model, *posterior.args, warmup=WARM_UP, draws=DRAWS, seed=seed)
    return {"seconds": chain["seconds"], "divergences": chain["divergences"], **worst(name, chain["draws"])}


def numpyro_nuts(name: str, seed: int) -> dict[str, Any]:
    """Vectorised chains of NumPyro's sampler, with their compilation."""
    import jax
    import numpy as np
    from numpyro.infer import MCMC, NUTS

    posterior = SUITE[name]
    began = time.perf_counter()
    sampler = MCMC(
        NUTS(posterior.numpyro_model),
        num_warmup=WARM_UP,
        num_samples=DRAWS,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    sampler.run(jax.random.PRNGKey(seed), *posterior.data(), extra_fields=("diverging",))
    draws = {site: torch.from_numpy(np.array(value)) for site, value in sampler.get_samples().items()}
    seconds = time.perf_counter() - began
    diverging = int(np.array(sampler.get_extra_fields()["diverging"]).sum())
    return {"seconds": seconds, "divergences": diverging, **worst(name, draws)}


def main() -> None:
    """Measure, print, and write the record after every row; rows of other posteriors stay in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(NAMES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--times", type=float, default=6.0, help="give Pyro's guide so many times our seconds")
    parser.add_argument("--out", type=Path, default=RECORDS / "posterior_time.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    done = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"rows": {}}
    rows: dict[str, dict[str, Any]] = done["rows"]
    for name in options.names:
        row: dict[str, Any] = {"ours": ours(name, options.seed)}
        target, limit = row["ours"]["elbo"] - TOLERANCE, options.times * row["ours"]["seconds"]
        contests: dict[str, Callable[[], dict[str, Any]]] = {
            "Pyro AutoIAFNormal": lambda n=name, t=target, s=limit: pyro_iaf(n, options.seed, t, s),
            "NumPyro NUTS": lambda n=name: numpyro_nuts(n, options.seed),
            "Pyro NUTS": lambda n=name: pyro_nuts(n, options.seed),
        }
        for contest, run in contests.items():
            try:
                row[contest] = run()
            except Exception as error:  # a peer that fails is a result too
                row[contest] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        rows[name] = row
        for method, found in row.items():
            print(name, method, {k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}, flush=True)
        settings = {
            "warm_up": WARM_UP,
            "draws": DRAWS,
            "chains": CHAINS,
            "tolerance": TOLERANCE,
            "times": options.times,
        }
        write_record(options.out, {"clock": "perf_counter", "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
