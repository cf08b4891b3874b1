"""Fixed points of contractions, with implicit gradients.

The iteration runs without a graph. Its gradient is that of the implicit function theorem: where x = f(x; θ)
and J = ∂f/∂x, a gradient a at x becomes v = (I - J^T)^{-1} a, the solution of a second, linear fixed point
v = a + J^T v; and v then flows through one evaluation of f at the detached solution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_flows_vi.numerics.errors import NotConverged

__all__ = ["ImplicitGradient", "implicit_gradient", "solve_fixed_point"]

PATIENCE = 30


def solve_fixed_point(
    function: Callable[[Tensor], Tensor], start: Tensor, max_iterations: int = 2000, name: str = "fixed point"
) -> Tensor:
    r"""Iterate x <- f(x) until no point of the batch moves by more than rounding.

    A step counts as rounding below 4 ε (1 + max|x|), over the last dimension. Where the error of
    evaluating f is larger than that, the iteration ends once thirty steps in a row have brought no
    progress, provided that the steps are below √ε/10 (1 + max|x|).

    Args:
        function: f, a contraction in some norm, ``(*batch, D)`` to ``(*batch, D)``.
        start: the first x.
        max_iterations: give up after so many evaluations.
        name: what is being solved, for the error.

    Returns:
        x, without a graph.

    Raises:
        ValueError: if the first values are NaN or infinite.
        NotConverged: if the steps do not become small; names the residual \|f(x) - x\|.
    """
    eps = torch.finfo(start.dtype).eps
    best, idle, step = math.inf, 0, math.inf
    with torch.no_grad():
        x = start.detach()
        for iteration in range(max_iterations):
            previous, x = x, function(x)
            step = float(((x - previous).abs() / (1.0 + x.abs().amax(-1, keepdim=True))).max())
            if not math.isfinite(step):
                if iteration == 0:
                    raise ValueError(f"{name}: NaN or infinite values; check the input and the parameters")
                break
            if step <= 4.0 * eps:
                return x
            best, idle = (step, 0) if step < best else (best, idle + 1)
            if idle >= PATIENCE and best <= 0.1 * eps**0.5:
                return x
    raise NotConverged(
        f"{name}: no convergence in {max_iterations} iterations, relative residual {step:.3g}; "
        "is the map a contraction?"
    )


class ImplicitGradient(torch.autograd.Function):
    """The identity, whose backward pass solves for the gradient of the implicit function theorem."""

    @staticmethod
    def forward(x: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        """``x`` as it is; ``solve`` takes the incoming gradient to the one that is passed on."""
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the solver, and the output as what the solution depends on."""
        ctx.solve = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Solve, without a graph."""
        with torch.no_grad():
            solution = ctx.solve(gradient)
        # The solution depends on x too: torch's once_differentiable would look at the gradient alone.
        return _Final.apply(solution, gradient, *ctx.saved_tensors), None


class _Final(torch.autograd.Function):
    """The identity on the first argument, which refuses to be differentiated."""

    @staticmethod
    def forward(value: Tensor, *origins: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError(
            "second derivatives through an inverse that is searched for are not available; "
            "differentiate the forward direction twice instead"
        )


def implicit_gradient(value: Tensor, adjoint: Callable[[Tensor], Tensor], max_iterations: int = 2000) -> Tensor:
    r"""Give a differentiable last step :math:`f(x^*; θ)` the gradient of the fixed point :math:`x^*(θ)`.

    Args:
        value: f evaluated, with a graph to θ, at the detached solution.
        adjoint: v -> J^T v at the solution, with J = ∂f/∂x.
        max_iterations: of the solver in the backward pass.

    Returns:
        ``value``, with first derivatives by v = a + J^T v, solved to rounding in the backward pass. A
        second derivative raises.
    """

    def solve(gradient: Tensor) -> Tensor:
        # Linear in every point: each is solved at a scale where the stopping rule, 1 + max|v|, is relative.
        scale = gradient.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        gradient = gradient / scale
        return scale * solve_fixed_point(lambda v: gradient + adjoint(v), gradient, max_iterations, "implicit gradient")

    result: Tensor = ImplicitGradient.apply(value, solve)
    return result
