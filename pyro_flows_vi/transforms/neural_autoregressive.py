"""Neural autoregressive flow: deep sigmoidal (DSF) and dense deep sigmoidal (DDSF) maps behind a masked network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_flows_vi.nets.masked import MADE
from pyro_flows_vi.numerics.log_space import soft_bound
from pyro_flows_vi.numerics.roots import solve_monotone
from pyro_flows_vi.numerics.tempered import temper
from pyro_flows_vi.transforms.base import Flow
from pyro_flows_vi.transforms.monotone import MIXTURES, dense_sigmoidal

__all__ = ["NeuralAutoregressive", "conditional_neural_autoregressive", "neural_autoregressive"]


class NeuralAutoregressive(Flow):
    r"""Neural autoregressive flow (NAF): each coordinate goes through a small monotone network of its own.

    .. math::
        y_i = \mathrm{logit} \sum_{k=1}^{K} w_k\, \sigma(a_k (x_i + m) + b_k), \qquad
        (m, \tau^{-1}(\log a), \tau^{-1}(b), \tau^{-1}(\log w))_i = \mathrm{MADE}(x_{<i}, c)

    is the deep sigmoidal flow (DSF, ``depth=1``); the dense form (DDSF, ``depth > 1``) stacks such layers, each
    mixing all units of the one before. Everything is computed with logarithms, so that y covers all of R^D with
    linear tails at any parameters and in any dtype. See :mod:`~pyro_flows_vi.transforms.monotone` for the maps.

    The outputs of the network pass through :math:`\tau(s) = 2 \operatorname{asinh}(s / 2)`, all but the common
    shift m: slopes and weights then grow like the square of an output and not exponentially. The family is that of
    the paper, but a rare large output no longer makes a step function, whose inverse no float could hold.

    Forward is one pass of the network. The inverse is sequential in the coordinates, with one scalar root search
    for each (all points together), and computes each hidden unit of the network once.

    Source: Neural autoregressive flows (Huang et al., 2018), arXiv:1804.00779.

    Args:
        input_dim: D.
        context_dim: C, or ``None``.
        hidden_dims: widths of the hidden layers of the network; ``(3 * D + 1,)`` by default, as in Pyro.
        width: K, the number of units of each layer of the monotone map.
        depth: its number of layers; 1 is DSF, more is DDSF.
        activation: of the monotone map, "sigmoid" (the paper's), "tanh", "ELU" or "LeakyReLU"; only
            "sigmoid" for ``depth > 1``.

    Raises:
        ValueError: for an unknown activation, or a width or depth that is not positive.

    Example:
        >>> flow = NeuralAutoregressive(3, width=8)
        >>> y = flow(torch.randn(5, 3))
        >>> y.shape, flow.inv(y).shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    fast_inverse = False
    triangular = True
    #: half the range of the initial shifts b, or of log a: enough that no two units get the same gradient
    initial_spread = 0.5

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_dims: Sequence[int] | None = None,
        width: int = 16,
        depth: int = 1,
        activation: str = "sigmoid",
    ) -> None:
        super().__init__(input_dim, context_dim)
        if activation not in MIXTURES:
            raise ValueError(f"expected activation to be one of {sorted(MIXTURES)}, got {activation!r}")
        if width < 1 or depth < 1:
            raise ValueError(f"expected width and depth to be positive, got width={width} and depth={depth}")
        if depth > 1 and activation != "sigmoid":
            raise ValueError(f'expected activation="sigmoid" for depth > 1 (DDSF), got {activation!r}')
        self.width, self.depth, self.activation = width, depth, activation
        # Each layer has slope, shift and weight; from the second on also the weights of its inputs.
        self._sizes = [3] + [4] * (depth - 1)
        init = torch.zeros(sum(self._sizes), width)
        starts = torch.tensor(self._sizes).cumsum(0) - torch.tensor(self._sizes)
        spread = self.initial_spread * torch.linspace(-1.0, 1.0, width + 2)[1:-1]
        if activation == "LeakyReLU":  # with their kinks apart the rectifiers are no inverse of their mixture's
            init[0] = 2.0 * torch.sinh(0.5 * (spread - spread.exp().mean().log()))
        else:
            init[starts + 1] = spread
        hidden_dims = (3 * input_dim + 1,) if hidden_dims is None else hidden_dims
        init = torch.cat([torch.zeros(1), init.flatten()])  # the common shift comes first
        self.net = MADE(input_dim, init, hidden_dims, context_dim)
        # Units that start alike would stay alike.
        self.mixers = nn.ParameterList(0.1 * torch.randn(width, width) for _ in range(2 * depth - 2))

    def _map(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        move, *rows = params.split([1] + [self.width] * sum(self._sizes), -2)
        x, rows = x + move.squeeze(-2), [temper(row, k=2.0) for row in rows]
        if self.depth == 1:
            return MIXTURES[self.activation](x, *rows)
        starts = [sum(self._sizes[:i]) for i in range(self.depth)]
        layers = [rows[start : start + size] for start, size in zip(starts, self._sizes, strict=True)]
        return dense_sigmoidal(x, layers, [soft_bound(mixer) for mixer in self.mixers])

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One pass of the network."""
        y, log_slope = self._map(x, self.net(x, context))
        return y, log_slope.sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Root searches in sequence; each step of one costs a monotone map of the coordinates in question."""

        def step(part: slice, params: Tensor) -> tuple[Tensor, Tensor]:
            x = solve_monotone(lambda x: self._map(x, params), y[..., part])
            return x, self._map(x, params)[1]

        x, log_slope = self.net.sequential(y.shape[:-1], step, context, settle=False)
        return x, log_slope.sum(-1)

    def extra_repr(self) -> str:
        """The dimensions and the monotone map, for ``repr``."""
        return f"{super().extra_repr()}, width={self.width}, depth={self.depth}, activation={self.activation!r}"


def neural_autoregressive(
    input_dim: int,
    hidden_dims: Sequence[int] | None = None,
    activation: str = "sigmoid",
    width: int = 16,
    **kwargs: Any,
) -> NeuralAutoregressive:
    """A neural autoregressive flow, with Pyro's signature."""
    return NeuralAutoregressive(input_dim, None, hidden_dims, width, activation=activation, **kwargs)


def conditional_neural_autoregressive(
    input_dim: int,
    context_dim: int,
    hidden_dims: Sequence[int] | None = None,
    activation: str = "sigmoid",
    width: int = 16,
    **kwargs: Any,
) -> NeuralAutoregressive:
    """A neural autoregressive flow with a context, with Pyro's signature."""
    return NeuralAutoregressive(input_dim, context_dim, hidden_dims, width, activation=activation, **kwargs)
