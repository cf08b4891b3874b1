"""Elementary functions in forms that neither overflow nor cancel."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["LEAK", "leaky", "log_softplus", "sech2", "slope_from", "softplus_one"]

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
