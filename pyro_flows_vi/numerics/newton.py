"""Newton's method for gradients of strongly convex functions, many points at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_flows_vi.numerics.errors import NotConverged

__all__ = ["solve_newton"]

HALVINGS = 40
PATIENCE = 5
ROUNDINGS = 8.0

#: x -> (f(x), the map r -> J(x)^-1 r)
Linearised = Callable[[Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]


def solve_newton(
    function: Linearised, target: Tensor, start: Tensor, max_iterations: int = 200, name: str = "Newton's method"
) -> Tensor:
    r"""Solve f(x) = t for a smooth f whose Jacobian is nowhere singular, such as the gradient of a convex potential.

    Each point takes the largest step, of 1, 1/2, 1/4, ... Newton steps, that brings its residual down; as
    the Jacobian is not singular, one does. It ends where all residuals are rounding, 8 ε (1 + max|t| + max|x|), or
    have stopped to fall while below √ε times that.

    Args:
        function: x -> (f(x), r -> J(x)^{-1} r), for x ``(*batch, D)``.
        target: t, ``(*batch, D)``.
        start: a first guess, ``(*batch, D)``.
        max_iterations: give up after so many.
        name: what is being solved, for the error.

    Returns:
        x, without a graph.

    Raises:
        ValueError: if the target or the first values are NaN or infinite.
        NotConverged: if the residuals do not become small; names the largest.

    Example:
        >>> from pyro_flows_vi.numerics.newton import solve_newton
        >>> cube = lambda x: (x**3 + x, lambda r: r / (3 * x**2 + 1))
        >>> solve_newton(cube, torch.tensor([[10.0]]), torch.tensor([[0.0]]))
        tensor([[2.]])
    """
    eps = torch.finfo(target.dtype).eps
    with torch.no_grad():
        x, target = start.detach().clone(), target.detach()
        value, solve = function(x)
        if not bool(target.isfinite().all()) or not bool(value.isfinite().all()):
            raise ValueError(f"{name}: NaN or infinite values; check the input and the parameters")
        residual, best, idle = target - value, torch.inf, 0
        for _ in range(max_iterations):
            size = residual.abs().amax(-1, keepdim=True)
            unit = eps * (1.0 + target.abs().amax(-1, keepdim=True) + x.abs().amax(-1, keepdim=True))
            open_ = size > ROUNDINGS * unit
            if not bool(open_.any()):
                return x
            worst = float((size / unit).max())
            best, idle = (worst, 0) if worst < 0.9 * best else (best, idle + 1)
            if idle >= PATIENCE and worst <= eps**-0.5:
                return x
            step, fraction = solve(residual), torch.ones_like(size)
            for _ in range(HALVINGS):
                proposal = torch.where(open_, x + fraction * step, x)
                value, solve = function(proposal)
                left = torch.linalg.vector_norm(target - value, dim=-1, keepdim=True)
                worse = ~(left < torch.linalg.vector_norm(residual, dim=-1, keepdim=True)) & open_
                if not bool(worse.any()):
                    break
                fraction = torch.where(worse, 0.5 * fraction, fraction)
            if bool(worse.any()):  # these stay where they are; whether that will do, the next round decides
                proposal = torch.where(worse, x, proposal)
                value, solve = function(proposal)
            x, residual = proposal, target - value
    raise NotConverged(
        f"{name}: no convergence in {max_iterations} iterations, residual up to {float(size.max()):.3g}; "
        "is the map the gradient of a strongly convex function?"
    )
