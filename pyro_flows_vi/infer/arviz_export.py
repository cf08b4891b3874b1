"""The posterior of any Pyro guide as ArviZ data, for ArviZ 0.2x and 1.x."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_flows_vi import __version__
from pyro_flows_vi.infer.importance import draw_weighted, require_whole_plates
from pyro_flows_vi.infer.importance import resample as resample_draws
from pyro_flows_vi.infer.layout import is_deterministic, is_latent, trace_model
from pyro_flows_vi.infer.pareto import arviz_series, load_arviz, psis
from pyro_flows_vi.infer.repeat import repeat, seeded

__all__ = ["to_arviz"]

#: weighted draws for each that importance resampling keeps
SURPLUS = 4
SAMPLE = ("chain", "draw")

Names = dict[str, tuple[str, ...]]


def to_arviz(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_draws: int = 1000,
    kwargs: dict[str, Any] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    log_likelihood: bool = True,
    posterior_predictive: bool = True,
    prior: bool | None = None,
    resample: bool = False,
    seed: int | None = None,
) -> Any:
    """Draws from a guide as ``arviz.InferenceData`` (ArviZ 0.2x) or ``xarray.DataTree`` (ArviZ 1.x).

    Groups: ``posterior`` (latent and deterministic sites, one chain), ``posterior_predictive``, ``log_likelihood`` (one
    number for each observation, without masked ones' contribution and without ``poutine.scale``), ``prior``,
    ``prior_predictive``, ``observed_data`` (NaN where masked), and ``sample_stats``: ``lp`` (log joint), ``log_guide``
    and ``log_weight``, with k-hat as its attribute ``pareto_k``. Dimensions have the names of the plates around a site,
    and others ArviZ's usual ones (``theta_dim_0``).

    Args:
        model: the Pyro model.
        guide: any Pyro guide with a density, after training.
        *args: what both are called with.
        num_draws: draws in each group.
        kwargs: keyword arguments of model and guide.
        coords: labels by dimension, e.g. ``{"school": names}``.
        dims: names of the dimensions by site, in place of those from the plates.
        log_likelihood: whether to make this group.
        posterior_predictive: whether to make this one; it runs the model with its observations released.
        prior: whether to draw from the prior; by default where that is possible, which it is not for an improper one.
        resample: importance resampling: keep the best of four times as many draws.
        seed: makes the draws repeatable, and leaves the global random state alone.

    Raises:
        ValueError: as :func:`~pyro_flows_vi.infer.importance.draw_weighted`; for ``dims`` and ``coords`` that do not
            fit a site, which it names; for ``prior=True`` with a prior that cannot be drawn from.
    """
    kwargs = kwargs or {}
    run = trace_model(model, args, kwargs)
    require_whole_plates(run)
    sites: dict[str, Any] = {k: v for k, v in run.nodes.items() if v["type"] == "sample" and not _is_factor(v)}
    kept = {k: v for k, v in sites.items() if is_latent(v) or is_deterministic(v)}
    observed = {k: v for k, v in sites.items() if v["is_observed"] and k not in kept}
    labels = _Labels({**kept, **observed}, coords or {}, dims or {})

    with seeded(seed):
        draws = draw_weighted(model, guide, *args, num_draws=num_draws * (SURPLUS if resample else 1), kwargs=kwargs)
        _, khat = psis(draws.log_weights)
        if resample:
            draws = resample_draws(draws, num_draws)
        latents = {name: draws.values[name] for name in draws.latent_sites}
        stats = {"lp": draws.log_joint, "log_guide": draws.log_guide, "log_weight": draws.log_weights}
        groups: dict[str, Any] = {"posterior": labels.dataset(draws.values)}
        if posterior_predictive and observed:
            released = _predict(model, args, kwargs, latents, num_draws, set(observed))
            groups["posterior_predictive"] = labels.dataset(released)
        if log_likelihood and observed:
            groups["log_likelihood"] = labels.dataset(
                _pointwise(model, args, kwargs, latents, num_draws), batch_only=True
            )
        groups["sample_stats"] = labels.dataset(stats)
        groups["sample_stats"].attrs |= {"pareto_k": khat, "resampled": int(resample)}
        if prior is not False:
            drawn = _prior(model, args, kwargs, num_draws, {*kept, *observed}, required=bool(prior))
            if drawn is not None:
                groups["prior"] = labels.dataset({k: v for k, v in drawn.items() if k in kept})
                if observed:
                    groups["prior_predictive"] = labels.dataset({k: v for k, v in drawn.items() if k in observed})
    if observed:
        groups["observed_data"] = labels.dataset({k: _unmasked(v) for k, v in observed.items()}, sampled=False)
    return _assemble(groups)


def _assemble(groups: dict[str, Any]) -> Any:
    attributes = {
        "created_at": datetime.now(timezone.utc).isoformat(),
        "inference_library": "pyro_flows_vi",
        "inference_library_version": __version__,
        "arviz_version": importlib.metadata.version("arviz"),
    }
    for group in groups.values():
        group.attrs |= attributes
    if arviz_series() >= 1:
        from xarray import DataTree

        return DataTree.from_dict(groups)
    return load_arviz().InferenceData(**groups)


# -- runs of the model -----------------------------------------------------------------------------


def _predict(
    model: Callable[..., Any], args: Any, kwargs: Any, latents: dict[str, Tensor] | None, count: int, names: set[str]
) -> dict[str, Tensor]:
    """The sites ``names`` of runs with these latents, or the prior's, and with all observations released."""

    def one(values: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        released = poutine.uncondition(model)
        fixed = released if values is None else poutine.condition(released, data=values)
        nodes: Any = trace_model(fixed, args, kwargs).nodes
        return {name: nodes[name]["value"] for name in names}

    result: dict[str, Tensor] = repeat(one, count, latents, what="the model with its observations released")
    return result


def _prior(
    model: Callable[..., Any], args: Any, kwargs: Any, count: int, names: set[str], required: bool
) -> dict[str, Tensor] | None:
    try:
        trace_model(poutine.uncondition(model), args, kwargs)
        trace: Any = trace_model(model, args, kwargs).nodes
        improper = [k for k, v in trace.items() if is_latent(v) and _is_improper(v["fn"])]
        reason = f"site {improper[0]!r} has an improper prior" if improper else ""
    except NotImplementedError as error:
        reason = str(error) or "a distribution of the model cannot be drawn from"
    if reason:
        if required:
            raise ValueError(f"the prior cannot be drawn from: {reason}; use prior=False, or a proper prior")
        return None
    return _predict(model, args, kwargs, None, count, names)


def _pointwise(
    model: Callable[..., Any], args: Any, kwargs: Any, latents: dict[str, Tensor], count: int
) -> dict[str, Tensor]:
    def one(values: dict[str, Tensor]) -> dict[str, Tensor]:
        nodes: Any = trace_model(poutine.condition(model, data=values), args, kwargs).nodes
        found = {}
        with pyro.validation_enabled(False):
            for name, site in nodes.items():
                if site["type"] == "sample" and site["is_observed"] and name not in values and not _left_out(site):
                    log_prob = site["fn"].log_prob(site["value"])
                    mask = site["mask"]
                    found[name] = log_prob if mask is None else torch.where(torch.as_tensor(mask), log_prob, 0.0)
        return found

    result: dict[str, Tensor] = repeat(one, count, latents, what="the model")
    return result


def _left_out(site: Any) -> bool:
    return is_deterministic(site) or _is_factor(site)


def _is_factor(site: Any) -> bool:
    return isinstance(site["fn"], pyro.distributions.Unit) or site_is_subsample(site)


def _is_improper(fn: Any) -> bool:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, pyro.distributions.ImproperUniform)


def _unmasked(site: Any) -> Tensor:
    value, mask = torch.as_tensor(site["value"]).detach(), site["mask"]
    if mask is None or not value.is_floating_point():
        return value
    mask = torch.as_tensor(mask)
    return torch.where(mask.reshape(mask.shape + (1,) * site["fn"].event_dim), value, torch.nan)


# -- dimensions ------------------------------------------------------------------------------------


class _Labels:
    """Names for the dimensions of every site, and the coordinates along them."""

    def __init__(
        self, sites: dict[str, Any], coords: Mapping[str, Sequence[Any]], dims: Mapping[str, Sequence[str]]
    ) -> None:
        unknown = sorted(set(dims) - set(sites))
        if unknown:
            raise ValueError(f"dims names the site {unknown[0]!r}: expected one of {', '.join(sites)}")
        self.coords = {name: np.asarray(labels) for name, labels in coords.items()}
        self.names: Names = {}
        self.batch: dict[str, int] = {}
        for name, site in sites.items():
            shape = torch.as_tensor(site["value"]).shape
            self.batch[name] = len(shape) if is_deterministic(site) else len(shape) - site["fn"].event_dim
            named = tuple(dims[name]) if name in dims else _from_plates(name, site, shape, self.batch[name])
            if len(named) != len(shape):
                raise ValueError(
                    f"site {name!r} has the shape {tuple(shape)}: expected {len(shape)} dims, got {list(named)}"
                )
            for label, size in zip(named, shape, strict=True):
                if label in self.coords and len(self.coords[label]) != size:
                    raise ValueError(
                        f"site {name!r} has {size} values along {label!r}, got {len(self.coords[label])} coords for it"
                    )
            self.names[name] = named

    def dataset(self, values: Mapping[str, Tensor], sampled: bool = True, batch_only: bool = False) -> Any:
        """Draws as a dataset of one chain, or observations as they are."""
        import xarray

        variables, coords = {}, {}
        for name, value in values.items():
            array = value.detach().cpu().numpy()
            named = self.names.get(name, ())
            named = named[: self.batch[name]] if batch_only else named
            shape = array.shape[1:] if sampled else array.shape
            for label, size in zip(named, shape, strict=True):
                coords[label] = self.coords.get(label, np.arange(size))
            variables[name] = ((*SAMPLE, *named), array[None]) if sampled else (named, array)
        if sampled:
            coords |= {"chain": np.arange(1), "draw": np.arange(len(next(iter(values.values()))))}
        return xarray.Dataset(variables, coords=coords)


def _from_plates(name: str, site: Any, shape: torch.Size, batch: int) -> tuple[str, ...]:
    named = [f"{name}_dim_{axis}" for axis in range(len(shape))]
    for frame in site["cond_indep_stack"]:
        axis = batch + frame.dim if frame.vectorized else -1
        if axis >= 0 and shape[axis] == frame.size:
            named[axis] = f"{frame.name}_dim" if frame.name in SAMPLE else frame.name
    return tuple(named)
