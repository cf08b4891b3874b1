r"""Log-determinants :math:`\log\det(I + J)` of perturbed identities: exact, or from products with J alone.

With :math:`\|J\| \le L < 1` in some operator norm, :math:`\log\det(I + J) = \sum_{k \ge 1}
\frac{(-1)^{k+1}}{k} \operatorname{tr} J^k`. Probes v with E[v v^T] = I turn each trace into :math:`v^\top
J^k v`, and random weights turn the infinite sum into a finite one of the same expectation.

Sources: Invertible residual networks (Behrmann et al., 2019), arXiv:1811.00995; Residual flows for
invertible generative modeling (Chen et al., 2019), arXiv:1906.02735.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "TAILS",
    "LogDetEstimate",
    "Roulette",
    "converged",
    "exact_log_det",
    "num_terms_for",
    "remainder_bound",
    "series_log_det",
]

#: the laws of the random number of terms of a Russian roulette
TAILS = ("geometric", "poisson")


class LogDetEstimate(NamedTuple):
    """A log-determinant ``value`` and its ``standard_error``, each of the batch shape."""

    value: Tensor
    standard_error: Tensor


def exact_log_det(jacobian: Tensor) -> Tensor:
    r""":math:`\log|\det(I + J)|` by LU factorisation, O(D^3).

    Args:
        jacobian: J, ``(*batch, D, D)``; half-precision types are factored in float32.
    """
    dtype = jacobian.dtype
    jacobian = jacobian.float() if dtype in (torch.float16, torch.bfloat16) else jacobian
    eye = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)
    return torch.linalg.slogdet(eye + jacobian)[1].to(dtype)


def remainder_bound(dim: int, lipschitz: float, num_terms: int) -> float:
    r"""A bound :math:`D L^{n+1} / ((n+1)(1-L))` of what the power series has left after n terms.

    Every eigenvalue of J is at most L in size, so :math:`|\operatorname{tr} J^k| \le D L^k`.

    Raises:
        ValueError: unless 0 < L < 1.
    """
    if not 0.0 < lipschitz < 1.0:
        raise ValueError(f"lipschitz: expected a number in (0, 1), got {lipschitz}")
    return dim * lipschitz ** (num_terms + 1) / ((num_terms + 1) * (1.0 - lipschitz))


def num_terms_for(dim: int, lipschitz: float, tolerance: float) -> int:
    """The least number of terms whose :func:`remainder_bound` is within ``tolerance`` nats.

    Example:
        >>> num_terms_for(64, 0.9, 1e-3)
        84
    """
    if not tolerance > 0.0:
        raise ValueError(f"tolerance: expected a positive number of nats, got {tolerance}")
    num_terms = 1
    while remainder_bound(dim, lipschitz, num_terms) > tolerance:
        num_terms += 1
    return num_terms


@dataclass(frozen=True)
class Roulette:
    r"""Random weights that cut a series off at a random term N without changing its expectation.

    The first ``num_exact`` terms have weight 1, and term k after them has weight :math:`1 / P(N \ge k)`
    up to N. As E[1{k <= N} / P(N >= k)] = 1, the weighted sum has the expectation of the whole series. The
    number of terms after the first is geometric, going on with probability ``rate``, or Poisson with mean
    ``rate``. The variance is certainly finite for a geometric tail with rate > L^2. A Poisson tail thins
    out faster than any L^k, so it suits a J well inside its bound.

    Args:
        num_exact: terms that are always taken, at least 0.
        tail: one of :data:`TAILS`.
        rate: the continuation probability, in (0, 1), or the Poisson mean.

    Raises:
        ValueError: for an unknown tail or a number out of range.

    Example:
        >>> Roulette(num_exact=2, tail="geometric", rate=0.5).survival(4)
        0.25
    """

    num_exact: int
    tail: str = "geometric"
    rate: float = 0.5

    def __post_init__(self) -> None:
        if self.num_exact < 0:
            raise ValueError(f"num_exact: expected at least 0 terms, got {self.num_exact}")
        if self.tail not in TAILS:
            raise ValueError(f"tail: expected one of {TAILS}, got {self.tail!r}")
        if not 0.0 < self.rate < (1.0 if self.tail == "geometric" else math.inf):
            expected = "in (0, 1)" if self.tail == "geometric" else "positive and finite"
            raise ValueError(f"rate: expected a number {expected} for a {self.tail} tail, got {self.rate}")

    def survival(self, k: int) -> float:
        """P(N >= k)."""
        extra = k - self.num_exact
        if extra <= 0:
            return 1.0
        if self.tail == "geometric":
            return self.rate**extra
        mass = [math.exp(-self.rate)]
        for j in range(1, extra):
            mass.append(mass[-1] * self.rate / j)
        return max(0.0, 1.0 - math.fsum(mass))

    def draw(self) -> list[float]:
        """The weights of the terms 1, ..., N for a random N, from torch's CPU generator."""
        level = float(torch.rand((), dtype=torch.float64))  # N >= k iff the level lies below P(N >= k)
        weights: list[float] = []
        while (survival := self.survival(len(weights) + 1)) > level:
            weights.append(1.0 / survival)
        return weights


