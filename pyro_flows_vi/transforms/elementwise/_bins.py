"""The bins of a spline: shares of an interval, the bin that a point lies in, and what to know about that bin.

Tensors have the bins first, ``(K, *shape)``: a reduction over them runs over contiguous rows. The shares of an interval
are a softmax with a floor, so that no bin is empty at any parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
    """The bin of every point among the :func:`shares` of ``raw``, the sum of the shares before it, and its own."""
    index, *pair, _ = _FindShare.apply(raw, point.detach(), floor)
    return index, *pair


def share_at(raw: Tensor, index: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """The sum of the :func:`shares` of ``raw`` before ``index``, and the share there."""
    before, own, _ = _ShareAt.apply(raw, index, floor)
    return before, own


def _numbers(values: Tensor) -> Tensor:
    return torch.arange(len(values), device=values.device).view(-1, *[1] * (values.dim() - 1))


class _ShareAt(torch.autograd.Function):
    """With a gradient that takes one pass over the bins, where those of softmax, sum and gather take five."""

    generate_vmap_rule = True

    @staticmethod
    def forward(raw: Tensor, index: Tensor, floor: float) -> tuple[Tensor, ...]:
        part = torch.softmax(raw, 0)
        return *_pick(part.cumsum(0), part, index, floor), part

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        raw, index, floor = inputs
        before, own, part = output
        ctx.mark_non_differentiable(part)
        ctx.floor = floor
        ctx.save_for_backward(raw, index, before, own, part)

    @staticmethod
    def backward(ctx: Any, grad_before: Tensor, grad_own: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        return _gradient(ctx, grad_before, grad_own), None, None


class _FindShare(torch.autograd.Function):
    """As :class:`_ShareAt`, with a search for the bin first."""

    generate_vmap_rule = True

    @staticmethod
    def forward(raw: Tensor, point: Tensor, floor: float) -> tuple[Tensor, ...]:
        part = torch.softmax(raw, 0)
        total, scale = part.cumsum(0), 1.0 - len(raw) * floor
        ends = torch.add(floor * (1 + _numbers(raw)[:-1]), total[:-1], alpha=scale)
        index = (ends <= point).sum(0)
        return index, *_pick(total, part, index, floor), part

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        index, before, own, part = output
        ctx.mark_non_differentiable(index, part)
        ctx.floor = inputs[2]
        ctx.save_for_backward(inputs[0], index, before, own, part)

    @staticmethod
    def backward(ctx: Any, _: Tensor, grad_before: Tensor, grad_own: Tensor, __: Tensor) -> tuple[Tensor, None, None]:
        return _gradient(ctx, grad_before, grad_own), None, None


def _pick(total: Tensor, part: Tensor, index: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    scale, own = 1.0 - len(part) * floor, take(part, index)
    return torch.add(floor * index, take(total, index) - own, alpha=scale), floor + scale * own


def _gradient(ctx: Any, grad_before: Tensor, grad_own: Tensor) -> Tensor:
    raw, index, before, own, part = ctx.saved_tensors
    scale, smaller = 1.0 - len(raw) * ctx.floor, _numbers(raw) < index
    if torch.is_grad_enabled():  # the gradient may be differentiated: everything with a graph
        part = torch.softmax(raw, 0)
        before, own = torch.where(smaller, part, 0.0).sum(0), take(part, index)
    else:
        before, own = (before - ctx.floor * index) / scale, (own - ctx.floor) / scale
    grad_before, grad_own = scale * grad_before, scale * grad_own
    mean = grad_before * before + grad_own * own
    rows = torch.where(smaller, grad_before - mean, -mean) * part
    return rows.scatter_add(0, index.unsqueeze(0), (grad_own * own).unsqueeze(0))
