"""Piecewise quadratic map."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_flows_vi.numerics.tempered import temper
from pyro_flows_vi.transforms.elementwise._bins import below, find, shares, take
from pyro_flows_vi.transforms.elementwise._spline import Spline

__all__ = ["QuadraticSpline"]


class QuadraticSpline(Spline):
    r"""Quadratic spline: a slope that is linear between K + 1 knots, the identity outside.

    In bin k, of width w and with slopes :math:`v_k, v_{k+1}` at its knots,

    .. math::
        y = y_k + w \left(v_k \theta + \tfrac12 (v_{k+1} - v_k)\, \theta^2\right), \qquad
        \frac{dy}{dx} = v_k + (v_{k+1} - v_k)\, \theta, \qquad \theta = (x - x_k) / w.

    The map and its slope are continuous: the slope is one at -B and B, and the inner ones have a common factor that
    makes the bins as high as the box. They are :math:`e^{\tau(\cdot)}` before it, with
    :math:`\tau(r) = 2 \operatorname{asinh}(r / 2)`; the widths are a softmax with a floor.

    The inverse is closed: its slope is :math:`\sqrt{(1 - q) v_k^2 + q v_{k+1}^2}` where q is the part of the bin's
    height that lies below.

    Source: Neural importance sampling (Müller et al., 2018), arXiv:1808.03856, section 4.2.

    Args:
        bins: K, at least 2.
        bound: B.
        min_size: the least width of a bin, as a part of 2 B; the map is onto R at any value.
    """

    def __init__(self, bins: int = 8, bound: float = 3.0, min_size: float = 1e-3) -> None:
        super().__init__(bins, bound, min_size)
        self.num_params = 2 * bins - 1

    def _parts(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Widths, heights and the slopes at the knots."""
        raw_widths, raw_slopes = raw.split([self.bins, self.bins - 1])
        widths, slopes = shares(raw_widths, self.min_size), torch.exp(temper(raw_slopes, k=2.0))
        pairs = 0.5 * (widths[1:] + widths[:-1])
        inner = (slopes * pairs).sum(0)
        slopes = slopes * ((1.0 - 0.5 * (widths[0] + widths[-1])) / inner)
        one = torch.ones_like(slopes[:1])
        slopes = torch.cat([one, slopes, one])
        return widths, 0.5 * widths * (slopes[1:] + slopes[:-1]), slopes

    def _forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        widths, heights, slopes = self._parts(raw)
        index = find(widths, x)
        left, right = take(slopes, torch.stack([index, index + 1])).unbind()
        width = take(widths, index)
        theta = ((x - below(widths, index)) / width).clamp(0.0, 1.0)
        slope = torch.lerp(left, right, theta)
        return below(heights, index) + width * theta * (0.5 * (left + slope)), slope.log()

    def _inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        widths, heights, slopes = self._parts(raw)
        index = find(heights, y)
        left, right = take(slopes, torch.stack([index, index + 1])).unbind()
        part = ((y - below(heights, index)) / take(heights, index)).clamp(0.0, 1.0)
        slope = torch.lerp(left * left, right * right, part).sqrt()
        theta = part * (left + right) / (left + slope)
        return torch.addcmul(below(widths, index), take(widths, index), theta), slope.log()
