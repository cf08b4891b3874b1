"""Block neural autoregressive flow (BNAF): one masked network, monotone in each coordinate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pyro_flows_vi.nets.block_masked import ACTIVATIONS, BlockMasked
from pyro_flows_vi.numerics.roots import solve_monotone
from pyro_flows_vi.transforms.base import Flow

__all__ = ["BlockAutoregressive", "block_autoregressive", "conditional_block_autoregressive"]

RESIDUALS = (None, "normal", "gated")


class BlockAutoregressive(Flow):
    r"""Block neural autoregressive flow (BNAF): a network with positive diagonal blocks instead of a conditioner.

    .. math::
        y = \alpha \odot f(x) + (1 - \alpha) \odot x

    where f is a masked network in which every coordinate has a block of units of its own, with positive weights
    within the block (see :class:`~pyro_flows_vi.nets.block_masked.BlockMasked`), and :math:`\alpha_i \in (0, 1)` is
    learned. That is ``residual="gated"``, the default; ``"normal"`` is :math:`y = x + f(x)`, and ``None`` is
    :math:`y = f(x)`. A bounded activation alone would map R^D into a box, so with ``residual=None`` each
    "tanh", "sigmoid" and "ELU" gets a small learned linear part. All three are onto R^D with linear tails.

    Forward is one pass of the network. The inverse is sequential in the coordinates, with one scalar root search
    for each (all points together) in which only the block of that coordinate is evaluated.

    Source: Block neural autoregressive flow (De Cao et al., 2019), arXiv:1904.04676.

    Args:
        input_dim: D.
        context_dim: C, or ``None``; the context is added before the first activation and to f.
        hidden_factors: units for each coordinate in each hidden layer.
        activation: "tanh", "sigmoid", "ELU" or "LeakyReLU".
        residual: "gated", "normal" or ``None``.

    Raises:
        ValueError: for an unknown activation or residual, no hidden layer or one without units.

    Example:
        >>> flow = BlockAutoregressive(3)
        >>> y = flow(torch.randn(5, 3))
        >>> y.shape, flow.inv(y).shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    fast_inverse = False
    triangular = True
    #: slope of f at the start of x + f(x)
    initial_slope = 0.02

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_factors: Sequence[int] = (8, 8),
        activation: str = "tanh",
        residual: str | None = "gated",
    ) -> None:
        super().__init__(input_dim, context_dim)
        if activation not in ACTIVATIONS:
            raise ValueError(f"expected activation to be one of {sorted(ACTIVATIONS)}, got {activation!r}")
        if residual not in RESIDUALS:
            raise ValueError(f"expected residual to be one of {RESIDUALS}, got {residual!r}")
        if len(hidden_factors) == 0 or min(hidden_factors) < 1:
            raise ValueError(f"expected hidden_factors to be positive numbers, one or more, got {hidden_factors}")
        self.hidden_factors, self.activation, self.residual = tuple(hidden_factors), activation, residual
        tail = residual is None and activation != "LeakyReLU"
        slope = self.initial_slope if residual == "normal" else 1.0
        self.net = BlockMasked(self.input_dim, hidden_factors, activation, tail, slope, context_dim)
        self.gate = nn.Parameter(torch.zeros(input_dim)) if residual == "gated" else None

    def _add_residual(self, x: Tensor, inner: tuple[Tensor, Tensor], gate: Tensor | None) -> tuple[Tensor, Tensor]:
        """The flow's value and log-derivatives from those of f."""
        f, log_slope = inner
        if self.residual == "normal":
            return x + f, torch.logaddexp(log_slope, torch.zeros_like(log_slope))
        if gate is not None:
            share = torch.sigmoid(gate)
            rest = logsigmoid(-gate).expand_as(log_slope)
            return share * f + (1.0 - share) * x, torch.logaddexp(log_slope + logsigmoid(gate), rest)
        return f, log_slope

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One pass of the network."""
        y, log_slope = self._add_residual(x, self.net(x, context), self.gate)
        return y, log_slope.sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """D root searches in sequence; each step of one costs the block of a single coordinate."""
        log_slopes = []

        def step(i: int, block: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
            gate = None if self.gate is None else self.gate[i]

            def function(x: Tensor) -> tuple[Tensor, Tensor]:
                return self._add_residual(x, block(x), gate)

            x = solve_monotone(function, y[..., i])
            log_slopes.append(function(x)[1])
            return x

        x = self.net.sequential(y.shape[:-1], step, context)
        return x, torch.stack(log_slopes, dim=-1).sum(-1)

    def extra_repr(self) -> str:
        """The dimensions and the options, for ``repr``."""
        options = f"hidden_factors={self.hidden_factors}, activation={self.activation!r}, residual={self.residual!r}"
        return f"{super().extra_repr()}, {options}"


def block_autoregressive(input_dim: int, **kwargs: Any) -> BlockAutoregressive:
    """A block neural autoregressive flow, with Pyro's signature, but ``residual="gated"`` by default."""
    return BlockAutoregressive(input_dim, None, **kwargs)


def conditional_block_autoregressive(input_dim: int, context_dim: int, **kwargs: Any) -> BlockAutoregressive:
    """A block neural autoregressive flow with a context."""
    return BlockAutoregressive(input_dim, context_dim, **kwargs)
