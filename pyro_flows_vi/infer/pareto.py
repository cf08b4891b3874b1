"""Pareto-smoothed importance weights, by whichever series of ArviZ is installed."""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["arviz_series", "effective_size", "load_arviz", "psis", "tail_share"]

#: positive weights below which no tail is fitted
FEWEST_WEIGHTS = 25
#: by how much the largest log weight may exceed the median where they count as equal: k-hat knows no scale, and would
#: find heavy tails in weights that differ by less than anyone will ever see
EQUAL = 0.02


def arviz_series() -> int:
    """0 for ArviZ 0.x, 1 for 1.x."""
    return int(importlib.metadata.version("arviz").split(".")[0])


def load_arviz() -> Any:
    """The module ``arviz``, imported when it is needed, as that takes seconds, and without its announcements."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("arviz")


def psis(log_weights: Tensor) -> tuple[Tensor, float]:
    """Pareto-smoothed importance weights by ArviZ: normalised log weights ``(n,)``, and Pareto k-hat.

    Draws whose weight is NaN or infinite get no weight. k-hat is infinite where fewer than 25 weights are positive, and
    0 where none is more than 2 % above the median.

    Source: Pareto smoothed importance sampling (Vehtari et al., 2024), arXiv:1507.02646.

    Raises:
        ValueError: if no weight is finite.
    """
    finite = log_weights.isfinite()
    if not bool(finite.any()):
        raise ValueError(
            "no draw has a finite importance weight: expected at least one; look at the model's log density"
        )
    kept = log_weights[finite].double()
    khat = math.inf
    if len(kept) >= FEWEST_WEIGHTS:
        if float(kept.max() - kept.median()) < EQUAL:
            khat = 0.0
        else:
            smoothed, khat = _smooth(kept.cpu().numpy())
            kept = torch.as_tensor(smoothed).to(kept)
    out = torch.full(log_weights.shape, -math.inf, dtype=torch.float64, device=log_weights.device)
    out[finite] = kept
    return torch.log_softmax(out, 0), khat


def _smooth(log_weights: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], float]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if arviz_series() >= 1:
            stats = importlib.import_module("arviz_stats.base").array_stats
            try:
                smoothed, khat = stats.psislw(-log_weights)  # it takes log likelihoods, whose inverse is the weight
            except ValueError:  # a tail of equal weights
                return log_weights, math.inf
        else:
            smoothed, khat = load_arviz().psislw(log_weights)
    khat = float(khat)
    if not np.isfinite(khat) or not np.isfinite(np.asarray(smoothed)).all():
        return log_weights, math.inf
    return np.asarray(smoothed), khat


def tail_share(log_weights: Tensor, khat: float) -> float:
    r"""By how much the weights in the tail that k-hat is fitted to are above its threshold, as a share of all weight.

    Of n weights the :math:`M = \min(n / 5, 3 \sqrt n)` largest are the tail. A generalised Pareto distribution with the
    shape k and the median :math:`\sigma (2^k - 1) / k` of what they exceed the threshold by has the mean
    :math:`\sigma / (1 - k)`, and the share is :math:`M / n` of that over the mean weight: what cutting the tail off
    there would take away, also of weights that were not drawn. From k = 1 on it has no mean, and the share is infinite.
    Like k-hat it is of the scale of no parameter; unlike k-hat it is small where the weights are nearly equal.
    """
    weights = (log_weights - log_weights.max()).exp()
    count = min(len(weights) // 5, math.ceil(3.0 * math.sqrt(len(weights))))
    if khat >= 1.0 or count < 1:
        return math.inf
    tail = weights.sort().values[-count - 1 :]
    excess = float((tail[1:] - tail[0]).median())
    scale = excess * (khat / math.expm1(khat * math.log(2.0)) if abs(khat) > 1e-6 else 1.0 / math.log(2.0))
    return count * scale / (1.0 - khat) / float(weights.sum())


def effective_size(log_weights: Tensor) -> float:
    r"""Kish's effective sample size :math:`(\sum w)^2 / \sum w^2` of log weights, of any normalisation."""
    weights = torch.softmax(log_weights, 0)
    return float(1.0 / weights.square().sum())
