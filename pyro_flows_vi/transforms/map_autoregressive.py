"""Autoregressive flow of any increasing map of one variable."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pyro_flows_vi.nets.masked import MADE
from pyro_flows_vi.transforms._score import score_by_substitution
from pyro_flows_vi.transforms.base import Flow
from pyro_flows_vi.transforms.elementwise.base import ElementwiseMap, require_map

__all__ = ["Autoregressive"]


class Autoregressive(Flow):
    r"""Autoregressive flow: the coordinates before set the parameters of an increasing map of each.

    .. math::
        y_i = m(x_i; \phi_i(x_{<i})), \qquad \log|\det J| = \sum_i \log m'(x_i; \phi_i), \qquad
        \phi = \mathrm{MADE}(x, c)

    Forward is one pass of the network and one evaluation of the map. The inverse is sequential in the coordinates, but
    computes each hidden unit once. ``flow.inv`` turns the costs round, which suits density estimation.

    Args:
        input_dim: D.
        context_dim: C, or ``None``.
        hidden_dims: widths of the hidden layers; ``(max(32, 2 D),) * 2`` by default.
        map: the map m, an :class:`~pyro_flows_vi.transforms.elementwise.base.ElementwiseMap`.

    Raises:
        ValueError: for a ``map`` that is none.

    Example:
        >>> import torch
        >>> from pyro_flows_vi.transforms.elementwise import QuadraticSpline
        >>> flow = Autoregressive(3, map=QuadraticSpline(bins=4))
        >>> flow.inv(flow(torch.zeros(5, 3))).shape
        torch.Size([5, 3])
    """

    fast_inverse = False
    triangular = True

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_dims: Sequence[int] | None = None,
        *,
        map: ElementwiseMap,
    ) -> None:
        super().__init__(input_dim, context_dim)
        hidden_dims = (max(32, 2 * input_dim),) * 2 if hidden_dims is None else hidden_dims
        self.map = require_map(map)
        self.net = MADE(input_dim, map.initial(), hidden_dims, context_dim)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.map.forward_and_log_slope(x, self.net(x, context).mT)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One pass of the network and one evaluation of the map."""
        y, log_slope = self._forward(x, context)
        return y, log_slope.sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Inverses of the map in sequence, and together about the arithmetic of one pass of the network."""

        def step(part: slice, params: Tensor) -> tuple[Tensor, Tensor]:
            return self.map.inverse_and_log_slope(y[..., part], params.mT)

        x, log_slope = self.net.sequential(y.shape[:-1], step, context, settle=self.map.fast_inverse)
        return x, log_slope.sum(-1)

    def _forward_and_score(self, x: Tensor, score: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        y, log_slope = self._forward(x, context)
        return y, log_slope.sum(-1), score_by_substitution(x, y, log_slope, score)
