"""Modes of a posterior that are found without a guide's help, and how much of their mass the guide has."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.autoguide import init_to_median, init_to_sample, init_to_uniform
from torch import Tensor

from pyro_flows_vi.infer._climb import Evaluate, climb, in_double
from pyro_flows_vi.infer.gaussian import GaussianFit
from pyro_flows_vi.infer.importance import Draws
from pyro_flows_vi.infer.log_density import LogDensity
from pyro_flows_vi.numerics.new_tensors import precision

__all__ = ["Mode", "find_modes", "missed_shares"]

#: climbs from the prior, from Stan's box of width 4, from far around the guide, and from the guide's own draws
FROM_PRIOR, FROM_BOX, FROM_FAR, FROM_GUIDE = 4, 2, 2, 2
#: guide sds at which the far starts are
FAR = 5.0
#: steps of a climb, modes that are examined, points about each
EVALUATIONS, MOST_MODES, POINTS = 150, 4, 1000
#: points at once, which take no more memory than a step of a fit
CHUNK = 250
#: steps of the differences from which a Hessian is made, in sds of the frame
STEPS = (0.1, 0.01, 0.001)
#: Newton decrement, in nats, above which a climb has not arrived
ARRIVED = 0.1
#: a mode with less of the posterior is not missed, and neither is one of which the guide has this part
SMALLEST_SHARE, ENOUGH = 0.01, 0.2


@dataclass(frozen=True)
class Mode:
    """A local maximum of the log density in unconstrained space.

    Attributes:
        latent: where ``(D,)``.
        values: the same on the supports.
        log_density: there.
        share: the part of the posterior's mass in the ellipsoid about it that would hold nearly all of a Gaussian.
        guide_share: the part of the guide's importance-weighted draws in there.
    """

    latent: Tensor
    values: dict[str, Tensor]
    log_density: float
    share: float
    guide_share: float

    @property
    def missed(self) -> bool:
        """Whether at least 1 % of the posterior is there, and the guide has less than a fifth of that."""
        return self.share >= SMALLEST_SHARE and self.guide_share < ENOUGH * self.share


def find_modes(density: LogDensity, draws: Draws, log_weights: Tensor, log_evidence: float) -> list[Mode]:
    r"""Climb from points that a guide has not chosen, and compare masses about the summits.

    About a mode m with the curvature :math:`\Sigma^{-1} = -\nabla^2 \ell(m)`, the mass of the ellipsoid
    :math:`B = \{u : (u - m)^\top \Sigma^{-1} (u - m) \le D + 2\sqrt{2D}\}` is estimated by importance sampling from
    :math:`N(m, \Sigma)`, and set beside the guide's. Where a mode is far from Gaussian its B is small, and so is the
    share that is found: a mode may go unnoticed, but is not invented.

    Args:
        density: the log density.
        draws: the guide's.
        log_weights: their normalised log weights.
        log_evidence: the logarithm of their mean weight.

    Returns:
        the modes, most massive first; empty where no climb arrived. Costs some thousand gradients, 2 D for each
        Hessian, and for each mode that seems to be missed some thousand evaluations in double precision.
    """
    assert draws.latent is not None
    latent = draws.latent
    centre, frame = _frame(latent)

    evaluate = in_double(density.value_and_score, latent)

    def whitened(places: Tensor) -> tuple[Tensor, Tensor]:
        value, score = evaluate(centre + places @ frame.T)
        return value, score @ frame

    starts = torch.stack(_starts(density, latent, centre, frame)) - centre
    places = torch.linalg.solve_triangular(frame, starts.T, upper=False).T
    tops, places = climb(whitened, places, EVALUATIONS)
    modes: list[Mode] = []
    for place in places[tops.isfinite()][tops[tops.isfinite()].argsort(descending=True)]:
        summit = _newton(evaluate, centre + frame @ place, frame)
        if summit is None or any(_near(summit, mode) for mode in modes) or len(modes) == MOST_MODES:
            continue
        modes.append(_examine(density, summit, latent, log_weights, log_evidence))
    return sorted(modes, key=lambda mode: -mode.share)


def missed_shares(density: LogDensity, guide: Any, gaussians: Sequence[GaussianFit]) -> list[float]:
    """The part of the posterior about each of some Gaussians that a guide does not have: 0 where it has enough of it.

    Costs some thousand evaluations and draws, and no gradient; for each region that seems to be missed, some thousand
    runs in double precision on top.
    """
    with torch.no_grad():
        latent, log_q = guide.rsample_and_log_prob(2 * POINTS)
        log_weights = _in_chunks(density, latent).double() - log_q.double()
    log_weights = log_weights.nan_to_num(nan=-math.inf, posinf=-math.inf)
    total = log_weights.logsumexp(0)
    regions = []
    for gaussian in gaussians:
        scale = gaussian.scale_tril.to(total)
        place = gaussian.loc.to(total), scale if scale.dim() == 2 else scale.diag()
        regions.append(_examine(density, place, latent, log_weights - total, float(total) - math.log(len(latent))))
    return [region.share if region.missed else 0.0 for region in regions]


def _in_chunks(density: LogDensity, points: Tensor) -> Tensor:
    return torch.cat([density(part) for part in points.split(CHUNK)])


def _frame(latent: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of draws, and a matrix that takes a standard normal to their covariance, or to their sds."""
    draws = latent[latent.isfinite().all(-1)].double()
    centre, spread = draws.mean(0), draws.std(0).clamp(min=1e-8)
    covariance = torch.cov(draws.T).reshape(len(centre), -1) / torch.outer(spread, spread)
    frame, failed = torch.linalg.cholesky_ex(covariance + 1e-6 * torch.eye(len(centre)).to(covariance))
    if failed or len(draws) < 2 * len(centre):
        frame = torch.eye(len(centre)).to(covariance)
    return centre, spread[:, None] * frame


