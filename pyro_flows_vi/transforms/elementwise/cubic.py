"""Monotone cubic spline."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_flows_vi.numerics.tempered import temper
from pyro_flows_vi.transforms.elementwise._bins import below, find, shares, take
from pyro_flows_vi.transforms.elementwise._spline import Spline

__all__ = ["CubicSpline"]


class CubicSpline(Spline):
    r"""Cubic spline: K bins with widths and heights, slopes by Steffen's rule, straight tails that continue it.

    In bin k, of width w, height h and steepness :math:`s = h / w`, with slopes :math:`a s` and :math:`b s` at its two
    knots and :math:`\theta = (x - x_k) / w`,

    .. math::
        y = y_k + h \left(a\,\theta(1-\theta)^2 + (3 - b)\,\theta^2(1-\theta) + \theta^3\right), \qquad
        \frac{dy}{dx} = s \left(a (1-\theta)^2 + 2 (3 - a - b)\,\theta(1-\theta) + b\,\theta^2\right).

    At an inner knot the slope is :math:`\min(2 s_{k-1}, 2 s_k, p)`, p the slope there of the parabola through three
    knots; at -B and B it is learned, between 0 and 3 s, where the cubic increases, and the tails keep it: the map and
    its slope are continuous on R.

    The inverse takes a fixed number of Newton steps on the bin's cubic, from the root of the rational-quadratic with
    the same ends; they converge for every such cubic. Two more of them carry the first two derivatives.

    Source: Cubic-spline flows (Durkan et al., 2019), arXiv:1906.02145; A simple method for monotonic interpolation in
    one dimension (Steffen, 1990), Astronomy and Astrophysics 239.

    Args:
        bins: K, at least 2.
        bound: B.
        min_size: the least width and the least height of a bin, as a part of 2 B; the map is onto R at any value.
    """

    #: without a graph; enough for the flattest ends and steepest turns that the floors of the bins allow
    NEWTON_STEPS = 14

    def __init__(self, bins: int = 8, bound: float = 3.0, min_size: float = 1e-3) -> None:
        super().__init__(bins, bound, min_size)
        self.num_params = 2 * bins + 2

    def _parts(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Widths, heights, and the slopes at both ends of the box over the steepness there."""
        widths, heights, ends = raw.split([self.bins, self.bins, 2])
        # 3 σ(t - log 2) is one at t = 0.
        ends = 3.0 * torch.sigmoid(temper(ends, k=2.0) - math.log(2.0))
        return shares(widths, self.min_size), shares(heights, self.min_size), ends

    def _bin(
        self, widths: Tensor, heights: Tensor, ends: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Width and height of the bin, and the slopes at its two knots over its steepness."""
        three = torch.stack([index - 1, index, index + 1]).clamp(0, self.bins - 1)
        width, height = take(widths, three), take(heights, three)
        steepness = height / width
        # Two pairs of bins, one on each side; slopes in units of the steepness of the bin itself.
        ratio = steepness[::2] / steepness[1]
        parabola = (ratio * width[1] + width[::2]) / (width[1] + width[::2])
        left, right = torch.minimum(2.0 * ratio, parabola).clamp(max=2.0).unbind()
        left = torch.where(index == 0, ends[0], left)
        right = torch.where(index == self.bins - 1, ends[1], right)
        return width[1], height[1], left, right

    def _forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        widths, heights, ends = self._parts(raw)
        index = find(widths, x)
        width, height, left, right = self._bin(widths, heights, ends, index)
        theta = ((x - below(widths, index)) / width).clamp(0.0, 1.0)
        value, slope = _piece(theta, left, right)
        return torch.addcmul(below(heights, index), height, value), (slope * (height / width)).log()

    def _inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        widths, heights, ends = self._parts(raw)
        index = find(heights, y)
        width, height, left, right = self._bin(widths, heights, ends, index)
        eta = ((y - below(heights, index)) / height).clamp(0.0, 1.0)
        theta = _inverse_piece(eta, left, right, self.NEWTON_STEPS)
        slope = _piece(theta, left, right)[1]
        return torch.addcmul(below(widths, index), width, theta), (slope * (height / width)).log()

    def _with_tails(
        self, point: Tensor, edge: Tensor, value: Tensor, log_slope: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        # The slope at the end of the box is that of the tail. Inside, the point is its own edge.
        return value + (point - edge) * torch.exp(-log_slope if inverse else log_slope), log_slope


def _piece(theta: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The height within the bin as a part of it, and the slope over the steepness."""
    rest = 1.0 - theta
    both = theta * rest
    value = left * both * rest + (3.0 - right) * both * theta + theta * theta * theta
    slope = left * rest * rest + 2.0 * (3.0 - left - right) * both + right * theta * theta
    return value, slope


def _inverse_piece(eta: Tensor, left: Tensor, right: Tensor, steps: int) -> Tensor:
    with torch.no_grad():
        tilt = left * (1.0 - eta) - right * eta
        root = torch.sqrt(tilt * tilt + 4.0 * eta * (1.0 - eta)) + tilt.abs()
        theta = torch.where(tilt >= 0, 2.0 * eta / (2.0 * eta + root), root / (root + 2.0 * (1.0 - eta)))
        for _ in range(steps):
            value, slope = _piece(theta, left, right)
            theta = (theta - (value - eta) / slope).clamp(0.0, 1.0)
    for _ in range(2):  # each doubles the order of the derivatives that are right
        value, slope = _piece(theta, left, right)
        theta = theta - (value - eta) / slope
    return theta.clamp(0.0, 1.0)
