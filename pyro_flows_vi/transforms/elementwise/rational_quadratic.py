"""Monotone rational-quadratic spline."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_flows_vi.numerics.tempered import temper
from pyro_flows_vi.transforms.elementwise._bins import find_share, share_at, take
from pyro_flows_vi.transforms.elementwise._spline import Spline

__all__ = ["RationalQuadraticSpline"]


class RationalQuadraticSpline(Spline):
    r"""Rational-quadratic spline: K bins with widths, heights and slopes at the knots, the identity outside.

    In bin k, of width w, height h and steepness :math:`s = h / w`, with slopes :math:`d_0, d_1` at its two knots and
    :math:`\theta = (x - x_k) / w`,

    .. math::
        y = y_k + h\, \frac{s\theta^2 + d_0\,\theta(1-\theta)}{s + (d_0 + d_1 - 2s)\,\theta(1-\theta)}, \qquad
        \frac{dy}{dx} = \frac{s^2 \left(d_1\theta^2 + 2s\,\theta(1-\theta) + d_0(1-\theta)^2\right)}
        {\left(s + (d_0 + d_1 - 2s)\,\theta(1-\theta)\right)^2}.

    The map and its slope are continuous, the slope is one at and beyond -B and B. Widths and heights are a softmax
    with a floor; a slope is :math:`e^{\tau(\cdot)}` with :math:`\tau(r) = 2 \operatorname{asinh}(r / 2)`: positive, of
    any size, and no exponential of a network's output.

    The inverse is closed. With :math:`\eta = (y - y_k) / h` and :math:`u = d_0 (1 - \eta) - d_1 \eta`, the discriminant
    of its quadratic equation is :math:`u^2 + 4 s^2 \eta (1 - \eta)`, and :math:`\theta` a ratio of sums of positive
    terms: nothing cancels, in any dtype.

    Source: Neural spline flows (Durkan et al., 2019), arXiv:1906.04032.

    Args:
        bins: K, at least 2.
        bound: B.
        min_size: the least width and the least height of a bin, as a part of 2 B. It bounds the steepness of a bin
            by 1 / min_size both ways and keeps the map invertible in floats; the map is onto R at any value.

    Example:
        >>> spline = RationalQuadraticSpline(bins=4)
        >>> y, log_slope = spline.forward_and_log_slope(torch.tensor([-9.0, 0.5]), torch.zeros(11))
        >>> y, log_slope.exp()
        (tensor([-9.0000,  0.5000]), tensor([1., 1.]))
    """

    def __init__(self, bins: int = 8, bound: float = 3.0, min_size: float = 1e-3) -> None:
        super().__init__(bins, bound, min_size)
        self.num_params = 3 * bins - 1

    def _parts(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        widths, heights, slopes = raw.split([self.bins, self.bins, self.bins - 1])
        return widths, heights, slopes

    def _slopes(self, slopes: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Those at the two knots of the bin; one at both ends of the box."""
        knots = torch.stack([index - 1, index])
        inner = (knots >= 0) & (knots < self.bins - 1)
        left, right = torch.exp(temper(take(slopes, knots.clamp(0, self.bins - 2)) * inner, k=2.0)).unbind()
        return left, right

    def _forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        widths, heights, slopes = self._parts(raw)
        index, start, width = find_share(widths, x, self.min_size)
        bottom, height = share_at(heights, index, self.min_size)
        left, right = self._slopes(slopes, index)
        theta = ((x - start) / width).clamp(0.0, 1.0)
        value, log_slope = _piece(theta, height / width, left, right)
        return torch.addcmul(bottom, height, value), log_slope

    def _inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        widths, heights, slopes = self._parts(raw)
        index, bottom, height = find_share(heights, y, self.min_size)
        start, width = share_at(widths, index, self.min_size)
        left, right = self._slopes(slopes, index)
        steepness = height / width
        theta = _inverse_piece(((y - bottom) / height).clamp(0.0, 1.0), steepness, left, right)
        return torch.addcmul(start, width, theta), _piece(theta, steepness, left, right)[1]


def _piece(theta: Tensor, steepness: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The height within the bin, as a part of it, and the logarithm of the slope."""
    rest = 1.0 - theta
    both, square = theta * rest, theta * theta
    # 1 - 2 θ (1 - θ) is at least 1/2: the denominator is a sum of positive terms.
    below = torch.addcmul((left + right) * both, steepness, 1.0 - 2.0 * both)
    value = torch.addcmul(left * both, steepness, square) / below
    slope = right * square + 2.0 * steepness * both + left * rest * rest
    return value, slope.log() + 2.0 * (steepness / below).log()


def _inverse_piece(eta: Tensor, steepness: Tensor, left: Tensor, right: Tensor) -> Tensor:
    rest = 1.0 - eta
    tilt = left * rest - right * eta
    # Never zero: where η (1 - η) is, the tilt is one of the slopes.
    root = torch.sqrt(tilt * tilt + 4.0 * steepness * steepness * eta * rest) + tilt.abs()
    rising, falling = 2.0 * steepness * eta, 2.0 * steepness * rest
    return torch.where(tilt >= 0, rising / (rising + root), root / (root + falling))
