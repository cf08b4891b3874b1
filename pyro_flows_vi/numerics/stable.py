"""Elementary functions in forms that neither overflow nor cancel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["LEAK", "leaky", "log_softplus", "sech2", "slope_from", "softplus_one", "temper"]

#: softplus(x + SHIFT) is 1 at x = 0
SHIFT = math.log(math.e - 1.0)

#: slope of the leaky rectifier on the left, as in PyTorch and Pyro
LEAK = 0.01


def leaky(u: Tensor) -> tuple[Tensor, Tensor]:
    """The leaky rectifier, and the logarithm of its slope."""
    # Whether u < 0, as a number: a product is faster than a branch.
    return torch.maximum(u, LEAK * u), math.log(LEAK) * (u < 0.0).to(u)


def softplus_one(x: Tensor) -> Tensor:
    r"""A positive scale :math:`\log(1 + e^{x + \log(e - 1)})`, which is 1 at x = 0."""
    return softplus(x + SHIFT, threshold=40.0)  # beyond which it is the identity in float64 too


def log_softplus(x: Tensor) -> Tensor:
    r"""The logarithm of :func:`softplus_one`, linear in x where softplus underflows."""
    shifted = x + SHIFT
    small = shifted < -15.0  # there softplus(t) = e^t to float32 accuracy, and its logarithm is t
    correction = -0.5 * torch.exp(shifted.clamp(max=-15.0))  # the next term keeps float64 accurate too
    return torch.where(small, shifted + correction, softplus(shifted.clamp(min=-15.0), threshold=40.0).log())


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
    traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    if traced or torch._C._functorch.maybe_current_level() is not None:
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
        ctx.save_for_backward(x, radius.reciprocal_().mul_(k))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient may be differentiated: a slope with a graph
            slope = ctx.k / _radius(x, ctx.k)
        return grad * slope, None


def _tempered(x: Tensor, radius: Tensor, k: float) -> Tensor:
    return x.abs().add_(radius).div_(k).log_().mul_(k).copysign_(x)


def _radius(x: Tensor, k: float) -> Tensor:
    # torch's hypot would not overflow so soon, and takes ten times as long.
    return torch.addcmul(x.new_full((), k * k), x, x).sqrt_()


def sech2(x: Tensor) -> Tensor:
    r"""The derivative :math:`1 - \tanh^2 x` of tanh without cancellation in the tails."""
    e = torch.exp(-2.0 * x.abs())
    return 4.0 * e / (1.0 + e).square()


def slope_from(tanh: Tensor, gain: Tensor) -> Tensor:
    r"""The logarithm of :math:`1 + k\,(1 - t^2)` with :math:`t = \tanh s`, for :math:`k = g - 1 > -1`.

    Written :math:`\log(t^2 + g\,(1 - t^2))`, a sum of positive terms, it has nothing to cancel where k is close
    to -1. ``gain`` g is held above the smallest normal number, so that the logarithm is finite.

    Args:
        tanh: t.
        gain: g > 0.
    """
    gain = gain + torch.finfo(gain.dtype).tiny
    return torch.lerp(gain, gain.new_ones(()), tanh.square()).log()
