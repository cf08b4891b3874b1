"""Unconstrained monotonic neural network flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pyro_flows_vi.transforms.elementwise.umnn import MonotonicNetwork
from pyro_flows_vi.transforms.map_autoregressive import Autoregressive

__all__ = ["MonotonicAutoregressive"]


class MonotonicAutoregressive(Autoregressive):
    r"""Unconstrained monotonic neural network (UMNN) flow: integrals of a positive network, autoregressive.

    .. math::
        y_i = c_i + e^{s_i} \int_0^{x_i} e^{N(u; h_i)}\, du, \qquad (c, s, h)_i = \mathrm{MADE}(x_{<i})

    See :class:`~pyro_flows_vi.transforms.elementwise.umnn.MonotonicNetwork` for the map and the accuracy of its
    quadrature. Forward is one pass of the masked network and one of N for each node; the inverse a root search for one
    coordinate after the other. The paper (UMNN-MAF) maps data to the base in the forward direction: ``flow.inv``.

    Source: Unconstrained monotonic neural networks (Wehenkel and Louppe, 2019), arXiv:1908.05164.

    Args:
        input_dim: D.
        context_dim: C, or ``None``.
        hidden_dims: widths of the hidden layers of the masked network; ``(max(32, 2 D),) * 2`` by default.
        integrand_dims: widths of the hidden layers of N.
        embedding_dim: the size of h.
        nodes: of the quadrature.
        rule: "gauss-legendre" or "clenshaw-curtis" (the paper's).
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_dims: Sequence[int] | None = None,
        integrand_dims: Sequence[int] = (32, 32),
        embedding_dim: int = 8,
        nodes: int = 40,
        rule: Literal["gauss-legendre", "clenshaw-curtis"] = "gauss-legendre",
    ) -> None:
        network = MonotonicNetwork(integrand_dims, embedding_dim, nodes, rule)
        super().__init__(input_dim, context_dim, hidden_dims, map=network)
