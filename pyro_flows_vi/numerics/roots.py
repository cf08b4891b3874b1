"""Roots of increasing scalar functions, elementwise over tensors, with implicit gradients.

The searches run without a graph and all elements together. The gradient is that of the implicit function theorem,
dx = (dt - df) / f', to the target and to whatever the function depends on. That of :func:`solve_tanh` can be
differentiated again; that of :func:`solve_monotone` cannot, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_flows_vi.numerics.errors import NotConverged
from pyro_flows_vi.numerics.fixed_point import ImplicitGradient
from pyro_flows_vi.numerics.stable import sech2

__all__ = ["solve_monotone", "solve_tanh"]

TANH_STEPS = 15
FREE_STEPS = 4
SEARCH_STEPS = 300
BLIND_STEPS = 80


def solve_tanh(target: Tensor, gain: Tensor) -> Tensor:
    r"""Solve :math:`s + k \tanh s = t` for s, with :math:`k = g - 1 > -1`.

    The left side is odd, and on :math:`s \ge 0` convex for k < 0 and concave for k > 0, so Newton's method
    started on the right side of the root falls monotonically on it: a fixed number of steps, no
    bracket, no host synchronisation. The starts are the bounds that :math:`\tanh s \le 1`,
    :math:`\tanh s \le s` and (for k < 0) :math:`\tanh s \le s - s^3/5` on [0, 1] give.

    Args:
        target: t.
        gain: g > 0, broadcast against t.

    Returns:
        s, with derivatives of any order to both arguments.
    """
    gain = gain.clamp(min=torch.finfo(gain.dtype).tiny)
    root: Tensor = _SolveTanh.apply(*torch.broadcast_tensors(target, gain))
    return root


class _SolveTanh(torch.autograd.Function):
    """The root, whose derivatives are functions of the root itself and so can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(target: Tensor, gain: Tensor) -> Tensor:
        size, k = target.abs(), gain - 1.0
        concave_start = torch.maximum(size - k, size / gain)
        # For k > 0 also a bound from the tail, 1 - tanh s = 2 / (e^2s + 1): s = log(k / m) / 2 with m >= 1 and
        # m >= log(k) / 2 - (t - k) is left of the root. Near t = k Newton would come by steps of 1/2 without it.
        log_k = 0.5 * k.clamp(min=1.0).log()
        concave_start = torch.maximum(concave_start, log_k - 0.5 * (log_k - (size - k)).clamp(min=1.0).log())
        cubic = (5.0 * size / (-k).clamp(min=0.1)).pow(1.0 / 3.0)
        convex_start = torch.minimum(size - k, size / gain)
        convex_start = torch.where((cubic < convex_start) & (cubic <= 1.0) & (k < -0.1), cubic, convex_start)
        s = torch.where(k > 0, concave_start, convex_start)
        for _ in range(TANH_STEPS):
            s = s - (s + k * torch.tanh(s) - size) / _tanh_slope(s, gain)
        return torch.copysign(s, target)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output, inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        s, gain = ctx.saved_tensors
        grad = grad / _tanh_slope(s, gain)
        return grad, -grad * torch.tanh(s)


def _tanh_slope(s: Tensor, gain: Tensor) -> Tensor:
    square = torch.tanh(s).square()
    return (square + gain * sech2(s)).clamp(min=torch.finfo(s.dtype).tiny)


def solve_monotone(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], target: Tensor, start: Tensor | None = None
) -> Tensor:
    r"""Solve :math:`f(x) = t` elementwise for an increasing f that is onto R.

    Newton steps from ``start``, with a bracket that closes round the root as they go. A step that would leave
    the bracket, or does not halve the one before, gives way to a bisection; while one side is open, steps grow.
    The search ends when every bracket is a few floats wide, so that steep and flat places, where a step or a
    residual proves nothing, are searched like any other. Every element has a function of its own, and all are
    evaluated together; near the identity that takes about ten evaluations.

    Under ``torch.func.vmap``, where values cannot decide, the search takes a fixed number of steps and gives NaN where
    it has not ended; its first derivatives are right, its second are not.

    Args:
        function: x -> (f(x), log f'(x)), both of the shape of the target; it may close over tensors that
            require gradients.
        target: t.
        start: a first guess; the target itself by default, which suits maps near the identity.

    Returns:
        x, the better end of the bracket, with gradients to the target and to what the function closes over; a second
        derivative raises. Where f is flat to machine precision x is only as good as the target allows, and where f is
        so steep that it jumps past the target between two floats, f(x) is.

    Raises:
        ValueError: if the target or the function's values are NaN or infinite.
        NotConverged: if no bracket is found, or the search does not end: then f is not increasing and onto.
    """
    with torch.no_grad():
        x, log_slope = _search(function, target.detach(), (target if start is None else start).detach())
        # The floor keeps 0 * inf out of the gradient.
        inverse_slope = torch.exp(-log_slope.clamp(min=-0.4 * math.log(torch.finfo(x.dtype).max)))
    residual = target - function(x)[0]
    if _under_vmap():
        return x + (residual - residual.detach()) * inverse_slope
    # A Newton step that carries the gradient only: its value is rounding error, which a flat f would blow up.
    root: Tensor = ImplicitGradient.apply(x + (residual - residual.detach()), inverse_slope.mul)
    return root


