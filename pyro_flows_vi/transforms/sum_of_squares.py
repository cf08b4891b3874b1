"""Sum-of-squares polynomial flow."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_flows_vi.transforms.elementwise.sos import SumOfSquares
from pyro_flows_vi.transforms.map_autoregressive import Autoregressive

__all__ = ["SumOfSquaresAutoregressive"]


class SumOfSquaresAutoregressive(Autoregressive):
    r"""Sum-of-squares (SOS) polynomial flow: increasing polynomials, given the coordinates before.

    .. math::
        y_i = c_i + \int_0^{x_i} \Bigl(e^{t_i} + \sum_k p_{ik}(u)^2\Bigr) du, \qquad
        (c, t, a)_i = \mathrm{MADE}(x_{<i})

    See :class:`~pyro_flows_vi.transforms.elementwise.sos.SumOfSquares` for the map and its tails. Forward is one
    pass of the network, the inverse a root search for one coordinate after the other. For densities the paper maps
    data to the base in the closed direction: ``flow.inv``.

    Source: Sum-of-squares polynomial flow (Jaini et al., 2019), arXiv:1905.02325.

    Args:
        input_dim: D.
        context_dim: C, or ``None``.
        hidden_dims: widths of the hidden layers; ``(max(32, 2 D),) * 2`` by default.
        degree: r of the polynomials that are squared.
        polynomials: K.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_dims: Sequence[int] | None = None,
        degree: int = 4,
        polynomials: int = 2,
    ) -> None:
        super().__init__(input_dim, context_dim, hidden_dims, map=SumOfSquares(degree, polynomials))
