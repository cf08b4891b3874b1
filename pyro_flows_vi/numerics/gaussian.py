"""The normal distribution's tail, by logarithms: nothing saturates however far out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["log_mills", "log_survival", "upper_quantile"]

ROOT_HALF = math.sqrt(0.5)
LOG_ROOT_TWO_PI = 0.5 * math.log(2.0 * math.pi)
NEWTON_STEPS = 5
SERIES_FROM = 30.0


def log_survival(x: Tensor) -> Tensor:
    r""":math:`\log(1 - \Phi(x))`, with full relative accuracy to the right of zero.

    Like ``torch.special.log_ndtr(-x)``, which ``vmap`` would take one by one and whose derivative is infinite far out.

    Example:
        >>> log_survival(torch.tensor([0.0, 1e4]))
        tensor([-6.9315e-01, -5.0000e+07])
    """
    if torch.compiler.is_compiling():
        return _log_survival(x)
    y: Tensor = _LogSurvival.apply(x)
    return y


def log_mills(x: Tensor) -> Tensor:
    r"""The logarithm of Mills' ratio, :math:`\log\bigl((1 - \Phi(x)) / \varphi(x)\bigr)`: about -log x far right.

    Example:
        >>> log_mills(torch.tensor([-10.0, 0.0, 1e4]))
        tensor([50.9189,  0.2258, -9.2103])
    """
    if torch.compiler.is_compiling():
        return _log_mills(x)
    y: Tensor = _LogMills.apply(x)
    return y


def upper_quantile(log_tail: Tensor) -> Tensor:
    r"""The y with :math:`\log(1 - \Phi(y)) = L`, for a tail of at most about one half.

    Newton's method on a concave function, started at the first terms of the asymptotic series: a fixed number of
    steps, with relative accuracy a few ε for any L from log(1/2) down to the smallest float.

    Args:
        log_tail: L; for tails far above one half use the other side, -y.

    Returns:
        y, with derivatives of any order.

    Example:
        >>> upper_quantile(torch.tensor([math.log(0.025), -5e9]))
        tensor([1.9600e+00, 1.0000e+05])
    """
    if torch.compiler.is_compiling():
        return _upper_quantile(log_tail)
    y: Tensor = _UpperQuantile.apply(log_tail)
    return y


# A compiler differentiates these as they stand, to fewer digits far out.
def _log_survival(x: Tensor) -> Tensor:
    near = torch.log1p(-0.5 * torch.erfc(-ROOT_HALF * x.clamp(max=0.0)))
    right = x.clamp(min=0.0)
    far = (0.5 * torch.special.erfcx(ROOT_HALF * right)).log() - 0.5 * right.square()
    return torch.where(x > 0.0, far, near)


def _log_mills(x: Tensor) -> Tensor:
    left = x.clamp(max=0.0)
    near = 0.5 * left.square() + LOG_ROOT_TWO_PI + torch.log1p(-0.5 * torch.erfc(-ROOT_HALF * left))
    far = torch.special.erfcx(ROOT_HALF * x.clamp(min=0.0)).log() + 0.5 * math.log(0.5 * math.pi)
    return torch.where(x > 0.0, far, near)


def _upper_quantile(log_tail: Tensor) -> Tensor:
    double = -2.0 * log_tail
    y = (double - (2.0 * math.pi * double.clamp(min=1.0)).log()).clamp(min=1e-30).sqrt()
    for _ in range(NEWTON_STEPS):
        y = y + _log_mills(y).exp() * (_log_survival(y) - log_tail)
    return y


class _OfOne(torch.autograd.Function):
    """A function whose derivative is computed from its argument."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


class _LogSurvival(_OfOne):
    """The logarithm of the tail, and its derivative -1 / M."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _log_survival(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return -grad * torch.exp(-log_mills(x))


class _LogMills(_OfOne):
    """The logarithm of Mills' ratio, with the derivative x - 1 / M, far right by its series."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _log_mills(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        near, far = x.clamp(max=SERIES_FROM), 1.0 / x.clamp(min=SERIES_FROM)
        square = far.square()
        series = -far * (1.0 - square * (2.0 - square * (10.0 - square * (74.0 - square * 706.0))))
        return grad * torch.where(x < SERIES_FROM, near - torch.exp(-log_mills(near)), series)


class _UpperQuantile(torch.autograd.Function):
    """The quantile, whose derivative -M(y) is a function of y itself and so can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(log_tail: Tensor) -> Tensor:
        return _upper_quantile(log_tail)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return -grad * log_mills(y).exp()
