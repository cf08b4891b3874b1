"""Scales that grow logarithmically with what a network puts out, and the affine map by such a scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_flows_vi.numerics.tracing import is_transformed

__all__ = ["scale_shift", "temper", "unscale_unshift"]

Pair = tuple[Tensor, Tensor]
#: where the logarithm of an affine map's scale sets in
K = 4.0


def temper(x: Tensor, k: float = 4.0) -> Tensor:
    r"""The map :math:`k \operatorname{asinh}(x / k)`: nearly x for moderate x, logarithmic beyond, onto R.

    The exponential of it is a positive number that grows like the k-th power of the output of a network and not
    exponentially, so that a rare large output cannot blow up the map or flatten it to nothing.

    Computed as :math:`\pm k \log(a + \sqrt{1 + a^2})` with :math:`a = |x| / k`, since torch's asinh is a scalar
    loop on the processor. The error is one rounding of the logarithm, relative to k and not to x; in single precision
    it is inf beyond 1e19. Compilers and the transforms of ``torch.func`` see torch's asinh.

    Args:
        x: any shape.
        k: where the logarithm sets in.

    Example:
        >>> temper(torch.tensor([-1e4, 0.0, 0.1, 1e4]), k=2.0)
        tensor([-18.4207,   0.0000,   0.1000,  18.4207])
    """
    if is_transformed():
        return k * torch.asinh(x / k)
    if not (x.requires_grad and torch.is_grad_enabled()):
        return _tempered(x, _radius(x, k), k)
    y: Tensor = _Temper.apply(x, k)
    return y


class _Temper(torch.autograd.Function):
    """The map and its slope in half the passes: all that a network puts out goes through it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: float) -> Tensor:
        radius = _radius(x, k)
        y = _tempered(x, radius, k)
        ctx.k = k
        ctx.save_for_backward(x, radius.reciprocal_())
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient may be differentiated: a slope with a graph
            slope = _radius(x, ctx.k).reciprocal()
        return grad * slope, None


def _tempered(x: Tensor, radius: Tensor, k: float) -> Tensor:
    return torch.add(radius, x.abs(), alpha=1.0 / k).log_().mul_(k).copysign_(x)


def _radius(x: Tensor, k: float) -> Tensor:
    r""":math:`\sqrt{1 + (x / k)^2}`, of which the slope is the reciprocal."""
    # torch's hypot would not overflow so soon, and takes ten times as long.
    return torch.addcmul(x.new_ones(()), x, x, value=1.0 / k**2).sqrt_()


def scale_shift(x: Tensor, shift: Tensor, raw: Tensor) -> Pair:
    r"""The affine map :math:`y = e^{\tau(s)} x + \mu`, and :math:`\tau(s)`, of the shape of y; see :func:`temper`.

    Args:
        x: ``(*batch, n)``.
        shift: μ, of a shape that broadcasts against x.
        raw: s, of the same shape.

    Example:
        >>> scale_shift(torch.ones(2), torch.tensor([0.0, 3.0]), torch.zeros(2))
        (tensor([1., 4.]), tensor([0., 0.]))
    """
    return _affine(x, shift, raw, inverse=False)


def unscale_unshift(y: Tensor, shift: Tensor, raw: Tensor) -> Pair:
    r"""The inverse :math:`x = e^{-\tau(s)} (y - \mu)` of :func:`scale_shift`, and :math:`\tau(s)`.

    Args:
        y: ``(*batch, n)``.
        shift, raw: as for :func:`scale_shift`.
    """
    return _affine(y, shift, raw, inverse=True)


def _affine(x: Tensor, shift: Tensor, raw: Tensor, inverse: bool) -> Pair:
    if is_transformed() or not (
        torch.is_grad_enabled() and (x.requires_grad or shift.requires_grad or raw.requires_grad)
    ):
        return _affine_composite(x, shift, raw, inverse)
    if not x.shape == shift.shape == raw.shape:
        x, shift, raw = torch.broadcast_tensors(x, shift, raw)
    result, log_scale = _Affine.apply(x, shift, raw, inverse)
    return result, log_scale


def _affine_composite(x: Tensor, shift: Tensor, raw: Tensor, inverse: bool) -> Pair:
    log_scale = temper(raw, K)
    if inverse:
        return (x - shift) / log_scale.exp(), log_scale.expand(x.shape)
    return torch.addcmul(shift, x, log_scale.exp()), log_scale.expand(x.shape)


class _Affine(torch.autograd.Function):
    """The map and its derivatives in half the passes: an affine flow is not much more than this and its network."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, raw: Tensor, inverse: bool) -> Pair:
        radius = _radius(raw, K)
        log_scale = _tempered(raw, radius, K)
        scale = log_scale.exp()
        result = (x - shift).div_(scale) if inverse else torch.addcmul(shift, x, scale)
        ctx.inverse = inverse
        ctx.save_for_backward(x, shift, raw, radius, scale, result if inverse else None)
        return result, log_scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_log_scale: Tensor) -> tuple[Tensor | None, ...]:
        x, shift, raw, radius, scale, result = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient may be differentiated: one with a graph
            copies = x.view_as(x), shift.view_as(shift), raw.view_as(raw)  # the parameters may depend on x
            needed = [value for value in copies if value.requires_grad]
            outputs = _affine_composite(*copies, ctx.inverse)
            pairs = [(y, g) for y, g in zip(outputs, (grad, grad_log_scale), strict=True) if y.requires_grad]
            ends, grads = [y for y, _ in pairs], [g for _, g in pairs]
            found = iter(torch.autograd.grad(ends, needed, grads, create_graph=True))
            return *(next(found) if value.requires_grad else None for value in copies), None
        grad_x = grad / scale if ctx.inverse else grad * scale
        if ctx.inverse:
            grad_shift, grad_raw = grad_x.neg(), torch.addcmul(grad_log_scale, grad, result, value=-1.0)
        else:
            grad_shift, grad_raw = grad, torch.addcmul(grad_log_scale, grad_x, x)
        return grad_x, grad_shift, grad_raw.div_(radius), None
