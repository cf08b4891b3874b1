"""Positive numbers and matrices held and multiplied as logarithms."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["log_matmul_exp", "soft_bound"]

#: half the widest ratio of positive weights, in nats: e^20 can neither overflow nor underflow a product in float32
BOUND = 10.0


def soft_bound(x: Tensor, bound: float = BOUND) -> Tensor:
    r"""A logarithm held in :math:`(-c, c)` by :math:`c \tanh(x / c)`, which is x to third order at zero."""
    return bound * torch.tanh(x / bound)


def log_matmul_exp(a: Tensor, b: Tensor) -> Tensor:
    r"""The product :math:`\log(e^A e^B)` of positive matrices, as one ordinary product.

    Rows of A and columns of B are scaled by their largest entry first. Exact to rounding where one of the two
    has entries within about 80 nats of its largest (see :func:`soft_bound`); the other may span any range: what
    underflows in it would not have shown in the sum. No tensor of shape ``(n, k, m)`` is ever made.

    Args:
        a: ``(*batch, n, k)``.
        b: ``(*batch, k, m)``.

    Returns:
        ``(*batch, n, m)``.

    Example:
        >>> log_matmul_exp(torch.tensor([[0.0, -500.0]]), torch.tensor([[-300.0], [-300.0]]))
        tensor([[-300.]])
    """
    top_a = a.detach().amax(-1, keepdim=True)  # the shifts cancel, and so do their gradients
    top_b = b.detach().amax(-2, keepdim=True)
    return torch.log(torch.exp(a - top_a) @ torch.exp(b - top_b)) + top_a + top_b
