"""Where a fit starts: a Gaussian found from several summits, or the Laplace approximation."""

from __future__ import annotations

import math
from contextlib import suppress

import torch
from pyro.infer.autoguide import init_to_sample
from torch import Tensor

from pyro_flows_vi.infer._climb import climb, in_double
from pyro_flows_vi.infer.gaussian import GaussianFit, fit_gaussian
from pyro_flows_vi.infer.log_density import LogDensity

__all__ = ["CLIMBED", "gaussian_start", "laplace_start", "require_finite_start", "summits"]

#: random points around the origin of unconstrained space are drawn from U(-SPREAD, SPREAD), as Stan and NUTS do
SPREAD = 2.0
ATTEMPTS = 50
#: climbs from such points, and as many from the prior; steps of each; nats below its lower side that make a valley
CLIMBS, EVALUATIONS, DEPTH = 32, 100, 0.5
#: points that climb together; what is evaluated in as many copies does not have to be traced by itself
CLIMBED = 2 * CLIMBS


def require_finite_start(log_density: LogDensity, loc: Tensor, copies: int = 1) -> Tensor:
    """``loc`` if the log density and its gradient are finite there, or else a random point where they are.

    Args:
        log_density: the target.
        loc: the first point, ``(D,)``.
        copies: of a point, evaluated together.

    Raises:
        ValueError: where no such point is found, with the sites that are to blame.
    """
    for _ in range(ATTEMPTS):
        value, score = log_density.value_and_score(loc.repeat(copies if log_density.vectorized else 1, 1))
        if bool(value.isfinite().all()) and bool(score.isfinite().all()):
            return loc
        loc = SPREAD * (2.0 * torch.rand_like(loc) - 1.0)
    sites = log_density.blame(loc)
    where = f"of the sites {', '.join(map(repr, sites))}" if sites else "or its gradient"
    raise ValueError(
        f"the log density {where} is not finite at {ATTEMPTS} different starts: check the model and the data there, "
        "or give the guide an init_loc_fn with values that are possible, e.g. init_to_value"
    )


def gaussian_start(log_density: LogDensity, loc: Tensor, scale: Tensor, restarts: int) -> list[GaussianFit]:
    """Gaussians fitted from ``loc`` and from the highest summits that climbs find, the best by its ELBO first.

    Args:
        log_density: the target.
        loc: the first start, ``(D,)``.
        scale: ``(D, D)`` or ``(D,)``.
        restarts: starts in all.
    """
    fits: list[GaussianFit] = []
    problems: list[ValueError] = []
    starts = [loc, *summits(log_density, loc, restarts - 1)]
    seeds: list[int] = torch.randint(1 << 62, (len(starts),)).tolist()
    for point, seed in zip(starts, seeds, strict=True):
        # Draws of its own: how long a hopeless start wanders, which its last bits decide, is nothing to the others.
        generator = torch.Generator(loc.device).manual_seed(seed)
        try:
            start = require_finite_start(log_density, point, CLIMBED if restarts > 1 else 1)
            fits.append(fit_gaussian(log_density.value_and_score, start, scale, generator=generator))
        except ValueError as problem:
            problems.append(problem)
    if not fits:
        raise problems[0]
    return sorted(fits, key=lambda fit: fit.elbo - fit.elbo_se, reverse=True)


def summits(log_density: LogDensity, like: Tensor, count: int) -> list[Tensor]:
    """Where the log density is highest, as far as climbs from the prior and from random points tell.

    Two climbs have ended on one summit if there is no valley half-way between them. Where there are fewer summits than
    ``count``, random points fill the list.
    """
    box = [SPREAD * (2.0 * torch.rand_like(like) - 1.0) for _ in range(CLIMBS + count)]
    if count == 0:
        return []
    starts = torch.stack(box[:CLIMBS])
    with suppress(RuntimeError, ValueError):  # an improper prior, which has no draws
        draws = [log_density.initial(init_to_sample).to(like) for _ in range(CLIMBS)]
        starts = torch.cat([starts, torch.stack(draws)])
    evaluate = in_double(log_density.value_and_score, like)
    tops, places = climb(evaluate, starts.double(), EVALUATIONS)
    tops = tops.nan_to_num(nan=-math.inf, posinf=-math.inf)
    found: list[Tensor] = []
    while len(found) < count and bool(tops.isfinite().any()):
        highest = places[tops.argmax()]
        found.append(highest.to(like))
        half_way = evaluate(0.5 * (highest + places))[0]
        tops = torch.where((half_way > tops - DEPTH) | (tops == tops.max()), -math.inf, tops)
    return [*found, *box[CLIMBS:]][:count]


def laplace_start(log_density: LogDensity, loc: Tensor, max_steps: int = 500) -> tuple[Tensor, Tensor]:
    r"""The Laplace approximation: the mode by L-BFGS, and :math:`L L^\top` the inverse of minus the Hessian there.

    The Hessian comes from central differences of the gradient, 2 D of them at once; directions in which it is not
    positive get the curvature's absolute value.

    Args:
        log_density: the target.
        loc: the start, ``(D,)``.
        max_steps: iterations of L-BFGS.

    Returns:
        The mode ``(D,)`` and L ``(D, D)``.
    """
    point = require_finite_start(log_density, loc).clone().requires_grad_()
    search = torch.optim.LBFGS([point], max_iter=max_steps, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def closure() -> Tensor:
        value, score = log_density.value_and_score(point[None])
        point.grad = -score[0]
        return -value[0]

    search.step(closure)
    mode = point.detach()
    step = torch.finfo(mode.dtype).eps ** (1 / 3) * (1.0 + mode.abs())
    shifts = torch.diag(step)
    scores = log_density.value_and_score(torch.cat([mode + shifts, mode - shifts]))[1]
    hessian = (scores[: len(mode)] - scores[len(mode) :]) / (2.0 * step[:, None])
    curvature, axes = torch.linalg.eigh(-0.5 * (hessian + hessian.mT))
    if not bool(curvature.isfinite().all()):
        raise ValueError("the Hessian at the mode is not finite: use start='gaussian'")
    curvature = curvature.abs().clamp(min=1e-8 * float(curvature.abs().max()))
    tril = torch.linalg.qr((axes * curvature.rsqrt()).mT, mode="r")[1].mT
    return mode, tril * torch.sign(tril.diagonal())
