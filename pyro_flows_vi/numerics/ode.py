r"""Ordinary differential equations :math:`\dot s = f(t, s; \theta)` from one end of an interval to the other.

:func:`solve_adaptive` takes the steps that a tolerance asks for (torchdiffeq's Runge-Kutta pairs) and keeps nothing
of them: its gradient is the solution of the adjoint equation, solved backwards together with s.
:func:`solve_rk4` takes a fixed number of steps, through which autograd, ``torch.func`` and the compiler see.

Sources: Neural ordinary differential equations (Chen et al., 2018), arXiv:1806.07366; "Hey, that's not an ODE": Faster
ODE adjoints via seminorms (Kidger et al., 2021), arXiv:2009.09457.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_flows_vi.numerics.errors import NotConverged

__all__ = ["METHODS", "Solver", "solve_adaptive", "solve_rk4"]

#: f(t, s, *tensors): the time, a tensor without dimensions; the state ``(*batch, S)``; what the dynamics depend on
Dynamics = Callable[..., Tensor]

#: the adaptive methods, with the evaluations of f in a step
METHODS = {"dopri5": 6, "dopri8": 13}

#: the tolerance is not below so many roundings of the state's type
FLOOR = 32.0


@dataclass(frozen=True)
class Solver:
    """How an equation is solved.

    Attributes:
        start: the time at which the state is given.
        end: the time at which it is wanted, before or after ``start``.
        method: one of :data:`METHODS`.
        tolerance: absolute and relative error that a step may make, root mean square over the coordinates of the
            worst point; not below 32 times the rounding of the state's type.
        max_steps: give up after so many, taken and rejected.
    """

    start: float
    end: float
    method: str = "dopri5"
    tolerance: float = 1e-6
    max_steps: int = 1000


def solve_rk4(
    dynamics: Dynamics, state: Tensor, tensors: Sequence[Tensor], start: float, end: float, num_steps: int
) -> Tensor:
    """The state at ``end``, by ``num_steps`` equal steps of the classical Runge-Kutta method of order 4.

    Args:
        dynamics: f.
        state: s at ``start``, ``(*batch, S)``.
        tensors: what f takes after time and state.
        start: where the state is given.
        end: where it is wanted.
        num_steps: at least 1; the error falls with its fourth power, and nobody looks at it.

    Example:
        >>> growth = solve_rk4(lambda t, s, rate: rate * s, torch.ones(1), [torch.tensor(1.0)], 0.0, 1.0, 20)
        >>> round(float(growth), 4)
        2.7183
    """
    width = (end - start) / num_steps
    for k in range(num_steps):
        time = torch.full((), start + k * width, dtype=state.dtype, device=state.device)
        k1 = dynamics(time, state, *tensors)
        k2 = dynamics(time + 0.5 * width, state + 0.5 * width * k1, *tensors)
        k3 = dynamics(time + 0.5 * width, state + 0.5 * width * k2, *tensors)
        k4 = dynamics(time + width, state + width * k3, *tensors)
        state = state + (width / 6.0) * (k1 + 2.0 * (k2 + k3) + k4)
    return state


def solve_adaptive(
    dynamics: Dynamics, state: Tensor, points: Sequence[Tensor], weights: Sequence[Tensor], solver: Solver
) -> Tensor:
    r"""The state at ``solver.end``, with first derivatives by the adjoint equation.

    With a the gradient at the end, :math:`\dot a = -a^\top \partial f/\partial s` is solved backwards beside s
    itself, and the gradients of the tensors are integrals of :math:`a^\top \partial f/\partial\theta` along the
    way. **Memory does not grow with the number of steps.** The error of s and of a is controlled, relative to the
    largest gradient; the integrals follow their steps.

    Works under ``torch.func.vmap`` over the state and ``points``; the steps are then chosen for all together.

    Args:
        dynamics: f, a pure function of its arguments, the same for every point of the batch.
        state: s at ``solver.start``, ``(*batch, S)``.
        points: tensors with a row for each point, ``(*batch, K)``.
        weights: tensors that all points share.
        solver: interval, method and tolerance.

    Raises:
        ValueError: if the state holds NaN or inf.
        NotConverged: if steps become too small for the floating-point numbers, their number exceeds
            ``solver.max_steps`` or the state leaves the finite numbers; and for a second derivative.
    """
    final: Tensor = _Solve.apply(dynamics, solver, len(points), state, *points, *weights)
    return final


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(dynamics: Dynamics, solver: Solver, num_points: int, state: Tensor, *tensors: Tensor) -> Tensor:
        def function(time: Tensor, s: Tensor) -> Tensor:
            return dynamics(time, s, *tensors)

        return _integrate(function, state, solver.start, solver.end, solver, _per_point)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.dynamics, ctx.solver, ctx.num_points, _, *tensors = inputs
        ctx.save_for_backward(output, *tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        wanted = tuple(ctx.needs_input_grad[4:])
        final, *tensors = ctx.saved_tensors
        state, *rest = _Adjoint.apply(ctx.dynamics, ctx.solver, ctx.num_points, wanted, final, gradient, *tensors)
        others = iter(rest)
        return None, None, None, state, *(next(others) if w else None for w in wanted)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        dynamics, solver, num_points, *tensors = inputs
        rows, weights = _rows(info, in_dims[3:], tensors, 1 + num_points)
        return _Solve.apply(dynamics, solver, num_points, *rows, *weights), 0


class _Adjoint(torch.autograd.Function):
    """The gradients of the initial state and of the wanted tensors, which cannot be differentiated."""

    @staticmethod
    def forward(
        dynamics: Dynamics,
        solver: Solver,
        num_points: int,
        wanted: tuple[bool, ...],
        final: Tensor,
        gradient: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        return tuple(_adjoint(dynamics, solver, final, gradient, tensors, wanted))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError(
            "second derivatives of an adaptive solution are not available; use the solver 'rk4', whose steps can be "
            "differentiated any number of times"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        dynamics, solver, num_points, wanted, *tensors = inputs
        rows, weights = _rows(info, in_dims[4:], tensors, 2 + num_points)
        if any(wanted[num_points:]):  # a gradient of the shared tensors for each element: one at a time
            each = [
                _Adjoint.apply(dynamics, solver, num_points, wanted, *(row[i] for row in rows), *weights)
                for i in range(info.batch_size)
            ]
            found = tuple(torch.stack(parts) for parts in zip(*each, strict=True))
        else:
            found = _Adjoint.apply(dynamics, solver, num_points, wanted, *rows, *weights)
        return found, (0,) * len(found)


def _rows(
    info: Any, dims: Sequence[int | None], tensors: Sequence[Tensor], num_rows: int
) -> tuple[list[Tensor], Sequence[Tensor]]:
    """The tensors with a row for each point, with the dimension that is mapped over in front; and the shared ones."""
    if any(dim is not None for dim in dims[num_rows:]):
        raise RuntimeError(
            "an adaptive solver cannot be vmapped over the parameters of the dynamics; use the solver 'rk4'"
        )
    pairs = zip(tensors[:num_rows], dims, strict=False)
    rows = [t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in pairs]
    return rows, tensors[num_rows:]


def _adjoint(
    dynamics: Dynamics,
    solver: Solver,
    final: Tensor,
    gradient: Tensor,
    tensors: Sequence[Tensor],
    wanted: Sequence[bool],
) -> list[Tensor]:
    leaves = [t.detach().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]
    asked = [leaf for leaf in leaves if leaf.requires_grad]
    size = final.numel()

    def function(time: Tensor, packed: Tensor) -> Tensor:
        with torch.enable_grad():
            s = packed[:size].view_as(final).detach().requires_grad_()
            velocity = dynamics(time, s, *leaves)
            cotangent = packed[size : 2 * size].view_as(final)
            slopes = torch.autograd.grad(velocity, [s, *asked], cotangent, allow_unused=True)
        parts = [torch.zeros_like(x) if g is None else g for x, g in zip([s, *asked], slopes, strict=True)]
        return torch.cat([velocity.detach().reshape(-1), *(-part.reshape(-1) for part in parts)])

    def norm(packed: Tensor) -> Tensor:
        return _per_point(packed[: 2 * size].view(2, *final.shape))

    # The equation is linear in the gradient: at the scale of 1 the tolerance is relative to the largest.
    scale = gradient.abs().max().clamp_min(torch.finfo(gradient.dtype).tiny)
    start = [final, gradient / scale, *(torch.zeros_like(leaf) for leaf in asked)]
    solved = _integrate(
        function, torch.cat([part.reshape(-1) for part in start]), solver.end, solver.start, solver, norm
    )
    _, *parts = solved.split([part.numel() for part in start])
    return [scale * part.view_as(like) for part, like in zip(parts, start[1:], strict=True)]


def _per_point(error: Tensor) -> Tensor:
    """Root mean square over the coordinates, of the worst point: nobody's error hides in a large batch."""
    return error.square().mean(-1).max().sqrt()


