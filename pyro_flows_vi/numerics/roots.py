"""Roots of increasing scalar functions, elementwise over tensors, with implicit gradients.

The searches run without a graph and all elements together. One differentiable Newton step from the detached
root then carries the gradient of the implicit function theorem, dx = (dt - df) / f', to the target and to
whatever the function closes over.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_flows_vi.numerics.stable import sech2

__all__ = ["solve_monotone", "solve_tanh"]

TANH_STEPS = 14
BRACKET_STEPS = 64
SEARCH_STEPS = 200


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
        s, with gradients to both arguments.
    """
    gain = gain.clamp(min=torch.finfo(gain.dtype).tiny)
    with torch.no_grad():
        size, k = target.abs(), gain - 1.0
        concave_start = torch.maximum(size - k, size / gain)
        cubic = (5.0 * size / (-k).clamp(min=0.1)).pow(1.0 / 3.0)
        convex_start = torch.minimum(size - k, size / gain)
        convex_start = torch.where((cubic < convex_start) & (cubic <= 1.0) & (k < -0.1), cubic, convex_start)
        s = torch.where(k > 0, concave_start, convex_start)
        for _ in range(TANH_STEPS):
            s = s - (s + k * torch.tanh(s) - size) / _tanh_slope(s, gain)
        s = torch.copysign(s, target)
    return s - (s + (gain - 1.0) * torch.tanh(s) - target) / _tanh_slope(s, gain).detach()


def _tanh_slope(s: Tensor, gain: Tensor) -> Tensor:
    square = torch.tanh(s).square()
    return (square + gain * sech2(s)).clamp(min=torch.finfo(s.dtype).tiny)


def solve_monotone(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], target: Tensor, start: Tensor | None = None
) -> Tensor:
    r"""Solve :math:`f(x) = t` elementwise for an increasing f that is onto R.

    A bracket grows by doubling from ``start`` until it holds the root; then Newton steps, replaced by
    bisection where they would leave the bracket or fail to halve it, until no element moves any more. Every element
    has a function of its own, and all of them are evaluated together.

    Args:
        function: x -> (f(x), log f'(x)), both of the shape of the target; it may close over tensors that
            require gradients.
        target: t.
        start: a first guess; the target itself by default, which suits maps near the identity.

    Returns:
        x, with gradients to the target and to what the function closes over.

    Raises:
        ValueError: if the target or the function's values are NaN or infinite.
        RuntimeError: if no bracket is found, or the search does not end: then f is not increasing and onto.
    """
    with torch.no_grad():
        x = _search(function, target.detach(), target.detach() if start is None else start.detach())
    value, log_slope = function(x)
    # The slope is a constant of the Newton step. It may underflow where f is flat to machine precision.
    step = (value - target) * torch.exp(-log_slope.detach())
    return x - step


def _search(function: Callable[[Tensor], tuple[Tensor, Tensor]], target: Tensor, x: Tensor) -> Tensor:
    if not bool(target.isfinite().all()):
        raise ValueError(f"cannot invert: {int((~target.isfinite()).sum())} target values are NaN or infinite")
    low, high = _bracket(function, target, x)
    eps = torch.finfo(x.dtype).eps
    width = high - low
    for _ in range(SEARCH_STEPS):
        value, log_slope = function(x)
        residual = value - target
        low, high = torch.where(residual <= 0, x, low), torch.where(residual >= 0, x, high)
        newton = x - residual * torch.exp(-log_slope)
        middle = low + 0.5 * (high - low)
        inside = (newton > low) & (newton < high)
        slow = (high - low) > 0.5 * width  # the bracket did not halve: bisect once
        close = (newton - x).abs() <= 1e-3 * (x.abs() + 1.0)  # quadratic convergence moves one end only
        width = high - low
        proposal = torch.where(inside & (close | ~slow), newton, middle)
        proposal = torch.where(residual == 0, x, proposal)
        done = (proposal - x).abs() <= 2.0 * eps * x.abs().clamp(min=eps)
        x = torch.where(low == high, low, proposal)
        if bool((done | (high - low <= 2.0 * eps * x.abs())).all()):
            return x
    worst = (function(x)[0] - target).abs().max()
    raise RuntimeError(
        f"root search: no convergence after {SEARCH_STEPS} steps, residual up to {float(worst):.3g}; "
        "the function is not increasing, or its slope is below machine precision"
    )


def _bracket(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], target: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    value = function(x)[0]
    if not bool(value.isfinite().all()):
        raise ValueError("cannot invert: the map gives NaN or infinite values; check its parameters")
    radius = 2.0 * (value - target).abs() + 1e-2
    low, high = x - radius, x + radius
    for _ in range(BRACKET_STEPS):
        too_high, too_low = function(low)[0] > target, function(high)[0] < target
        if not bool((too_high | too_low).any()):
            return low, high
        radius = 2.0 * radius
        # The end that failed becomes the other end: the bracket moves outwards without growing stale.
        low, high = (
            torch.where(too_high, low - radius, torch.where(too_low, high, low)),
            torch.where(too_low, high + radius, torch.where(too_high, low, high)),
        )
    raise RuntimeError(
        f"root search: no bracket within {float(radius.max()):.3g} of the start; the map is not onto the reals"
    )
