"""The reference run of each posterior: long NUTS chains by NumPyro in float64, kept as one summary record each.

    python -m examples.benchmarks.posteriors.truth [NAME...]

Needs the extra ``peers``. Without names it runs every posterior that has no record yet. Modes are searched from many
random points, near and far, and the chains start beside those that hold a thousandth of the mass or more by Laplace's
approximation, so that chains from different modes must find one another; all of them move in the coordinates that
make the heaviest mode's curvature the identity. A run that does not pass the bounds below is reported and not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from .check import prototype
from .registry import RECORDS, SUITE, Posterior

CHAINS, WARMUP, DRAWS = 4, 2000, 10000
SEARCHES = 12  # for modes
TARGET_ACCEPT = 0.9
# Posteriors whose curvature changes so much from place to place that the common step size is too long somewhere.
CAREFUL = {
    "coal_mining_process": 0.98,
    "diabetes_horseshoe": 0.995,
    "eight_schools_centred": 0.98,
    "eight_schools_noncentred": 0.98,
    "insect_sprays": 0.97,
    "radon_like": 0.97,
    "remission_weibull": 0.97,
}
MAX_RHAT, MAX_MCSE = 1.01, 0.03  # of every scalar; the second in posterior sds, for the mean and for the sd


def coordinates(potential: Callable[[Any], Any], starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The heaviest mode, a factor L of the inverse curvature there, and the modes worth a chain in units of L."""
    import jax
    from scipy.optimize import minimize

    value_and_grad, hessian = jax.jit(jax.value_and_grad(potential)), jax.jit(jax.hessian(potential))

    def finite(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = (np.asarray(part) for part in value_and_grad(z))
        return (float(value), grad) if np.isfinite(value) else (1e300, np.zeros_like(z))

    def curvature(z: np.ndarray) -> np.ndarray:
        return np.nan_to_num(np.asarray(hessian(z)))

    options = {"maxiter": 500, "gtol": 1e-6, "max_trust_radius": 1e6}
    modes = []
    for start in starts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a search that stops short is a start all the same
            found = minimize(finite, start, jac=True, hess=curvature, method="trust-exact", options=options)
        eigenvalues, axes = np.linalg.eigh(curvature(found.x))
        scale = np.where(eigenvalues > 1e-8, 1.0 / np.sqrt(np.maximum(eigenvalues, 1e-8)), 1.0)
        modes.append((np.log(scale).sum() - found.fun, found.x, axes, scale))
    modes.sort(key=lambda mode: -mode[0])
    evidence, best, axes, scale = modes[0]
    worthy = [place for mass, place, *_ in modes if mass > evidence - np.log(1000.0)]
    return best, axes * scale, np.array([(axes.T @ (place - best)) / scale for place in worthy])


def rank_rhat(draws: np.ndarray) -> float:
    """Rank-normalised split R-hat, the larger of bulk and tails, of draws (chains, draws).

    Rank-normalization, folding, and localization: an improved R-hat (Vehtari et al., 2021), arXiv:1903.08008.
    """
    from numpyro.diagnostics import split_gelman_rubin
    from scipy.stats import norm, rankdata

    folded = np.abs(draws - np.median(draws))
    ranks = (rankdata(part).reshape(draws.shape) for part in (draws, folded))
    return max(float(split_gelman_rubin(norm.ppf((rank - 0.375) / (draws.size + 0.25)))) for rank in ranks)


def summary(draws: np.ndarray) -> dict[str, float | None]:
    """Mean, sd and quantiles of one scalar's draws (chains, draws), and how well they are known."""
    from numpyro.diagnostics import effective_sample_size

    mean, sd = float(draws.mean()), float(draws.std(ddof=1))
    q05, q50, q95 = (float(q) for q in np.quantile(draws, [0.05, 0.5, 0.95]))
    numbers: dict[str, float | None] = {"mean": mean, "sd": sd, "q05": q05, "q50": q50, "q95": q95}
    if np.ptp(draws) <= 1e-12 * max(1.0, abs(mean)):
        return {**numbers, "sd": 0.0, "mcse_mean": 0.0, "mcse_sd": 0.0, "ess": None, "rhat": None}
    square = (draws - mean) ** 2
    ess, ess_square = float(effective_sample_size(draws)), float(effective_sample_size(square))
    numbers["mcse_mean"] = sd / ess**0.5
    numbers["mcse_sd"] = float(square.std()) / (2 * sd * ess_square**0.5)
    return {**numbers, "ess": ess, "rhat": rank_rhat(draws)}


def reference(posterior: Posterior, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """Run NUTS on the posterior's NumPyro model and return its record."""
    import jax
    import jaxlib
    import numpyro
    import scipy
    from jax.flatten_util import ravel_pytree
    from numpyro.handlers import reparam
    from numpyro.infer import MCMC, NUTS
    from numpyro.infer.reparam import LocScaleReparam
    from numpyro.infer.util import initialize_model

    began = time.perf_counter()
    model = posterior.numpyro_model
    if posterior.decentre:
        model = reparam(model, config={site: LocScaleReparam(0) for site in posterior.decentre})
    keys = jax.random.split(jax.random.PRNGKey(seed))
    info = initialize_model(keys[0], model, model_args=posterior.data())
    flat, unflatten = ravel_pytree(info.param_info.z)
    rng = np.random.default_rng(seed)
    starts = rng.uniform(-1.0, 1.0, (SEARCHES, flat.size)) * np.resize([2.0, 0.5, 0.1], (SEARCHES, 1))

    def potential(z: Any) -> Any:
        return info.potential_fn(unflatten(z))

    mode, factor, modes = coordinates(potential, starts)

    def to_sites(u: Any) -> dict[str, Any]:
        return info.postprocess_fn(unflatten(mode + factor @ u))

    target_accept = CAREFUL.get(posterior.name, TARGET_ACCEPT)
    kernel = NUTS(
        potential_fn=lambda u: potential(mode + factor @ u), dense_mass=True, target_accept_prob=target_accept
    )
    sampler = MCMC(
        kernel,
        num_warmup=WARMUP,
        num_samples=draws,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    places = np.resize(modes, (CHAINS, flat.size)) + rng.normal(size=(CHAINS, flat.size))
    sampler.run(keys[1], init_params=jax.numpy.asarray(places), extra_fields=("diverging", "num_steps"))
    extra = {name: np.asarray(field) for name, field in sampler.get_extra_fields(group_by_chain=True).items()}
    values = jax.jit(jax.vmap(jax.vmap(to_sites)))(sampler.get_samples(group_by_chain=True))

    sites: dict[str, dict[str, Any]] = {}
    for name, site in prototype(posterior).items():
        shape = tuple(site["value"].shape)
        flat = np.asarray(values[name]).reshape(CHAINS, draws, -1)
        rows = [summary(flat[..., i]) for i in range(flat.shape[-1])]
        sites[name] = {"shape": list(shape), **{key: [row[key] for row in rows] for key in rows[0]}}
    return {
        "name": posterior.name,
        "kind": posterior.kind,
        "method": "NUTS, NumPyro, float64",
        "dim": len(mode),
        "decentred": list(posterior.decentre),
        "chains": CHAINS,
        "warmup": WARMUP,
        "draws": draws,
        "modes": len(np.unique(np.round(modes, 2), axis=0)),
        "target_accept": target_accept,
        "seed": seed,
        "divergences": int(extra["diverging"].sum()),
        "mean_steps": float(extra["num_steps"].mean()),
        **worst(sites),
        "seconds": round(time.perf_counter() - began, 1),
        "versions": {
            "python": platform.python_version(),
            "numpyro": numpyro.__version__,
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "sites": sites,
    }


def worst(sites: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The largest R-hat, the least ESS and the largest Monte-Carlo errors in posterior sds, over all scalars."""
    rows = [
        dict(zip(columns, row, strict=True))
        for columns in ({key: c for key, c in site.items() if key != "shape"} for site in sites.values())
        for row in zip(*columns.values(), strict=True)
    ]
    rows = [row for row in rows if row["sd"] > 0]
    return {
        "max_rhat": max(row["rhat"] for row in rows),
        "min_ess": min(row["ess"] for row in rows),
        "max_mcse_mean": max(row["mcse_mean"] / row["sd"] for row in rows),
        "max_mcse_sd": max(row["mcse_sd"] / row["sd"] for row in rows),
    }


def complaint(record: dict[str, Any]) -> str | None:
    """Why a record may not serve as truth, or nothing."""
    if not record["max_rhat"] < MAX_RHAT:
        return f"R-hat {record['max_rhat']:.4f}, not below {MAX_RHAT}"
    for key in ("max_mcse_mean", "max_mcse_sd"):
        if not record[key] < MAX_MCSE:
            return f"{key} {record[key]:.3f} of the sd, not below {MAX_MCSE}"
    if record["divergences"] > 1e-3 * record["chains"] * record["draws"]:
        return f"{record['divergences']} divergences"
    return None


def save(record: dict[str, Any]) -> None:
    """Write a record at once or not at all."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    path = RECORDS / f"{record['name']}.json"
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(rounded(record), indent=1) + "\n", encoding="utf-8")
    os.replace(draft, path)


def rounded(value: Any) -> Any:
    """Eight digits of every float: far below any Monte-Carlo error, and half the size of the file."""
    if isinstance(value, float):
        return float(f"{value:.8g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="posteriors; by default all without a record")
    parser.add_argument("--draws", type=int, default=DRAWS, help="draws of each chain after warm-up")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := set(options.names) - set(SUITE):
        parser.error(f"no posterior is called {', '.join(sorted(unknown))}: expected {', '.join(SUITE)}")
    # The models are small: a second thread costs more than it computes.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    import jax

    jax.config.update("jax_enable_x64", True)
    failed = False
    for name in options.names or [name for name in SUITE if not (RECORDS / f"{name}.json").is_file()]:
        record = reference(SUITE[name], options.draws, options.seed)
        reason = complaint(record)
        print(
            f"{name}: dim {record['dim']}, R-hat {record['max_rhat']:.4f}, ESS {record['min_ess']:.0f}, "
            f"mcse {record['max_mcse_mean']:.4f} (sd {record['max_mcse_sd']:.4f}), "
            f"divergences {record['divergences']}, steps {record['mean_steps']:.1f}, {record['seconds']:.0f} s"
            + (f"; not kept: {reason}" if reason else ""),
            flush=True,
        )
        if reason is None:
            save(record)
        failed = failed or reason is not None
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
