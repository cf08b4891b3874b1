"""Whether to trust a guide: importance weights, summaries with and without them, and modes that it may have missed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_flows_vi.infer.importance import Draws, draw_weighted
from pyro_flows_vi.infer.layout import trace_model
from pyro_flows_vi.infer.log_density import LogDensity
from pyro_flows_vi.infer.modes import find_modes
from pyro_flows_vi.infer.pareto import effective_size, psis, tail_share
from pyro_flows_vi.infer.repeat import seeded
from pyro_flows_vi.infer.report import QUANTILES, Report, SiteSummary
from pyro_flows_vi.numerics.new_tensors import placement

__all__ = ["diagnose"]

#: latents up to which modes are looked for
MODES_UP_TO = 256
#: fewest draws from which anything can be said
FEWEST_DRAWS = 100


def diagnose(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_draws: int = 4000,
    fit: Any = None,
    kwargs: dict[str, Any] | None = None,
    seed: int | None = None,
    modes: bool = True,
) -> Report:
    r"""Draw from a guide, weigh the draws against the model, and say in words whether to trust it.

    With :math:`\log w_i = \log p(x, z_i) - \log q(z_i)`, the report holds Pareto k-hat of the weights (by ArviZ) and
    their effective size, the ELBO :math:`\frac1n \sum \log w_i`, the importance-weighted bound
    :math:`\log \frac1n \sum w_i`, the gap between them, which estimates KL(q || p), and each scalar's mean, sd and
    quantiles with and without the weights.

    Weights only see where the guide is. So the modes of the log density are looked for from the prior and from far
    away too, and the mass about each is compared with the guide's; and a ``fit`` tells whether it converged
    and whether its restarts agreed.

    Any one of these is a reason for **do not trust**:

    - k-hat above min(1 - 1 / log10 n, 0.7), "Pareto smoothed importance sampling" (Vehtari et al., 2024),
      arXiv:1507.02646; above 0.7 the guide is to be changed, "Yes, but did it work?" (Yao et al., 2018),
      arXiv:1802.02538; unless what is in the tail is less than 1 % of all weight
      (:func:`~pyro_flows_vi.infer.pareto.tail_share`);
    - an effective size below 400: the standard error of a mean is then above 0.05 sds (400 as in "Rank-normalization,
      folding, and localization" (Vehtari et al., 2021), arXiv:1903.08008);
    - a gap above half of log n: importance sampling needs about exp(KL) draws, "The sample size required in importance
      sampling" (Chatterjee and Diaconis, 2018), arXiv:1511.01437;
    - a mode with 1 % of the mass or more, of which the weighted draws have less than a fifth;
    - more than 1 % of the draws at which the model's density is NaN or +inf;
    - a fit that stopped unconverged; or whose best start is better than all others by more than 1 nat and 4 standard
      errors, unless the places where the others ended were looked at, or modes, and the guide lacks none of them.

    Otherwise any of these is a reason for **do not trust without importance resampling**, and without one it is
    **trust**: k-hat above 0.5 (Yao et al.) with 1 % of all weight or more in the tail, or above the bound before; a gap
    above 1 nat; more than 1 % of draws where the posterior has no density; or weights that move the mean of a scalar
    latent by more than 0.1 sds or its sd by more than a factor exp(0.1), and by two standard errors of that.

    Args:
        model: the Pyro model.
        guide: any Pyro guide with a density, after training.
        *args: what both are called with.
        num_draws: n; 100 at least.
        fit: what ``fit`` returned, or anything with attributes ``converged``, ``stop_reason``, ``skipped_steps`` or
            ``restart_elbos``.
        kwargs: keyword arguments of model and guide.
        seed: makes the report repeatable, and leaves the global random state alone.
        modes: whether to look for modes: some thousand gradients, and only up to 256 latents.

    Raises:
        ValueError: as :func:`~pyro_flows_vi.infer.importance.draw_weighted`, and if no draw has a finite weight;
            it names the sites.
    """
    if isinstance(num_draws, bool) or not isinstance(num_draws, int) or num_draws < FEWEST_DRAWS:
        raise ValueError(f"expected num_draws to be an integer of at least {FEWEST_DRAWS}, got {num_draws!r}")
    kwargs = kwargs or {}
    with seeded(seed), placement((args, kwargs)):
        draws = draw_weighted(model, guide, *args, num_draws=num_draws, kwargs=kwargs)
        report = _weigh(draws, model, args, kwargs)
        if not modes:
            report.modes_note = "not looked for"
        elif draws.latent is None:
            report.modes_note = (
                "not looked for, as the model has latents that are discrete, or of a support that no bijection reaches"
            )
        elif draws.latent.shape[1] > MODES_UP_TO:
            report.modes_note = f"not looked for in {draws.latent.shape[1]} dimensions (above {MODES_UP_TO})"
        else:
            density = LogDensity(model, *args, trace=False, **kwargs)  # the few steps do not repay a trace
            report.modes = find_modes(density, draws, psis(draws.log_weights)[0], report.iw_elbo)
            report.modes_note = "" if report.modes else "no climb from the prior or from far away arrived at a summit"
    if fit is not None:
        report.read_fit(fit)
    return report


def _weigh(draws: Draws, model: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Report:
    log_weights, n = draws.log_weights, len(draws)
    failed = log_weights.isnan() | log_weights.isposinf()
    empty = log_weights.isneginf()
    blamed = _blame(draws, failed | empty, model, args, kwargs)
    if bool((failed | empty).all()):
        raise ValueError(
            f"none of {n} draws from the guide has a finite log density under the model; at the first of them it is "
            f"not finite at {', '.join(map(repr, blamed)) or 'no site of the model, but in the guide'}: look at the "
            "arguments of the distributions there"
        )
    smoothed, khat = psis(log_weights)
    usable = log_weights[~failed]
    dense = usable[usable.isfinite()]
    elbo = float(usable.mean())
    iw_elbo = float(torch.logsumexp(usable, 0)) - math.log(len(usable))
    ratio = (usable - iw_elbo).exp()
    root = math.sqrt(len(usable))
    report = Report(
        num_draws=n,
        khat=khat,
        tail_share=tail_share(usable, khat),
        ess=effective_size(usable),
        ess_smoothed=effective_size(smoothed),
        elbo=elbo,
        elbo_se=float(usable.std()) / root if len(dense) == len(usable) else math.inf,
        iw_elbo=iw_elbo,
        iw_elbo_se=float(ratio.std()) / root,
        gap=iw_elbo - float(dense.mean()),
        gap_se=float(((dense - iw_elbo).exp() - dense).std()) / math.sqrt(len(dense)),
        failed=int(failed.sum()),
        empty=int(empty.sum()),
        blamed=blamed,
    )
    weights = smoothed.exp()
    for name, value in draws.values.items():
        report.sites[name] = _summarise(value, weights, name in draws.latent_sites)
    return report


def _blame(draws: Draws, bad: Tensor, model: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> list[str]:
    """The sites at which the log density of the first bad draw is not finite."""
    if not bool(bad.any()):
        return []
    first = int(bad.nonzero()[0])
    values = {name: draws.values[name][first] for name in draws.latent_sites}
    run = trace_model(poutine.condition(model, data=values), args, kwargs)
    with torch.no_grad(), pyro.validation_enabled(False):
        run.compute_log_prob()
    sites: Any = run.nodes.items()
    return [k for k, site in sites if site["type"] == "sample" and not bool(site["log_prob_sum"].isfinite())]


def _summarise(value: Tensor, weights: Tensor, latent: bool) -> SiteSummary:
    rows = value.double().reshape(len(value), -1)
    shape = value.shape[1:]
    levels = torch.tensor(QUANTILES, dtype=torch.float64, device=rows.device)
    equal = torch.full_like(weights, 1.0 / len(weights))
    raw, weighted = _moments(rows, equal, levels), _moments(rows, weights, levels)
    constant = (raw[1] == 0) & (weighted[1] == 0)
    shift = torch.where(constant, 0.0, (raw[0] - weighted[0]) / weighted[1])
    log_ratio = torch.where(constant, 0.0, raw[1].log() - weighted[1].log())
    noise = [
        torch.where(constant, 0.0, (raw_part - len(weights) * weights[:, None] * part).norm(dim=0) / len(weights))
        for raw_part, part in zip(_influence(rows, *raw[:2]), _influence(rows, *weighted[:2]), strict=True)
    ]
    return SiteSummary(
        latent=latent,
        shape=tuple(shape),
        mean=raw[0].reshape(shape),
        sd=raw[1].reshape(shape),
        quantiles=raw[2].reshape(-1, *shape),
        weighted_mean=weighted[0].reshape(shape),
        weighted_sd=weighted[1].reshape(shape),
        weighted_quantiles=weighted[2].reshape(-1, *shape),
        mean_move=shift.reshape(shape),
        log_sd_ratio=log_ratio.reshape(shape),
        mean_move_se=noise[0].reshape(shape),
        log_sd_ratio_se=noise[1].reshape(shape),
    )


def _influence(rows: Tensor, mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
    """What each draw adds to the mean, in sds, and to the log of the sd."""
    units = (rows - mean) / sd
    return units, 0.5 * (units.square() - 1.0)


def _moments(rows: Tensor, weights: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean = weights @ rows
    sd = (weights @ (rows - mean).square()).sqrt()
    ordered, order = rows.sort(0)
    edges = weights[order].cumsum(0)
    index = torch.searchsorted(edges.T.contiguous(), levels.expand(rows.shape[1], -1).contiguous()).clamp(
        max=len(rows) - 1
    )
    return mean, sd, ordered.gather(0, index.T)