def _starts(density: LogDensity, latent: Tensor, centre: Tensor, frame: Tensor) -> list[Tensor]:
    starts = [latent[i].double() for i in torch.randperm(len(latent))[:FROM_GUIDE]]
    starts += [centre + FAR * frame @ torch.randn_like(centre) for _ in range(FROM_FAR)]
    inits = [init_to_sample] * FROM_PRIOR + [init_to_uniform] * FROM_BOX + [init_to_median]
    for init in inits:
        try:
            starts.append(density.initial(init).to(centre))
        except (RuntimeError, ValueError):  # an improper prior, which has no draws
            continue
    return starts


def _near(summit: tuple[Tensor, Tensor], mode: Mode) -> bool:
    """Whether a summit is within the ellipsoid of a mode by its own measure: flat tops stop a climb anywhere."""
    place, scale = summit
    away = torch.linalg.solve_triangular(scale, (mode.latent.double() - place)[:, None], upper=False)
    return float(away.square().sum()) < _radius(len(place))


def _radius(dim: int) -> float:
    return dim + 2.0 * math.sqrt(2.0 * dim)


def _examine(
    density: LogDensity, summit: tuple[Tensor, Tensor], latent: Tensor, log_weights: Tensor, log_evidence: float
) -> Mode:
    place, scale = summit
    dim = len(place)
    radius = _radius(dim)
    noise = torch.randn(POINTS, dim).to(place)
    noise = noise[noise.square().sum(-1) <= radius]
    points, like = place + noise @ scale.T, latent[:1]
    log_normal = -0.5 * (noise.square().sum(-1) + dim * math.log(2.0 * math.pi)) - scale.diagonal().log().sum()
    away = torch.linalg.solve_triangular(scale, (latent.double() - place).T, upper=False).square().sum(0)

    def mode(value: Tensor, log_weights: Tensor, log_evidence: float) -> Mode:
        log_mass = float(torch.logsumexp((value - log_normal).nan_to_num(nan=-math.inf), 0)) - math.log(POINTS)
        guide_share = float(log_weights.exp()[away[: len(log_weights)] <= radius].sum())
        # the guide's own estimate for the rest of the space, and the one about the mode for the ellipsoid
        rest = math.exp(min(log_evidence - log_mass, 700.0)) * (1.0 - guide_share)
        return Mode(place.to(like), values, top, 1.0 / (1.0 + max(rest, 0.0)), guide_share)

    values = {name: value[0] for name, value in density.constrain(place[None].to(like)).items()}
    top = float(density(place[None].to(like)).detach())
    with torch.no_grad():
        found = mode(_in_chunks(density, points.to(like)).double(), log_weights, log_evidence)
        if not found.missed or like.dtype == torch.float64:
            return found
        # Rounding can make a summit of nothing, where a density is the difference of very large numbers. It can also
        # move the whole density, so that the guide's weights are to be computed anew as well.
        some = latent[:POINTS]
        exact = _in_double_precision(density, torch.cat([points, some.double()]))
        if exact is None:
            return found
        value, own = exact.split([len(points), len(some)])
        before = log_weights[: len(some)]
        after = (before + own - _in_chunks(density, some).double()).nan_to_num(nan=-math.inf, posinf=-math.inf)
        total = after.logsumexp(0)
        return mode(value, after - total, log_evidence + float(total - before.logsumexp(0)))


def _in_double_precision(density: LogDensity, points: Tensor) -> Tensor | None:
    """The log density by runs of the model in double precision; ``None`` where it cannot be run in it."""

    def cast(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    with precision(torch.float64), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            args, kwargs = density._arguments(list(map(cast, density.leaves)))
            return _in_chunks(LogDensity(density.model, *args, trace=False, **kwargs), points)
        except Exception:  # a user's code may say in any way that it is for single precision only
            return None


def _newton(evaluate: Evaluate, place: Tensor, frame: Tensor) -> tuple[Tensor, Tensor] | None:
    """Where Newton's method arrives, and a Cholesky factor of the inverse of the curvature there."""
    best = -math.inf
    for _ in range(4):
        found = next(filter(None, (_curvature(evaluate, place, step * frame, step) for step in STEPS)), None)
        if found is None:
            return None
        value, move, frame, decrement = found
        if value < best - ARRIVED:
            return None
        best = value
        if decrement < ARRIVED:
            return place, frame
        place = place + move
    return None


def _curvature(
    evaluate: Evaluate, place: Tensor, moves: Tensor, step: float
) -> tuple[float, Tensor, Tensor, float] | None:
    """The log density, Newton's step, a factor of the inverse curvature, and the step's promise, where concave."""
    points = torch.cat([place[None], place + moves.T, place - moves.T])
    value, score = evaluate(points)
    if not bool(score.isfinite().all()):
        return None
    dim = len(place)
    frame = moves / step
    curvature = -(score[1 : dim + 1] - score[dim + 1 :]) @ frame / (2.0 * step)
    factor, failed = torch.linalg.cholesky_ex(0.5 * (curvature + curvature.T))
    if failed or float(factor.diagonal().min()) < 1e-4:
        return None
    root = frame @ torch.linalg.inv(factor).T
    slope = root.T @ score[0]
    scale = torch.linalg.cholesky_ex(root @ root.T)
    if scale.info:
        return None
    return float(value[0]), root @ slope, scale.L, float(0.5 * slope.square().sum())
