"""The affine map of one variable."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_flows_vi.numerics.tempered import scale_shift, unscale_unshift
from pyro_flows_vi.transforms.elementwise.base import ElementwiseMap

__all__ = ["AffineMap"]


class AffineMap(ElementwiseMap):
    r"""The affine map :math:`y = \sigma x + \mu` with :math:`\log \sigma = \tau(s)` and parameters :math:`(\mu, s)`.

    The scale has no bounds: :math:`\tau(s) = 4 \operatorname{asinh}(s / 4)` is s for moderate s and grows
    logarithmically beyond, where an exponential would overflow.

    Example:
        >>> AffineMap().forward_and_log_slope(torch.ones(2), torch.tensor([3.0, 0.0]))
        (tensor([4., 4.]), tensor([0., 0.]))
    """

    num_params = 2

    def initial(self) -> Tensor:
        """The identity."""
        return torch.zeros(2)

    def forward_and_log_slope(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """One product and one sum."""
        return scale_shift(x, params[..., 0], params[..., 1])

    def inverse_and_log_slope(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """One sum and one product."""
        return unscale_unshift(y, params[..., 0], params[..., 1])
