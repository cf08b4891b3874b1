"""Rules for integrals over [0, 1], and an integral whose gradient is an integral."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["RULES", "clenshaw_curtis", "gauss_legendre", "integral"]

Rule = tuple[list[float], list[float]]

#: how many points are evaluated at once
CHUNK = 1 << 15


def gauss_legendre(num_nodes: int) -> Rule:
    """Nodes and weights on [0, 1], exact for polynomials of degree up to 2n - 1.

    >>> nodes, weights = gauss_legendre(2)
    >>> round(sum(w * t**3 for t, w in zip(nodes, weights)), 12)
    0.25
    """
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    return (0.5 * (nodes + 1.0)).tolist(), (0.5 * weights).tolist()


def clenshaw_curtis(num_nodes: int) -> Rule:
    r"""Nodes and weights on [0, 1], exact for polynomials of degree up to n - 1.

    The nodes :math:`(1 - \cos(\pi j / (n - 1))) / 2` contain both ends. The weights are the integrals of the
    polynomial that interpolates there, from those of the Chebyshev polynomials.

    >>> [round(6.0 * weight, 12) for weight in clenshaw_curtis(3)[1]]
    [1.0, 4.0, 1.0]
    """
    if num_nodes == 1:
        return [0.5], [1.0]
    last = num_nodes - 1
    angles = math.pi * np.arange(num_nodes) / last
    weights = np.ones(num_nodes)
    for k in range(1, last // 2 + 1):
        share = 1.0 if 2 * k == last else 2.0
        weights -= share * np.cos(2.0 * k * angles) / (4.0 * k**2 - 1.0)
    weights[1:-1] *= 2.0
    return (np.sin(0.5 * angles) ** 2).tolist(), (0.5 * weights / last).tolist()


#: the rules by name
RULES: dict[str, Callable[[int], Rule]] = {"gauss-legendre": gauss_legendre, "clenshaw-curtis": clenshaw_curtis}


def integral(function: Callable[..., Tensor], upper: Tensor, tensors: tuple[Tensor, ...], rule: Rule) -> Tensor:
    r"""The integral :math:`I(b) = \int_0^b f(u; \theta)\, du` of every element, by a fixed rule.

    The gradient is that of the integral and not of the rule, by Leibniz: :math:`dI/db = f(b; \theta)`, and
    :math:`dI/d\theta` by the same rule from :math:`\partial f / \partial\theta`, for which f is evaluated again, a few
    nodes at a time. **Memory does not grow with the number of nodes**, and the derivative to b is exactly f. Under a
    compiler or a transform of ``torch.func`` the rule is differentiated as it stands.

    Args:
        function: f, called as ``function(u, *tensors)`` with u ``(*batch, J)`` for any J; positive or not.
        upper: b, ``(*batch)``.
        tensors: θ, all that f depends on and that may require gradients.
        rule: nodes and weights on [0, 1].

    Returns:
        ``(*batch)``, with derivatives of any order.

    Example:
        >>> b, power = torch.tensor([1.0, 2.0]), torch.tensor(2.0)
        >>> integral(lambda u, p: u**p, b, (power,), gauss_legendre(4))
        tensor([0.3333, 2.6667])
    """
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None:
        return _sum(function, upper, tensors, rule)
    result: Tensor = _Integral.apply(function, rule, upper, *tensors)
    return result


def _sum(function: Callable[..., Tensor], upper: Tensor, tensors: tuple[Tensor, ...], rule: Rule) -> Tensor:
    nodes, weights = (upper.new_tensor(numbers) for numbers in rule)
    return upper * (function(upper.unsqueeze(-1) * nodes, *tensors) * weights).sum(-1)


def _chunks(rule: Rule, upper: Tensor) -> list[Rule]:
    size = max(1, CHUNK // max(1, upper.numel()))
    return [(rule[0][i : i + size], rule[1][i : i + size]) for i in range(0, len(rule[0]), size)]


class _Integral(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], rule: Rule, upper: Tensor, *tensors: Tensor) -> Tensor:
        ctx.function, ctx.rule = function, rule
        ctx.save_for_backward(upper, *tensors)
        total = torch.zeros_like(upper)
        for chunk in _chunks(rule, upper):
            total += _sum(function, upper, tensors, chunk)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        upper, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        again = torch.is_grad_enabled()  # the gradient may be differentiated in its turn
        with torch.enable_grad():
            # Handles, since one tensor may be computed from another, and here each stands for itself.
            pairs = zip(tensors, needed, strict=True)
            tensors = [t.view_as(t) if again else t.detach().requires_grad_(n) for t, n in pairs]
            wanted = [t for t, n in zip(tensors, needed, strict=True) if n]
            grads: list[Tensor] = [torch.zeros_like(t) for t in wanted]
            fixed = upper if again else upper.detach()
            for chunk in _chunks(ctx.rule, upper) if wanted else []:
                part = _sum(ctx.function, fixed, tuple(tensors), chunk)
                more = torch.autograd.grad(part, wanted, grad, create_graph=again, materialize_grads=True)
                grads = [a + b for a, b in zip(grads, more, strict=True)]
        to_upper = None
        if ctx.needs_input_grad[2]:
            with torch.set_grad_enabled(again):
                to_upper = grad * ctx.function(upper.unsqueeze(-1), *tensors).squeeze(-1)
        found = iter(grads)
        return None, None, to_upper, *(next(found) if n else None for n in needed)
