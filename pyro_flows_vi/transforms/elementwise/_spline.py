"""What the splines share: the box, the bins, and straight tails."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.elementwise.base import ElementwiseMap

__all__ = ["Spline"]


class Spline(ElementwiseMap):
    """An increasing spline of the box [-B, B] onto itself, and the identity outside.

    A spline implements the pair on the unit interval, :meth:`_forward` and :meth:`_inverse`; the slope is the same
    there. Parameters come as ``(P, *shape)``, and all zeros are the identity.

    Args:
        bins: K, at least 2.
        bound: B > 0.
        min_size: the least size of a bin, as a part of the box.
    """

    def __init__(self, bins: int, bound: float, min_size: float) -> None:
        super().__init__()
        if positive("bins", bins) < 2:
            raise ValueError("expected bins to be at least 2: a single bin between tails of slope one is the identity")
        if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not 0 < bound < math.inf:
            raise ValueError(f"expected bound to be a positive number, got {bound!r}")
        if not 0.0 < min_size < 1.0 / bins:
            raise ValueError(f"expected min_size to be between 0 and 1 / bins = {1.0 / bins:.3g}, got {min_size!r}")
        self.bins, self.bound, self.min_size = bins, float(bound), min_size

    def initial(self) -> Tensor:
        """Zeros: the identity."""
        return torch.zeros(self.num_params)

    def forward_and_log_slope(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """One search for the bin, and its piece."""
        edge = x.clamp(-self.bound, self.bound)
        value, log_slope = self._forward(self._to_unit(edge), self._rows(x, params))
        return self._with_tails(x, edge, self._from_unit(value), log_slope)

    def inverse_and_log_slope(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """One search for the bin, and the inverse of its piece."""
        edge = y.clamp(-self.bound, self.bound)
        value, log_slope = self._inverse(self._to_unit(edge), self._rows(y, params))
        return self._with_tails(y, edge, self._from_unit(value), log_slope, inverse=True)

    def _forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """``(y, log dy/dx)`` on [0, 1]."""
        raise TypeError(f"{type(self).__name__} has to define _forward")

    def _inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """``(x, log dy/dx)`` on [0, 1]."""
        raise TypeError(f"{type(self).__name__} has to define _inverse")

    def _with_tails(
        self, point: Tensor, edge: Tensor, value: Tensor, log_slope: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        inside = point.abs() <= self.bound
        return torch.where(inside, value, point), torch.where(inside, log_slope, 0.0)

    def _to_unit(self, point: Tensor) -> Tensor:
        return (point + self.bound) / (2.0 * self.bound)

    def _from_unit(self, value: Tensor) -> Tensor:
        return (2.0 * self.bound) * value - self.bound

    def _rows(self, point: Tensor, params: Tensor) -> Tensor:
        return params.expand(*point.shape, self.num_params).movedim(-1, 0)

    def extra_repr(self) -> str:
        """The bins and the box, for ``repr``."""
        return f"bins={self.bins}, bound={self.bound:g}"
