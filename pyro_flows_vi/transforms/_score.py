"""The score of a flow's distribution, carried through the flow with the draw.

A draw y = f(x) of the distribution that f makes of a base with score s_x has the score s_y that solves

    J^T s_y = s_x - grad_x log|det J(x)|.

The path gradient of an ELBO needs s_y as a number, without a graph; two ways to find it that serve several families
are here, and a family with a cheaper one overrides :meth:`Flow.forward_and_score`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_flows_vi.numerics.tracing import is_traced

if TYPE_CHECKING:
    from pyro_flows_vi.transforms.base import Flow

__all__ = ["score_by_inverse", "score_by_substitution"]


def score_by_inverse(flow: Flow, y: Tensor, score: Tensor, context: Tensor | None) -> Tensor:
    """The score at y, as the gradient of log q(y) through the inverse: right for every flow."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        x, log_det = flow.inverse_and_log_det(y, None if context is None else context.detach())
        (result,) = torch.autograd.grad((x * score.detach()).sum() - log_det.sum(), y)
    return result


def score_by_substitution(x: Tensor, y: Tensor, log_slope: Tensor, score: Tensor) -> Tensor:
    """The score at y of an autoregressive map, from the graph that led from x to y.

    The system is triangular. Jacobi's iteration, each round one product with the transposed Jacobian, ends with the
    exact solution after D rounds, and after far fewer where coordinates depend on each other weakly.

    Args:
        x: ``(*batch, D)``, in the graph of y.
        y: ``(*batch, D)``.
        log_slope: log dy_i/dx_i, ``(*batch, D)``, in the graph of x.
        score: at x, ``(*batch, D)``.
    """
    slope = log_slope.detach().exp()

    def pull(cotangent: Tensor | None, slopes: bool = False) -> Tensor:
        outputs, grads = ([log_slope], [torch.ones_like(log_slope)]) if slopes else ([y], [cotangent])
        (product,) = torch.autograd.grad(outputs, x, grads, retain_graph=True, allow_unused=True)
        return torch.zeros_like(x) if product is None else product

    target = score.detach() - (pull(None, slopes=True) if log_slope.requires_grad else 0.0)
    solution = target / slope
    tolerance = 8.0 * torch.finfo(x.dtype).eps
    for _ in range(x.shape[-1]):
        correction = (target - pull(solution)) / slope
        solution = solution + correction
        if not is_traced(x) and bool((correction.abs() <= tolerance * (1.0 + solution.abs())).all()):
            break
    return solution.detach()
