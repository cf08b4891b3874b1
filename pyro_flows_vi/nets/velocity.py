"""Velocity fields: smooth networks of time and place that hand out their Jacobian."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from pyro_flows_vi.nets.dense import check_widths
from pyro_flows_vi.nets.lipschitz import Linearisation

__all__ = ["ACTIVATIONS", "VelocityNet", "divergence"]

#: smooth activations, without which a solver of high order has nothing to hold on to
ACTIVATIONS = ("tanh", "softplus", "silu")


def _with_slope(x: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    if activation == "tanh":
        value = torch.tanh(x)
        return value, 1.0 - value.square()
    gate = torch.sigmoid(x)
    if activation == "softplus":
        return softplus(x), gate
    return x * gate, gate * (1.0 + x * (1.0 - gate))


def divergence(linearisation: Linearisation) -> Tensor:
    """The trace of a Jacobian, ``(*batch)``: at the cost of a pass for up to two hidden layers, without making J."""
    slopes, (first, *rest) = linearisation.slopes, linearisation.weights
    if not slopes:
        return first.diagonal().sum()
    if len(slopes) == 1:
        return slopes[0] @ (first * rest[0].T).sum(1)
    if len(slopes) == 2:
        return ((slopes[1] @ (rest[0] * (first @ rest[1]).T)) * slopes[0]).sum(-1)
    return linearisation.jacobian().diagonal(dim1=-2, dim2=-1).sum(-1)


class VelocityNet(nn.Module):
    r"""A network :math:`v(t, x; c) = W_n a(\cdots a(W_1 x + t\,w + V c + b_1) \cdots) + b_n`, with its Jacobian in x.

    Time and context are concatenated to the input, which is to say that they are added before the first activation.
    The last layer starts small.

    Args:
        dim: D, the size of x and of v.
        hidden_dims: widths of the hidden layers; none for a velocity that is linear in x.
        context_dim: C, or ``None``.
        activation: one of :data:`ACTIVATIONS`.

    Raises:
        ValueError: for widths that are not positive, or an unknown activation.

    Example:
        >>> net = VelocityNet(3, [16])
        >>> velocity, linearisation = net.linearise(torch.tensor(0.5), torch.zeros(5, 3), net.tensors())
        >>> velocity.shape, divergence(linearisation).shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    #: scale of the last layer's initial weights, relative to those of a usual linear layer
    initial_gain = 0.1

    def __init__(
        self, dim: int, hidden_dims: Sequence[int], context_dim: int | None = None, activation: str = "tanh"
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {ACTIVATIONS}, got {activation!r}")
        self.activation = activation
        widths = [dim, *check_widths(hidden_dims), dim]
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        with torch.no_grad():
            layers[-1].weight.mul_(self.initial_gain)
            layers[-1].bias.zero_()
        self.weights = nn.ParameterList(layer.weight for layer in layers)
        self.biases = nn.ParameterList(layer.bias for layer in layers)
        small = 1.0 if hidden_dims else self.initial_gain  # without a hidden layer the first layer is the last
        self.time_weight = nn.Parameter(small * torch.empty(widths[1]).uniform_(-1.0, 1.0))
        self.context_layer = None if context_dim is None else nn.Linear(context_dim, widths[1], bias=False)
        if self.context_layer is not None:
            with torch.no_grad():
                self.context_layer.weight.mul_(small)

    def tensors(self) -> list[Tensor]:
        """All parameters but those of the context, as :meth:`linearise` takes them."""
        return [self.time_weight, *self.weights, *self.biases]

    def shift(self, context: Tensor) -> Tensor:
        """What a context ``(*context_batch, C)`` adds before the first activation."""
        assert self.context_layer is not None
        return self.context_layer(context)

    def linearise(
        self, time: Tensor, x: Tensor, tensors: Sequence[Tensor], shift: Tensor | None = None
    ) -> tuple[Tensor, Linearisation]:
        """The velocity at ``x`` ``(*batch, D)`` and its Jacobian there: a pure function of its arguments.

        Args:
            time: t, without dimensions.
            x: the place.
            tensors: of :meth:`tensors`, or others in their place.
            shift: of the context, ``(*batch, H)``.
        """
        time_weight, *rest = tensors
        weights, biases = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        value, slopes = linear(x, weights[0], biases[0] + time * time_weight), []
        if shift is not None:
            value = value + shift
        for weight, bias in zip(weights[1:], biases[1:], strict=True):
            value, slope = _with_slope(value, self.activation)
            slopes.append(slope)
            value = linear(value, weight, bias)
        return value, Linearisation(weights, slopes)
