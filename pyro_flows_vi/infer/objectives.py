"""Variational objectives: what a step of training estimates, and by which gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pyro_flows_vi.transforms._door import positive

__all__ = ["ELBO", "IWELBO", "DReG", "Estimate", "Objective", "PathELBO", "Renyi", "Tempering", "linear_tempering"]


class FlowGuide(Protocol):
    """A guide that can draw with gradients; see :class:`pyro_flows_vi.guides.AutoFlow`."""

    def rsample_and_log_prob(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """Draws and their log densities."""

    def rsample_and_score(self, num_particles: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draws, their log densities and their scores."""


class Target(Protocol):
    """A log density; see :class:`pyro_flows_vi.infer.LogDensity`."""

    has_parameters: bool

    def __call__(self, latent: Tensor) -> Tensor:
        """The values, with a graph."""

    def value_and_score(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Values and gradients, without a graph."""


@dataclass(frozen=True)
class Estimate:
    r"""One estimate of an objective.

    Attributes:
        loss: a scalar whose gradient is that of minus the objective; of some estimators the value means nothing.
        log_weights: :math:`\log p(x, u) - \log q(u)` of the draws ``(n,)``, detached and never tempered.
    """

    loss: Tensor
    log_weights: Tensor


class Objective(Protocol):
    """An estimator of a variational objective."""

    def __call__(self, guide: FlowGuide, target: Target, num_particles: int, temperature: float = 1.0) -> Estimate:
        """Draw ``num_particles`` and estimate; the log density is multiplied by ``temperature``."""


class ELBO:
    r"""The evidence lower bound :math:`E_q[\log p(x, u) - \log q(u)]` with its reparametrised gradient."""

    def __call__(self, guide: FlowGuide, target: Target, num_particles: int, temperature: float = 1.0) -> Estimate:
        """One pass of the flow and one of the model."""
        latent, log_q = guide.rsample_and_log_prob(num_particles)
        log_p = target(latent)
        return Estimate((log_q - temperature * log_p).mean(), (log_p - log_q).detach())


class PathELBO:
    r"""The evidence lower bound with the path gradient (sticking the landing).

    .. math:: \nabla_\theta = E_\epsilon\left[(\nabla_u \log p(x, u) - \nabla_u \log q(u))^\top
              \frac{\partial u_\theta(\epsilon)}{\partial \theta}\right]

    leaves out the score function of q, whose mean is zero and whose variance is not: where q equals the posterior every
    single draw has the gradient zero. The score of q comes along with the draw
    (:meth:`pyro_flows_vi.transforms.base.Flow.forward_and_score`), without a second pass where the flow allows that.

    Source: Sticking the landing (Roeder et al., 2017), arXiv:1703.09194.
    """

    def __call__(self, guide: FlowGuide, target: Target, num_particles: int, temperature: float = 1.0) -> Estimate:
        """One pass of the flow with its score, and one of the model."""
        latent, direction, log_weights, extra = _along_the_path(guide, target, num_particles, temperature)
        return Estimate(extra - (direction * latent).sum(-1).mean(), log_weights)


class IWELBO:
    r"""The importance-weighted bound :math:`E[\log \frac1K \sum_k p(x, u_k) / q(u_k)]`, reparametrised.

    Source: Importance weighted autoencoders (Burda et al., 2016), arXiv:1509.00519.

    Args:
        num_samples: K; the particles are divided into groups of K.
    """

    def __init__(self, num_samples: int = 16) -> None:
        self.num_samples = positive("num_samples", num_samples)

    def __call__(self, guide: FlowGuide, target: Target, num_particles: int, temperature: float = 1.0) -> Estimate:
        """As of :class:`ELBO`."""
        latent, log_q = guide.rsample_and_log_prob(whole_groups(num_particles, self.num_samples))
        log_p = target(latent)
        bound = torch.logsumexp((temperature * log_p - log_q).view(-1, self.num_samples), dim=1)
        return Estimate(math.log(self.num_samples) - bound.mean(), (log_p - log_q).detach())


class DReG:
    r"""The importance-weighted bound with its doubly reparametrised gradient.

    Each path gradient counts with the square of its normalised weight. Unlike that of :class:`IWELBO`, the
    signal of this estimator does not drown in noise as K grows.

    Source: Doubly reparameterized gradient estimators (Tucker et al., 2019), arXiv:1810.04152.

    Args:
        num_samples: K; the particles are divided into groups of K.
    """

    def __init__(self, num_samples: int = 16) -> None:
        self.num_samples = positive("num_samples", num_samples)

    def __call__(self, guide: FlowGuide, target: Target, num_particles: int, temperature: float = 1.0) -> Estimate:
        """As of :class:`PathELBO`."""
        if target.has_parameters:
            raise ValueError("DReG trains the guide only: use IWELBO for a model with parameters of its own")
        count = whole_groups(num_particles, self.num_samples)
        latent, direction, log_weights, _ = _along_the_path(guide, target, count, temperature, tempered=True)
        weights = torch.softmax(log_weights.view(-1, self.num_samples), dim=1).square().view(-1)
        surrogate = (weights[:, None] * direction * latent).sum() * self.num_samples / count
        return Estimate(-surrogate, log_weights)


class Renyi:
    r"""The variational Renyi bound :math:`\frac{1}{1 - \alpha} \log E_q[(p(x, u) / q(u))^{1 - \alpha}]`.

    Between the evidence (alpha = 0) and the ELBO (alpha towards 1); negative values cover the posterior's tails.

    Source: Renyi divergence variational inference (Li and Turner, 2016), arXiv:1602.02311.

    Args:
        alpha: the order, not 1.
    """

    def __init__(self, alpha: float = 0.5) -> None:
        if not math.isfinite(alpha) or alpha == 1.0:
            raise ValueError(f"expected alpha to be a finite number other than 1, where the ELBO is; got {alpha!r}")
        self.alpha = alpha

    def __call__(self, guide: FlowGuide, target: Target, num_particles: int, temperature: float = 1.0) -> Estimate:
        """As of :class:`ELBO`; the expectation is that over all particles, so the estimate is biased for few."""
        latent, log_q = guide.rsample_and_log_prob(num_particles)
        log_p = target(latent)
        power = 1.0 - self.alpha
        bound = torch.logsumexp(power * (temperature * log_p - log_q), dim=0) - math.log(num_particles)
        return Estimate(-bound / power, (log_p - log_q).detach())


#: takes the fraction of the run that is over, 0 to 1, to the power of the log density
Tempering = Callable[[float], float]


def linear_tempering(first: float = 0.1, until: float = 0.5) -> Tempering:
    """A temperature that rises from ``first`` to 1 while the fraction ``until`` of the run goes by.

    >>> temperature = linear_tempering(0.5, until=0.5)
    >>> temperature(0.0), temperature(0.25), temperature(0.9)
    (0.5, 0.75, 1.0)
    """
    if not (0.0 < first <= 1.0 and 0.0 < until <= 1.0):
        raise ValueError(f"expected first and until to be in (0, 1], got {first!r} and {until!r}")
    return lambda fraction: min(1.0, first + (1.0 - first) * fraction / until)


def _along_the_path(
    guide: FlowGuide, target: Target, count: int, temperature: float, tempered: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor | float]:
    """Draws, the direction in which each should go, their log weights, and the loss of the model's parameters."""
    latent, log_q, score_q = guide.rsample_and_score(count)
    log_p, score_p = target.value_and_score(latent)
    extra = -temperature * target(latent.detach()).mean() if target.has_parameters else 0.0
    log_weights = (temperature if tempered else 1.0) * log_p - log_q.detach()
    return latent, temperature * score_p - score_q, log_weights, extra


def whole_groups(num_particles: int, num_samples: int) -> int:
    """How many particles are drawn where they come in groups of ``num_samples``."""
    return max(1, num_particles // num_samples) * num_samples