def _search(function: Callable[[Tensor], tuple[Tensor, Tensor]], target: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The root, and the log slope there."""
    blind = _under_vmap()
    if not blind and not bool(target.isfinite().all()):
        bad = int((~target.isfinite()).sum())
        raise ValueError(f"cannot invert: {bad} target values are NaN or infinite")
    info = torch.finfo(x.dtype)
    limit = math.sqrt(info.max)  # a product with a slope stays finite
    low, high = torch.full_like(x, -limit), torch.full_like(x, limit)
    low_size, high_size = torch.full_like(x, math.inf), torch.full_like(x, math.inf)
    low_slope, high_slope = torch.zeros_like(x), torch.zeros_like(x)
    last, nudge = torch.full_like(x, math.inf), torch.ones_like(x)
    done = torch.zeros_like(x, dtype=torch.bool)
    for count in range(BLIND_STEPS if blind else SEARCH_STEPS):
        value, log_slope = function(x)
        residual = value - target
        size = residual.abs()
        if not blind and count == 0 and not bool(size.isfinite().all()):
            raise ValueError("cannot invert: the map gives NaN or infinite values; check its parameters")
        below, above = residual <= 0, residual >= 0
        low, low_size = torch.where(below, x, low), torch.where(below, size, low_size)
        high, high_size = torch.where(above, x, high), torch.where(above, size, high_size)
        low_slope, high_slope = torch.where(below, log_slope, low_slope), torch.where(above, log_slope, high_slope)
        width, newton = high - low, size * torch.exp(-log_slope)
        ulp = 2.0 * info.eps * x.abs().clamp(min=1e-3)
        done = (width <= 2.0 * ulp) | ((width <= 128.0 * ulp) & (newton <= ulp))
        if not blind and bool(done.all()):
            break
        # Newton's method comes from one side. A growing nudge takes it across the root: the bracket closes.
        small = newton <= nudge.clamp(min=64.0) * ulp
        step = torch.where(small, newton.maximum(nudge * ulp), newton)
        nudge = torch.where(small, 8.0 * nudge, nudge)
        if count >= FREE_STEPS:
            step = torch.where((low == -limit) | (high == limit), (count - FREE_STEPS + 2) * step, step)
        proposal = x - residual.sign() * step
        good = (proposal > low) & (proposal < high) & (small | (newton <= 0.5 * last))
        # A wide bracket is halved on a scale that is logarithmic far out: 10^150 is then seven halvings away.
        wide = width > 2.0 + torch.minimum(low.abs(), high.abs())
        middle = torch.where(wide, torch.sinh(0.5 * (low.asinh() + high.asinh())), low + 0.5 * width)
        last = torch.where(good, newton, width)
        x = torch.where(done, x, torch.where(good, proposal, middle))
    # An end of the bracket, and no point outside it, however small the residual there: a plateau may look as good.
    left = low_size <= high_size
    root, slope = torch.where(left, low, high), torch.where(left, low_slope, high_slope)
    found = done & (low.abs().maximum(high.abs()) <= 0.5 * limit)
    if blind:
        return torch.where(found, root, math.nan), slope
    if not bool(found.all()):
        raise NotConverged(
            f"root search: no convergence after {SEARCH_STEPS} steps, residual up to "
            f"{float(torch.minimum(low_size, high_size).max()):.3g}; "
            f"the function is not increasing and onto the reals, or its root is beyond {limit:.0e}"
        )
    return root, slope


def _under_vmap() -> bool:
    return torch._C._functorch.maybe_current_level() is not None
