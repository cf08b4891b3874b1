"""Masked autoregressive networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pyro_flows_vi.nets.dense import check_widths

__all__ = ["MADE"]


class MADE(nn.Module):
    r"""Masked autoencoder: P parameters for each coordinate i, as a function of :math:`x_1, \dots, x_{i-1}`.

    The hidden units of every layer are sorted by their degree, the number of coordinates that they see. Every mask
    is then a staircase, and :meth:`sequential` can compute each hidden unit exactly once while the
    coordinates appear one by one.

    A context enters the first hidden layer unmasked; units of degree 0, which see only the context, carry it
    to the first coordinate.

    Source: MADE: Masked autoencoder for distribution estimation (Germain et al., 2015), arXiv:1502.03509.

    Args:
        input_dim: D.
        init: the P initial parameters of every coordinate, which the network starts at (the last layer
            starts small).
        hidden_dims: widths of the hidden layers, at least one.
        context_dim: C, or ``None``.
        activation: the elementwise map between the layers.

    Shapes: ``net(x, context)`` maps ``(*batch, D)`` to ``(*batch, P, D)``.

    Raises:
        ValueError: for no hidden layer, or widths that are not positive.
    """

    #: scale of the last layer's initial weights, relative to those of a usual linear layer
    initial_gain = 0.01

    def __init__(
        self,
        input_dim: int,
        init: Tensor,
        hidden_dims: Sequence[int],
        context_dim: int | None = None,
        activation: Callable[[Tensor], Tensor] = torch.relu,
    ) -> None:
        super().__init__()
        if len(check_widths(hidden_dims)) == 0:
            raise ValueError("expected hidden_dims to be at least one positive width, got none")
        self.input_dim, self.num_params, self.activation = input_dim, len(init), activation
        lowest = 1 if context_dim is None else 0
        degrees = [torch.arange(1, input_dim + 1)]
        if lowest < input_dim:  # otherwise a single coordinate without a context: its parameters are constants
            degrees += [lowest + torch.arange(n) * (input_dim - lowest) // n for n in hidden_dims]
        outputs = torch.arange(input_dim).repeat(self.num_params)  # an output sees the units of lower degree
        masks = [b[:, None] >= a for a, b in zip(degrees[:-1], [*degrees[1:]], strict=True)]
        self.layers = nn.ModuleList(nn.Linear(mask.shape[1], mask.shape[0]) for mask in masks)
        for i, mask in enumerate([*masks, outputs[:, None] >= degrees[-1]]):
            self.register_buffer(f"mask_{i}", mask.to(torch.get_default_dtype()), persistent=False)
        self.seen = [[int((d <= i).sum()) for i in range(input_dim)] for d in degrees]  # units of degree <= i
        self.last: nn.Linear | None = None
        self.constants: nn.Parameter | None = None
        bias = init.repeat_interleave(input_dim)
        if masks:
            self.last = nn.Linear(len(degrees[-1]), len(bias))
            with torch.no_grad():
                self.last.weight.mul_(self.initial_gain)
                self.last.bias.copy_(bias)
        else:
            self.constants = nn.Parameter(bias)
        self.context = None if context_dim is None else nn.Linear(context_dim, hidden_dims[0], bias=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """All parameters in one pass."""
        if self.last is None:
            return cast(Tensor, self.constants)[:, None].expand(*x.shape[:-1], self.num_params, 1)
        for i, layer in enumerate(cast("list[nn.Linear]", self.layers)):
            x = linear(x, layer.weight * getattr(self, f"mask_{i}"), layer.bias)
            x = self.activation(x + self.context(context) if i == 0 and self.context is not None else x)
        x = linear(x, self.last.weight * getattr(self, f"mask_{len(self.layers)}"), self.last.bias)
        return x.unflatten(-1, (self.num_params, self.input_dim))

    def sequential(
        self, batch: torch.Size, step: Callable[[int, Tensor], Tensor], context: Tensor | None = None
    ) -> Tensor:
        """Build x one coordinate at a time, for about the arithmetic of a single pass.

        Args:
            batch: the batch shape of x.
            step: called as ``step(i, params)`` with the parameters ``(*batch, P)`` of coordinate i given the
                coordinates before it; returns coordinate i, ``(*batch,)``.
            context: ``(*context_batch, C)``.

        Returns:
            x, ``(*batch, D)``, with the graph of the steps when gradients are enabled.
        """
        if self.last is None:
            constants = cast(Tensor, self.constants)
            return step(0, constants.expand(*batch, -1))[..., None]
        shift = None if self.context is None else self.context(context)
        weight = self.last.weight.unflatten(0, (self.num_params, self.input_dim))
        bias = self.last.bias.unflatten(0, (self.num_params, self.input_dim))
        empty = weight.new_zeros((*batch, 0))
        known = [empty] * (len(self.layers) + 1)  # the inputs and the hidden units computed so far
        for i in range(self.input_dim):
            for j, layer in enumerate(cast("list[nn.Linear]", self.layers)):
                rows = slice(known[j + 1].shape[-1], self.seen[j + 1][i])
                if rows.start == rows.stop:
                    continue
                new = linear(known[j], layer.weight[rows, : known[j].shape[-1]], layer.bias[rows])
                if j == 0 and shift is not None:
                    new = new + shift[..., rows]
                known[j + 1] = torch.cat([known[j + 1], self.activation(new)], dim=-1)
            params = linear(known[-1], weight[:, i, : known[-1].shape[-1]], bias[:, i])
            known[0] = torch.cat([known[0], step(i, params)[..., None]], dim=-1)
        return known[0]
