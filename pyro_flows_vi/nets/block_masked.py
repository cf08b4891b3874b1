"""Block-masked networks: a triangular map whose diagonal entries are small monotone networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid, softplus

from pyro_flows_vi.numerics.log_space import log_matmul_exp, soft_bound
from pyro_flows_vi.numerics.stable import leaky

__all__ = ["ACTIVATIONS", "BlockLinear", "BlockMasked"]

Pair = tuple[Tensor, Tensor]
#: one coordinate's part of a layer: its rows, what they get from the coordinates before, weights, log weights
Block = tuple[slice, Tensor, Tensor, Tensor]


def _tanh(u: Tensor) -> Pair:
    size = u.abs()
    return torch.tanh(u), 2.0 * (math.log(2.0) - size - softplus(-2.0 * size))


def _sigmoid(u: Tensor) -> Pair:
    return torch.sigmoid(u), logsigmoid(u) + logsigmoid(-u)


def _elu(u: Tensor) -> Pair:
    negative = u.clamp(max=0.0)
    return u.clamp(min=0.0) + torch.expm1(negative), negative


#: increasing activations by name: u -> (a(u), log a'(u))
ACTIVATIONS: dict[str, Callable[[Tensor], Pair]] = {
    "ELU": _elu,
    "LeakyReLU": leaky,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
}


class BlockLinear(nn.Module):
    r"""A linear map with D x D blocks: free below the diagonal, positive on it, zero above.

    Row r is :math:`e^{s_0 + s_r} V_r / \lVert V_r \rVert`: weight normalisation, its scale a logarithm that starts
    at a constant :math:`s_0`. The entries of diagonal blocks are :math:`V = e^v`, v held in ±10 by a tanh; the
    others are any number.

    Args:
        input_dim: D, the number of blocks.
        in_factor: units of a block before, so that the input has D * in_factor entries.
        out_factor: units of a block after.
        gain: the sum that the weights of a row's diagonal block start with; the rest starts small.
        bias: the initial bias of the units of a block, ``(out_factor,)``.
    """

    below: Tensor

    def __init__(self, input_dim: int, in_factor: int, out_factor: int, gain: float, bias: Tensor) -> None:
        super().__init__()
        self.input_dim, self.in_factor, self.out_factor = input_dim, in_factor, out_factor
        rows, columns = input_dim * out_factor, input_dim * in_factor
        self.weight = nn.Parameter(0.01 * torch.randn(rows, columns) / math.sqrt(columns))
        self.log_weight = nn.Parameter(0.02 * torch.randn(input_dim, out_factor, in_factor))
        # A row of equal weights has a norm that is smaller than its sum by the root of their number.
        self.start = math.log(gain) - 0.5 * math.log(in_factor)
        self.log_scale = nn.Parameter(torch.zeros(rows))
        self.bias = nn.Parameter(bias.repeat(input_dim))
        row_block = torch.arange(rows) // out_factor
        below = row_block[:, None] > torch.arange(columns) // in_factor
        self.register_buffer("below", below.to(self.weight.dtype), persistent=False)  # a product with bool is slow

    def matrix(self) -> tuple[Tensor, Tensor, Tensor]:
        """The matrix before scaling ``(D * out, D * in)``, the scales of its rows, and the logarithm of the scaled
        diagonal blocks, transposed: ``(D, in, out)``."""
        log_blocks = soft_bound(self.log_weight)
        diagonal = torch.diag_embed(log_blocks.exp().movedim(0, -1), dim1=0, dim2=2)  # (D, out, D, in)
        matrix = self.weight * self.below + diagonal.reshape_as(self.weight)
        log_scale = self.start + self.log_scale - 0.5 * matrix.square().sum(-1).log()
        log_blocks = log_blocks + log_scale.view(self.input_dim, self.out_factor, 1)
        return matrix, log_scale.exp(), log_blocks.mT


class BlockMasked(nn.Module):
    r"""The map f of a block neural autoregressive flow: y_i depends on x_1, ..., x_i, and increases with x_i.

    Hidden layers have ``hidden_factors`` units for each coordinate; the log-derivatives dy_i/dx_i are products of
    the diagonal blocks and activation slopes, taken with logarithms. A context is added, unmasked, before the
    first activation and to the output.

    Args:
        input_dim: D.
        hidden_factors: units of a block in each hidden layer, at least one layer.
        activation: a name in :data:`ACTIVATIONS`.
        tail: whether each activation a(u) becomes (1 - c) a(u) + c u with learned c in (0, 1) of its own, so that
            f is onto R^D where a is bounded.
        slope: dy_i/dx_i at the origin at the start, where f is close to linear.
        context_dim: C, or ``None``.
    """

    #: the linear part that an activation starts with
    initial_tail = 0.1

    def __init__(
        self,
        input_dim: int,
        hidden_factors: Sequence[int],
        activation: str = "tanh",
        tail: bool = False,
        slope: float = 1.0,
        context_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.input_dim, self.activation = input_dim, ACTIVATIONS[activation]
        self.tails = nn.ParameterList()
        self.layers = nn.ModuleList()
        gain, mean, in_factor = 1.0, 0.0, 1
        for i, factor in enumerate(hidden_factors):
            if tail:
                self.tails.append(nn.Parameter(torch.zeros(input_dim * factor)))
            reach, shift = _start(activation, factor)
            self.layers.append(BlockLinear(input_dim, in_factor, factor, gain * reach, shift - gain * reach * mean))
            with torch.no_grad():
                value, log_rate = self._activate(i, shift.repeat(input_dim))
            # The next layer sees the average unit; dividing by its slope undoes this layer.
            gain, mean, in_factor = 1.0 / (reach * float(log_rate.exp().mean())), float(value.mean()), factor
        gain = gain * slope
        self.layers.append(BlockLinear(input_dim, in_factor, 1, gain, torch.tensor([-gain * mean])))
        self.context: nn.ModuleList | None = None
        if context_dim is not None:
            self.context = nn.ModuleList(
                nn.Linear(context_dim, input_dim * n, bias=False) for n in (hidden_factors[0], 1)
            )
            with torch.no_grad():
                for layer in self.context:
                    cast(nn.Linear, layer).weight.mul_(0.01)

    def _activate(self, i: int, u: Tensor, units: slice = slice(None)) -> Pair:
        value, log_rate = self.activation(u)
        if len(self.tails) > 0:
            logit = self.tails[i][units] + math.log(self.initial_tail / (1.0 - self.initial_tail))
            c = torch.sigmoid(logit)
            value = (1.0 - c) * value + c * u
            log_rate = torch.logaddexp(log_rate + logsigmoid(-logit), logsigmoid(logit).expand_as(u))
        return value, log_rate

    def _contexts(self, context: Tensor | None) -> list[Tensor | None]:
        """What is added before each activation and to the output."""
        added: list[Tensor | None] = [None] * len(self.layers)
        if self.context is not None:
            added[0], added[-1] = self.context[0](context), self.context[1](context)
        return added

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """``(*batch, D)`` to the value and the logarithms of dy_i/dx_i, both ``(*batch, D)``, in one pass."""
        h, log_slope = x, torch.zeros_like(x).reshape(-1, self.input_dim, 1).transpose(0, 1)
        for i, (layer, added) in enumerate(zip(self.layers, self._contexts(context), strict=True)):
            layer = cast(BlockLinear, layer)
            matrix, scale, log_blocks = layer.matrix()
            h = torch.addcmul(layer.bias if added is None else layer.bias + added, linear(h, matrix), scale)
            log_slope = log_matmul_exp(log_slope, log_blocks)  # (D, N, units of a block)
            if i < len(self.layers) - 1:
                h, log_rate = self._activate(i, h)
                log_slope = log_slope + log_rate.reshape(-1, self.input_dim, layer.out_factor).transpose(0, 1)
        return h, log_slope.squeeze(-1).t().reshape(h.shape)

    def sequential(
        self,
        batch: torch.Size,
        step: Callable[[int, Callable[[Tensor], Pair]], Tensor],
        context: Tensor | None = None,
    ) -> Tensor:
        """Build x one coordinate at a time, for about the arithmetic of a single pass.

        Args:
            batch: the batch shape of x.
            step: called as ``step(i, function)``, where ``function(x_i)`` is y_i and log dy_i/dx_i given the
                coordinates before, each ``(*batch,)``, at the cost of one block; returns x_i.
            context: ``(*context_batch, C)``.

        Returns:
            x, ``(*batch, D)``, with the graph of the steps when gradients are enabled.
        """
        layers = [cast(BlockLinear, layer) for layer in self.layers]
        matrices = [layer.matrix() for layer in layers]
        contexts = self._contexts(context)
        known = [layers[0].weight.new_zeros((*batch, 0)) for _ in layers]  # the inputs of each layer so far
        for i in range(self.input_dim):
            blocks: list[Block] = []
            for layer, (matrix, scale, log_blocks), before, added in zip(
                layers, matrices, known, contexts, strict=True
            ):
                rows = slice(i * layer.out_factor, (i + 1) * layer.out_factor)
                offset = layer.bias[rows] if added is None else layer.bias[rows] + added[..., rows]
                offset = offset + linear(before, matrix[rows, : before.shape[-1]]) * scale[rows]
                blocks.append((rows, offset, log_blocks[i].exp(), log_blocks[i]))

            def function(x: Tensor, blocks: list[Block] = blocks) -> Pair:
                inputs, log_slope = self._run(x, blocks)
                return inputs[-1].squeeze(-1), log_slope

            inputs, _ = self._run(step(i, function), blocks)
            known = [torch.cat([a, b], dim=-1) for a, b in zip(known, inputs[:-1], strict=True)]
        return known[0]

    def _run(self, x: Tensor, blocks: list[Block]) -> tuple[list[Tensor], Tensor]:
        """The inputs of every layer's block and the output, and the log-derivative, of one coordinate."""
        h, log_slope = x[..., None], torch.zeros_like(x)[..., None]
        inputs = [h]
        for i, (rows, offset, weight, log_weight) in enumerate(blocks):
            h = offset + h @ weight
            log_slope = log_matmul_exp(log_slope[..., None, :], log_weight)[..., 0, :]
            if i < len(blocks) - 1:
                h, log_rate = self._activate(i, h, rows)
                log_slope = log_slope + log_rate
            inputs.append(h)
        return inputs, log_slope.squeeze(-1)


def _start(activation: str, factor: int) -> tuple[float, Tensor]:
    """The slope and the shifts with which the average unit of a layer is close to linear on about ±3."""
    if activation in ("tanh", "sigmoid"):  # tiles: their slopes add up to a constant
        half = 0.5 * (factor - 1)
        return min(1.0, max(0.1, half / 3.5)), torch.linspace(-half, half, factor)
    return 0.1, torch.linspace(0.3, 1.5, factor)  # on the right of the bend
