"""Ascent of a log density from many points at once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Evaluate", "climb", "in_double"]

#: places ``(n, D)`` to log densities ``(n,)`` and their gradients ``(n, D)``, in double precision
Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]

#: pairs of moves and slopes that a climb remembers
MEMORY = 15


def in_double(value_and_score: Evaluate, like: Tensor) -> Evaluate:
    """A log density that computes in the precision of ``like``, asked and answered in double precision."""

    def evaluate(places: Tensor) -> tuple[Tensor, Tensor]:
        value, score = value_and_score(places.to(like))
        return value.double(), score.double()

    return evaluate


def climb(evaluate: Evaluate, place: Tensor, evaluations: int) -> tuple[Tensor, Tensor]:
    """L-BFGS from all rows of ``place`` at once, each with its own step: the log densities and where they are."""
    value, slope = evaluate(place)
    value = value.nan_to_num(nan=-math.inf)
    slope = torch.where(slope.isfinite().all(-1, keepdim=True), slope, 0.0)
    memory: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=MEMORY)
    scale = 1.0 / slope.norm(dim=-1, keepdim=True).clamp(min=1.0)
    direction, step = scale * slope, torch.ones_like(scale)
    for _ in range(evaluations):
        trial = place + step * direction
        new_value, new_slope = evaluate(trial)
        gain = 1e-4 * (step * direction * slope).sum(-1)
        finite = new_value.isfinite() & new_slope.isfinite().all(-1)
        taken = (finite & (new_value > value + gain))[:, None]
        move, bend = torch.where(taken, trial - place, 0.0), torch.where(taken, slope - new_slope, 0.0)
        product = (move * bend).sum(-1, keepdim=True)
        convex = product > 1e-12 * bend.square().sum(-1, keepdim=True)
        convex = convex & (product > 0)
        memory.append((move, bend, torch.where(convex, 1.0 / product.clamp(min=1e-300), 0.0)))
        scale = torch.where(convex, product / bend.square().sum(-1, keepdim=True).clamp(min=1e-300), scale)
        place, slope = torch.where(taken, trial, place), torch.where(taken, new_slope, slope)
        value = torch.where(taken[:, 0], new_value, value)
        uphill = _two_loops(memory, slope, scale)
        uphill = torch.where((uphill * slope).sum(-1, keepdim=True) > 0, uphill, scale * slope)
        direction = torch.where(taken, uphill, direction)
        step = torch.where(taken, 1.0, 0.25 * step)
        if bool((slope.norm(dim=-1) < 1e-5).all() | (step < 1e-12).all()):
            break
    return value, place


def _two_loops(memory: deque[tuple[Tensor, Tensor, Tensor]], slope: Tensor, scale: Tensor) -> Tensor:
    """The inverse curvature that L-BFGS remembers, times the slope; pairs with 0 for 1 / (s y) do nothing."""
    parts = []
    for move, bend, inverse in reversed(memory):
        part = inverse * (move * slope).sum(-1, keepdim=True)
        slope = slope - part * bend
        parts.append(part)
    slope = scale * slope
    for (move, bend, inverse), part in zip(memory, reversed(parts), strict=True):
        slope = slope + move * (part - inverse * (bend * slope).sum(-1, keepdim=True))
    return slope