def _integrate(
    function: Callable[[Tensor, Tensor], Tensor],
    state: Tensor,
    start: float,
    end: float,
    solver: Solver,
    norm: Callable[[Tensor], Tensor],
) -> Tensor:
    from torchdiffeq import odeint  # here, as it brings scipy along

    if not bool(state.isfinite().all()):
        raise ValueError("differential equation: the state to start from holds NaN or infinite values")
    span, most = end - start, METHODS[solver.method] * solver.max_steps + 2
    count = 0

    def forwards(fraction: Tensor, s: Tensor) -> Tensor:  # from 0 to 1 in either direction
        nonlocal count
        count += 1
        if count > most:
            raise NotConverged(_failure(solver, f"more than {solver.max_steps} steps"))
        return span * function((start + span * fraction).to(s.dtype), s)

    tolerance = max(solver.tolerance, FLOOR * torch.finfo(state.dtype).eps)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64, device=state.device)
    # A step has to end at the end: left to itself torchdiffeq steps over it and interpolates, to order 4 only. The
    # first tries to get there at once: what it loses where it is rejected, a guess loses by steps that are too small.
    options = {"norm": norm, "step_t": times[1:], "first_step": 1.0}
    try:
        solution = odeint(forwards, state, times, rtol=tolerance, atol=tolerance, method=solver.method, options=options)
    except AssertionError as failure:  # the words of torchdiffeq, but for a state that it would print
        raise NotConverged(_failure(solver, str(failure).split(":")[0])) from failure
    result: Tensor = solution[1]
    if not bool(result.isfinite().all()):
        raise NotConverged(_failure(solver, "the state is not finite"))
    return result


def _failure(solver: Solver, cause: str) -> str:
    return (
        f"differential equation: {solver.method} does not get from {solver.start:g} to {solver.end:g} at "
        f"tolerance {solver.tolerance:g}: {cause}. The dynamics are too fast for it: train with a regulariser "
        "or a smaller step, or allow a larger tolerance or max_steps"
    )