def series_log_det(
    vjp: Callable[[Tensor], Tensor],
    probes: Tensor,
    weights: Sequence[float],
    enough: Callable[[Tensor, int], bool] | None = None,
) -> Tensor:
    r"""The weighted series :math:`\sum_k \frac{(-1)^{k+1}}{k} a_k\, v^\top J^k v`, one estimate a probe.

    The terms are summed without a graph. The gradient is that of
    :math:`\bigl(\sum_k (-1)^{k+1} a_k\, v^\top J^{k-1}\bigr) J v` with the bracket held constant (a Neumann
    series for :math:`(I + J)^{-1}`), whose expectation is the gradient of the expected series. So only one
    product with J keeps a graph, and **memory does not grow with the number of terms**. The value is that of
    the series, not of this surrogate. Second derivatives are not those of the series.

    Args:
        vjp: v -> v^T J, differentiable, for v ``(num_probes, *batch, D)``.
        probes: v, ``(num_probes, *batch, D)``, with E[v v^T] = I.
        weights: a_1, a_2, ...: all 1 for a truncated series, those of a :class:`Roulette` for no bias.
        enough: told v^T J^k and k after each term, may end the series; see :func:`converged`.

    Returns:
        ``(num_probes, *batch)``.
    """
    with torch.no_grad():
        row, left, value = probes, torch.zeros_like(probes), torch.zeros_like(probes[..., 0])
        for k, weight in enumerate(weights, start=1):
            signed = weight if k % 2 else -weight
            left = left + signed * row
            row = vjp(row)
            value = value + (signed / k) * (row * probes).sum(-1)
            if enough is not None and enough(row, k):
                break
    if not torch.is_grad_enabled():
        return value
    surrogate = (vjp(left) * probes).sum(-1)
    return value + (surrogate - surrogate.detach())


def converged(lipschitz: float, tolerance: float, order: float = 2.0) -> Callable[[Tensor, int], bool]:
    r"""A stopping rule for :func:`series_log_det` with probes of signs, by what the terms have become.

    If each product shrinks a row by L in the p-norm, Hölder's inequality bounds what terms n + 1, n + 2, ...
    add by :math:`\|v^\top J^n\|_p\, D^{1 - 1/p}\, L / ((n + 1)(1 - L))`, which falls as fast as J contracts
    in truth.

    Args:
        lipschitz: L.
        tolerance: end when the bound is within so many nats for every probe and point.
        order: p, from 1 to infinity.
    """

    def enough(row: Tensor, num_terms: int) -> bool:
        size = torch.linalg.vector_norm(row, order, dim=-1).max() * row.shape[-1] ** (1.0 - 1.0 / order)
        return float(size) * lipschitz / ((num_terms + 1) * (1.0 - lipschitz)) <= tolerance

    return enough
