"""Draws from any Pyro guide with their importance weights against the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from pyro_flows_vi.infer.layout import is_deterministic, is_latent, require_same_layout, trace_model
from pyro_flows_vi.infer.log_density import LogDensity
from pyro_flows_vi.infer.pareto import psis
from pyro_flows_vi.infer.repeat import CHUNK, repeat
from pyro_flows_vi.transforms._door import positive

__all__ = ["Draws", "draw_weighted", "require_whole_plates", "resample"]


@dataclass(frozen=True)
class Draws:
    r"""n draws from a guide, and :math:`\log w = \log p(x, z) - \log q(z)` of each.

    Attributes:
        values: latent and deterministic sites on their supports, each ``(n, *shape)``.
        latent_sites: the names among them that are latent.
        log_joint: ``(n,)``, float64. Of the unconstrained values for guides of this library, and of the values
            themselves for others: they differ by a Jacobian, which the weights do not see.
        log_guide: ``(n,)``, float64, with respect to the same measure.
        log_weights: ``(n,)``, float64; -inf where the model gives a draw no density, NaN where something failed.
        latent: the draws in unconstrained space ``(n, D)``; ``None`` for a model with discrete sites, or
            with supports that no bijection reaches.
    """

    values: dict[str, Tensor]
    latent_sites: tuple[str, ...]
    log_joint: Tensor
    log_guide: Tensor
    log_weights: Tensor
    latent: Tensor | None

    def __len__(self) -> int:
        return len(self.log_weights)

    def select(self, index: Tensor) -> Draws:
        """The draws at these positions, in this order."""
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = {name: value[index] if isinstance(value, Tensor) else value for name, value in kept.items()}
        return Draws(**kept | {"values": {name: value[index] for name, value in self.values.items()}})


def draw_weighted(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_draws: int = 4000,
    kwargs: dict[str, Any] | None = None,
) -> Draws:
    """Draw from a guide, with importance weights against the model; no gradients.

    A guide of this library is drawn from in one pass of its flow. Any other Pyro guide (``AutoNormal``,
    ``AutoMultivariateNormal``, ``AutoGuideList``, written by hand, amortised) is run, and the model replayed against
    it, under ``torch.func.vmap``; guides and models that cannot be vectorised are run once per draw, with one warning.

    Args:
        model: the Pyro model.
        guide: its guide, after training.
        *args: what both are called with.
        num_draws: n.
        kwargs: keyword arguments of both.

    Raises:
        ValueError: for a subsampled plate, a latent site that the guide lacks or gives another shape, a site that the
            guide alone has, a point estimate such as ``AutoDelta``, and a guide whose density is not known; it names
            the site.
    """
    positive("num_draws", num_draws)
    kwargs = kwargs or {}
    prior = trace_model(model, args, kwargs)
    require_whole_plates(prior)
    if hasattr(guide, "rsample_and_log_prob") and hasattr(guide, "setup"):
        return _from_flow(prior, model, guide, args, kwargs, num_draws)
    _require_match(prior, guide, args, kwargs)
    names = {k for k, site in prior.nodes.items() if is_latent(site) or is_deterministic(site)}
    flat = all(_has_bijection(site) for site in prior.nodes.values() if is_latent(site))

    def one() -> tuple[dict[str, Tensor], list[Tensor], Tensor, Tensor]:
        guide_run = trace_model(guide, args, kwargs)
        run = trace_model(poutine.replay(model, trace=guide_run), args, kwargs)
        values = {k: torch.as_tensor(site["value"]) for k, site in run.nodes.items() if k in names}
        parts = [] if not flat else [_unconstrained(site) for site in run.nodes.values() if is_latent(site)]
        with pyro.validation_enabled(False):
            return values, parts, torch.as_tensor(run.log_prob_sum()), torch.as_tensor(guide_run.log_prob_sum())

    values, parts, log_joint, log_guide = repeat(one, num_draws, what="the model or its guide")
    latent = None if not flat else torch.cat(parts, -1)
    return _draws(prior, values, log_joint, log_guide, latent)


def _from_flow(
    prior: poutine.Trace, model: Callable[..., Any], guide: Any, args: Any, kwargs: dict[str, Any], num_draws: int
) -> Draws:
    guide.setup(*args, **kwargs)
    density = LogDensity(model, *args, trace=False, **kwargs)
    require_same_layout(guide.layout, density.layout)
    parts: list[tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]] = []
    with torch.no_grad():
        for size in map(len, torch.arange(num_draws).split(CHUNK)):
            latent, log_guide = guide.rsample_and_log_prob(size)
            parts.append((latent, log_guide, density(latent), density.constrain(latent)))
    latent, log_guide, log_joint = (torch.cat([part[i] for part in parts]) for i in range(3))  # type: ignore[misc]
    values = {name: torch.cat([part[3][name] for part in parts]) for name in parts[0][3]}
    return _draws(prior, values, log_joint, log_guide, latent)


def _draws(
    run: poutine.Trace, values: dict[str, Tensor], log_joint: Tensor, log_guide: Tensor, latent: Tensor | None
) -> Draws:
    names = tuple(k for k, site in run.nodes.items() if is_latent(site))
    log_joint, log_guide = log_joint.detach().double(), log_guide.detach().double()
    values = {name: value.detach() for name, value in values.items()}
    return Draws(values, names, log_joint, log_guide, log_joint - log_guide, latent)


def resample(draws: Draws, num: int, replacement: bool = True, generator: torch.Generator | None = None) -> Draws:
    """Importance resampling: ``num`` draws with equal weights, chosen by their Pareto-smoothed weights.

    Args:
        draws: weighted draws.
        num: how many; good numbers are well below the effective size.
        replacement: with it, systematic resampling, in which a draw of weight w comes ``num * w`` times, rounded up or
            down; without it, no draw comes twice, which cuts large weights ("Bayesian Data Analysis" (Gelman et
            al., 2013), section 10.4).
        generator: where the randomness comes from.

    Raises:
        ValueError: if there are too few draws with a positive weight, or none.
    """
    log_weights, _ = psis(draws.log_weights)
    weights = log_weights.exp()
    positive = int((weights > 0).sum())
    if num < 1 or (not replacement and num > positive):
        most = "" if replacement else f" and {positive}, the number of draws with a positive weight"
        raise ValueError(f"expected num between 1{most}, got {num}")
    if replacement:
        start = torch.rand((), generator=generator, dtype=torch.float64, device=weights.device)
        places = (torch.arange(num, dtype=torch.float64, device=weights.device) + start) / num
        edges = weights.cumsum(0)
        index = torch.searchsorted(edges / edges[-1], places, right=True).clamp(max=len(weights) - 1)
        index = index[torch.randperm(num, generator=generator, device=index.device)]
    else:
        index = torch.multinomial(weights, num, replacement=False, generator=generator)
    return replace(draws.select(index), log_weights=torch.zeros(num, dtype=torch.float64, device=weights.device))


# -- what a guide must be --------------------------------------------------------------------------


def require_whole_plates(run: poutine.Trace) -> None:
    """Refuse a model that looks at a part of its data only.

    Raises:
        ValueError: for a subsampled plate, by name.
    """
    node: Any
    for node in run.nodes.values():
        if node["type"] != "sample":
            continue
        parts = {f.name: (f.size, f.full_size) for f in node["cond_indep_stack"] if f.full_size not in (None, f.size)}
        if site_is_subsample(node) and len(node["value"]) < node["fn"].size:
            parts[node["name"]] = (len(node["value"]), node["fn"].size)
        for name, (size, full_size) in parts.items():
            raise ValueError(
                f"the plate {name!r} is subsampled ({size} of {full_size}): a posterior is judged and exported with "
                "all of its data; call the model so that it sees the whole plate (no subsample_size)"
            )


def _require_match(prior: poutine.Trace, guide: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> None:
    runs = [trace_model(guide, args, kwargs) for _ in range(2)]
    require_whole_plates(runs[0])
    sites: dict[str, Any] = {k: site for k, site in runs[0].nodes.items() if is_latent(site)}
    wanted: dict[str, Any] = {k: site for k, site in prior.nodes.items() if is_latent(site)}
    if not wanted:
        raise ValueError("the model has no latent sites: expected at least one pyro.sample without obs=...")
    for name, site in wanted.items():
        if name not in sites:
            cure = "; sum it out of the model, or draw it in the guide" if _is_discrete(site) else ""
            raise ValueError(f"the guide does not draw the latent site {name!r} of the model{cure}")
        shapes = tuple(sites[name]["value"].shape), tuple(site["value"].shape)
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"site {name!r} has the shape {shapes[0]} in the guide and {shapes[1]} in the model: use the arguments "
                "that the guide was fitted with"
            )
    for name, site in sites.items():
        if name not in wanted and not site["infer"].get("is_auxiliary"):
            raise ValueError(
                f"the guide draws a site {name!r} that the model does not have: rename it, or mark it "
                "infer={'is_auxiliary': True} if model sites are functions of it"
            )
    _require_density(sites, wanted, runs[1])


def _require_density(sites: dict[str, Any], wanted: dict[str, Any], again: Any) -> None:
    """The guide must have as many random numbers as the model has latent ones, or its density is not known."""
    drawn = sum(_dimension(site) for site in sites.values() if not _is_point_mass(site))
    needed = sum(_dimension(site) for site in wanted.values())
    if drawn < needed:
        fixed = [
            k for k in wanted if _is_point_mass(sites[k]) and torch.equal(sites[k]["value"], again.nodes[k]["value"])
        ]
        raise ValueError(
            f"the guide is a point estimate of {', '.join(map(repr, fixed or wanted))} (as AutoDelta is, and "
            "AutoLaplaceApproximation before laplace_approximation()): it has no density there, so there are no "
            "importance weights; use a guide with a spread"
        )
    if drawn > needed:
        extra = [k for k in sites if k not in wanted]
        raise ValueError(
            f"the guide draws {drawn} numbers for the {needed} of the model's latent sites: its density over them is "
            f"an integral over {', '.join(map(repr, extra))} that is not known; make the latent sites one-to-one "
            "functions of as many numbers"
        )


def _dimension(site: Any) -> int:
    value, fn = site["value"], site["fn"]
    if _is_discrete(site):
        return int(value.numel())
    try:
        return int(biject_to(fn.support).inverse_shape(value.shape).numel())
    except NotImplementedError:
        return int(value.numel())


def _has_bijection(site: Any) -> bool:
    try:
        biject_to(site["fn"].support)
    except NotImplementedError:
        return False
    return True


def _is_point_mass(site: Any) -> bool:
    fn = site["fn"]
    while not isinstance(fn, dist.Delta) and hasattr(fn, "base_dist"):
        if isinstance(fn, torch.distributions.TransformedDistribution):
            return False
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def _is_discrete(site: Any) -> bool:
    return bool(site["fn"].support.is_discrete)


def _unconstrained(site: Any) -> Tensor:
    return biject_to(site["fn"].support).inv(site["value"]).reshape(-1)
