"""The bins of a spline: shares of an interval, the bin that a point lies in, and what to know about that bin.

Tensors have the bins first, ``(K, *shape)``: a reduction over them runs over contiguous rows. The shares of an interval
are a softmax with a floor, so that no bin is empty at any parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_flows_vi.numerics.tracing import is_traced

__all__ = ["below", "find", "find_share", "share_at", "shares", "take"]


def shares(raw: Tensor, floor: float) -> Tensor:
    """Positive parts of one, none below ``floor``."""
    return floor + (1.0 - len(raw) * floor) * torch.softmax(raw, 0)


def find(sizes: Tensor, point: Tensor) -> Tensor:
    """The bin of every point of [0, 1], where ``sizes`` add up to one; a knot belongs to the bin on its right."""
    ends = sizes.detach().cumsum(0)[:-1]
    return (ends <= point.detach()).sum(0)


def take(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]``, point by point; an index ``(*shape)`` or, for several at once, ``(m, *shape)``."""
    if index.dim() == values.dim():
        return values.gather(0, index)
    return values.gather(0, index.unsqueeze(0)).squeeze(0)


def below(sizes: Tensor, index: Tensor) -> Tensor:
    """The sum of all ``sizes`` before ``index``."""
    return torch.where(_numbers(sizes) < index, sizes, 0.0).sum(0)


def find_share(raw: Tensor, point: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """The bin of every point among the :func:`shares` of ``raw``, the sum of the shares before it, and its own.

    Compilers and the transforms of ``torch.func`` see plain operations, everyone else a gradient in a single pass.
    """
    if is_traced(raw):
        sizes = shares(raw, floor)
        index = find(sizes, point)
        return index, below(sizes, index), take(sizes, index)
    index, before, own = _FindShare.apply(raw, point.detach(), floor)
    return index, before, own


def share_at(raw: Tensor, index: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """The sum of the :func:`shares` of ``raw`` before ``index``, and the share there; traced as :func:`find_share`."""
    if is_traced(raw):
        sizes = shares(raw, floor)
        return below(sizes, index), take(sizes, index)
    before, own = _ShareAt.apply(raw, index, floor)
    return before, own


def _numbers(values: Tensor) -> Tensor:
    return torch.arange(len(values), device=values.device).view(-1, *[1] * (values.dim() - 1))


class _ShareAt(torch.autograd.Function):
    """With a gradient that takes one pass over the bins, where those of softmax, sum and gather take five."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor, index: Tensor, floor: float) -> tuple[Tensor, Tensor]:
        part = torch.softmax(raw, 0)
        return _pick(ctx, raw, part, part.cumsum(0), index, floor)

    @staticmethod
    def backward(ctx: Any, grad_before: Tensor, grad_own: Tensor) -> tuple[Tensor, None, None]:
        return _gradient(ctx, grad_before, grad_own), None, None


class _FindShare(torch.autograd.Function):
    """As :class:`_ShareAt`, with a search for the bin first."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor, point: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
        part = torch.softmax(raw, 0)
        total, count = part.cumsum(0), len(raw)
        ends = torch.add(floor * _numbers(raw)[1:].to(raw), total[:-1], alpha=1.0 - count * floor)
        index = (ends <= point).sum(0)
        ctx.mark_non_differentiable(index)
        return index, *_pick(ctx, raw, part, total, index, floor)

    @staticmethod
    def backward(ctx: Any, _: Tensor, grad_before: Tensor, grad_own: Tensor) -> tuple[Tensor, None, None]:
        return _gradient(ctx, grad_before, grad_own), None, None


def _pick(ctx: Any, raw: Tensor, part: Tensor, total: Tensor, index: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    own = take(part, index)
    before = take(total, index) - own
    ctx.floor = floor
    ctx.save_for_backward(raw, part, index, before, own)
    scale = 1.0 - len(part) * floor
    return torch.add(floor * index.to(part), before, alpha=scale), floor + scale * own


def _gradient(ctx: Any, grad_before: Tensor, grad_own: Tensor) -> Tensor:
    raw, part, index, before, own = ctx.saved_tensors
    smaller = _numbers(raw) < index
    if torch.is_grad_enabled():  # the gradient may be differentiated: everything with a graph
        part = torch.softmax(raw, 0)
        before, own = torch.where(smaller, part, 0.0).sum(0), take(part, index)
    scale = 1.0 - len(raw) * ctx.floor
    grad_before, grad_own = scale * grad_before, scale * grad_own
    mean = grad_before * before + grad_own * own
    rows = torch.where(smaller, grad_before - mean, -mean) * part
    return rows.scatter_add(0, index.unsqueeze(0), (grad_own * own).unsqueeze(0))
