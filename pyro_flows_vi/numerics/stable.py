"""Elementary functions in forms that neither overflow nor cancel."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["log_softplus", "sech2", "slope_from", "softplus_one", "temper"]

#: softplus(x + SHIFT) is 1 at x = 0
SHIFT = math.log(math.e - 1.0)


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

    Written :math:`\pm k \log(a + \sqrt{1 + a^2})` with :math:`a = |x| / k`: torch's asinh is a scalar loop on the
    processor. The error is one rounding of the logarithm, relative to k and not to x. The slope at zero is 1.

    Args:
        x: any shape.
        k: where the logarithm sets in.

    Example:
        >>> temper(torch.tensor([-1e4, 0.0, 0.1, 1e4]), k=2.0)
        tensor([-18.4207,   0.0000,   0.1000,  18.4207])
    """
    signed = torch.copysign(x.new_full((), k), x.detach())  # never zero, and so neither is the slope
    a = x / signed
    return signed * torch.log(a + torch.hypot(a, a.new_ones(())))


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
    square = tanh.square()
    return torch.log(square + gain.clamp(min=torch.finfo(gain.dtype).tiny) * (1.0 - square))
