"""Elementwise flow: one increasing map for every coordinate."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pyro_flows_vi.nets.parameters import ParameterNet
from pyro_flows_vi.transforms.base import Flow
from pyro_flows_vi.transforms.elementwise.base import ElementwiseMap, require_map

__all__ = ["Elementwise"]


class Elementwise(Flow):
    r"""Every coordinate on its own, through an increasing map of one variable.

    .. math::
        y_i = m(x_i; \phi_i), \qquad \log|\det J| = \sum_i \log m'(x_i; \phi_i)

    with free parameters :math:`\phi_i`, or a function :math:`\phi_i(c)` of the context. The cost of both directions is
    that of the map.

    Args:
        input_dim: D.
        context_dim: C, or ``None``.
        hidden_dims: hidden layers of the function of the context; empty for a linear map.
        map: the map m, an :class:`~pyro_flows_vi.transforms.elementwise.base.ElementwiseMap`.

    Raises:
        ValueError: for a ``map`` that is none.

    Example:
        >>> import torch
        >>> from pyro_flows_vi.transforms.elementwise import RationalQuadraticSpline
        >>> Elementwise(3, map=RationalQuadraticSpline(bins=4))(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    triangular = True

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_dims: Sequence[int] = (),
        *,
        map: ElementwiseMap,
    ) -> None:
        super().__init__(input_dim, context_dim)
        self.map = require_map(map)
        self.fast_inverse = map.fast_inverse
        self.params = ParameterNet({"params": map.initial().expand(input_dim, -1)}, context_dim, hidden_dims)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One evaluation of the map."""
        y, log_slope = self.map.forward_and_log_slope(x, self.params(context)["params"])
        return y, log_slope.sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One inverse of the map."""
        x, log_slope = self.map.inverse_and_log_slope(y, self.params(context)["params"])
        return x, log_slope.sum(-1)
