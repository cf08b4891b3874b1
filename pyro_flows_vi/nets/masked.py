"""Masked autoregressive networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pyro_flows_vi.nets.dense import check_widths
from pyro_flows_vi.numerics.tracing import is_traced, is_transformed

__all__ = ["MADE"]

Pair = tuple[Tensor, Tensor]
#: groups of coordinates in a block of :meth:`MADE.sequential`
BLOCK = 128
#: after so many rounds of a block its coordinates are computed one by one
ROUNDS = 16
#: most strips of a large layer, the weights that each has at least, and the points that pay for taking it apart
STRIPS, LEAST, POINTS = 4, 2**18, 64


def _rectify(x: Tensor) -> Tensor:
    """In place, since nothing else needs the argument; TorchScript's tracer does not take that."""
    return torch.relu(x) if is_transformed() else torch.relu_(x)


class MADE(nn.Module):
    r"""Masked autoencoder: P parameters for each coordinate i, as a function of :math:`x_1, \dots, x_{i-1}`.

    The hidden units of every layer are sorted by their degree, the number of coordinates that they see. Every mask
    is then a staircase: a large layer leaves out most of its zeros, and :meth:`sequential` can compute each hidden
    unit exactly once while the coordinates appear one by one.

    A context enters the first hidden layer unmasked; units of degree 0, which see only the context, carry it
    to the first coordinate.

    Source: MADE: Masked autoencoder for distribution estimation (Germain et al., 2015), arXiv:1502.03509.

    Args:
        input_dim: D.
        init: the P initial parameters of every coordinate, which the network starts at (the last layer
            starts small).
        hidden_dims: widths of the hidden layers, at least one.
        context_dim: C, or ``None``.
        activation: the elementwise map between the layers, which may write into its argument; by default the rectifier.

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
        activation: Callable[[Tensor], Tensor] = _rectify,
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
        self.strips: list[list[tuple[int, int]]] = []
        for i, mask in enumerate([*masks, outputs[:, None] >= degrees[-1]]):
            self.strips.append(_strips(mask[-input_dim:] if i == len(masks) else mask, mask.numel()))
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
            x = self._product(i, layer, x)
            x = self.activation(x + self.context(context) if i == 0 and self.context is not None else x)
        return self._product(len(self.layers), self.last, x)

    def _product(self, i: int, layer: nn.Linear, x: Tensor) -> Tensor:
        """A masked layer, ``(*batch, n)``, and the last one ``(*batch, P, D)``.

        A large one is computed in strips of outputs, each with the inputs it sees.
        """
        mask, strips, last = getattr(self, f"mask_{i}"), self.strips[i], layer is self.last
        shape = (self.num_params if last else 1, -1)
        if len(strips) == 1 or x.shape[:-1].numel() < POINTS:
            y = linear(x, layer.weight * mask, layer.bias)
            return y.unflatten(-1, shape) if last else y
        counts = [rows for rows, _ in strips]
        weights, masks, biases = (v.unflatten(0, shape).split(counts, dim=1) for v in (layer.weight, mask, layer.bias))
        parts = []
        for (_, n), w, m, b in zip(strips, weights, masks, biases, strict=True):
            y = linear(x[..., :n], (w[..., :n] * m[..., :n]).flatten(0, 1), b.flatten())
            parts.append(y.unflatten(-1, shape) if last else y)
        return torch.cat(parts, dim=-1)

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
        graph that is the exception: there a block starts from zeros and is computed over and over until the next time
        would change nothing by more than rounding, seeing how fast the changes shrink. Only one point stays as it is,
        the result of the substitution, and few rounds lead there where the coordinates depend on each other
        moderately; :data:`ROUNDS` are tried.

        Args:
            batch: the batch shape of x.
            step: called as ``step(part, params)`` with n neighbouring coordinates and their parameters
                ``(*batch, P, n)``, or ``(1, ..., 1, P, n)`` where they are the same for all points; returns these
                coordinates of x and a number for each, both ``(*batch, n)``.
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
        size = batch.numel()
        known: list[Tensor] = []  # what was computed so far: the inputs, the hidden units, the numbers
        settle = settle and not torch.is_grad_enabled() and not is_traced(weights[0])

        def take(part: slice, params: Tensor) -> Pair:
            points = batch if len(params) == size else [1] * len(batch)
            x, number = step(part, params.view(*points, self.num_params, -1))
            return x.reshape(size, -1), number

        for start in range(0, len(self.groups) - 1, BLOCK):
            cuts = self.groups[start : start + BLOCK + 1]
            block = _Block(self, cuts, known[:-1], weights, shift)
            units, number = (block.settle(take) if settle else None) or block.substitute(take, size)
            found = [*units, number]
            known = [torch.cat(pair, dim=-1) for pair in zip(known, found, strict=True)] if known else found
        return known[0].view(*batch, -1), known[-1]


def _strips(mask: Tensor, size: int) -> list[tuple[int, int]]:
    """The rows of a staircase in strips of nearly equal height: how many rows each has, and how many columns it sees.

    Four strips leave out three eighths of a square, all of it zeros.
    """
    count = min(STRIPS, len(mask), max(1, size // LEAST))
    ends = [len(mask) * (k + 1) // count for k in range(count)]
    return [(end - start, int(mask[end - 1].sum())) for start, end in pairwise([0, *ends])]


class _Block:
    """Neighbouring coordinates of a network that is computed in sequence, and the hidden units of their degrees."""

    def __init__(
        self, net: MADE, cuts: Sequence[int], known: Sequence[Tensor], weights: Sequence[Tensor], shift: Tensor | None
    ) -> None:
        self.activation, self.cuts, self.shape = net.activation, cuts, (net.num_params, -1)
        self.seen = net.seen[1:]
        self.counts = [units.shape[-1] for units in known] or [0] * len(weights)
        ends = [cuts[-1], *(seen[cuts[-1] - 1] for seen in self.seen)]
        rows = [slice(a, b) for a, b in zip(self.counts[1:], ends[1:], strict=True)]
        parts: list[Pair] = [
            (w, cast(nn.Linear, each).bias) for w, each in zip(weights, [*net.layers, net.last], strict=True)
        ]
        if len(cuts) < len(net.groups):  # not the whole network
            weight, bias = (v.unflatten(0, self.shape)[:, cuts[0] : cuts[-1]].flatten(0, 1) for v in parts[-1])
            parts = [*((w[row], b[row]) for (w, b), row in zip(parts, rows, strict=False)), (weight, bias)]
        # What comes from before, with the biases, and the weights within. Before the first block there is nothing, and
        # what is the same for all points is a single row.
        self.bases = [linear(k, w[:, : k.shape[-1]], b) for k, (w, b) in zip(known, parts, strict=False)]
        self.bases = self.bases or [b[None] for _, b in parts]
        self.weights = [w[:, n:end].t() for (w, _), n, end in zip(parts, self.counts, ends, strict=True)]
        if shift is not None:
            self.bases[0] = self.bases[0] + shift[:, rows[0]]

    def settle(self, step: Callable[[slice, Tensor], Pair]) -> tuple[list[Tensor], Tensor] | None:
        """The units and numbers of the block by rounds in which all coordinates move, or ``None`` if they go on."""
        part = slice(self.cuts[0], self.cuts[-1])
        x = self.bases[0].new_zeros(len(self.bases[0]), part.stop - part.start)
        eps, gap = torch.finfo(x.dtype).eps, 0.0
        for k in range(ROUNDS):
            units = [x]
            for base, weight in zip(self.bases[:-1], self.weights[:-1], strict=True):
                units.append(self.activation(torch.addmm(base, units[-1], weight)))
            x, number = step(part, torch.addmm(self.bases[-1], units[-1], self.weights[-1]))
            if k == 0:  # the zeros were no guess
                continue
            last, gap = gap, float((x - units[0]).abs_().div_(units[0].abs().add_(1.0)).max())
            # The gaps shrink ever faster down to rounding: the next is expected below gap * gap / last.
            if gap <= 16.0 * eps or (gap <= 256.0 * eps and gap * gap <= 4.0 * eps * last):  # which no NaN is
                return [x, *units[1:]], number
        return None

    def substitute(self, step: Callable[[slice, Tensor], Pair], size: int) -> tuple[list[Tensor], Tensor]:
        """The units and numbers of the block, one group of coordinates after the other."""
        units, numbers = [base.new_zeros(size, 0) for base in self.bases], []
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
