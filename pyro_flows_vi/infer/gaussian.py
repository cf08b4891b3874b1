"""A Gaussian approximation by natural gradients, in which a flow finds the target whitened."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GaussianFit", "fit_gaussian"]

ValueAndScore = Callable[[Tensor], tuple[Tensor, Tensor]]

#: scores longer than this many medians are shortened, so that a single draw in a far tail decides nothing
LONGEST_SCORE = 10.0
#: damping of a full step, halved at each plateau until it is below LAST_DAMPING
FIRST_DAMPING, LAST_DAMPING = 1.0, 0.05
#: steps without a significant gain that make a plateau
PLATEAU = 3


@dataclass(frozen=True)
class GaussianFit:
    """Where :func:`fit_gaussian` ended.

    Attributes:
        loc: ``(D,)``.
        scale_tril: ``(D, D)``, or ``(D,)`` of a diagonal Gaussian.
        elbo: an estimate of the ELBO there, with its standard error ``elbo_se``.
        steps: the number of steps tried.
        converged: whether the last damping was reached.
    """

    loc: Tensor
    scale_tril: Tensor
    elbo: float
    elbo_se: float
    steps: int
    converged: bool


@dataclass
class _Moments:
    """What one set of draws tells about the target, in the coordinates in which the Gaussian is standard."""

    elbo: float
    se: float
    drift: Tensor  # E of the whitened path gradient
    curvature: Tensor  # minus E of the whitened Hessian: eigenvalues, or the diagonal
    axes: Tensor | None  # its eigenvectors


def fit_gaussian(
    value_and_score: ValueAndScore,
    loc: Tensor,
    scale_tril: Tensor,
    num_particles: int | None = None,
    max_steps: int = 200,
    generator: torch.Generator | None = None,
) -> GaussianFit:
    r"""Maximise the ELBO over Gaussians :math:`N(m, L L^\top)` by damped natural-gradient steps in a trust region.

    With draws :math:`u = m + L \epsilon` and whitened path gradients :math:`g = L^\top \nabla \ell(u) + \epsilon`, a
    least squares fit :math:`g \approx d + W \epsilon` gives the mean :math:`d` of the gradient and, by Stein's lemma,
    the whitened mean curvature :math:`A = I - \tfrac12(W + W^\top)`. A step with damping :math:`\rho` is

    .. math:: m \leftarrow m + \rho L A^{-1} d, \qquad L L^\top \leftarrow L A^{-\rho} L^\top ,

    which does not depend on the units or correlations of the parameters, and ends in one step for a Gaussian target,
    whatever the draws. A step that lowers the ELBO is taken back and the trust region shrunk; one that raises it
    doubles the region, so that a mode hundreds of standard deviations away is reached in tens of steps.

    Source: the natural gradient as in Conjugate-computation variational inference (Khan and Lin, 2017),
    arXiv:1703.04265; the path gradient of Sticking the landing (Roeder et al., 2017), arXiv:1703.09194.

    Args:
        value_and_score: log density and gradient, ``(n, D)`` to ``(n,)`` and ``(n, D)``.
        loc: the first m, ``(D,)``.
        scale_tril: the first L, ``(D, D)``; a vector ``(D,)`` asks for a diagonal Gaussian.
        num_particles: draws a step; by default 4 D, at least 128.
        max_steps: steps tried at most.
        generator: of the draws.

    Raises:
        ValueError: where the log density is not finite at most draws, however narrow they are.
    """
    dim = len(loc)
    num_particles = max(128, 4 * dim) if num_particles is None else num_particles

    def measure(loc: Tensor, scale: Tensor) -> _Moments | None:
        return _moments(value_and_score, loc, scale, num_particles, generator)

    here = measure(loc, scale_tril)
    for _ in range(20):
        if here is not None:
            break
        scale_tril = 0.3 * scale_tril
        here = measure(loc, scale_tril)
    if here is None:
        raise ValueError(
            "the log density or its gradient is not finite around the start, however close: choose another init_loc_fn"
        )
    best = (loc, scale_tril, here)
    damping, radius, stalled, steps = FIRST_DAMPING, 3.0, 0, 0
    while steps < max_steps and damping >= LAST_DAMPING:
        steps += 1
        to_loc, to_scale = _move(loc, scale_tril, here, damping, radius)
        there = measure(to_loc, to_scale)
        noise = math.inf if there is None else math.hypot(here.se, min(there.se, 3.0 * here.se))
        if there is None or not there.elbo > here.elbo - 3.0 * noise:
            radius /= 4.0
            if radius < 1e-3:
                damping, radius = damping / 2.0, 0.1
        else:
            stalled = stalled + 1 if there.elbo - here.elbo < 2.0 * math.hypot(here.se, there.se) else 0
            loc, scale_tril, here = to_loc, to_scale, there
            radius = min(2.0 * radius, 1e4)
            if here.elbo - here.se > best[2].elbo - best[2].se:
                best = (loc, scale_tril, here)
            if stalled == PLATEAU:
                damping, stalled = damping / 2.0, 0
    loc, scale_tril, there = best
    return GaussianFit(loc, scale_tril, there.elbo, there.se, steps, damping < LAST_DAMPING)


def _moments(
    value_and_score: ValueAndScore, loc: Tensor, scale: Tensor, count: int, generator: torch.Generator | None
) -> _Moments | None:
    dim, dense = len(loc), scale.dim() == 2
    half = torch.randn((count + 1) // 2, dim, dtype=loc.dtype, device=loc.device, generator=generator)
    noise = torch.cat([half, -half])
    value, score = value_and_score(loc + (noise @ scale.mT if dense else noise * scale))
    finite = value.isfinite() & score.isfinite().all(-1)
    if finite.sum() < 0.9 * len(noise):
        return None
    # In double precision, where far scores do not overflow, and whose last bits, which LAPACK does not keep from call
    # to call, do not survive the rounding of the result.
    value, score, noise, scale = value[finite].double(), score[finite].double(), noise[finite].double(), scale.double()
    log_scale = (scale.diagonal() if dense else scale).log().sum()
    log_weight = value + 0.5 * noise.square().sum(-1) + log_scale + 0.5 * dim * math.log(2.0 * math.pi)
    gradient = (score @ scale if dense else score * scale) + noise
    length = gradient.norm(dim=-1, keepdim=True)
    gradient = gradient * (LONGEST_SCORE * length.median() / length.clamp(min=1e-30)).clamp(max=1.0)
    if not bool(gradient.isfinite().all()):
        return None
    centred = noise - noise.mean(0)
    if dense:
        slope = torch.linalg.lstsq(centred, gradient - gradient.mean(0)).solution
        curvature, axes = torch.linalg.eigh(torch.eye(dim).to(slope) - 0.5 * (slope + slope.mT))
        drift = (gradient - noise @ slope).mean(0)
    else:
        slope = (centred * gradient).sum(0) / centred.square().sum(0)
        curvature, axes = 1.0 - slope, None
        drift = (gradient - noise * slope).mean(0)
    spread = float(log_weight.std())
    if not math.isfinite(spread):
        return None
    return _Moments(float(log_weight.mean()), spread / math.sqrt(len(noise)), drift, curvature, axes)


def _move(loc: Tensor, scale: Tensor, here: _Moments, damping: float, radius: float) -> tuple[Tensor, Tensor]:
    dtype, loc, scale = loc.dtype, loc.double(), scale.double()
    widest = 1.0 + 10.0 * radius  # how far one step may stretch or shrink an axis
    curvature = here.curvature.abs().clamp(1.0 / widest, widest)
    axes = here.axes
    drift = here.drift if axes is None else axes.mT @ here.drift
    step = damping * drift / curvature
    length = (step.square() * curvature).sum().sqrt()  # in standard deviations of the target
    step = step * min(1.0, float(radius * math.sqrt(len(loc)) / length.clamp(min=1e-30)))
    shrink = curvature.pow(-0.5 * damping)
    if axes is None:
        return (loc + scale * step).to(dtype), (scale * shrink).to(dtype)
    tril = torch.linalg.qr((scale @ (axes * shrink)).mT, mode="r")[1].mT
    return (loc + scale @ (axes @ step)).to(dtype), (tril * torch.sign(tril.diagonal())).to(dtype)
