"""Unconstrained monotonic neural network: the integral of a positive network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from pyro_flows_vi.nets.dense import check_widths
from pyro_flows_vi.numerics.quadrature import RULES, integral
from pyro_flows_vi.numerics.roots import solve_monotone
from pyro_flows_vi.numerics.tempered import temper
from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.elementwise.base import ElementwiseMap

__all__ = ["MonotonicNetwork"]


class MonotonicNetwork(ElementwiseMap):
    r"""Unconstrained monotonic neural network (UMNN): the integral of a positive network, by quadrature.

    .. math::
        y = c + e^{s} \int_0^x e^{N(u; h)}\, du, \qquad \log \frac{dy}{dx} = s + N(x; h)

    The network N has weights of its own, which all coordinates share; of each coordinate it is told an embedding h,
    a parameter like c and s.

    The log-slope is exact. y is a quadrature with a fixed number of nodes, so the network is built to be smooth
    enough for it: it sees :math:`\xi = \operatorname{asinh} u`, its first weights are less than ``frequency``, those
    of later layers have rows of 1-norm below 1, its units are tanh, and the last row has a 1-norm below ``range``. Then
    N is analytic for \|Im ξ\| < 1 / ``frequency`` at **any** parameters, the quadrature over ξ converges
    geometrically, and :math:`|N| <` ``range``: the slopes of one map are within a factor :math:`e^{2\,\text{range}}` of
    each other (s is free), and its tails are lines. With the default 40 nodes the largest relative error of
    the integral, over 144 networks with random parameters of scales from 0.3 to 8, was 4e-12 (one hidden layer) and
    3e-14 (two) at x = 10, 2e-7 and 1e-9 at 100, 9e-4 and 2e-5 at 10^8.

    Gradients are by the Leibniz rule, whose memory does not grow with the nodes. The inverse is a bracketed search,
    each step of which is a quadrature.

    Source: Unconstrained monotonic neural networks (Wehenkel and Louppe, 2019), arXiv:1908.05164.

    Args:
        hidden_dims: widths of the layers of N, at least one.
        embedding_dim: the size of h.
        nodes: of the quadrature.
        rule: "gauss-legendre" or "clenshaw-curtis" (the paper's).
        frequency: bound of the first weights; more of it resolves more and takes more nodes.
        range: bound of \|N\|.

    Raises:
        ValueError: for an unknown rule, no hidden layer, or a number that is not positive.

    Example:
        >>> m = MonotonicNetwork((16,))
        >>> x = torch.tensor([-1e3, 0.0, 2.0])
        >>> y, log_slope = m.forward_and_log_slope(x, m.initial())
        >>> bool(((y - x).abs() <= 0.1 * x.abs()).all())
        True
    """

    fast_inverse = False
    #: bound of the initial size of N
    initial_size = 0.02

    def __init__(
        self,
        hidden_dims: Sequence[int] = (32, 32),
        embedding_dim: int = 8,
        nodes: int = 40,
        rule: Literal["gauss-legendre", "clenshaw-curtis"] = "gauss-legendre",
        frequency: float = 3.0,
        range: float = 4.0,
    ) -> None:
        super().__init__()
        if rule not in RULES:
            raise ValueError(f"expected rule to be one of {', '.join(RULES)}, got {rule!r}")
        if len(check_widths(hidden_dims)) == 0:
            raise ValueError("expected hidden_dims to be at least one positive width, got none")
        if not (frequency > 0.0 and range > 0.0):
            raise ValueError(f"expected frequency and range to be positive, got {frequency} and {range}")
        self.embedding_dim, self.frequency, self.range = positive("embedding_dim", embedding_dim), frequency, range
        self.nodes, self.rule = positive("nodes", nodes), rule
        self._rule = RULES[rule](nodes)
        self.num_params = 2 + embedding_dim
        self.embed = nn.Linear(embedding_dim, hidden_dims[0])
        self.first = nn.Parameter(torch.randn(hidden_dims[0]))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(hidden_dims))
        self.last = nn.Parameter(self.initial_size / range / hidden_dims[-1] * torch.randn(hidden_dims[-1]))

    def initial(self) -> Tensor:
        """No shift, no scale and an embedding of zero: N is small for the weights that the network starts with."""
        return torch.zeros(self.num_params)

    def _parts(self, params: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """The shift c, the log-scale s and what N is made of: the point's own part of the first layer, and weights."""
        weights = [self.frequency * _bounded(self.first[:, None]).squeeze(-1)]
        for layer in cast("list[nn.Linear]", self.layers):
            weights += [_bounded(layer.weight), layer.bias]
        weights.append(self.range * _bounded(self.last))
        return params[..., 0], temper(params[..., 1]), (self.embed(params[..., 2:]), *weights)

    @staticmethod
    def _network(xi: Tensor, own: Tensor, first: Tensor, *weights: Tensor) -> Tensor:
        """N for ξ ``(*batch, n, J)``."""
        h = torch.tanh(own.unsqueeze(-2) + xi.unsqueeze(-1) * first)
        for weight, bias in zip(weights[:-1:2], weights[1:-1:2], strict=True):
            h = torch.tanh(nn.functional.linear(h, weight, bias))
        return (h * weights[-1]).sum(-1)

    @classmethod
    def _integrand(cls, xi: Tensor, *tensors: Tensor) -> Tensor:
        return cls._network(xi, *tensors).exp() * torch.cosh(xi)

    def forward_and_log_slope(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """One evaluation of the network for each node, and one more."""
        return self._map(x, *self._parts(params))

    def _map(self, x: Tensor, shift: Tensor, log_scale: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        xi = torch.asinh(x)
        area = integral(self._integrand, xi, tensors, self._rule)
        log_slope = self._network(xi.unsqueeze(-1), *tensors).squeeze(-1)
        return torch.addcmul(shift, log_scale.exp(), area), log_scale + log_slope

    def inverse_and_log_slope(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """By a root search over all coordinates together, of some ten evaluations of the map."""
        parts = self._parts(params)
        start = (y - parts[0]) * torch.exp(-parts[1])
        x = solve_monotone(lambda x: self._map(x, *parts), y, start)
        return x, self._map(x, *parts)[1]

    def extra_repr(self) -> str:
        """The rule and the bounds, for ``repr``."""
        return f"rule={self.rule!r}, nodes={self.nodes}, frequency={self.frequency}, range={self.range}"


def _bounded(weight: Tensor) -> Tensor:
    """Rows of 1-norm below 1."""
    return weight / (1.0 + weight.abs().sum(-1, keepdim=True).square()).sqrt()
