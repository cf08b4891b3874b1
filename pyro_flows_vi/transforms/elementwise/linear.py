"""Piecewise linear map."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_flows_vi.transforms.elementwise._bins import find_share, share_at
from pyro_flows_vi.transforms.elementwise._spline import Spline

__all__ = ["LinearSpline"]


class LinearSpline(Spline):
    r"""Linear spline: K bins of one width with heights of their own, the identity outside.

    .. math:: y = y_k + h_k\, \theta, \qquad \frac{dy}{dx} = \frac{h_k}{w}, \qquad \theta = (x - x_k) / w

    The slope jumps at the knots, also at -B and B; the density of a flow does too. The cheapest spline, with K
    parameters a coordinate.

    Source: Neural importance sampling (Müller et al., 2018), arXiv:1808.03856, section 4.1.

    Args:
        bins: K, at least 2.
        bound: B.
        min_size: the least height of a bin, as a part of 2 B; the map is onto R at any value.
    """

    def __init__(self, bins: int = 8, bound: float = 3.0, min_size: float = 1e-3) -> None:
        super().__init__(bins, bound, min_size)
        self.num_params = bins

    def _forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        position = self.bins * x
        index = position.detach().long().clamp(0, self.bins - 1)
        bottom, height = share_at(raw, index, self.min_size)
        return torch.addcmul(bottom, height, position - index), (self.bins * height).log()

    def _inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        index, bottom, height = find_share(raw, y, self.min_size)
        theta = ((y - bottom) / height).clamp(0.0, 1.0)
        return (index + theta) / self.bins, (self.bins * height).log()
