"""Masked autoregressive networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pyro_flows_vi.nets.dense import check_widths
from pyro_flows_vi.numerics.tracing import is_traced

__all__ = ["MADE"]

Pair = tuple[Tensor, Tensor]
#: groups of coordinates in a block of :meth:`MADE.sequential`
BLOCK = 128
#: after so many rounds of a block its coordinates are computed one by one
ROUNDS = 16


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
        activation: the elementwise map between the layers, which may work in place.

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
        activation: Callable[[Tensor], Tensor] = torch.relu_,
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
        # Where a hidden unit appears: coordinates between two cuts depend on the same units, and on none of each other.
        new = [i for i in range(1, input_dim) if any(seen[i] != seen[i - 1] for seen in self.seen[1:])]
        self.groups = [0, *new, input_dim]
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
        self,
        batch: torch.Size,
        step: Callable[[slice, Tensor], Pair],
        context: Tensor | None = None,
        settle: bool = True,
    ) -> Pair:
        """Build x from parameters that the coordinates before set, for about the arithmetic of a single pass.

        The coordinates come in blocks, and what a block gets from all before it is one product a layer. Within a
        block the coordinates that see the same hidden units come together, one group after the other. Without a
        graph that is the exception: there a block starts from zeros and is computed over and over until nothing
        changes by more than rounding. Only one point stays as it is, the result of the substitution, and few rounds
        lead there where the coordinates depend on each other moderately; :data:`ROUNDS` are tried.

        Args:
            batch: the batch shape of x.
            step: called as ``step(part, params)`` with n neighbouring coordinates and their parameters
                ``(*batch, P, n)``; returns these coordinates of x and a number for each, both ``(*batch, n)``.
            context: ``(*context_batch, C)``.
            settle: whether ``step`` can be called with the parameters of points that are far from x.

        Returns:
            x and the numbers, both ``(*batch, D)``, with the graph of the steps when gradients are enabled.
        """
        if self.last is None:
            return step(slice(0, 1), cast(Tensor, self.constants)[:, None].expand(*batch, -1, 1))
        layers = [*cast("list[nn.Linear]", self.layers), self.last]
        weights = [layer.weight * getattr(self, f"mask_{j}") for j, layer in enumerate(layers)]
        shift = None
        if self.context is not None:
            shift = self.context(context)
            shift = shift.expand(*batch, shift.shape[-1]).reshape(-1, shift.shape[-1])
        size, numbers = batch.numel(), []
        known = [weights[0].new_zeros(size, 0) for _ in weights]  # the inputs and the hidden units computed so far
        settle = settle and not torch.is_grad_enabled() and not is_traced(weights[0])

        def take(part: slice, params: Tensor) -> Pair:
            x, number = step(part, params.view(*batch, self.num_params, -1))
            return x.reshape(size, -1), number.reshape(size, -1)

        for start in range(0, len(self.groups) - 1, BLOCK):
            cuts = self.groups[start : start + BLOCK + 1]
            block = _Block(self, cuts, known, weights, shift)
            units, number = (block.settle(take) if settle else None) or block.substitute(take)
            known = [torch.cat(pair, dim=-1) for pair in zip(known, units, strict=True)]
            numbers.append(number)
        return known[0].view(*batch, -1), torch.cat(numbers, dim=-1).view(*batch, -1)


class _Block:
    """Neighbouring coordinates of a network that is computed in sequence, and the hidden units of their degrees."""

    def __init__(
        self, net: MADE, cuts: Sequence[int], known: Sequence[Tensor], weights: Sequence[Tensor], shift: Tensor | None
    ) -> None:
        self.activation, self.cuts, self.shape = net.activation, cuts, (net.num_params, -1)
        self.seen = net.seen[1:]
        self.counts = [units.shape[-1] for units in known]
        ends = [cuts[-1], *(seen[cuts[-1] - 1] for seen in self.seen)]
        rows = [slice(a, b) for a, b in zip(self.counts[1:], ends[1:], strict=True)]
        biases = [cast(nn.Linear, layer).bias for layer in net.layers]
        parts = [(weight[row], bias[row]) for weight, bias, row in zip(weights, biases, rows, strict=False)]
        outputs = (cast(nn.Linear, net.last).bias, weights[-1])
        bias, weight = (v.unflatten(0, self.shape)[:, cuts[0] : cuts[-1]].flatten(0, 1) for v in outputs)
        parts.append((weight, bias))
        # What comes from before, with the biases, and the weights within.
        self.bases = [linear(k, w[:, :n], b) for k, (w, b), n in zip(known, parts, self.counts, strict=True)]
        self.weights = [w[:, n:end].t() for (w, _), n, end in zip(parts, self.counts, ends, strict=True)]
        if shift is not None:
            self.bases[0] = self.bases[0] + shift[:, rows[0]]

    def settle(self, step: Callable[[slice, Tensor], Pair]) -> tuple[list[Tensor], Tensor] | None:
        """The units and numbers of the block by rounds in which all coordinates move, or ``None`` if they go on."""
        part = slice(self.cuts[0], self.cuts[-1])
        x = self.bases[0].new_zeros(len(self.bases[0]), part.stop - part.start)
        tolerance = 4.0 * torch.finfo(x.dtype).eps
        for _ in range(ROUNDS):
            units = [x]
            for base, weight in zip(self.bases[:-1], self.weights[:-1], strict=True):
                units.append(self.activation(torch.addmm(base, units[-1], weight)))
            x, number = step(part, torch.addmm(self.bases[-1], units[-1], self.weights[-1]))
            change = (x - units[0]).abs_() / units[0].abs().add_(1.0)
            if bool(change.max() <= tolerance):  # which no NaN is
                return units, number
        return None

    def substitute(self, step: Callable[[slice, Tensor], Pair]) -> tuple[list[Tensor], Tensor]:
        """The units and numbers of the block, one group of coordinates after the other."""
        units, numbers = [base.new_zeros(len(base), 0) for base in self.bases], []
        for first, last in pairwise(self.cuts):
            for j, seen in enumerate(self.seen):
                rows = slice(units[j + 1].shape[-1], seen[first] - self.counts[j + 1])
                if rows.start < rows.stop:
                    weight = self.weights[j][: units[j].shape[-1], rows]
                    new = self.activation(torch.addmm(self.bases[j][:, rows], units[j], weight))
                    units[j + 1] = torch.cat([units[j + 1], new], dim=-1)
            base, weight = self.bases[-1], self.weights[-1][: units[-1].shape[-1]]
            columns = slice(first - self.cuts[0], last - self.cuts[0])
            base, weight = (v.unflatten(-1, self.shape)[..., columns].flatten(-2) for v in (base, weight))
            x, number = step(slice(first, last), torch.addmm(base, units[-1], weight))
            units[0] = torch.cat([units[0], x], dim=-1)
            numbers.append(number)
        return units, torch.cat(numbers, dim=-1)
