"""Networks that are convex in their input, by construction, with their gradient and their curvature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from pyro_flows_vi.nets.dense import check_widths

__all__ = ["ConvexNet", "Curvature"]


class Curvature(NamedTuple):
    r"""The Hessian :math:`H = \alpha I + \sum_k J_k^\top D_k J_k` of a :class:`ConvexNet`, in factors.

    J_k is the Jacobian of the pre-activations of layer k, :math:`J_1 = W_1` and :math:`J_{k+1} = P_k S_k J_k +
    W_{k+1}`; all D_k and S_k are diagonal and not negative, so H is at least α.
    """

    strength: Tensor  #: α
    skips: list[Tensor]  #: W_k, each ``(H_k, D)``
    positives: list[Tensor]  #: P_k, each ``(H_{k+1}, H_k)``
    slopes: list[Tensor]  #: the diagonals S_k, each ``(*batch, H_k)``
    bends: list[Tensor]  #: the diagonals D_k, each ``(*batch, H_k)``

    def hessian(self) -> Tensor:
        """H, ``(*batch, D, D)``: O(D H^2 + D^2 H) a layer and point."""
        jacobian: Tensor = self.skips[0]
        eye = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)
        hessian = self.strength * eye + jacobian.mT @ (self.bends[0].unsqueeze(-1) * jacobian)
        for k, positive in enumerate(self.positives):
            jacobian = positive @ (self.slopes[k].unsqueeze(-1) * jacobian) + self.skips[k + 1]
            hessian = hessian + jacobian.mT @ (self.bends[k + 1].unsqueeze(-1) * jacobian)
        return hessian

    def product(self, v: Tensor) -> Tensor:
        """H v for v ``(*more, *batch, D)``, at about the cost of two passes of the network."""
        rows = [linear(v, self.skips[0])]
        for k, positive in enumerate(self.positives):
            rows.append(linear(self.slopes[k] * rows[-1], positive) + linear(v, self.skips[k + 1]))
        back = self.bends[-1] * rows[-1]
        result = self.strength * v + back @ self.skips[-1]
        for k in reversed(range(len(self.positives))):
            back = self.bends[k] * rows[k] + self.slopes[k] * (back @ self.positives[k])
            result = result + back @ self.skips[k]
        return result


class ConvexNet(nn.Module):
    r"""A strongly convex potential :math:`F(x; c) = \frac{\alpha}{2}\|x\|^2 + q^\top z_n`, with

    .. math::
        u_1 = W_1 x + V_1 c + b_1, \quad z_k = a(u_k), \quad u_{k+1} = P_k z_k + W_{k+1} x + V_{k+1} c + b_{k+1} ,

    q and all P_k positive and a the softplus, so that every :math:`u_k` is convex in x, and with α > 0.

    P and q are a softplus of free parameters, over the number of their inputs. α starts at 1 and q small, so that the
    gradient of F starts near the identity.

    Source: Input convex neural networks (Amos et al., 2017), arXiv:1609.07152.

    Args:
        dim: D, the size of x.
        hidden_dims: widths of the layers, at least one.
        context_dim: C, or ``None``.

    Raises:
        ValueError: for no layer, or widths that are not positive.

    Example:
        >>> net = ConvexNet(3, [8, 8])
        >>> gradient, curvature = net(torch.zeros(5, 3))
        >>> gradient.shape, curvature.hessian().shape
        (torch.Size([5, 3]), torch.Size([5, 3, 3]))
    """

    #: the initial value of the entries of q, times their number
    initial_output = 0.05

    def __init__(self, dim: int, hidden_dims: Sequence[int], context_dim: int | None = None) -> None:
        super().__init__()
        if len(check_widths(hidden_dims)) == 0:
            raise ValueError("hidden_dims: expected at least one positive width, got none")
        layers = [nn.Linear(dim, width) for width in hidden_dims]
        self.skips = nn.ParameterList(layer.weight for layer in layers)
        self.biases = nn.ParameterList(layer.bias for layer in layers)
        self.raw_positives = nn.ParameterList(torch.randn(b, a) for a, b in pairwise(hidden_dims))
        start = math.log(math.expm1(self.initial_output))
        self.raw_output = nn.Parameter(torch.full((hidden_dims[-1],), start))
        self.raw_strength = nn.Parameter(torch.tensor(math.log(math.expm1(1.0))))
        self.context_layers = nn.ModuleList(
            [] if context_dim is None else (nn.Linear(context_dim, width, bias=False) for width in hidden_dims)
        )

    def strength(self) -> Tensor:
        """α, which no curvature is below."""
        return softplus(self.raw_strength)

    def potential(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """F, ``(*batch)``."""
        units, _ = self._units(x, self.shifts(context), self._positives())
        return 0.5 * self.strength() * x.square().sum(-1) + softplus(units[-1]) @ self._output()

    def forward(
        self, x: Tensor, context: Tensor | None = None, shifts: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Curvature]:
        """The gradient of F in x, ``(*batch, D)``, and the Hessian there: about two passes, without autograd.

        Args:
            x: ``(*batch, D)``.
            context: ``(*context_batch, C)``, with a batch that broadcasts.
            shifts: of :meth:`shifts`, which the context may be turned into once for many x.
        """
        positives, output, strength = self._positives(), self._output(), self.strength()
        units, slopes = self._units(x, self.shifts(context) if shifts is None else shifts, positives)
        weight = output.expand_as(units[-1])  # dF/dz of the layer at hand
        bends = [weight * slopes[-1] * torch.sigmoid(-units[-1])]
        back = weight * slopes[-1]
        gradient = strength * x + back @ self.skips[-1]
        for k in reversed(range(len(positives))):
            weight = back @ positives[k]
            bends.append(weight * slopes[k] * torch.sigmoid(-units[k]))
            back = weight * slopes[k]
            gradient = gradient + back @ self.skips[k]
        return gradient, Curvature(strength, list(self.skips), positives, slopes, bends[::-1])

    def shifts(self, context: Tensor | None) -> list[Tensor]:
        """What is added in each layer besides x: biases and context."""
        if context is None:
            return list(self.biases)
        return [layer(context) + bias for layer, bias in zip(self.context_layers, self.biases, strict=True)]

    def _positives(self) -> list[Tensor]:
        return [softplus(raw) / raw.shape[-1] for raw in self.raw_positives]

    def _output(self) -> Tensor:
        return softplus(self.raw_output) / len(self.raw_output)

    def _units(
        self, x: Tensor, shifts: Sequence[Tensor], positives: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The pre-activations u_k and the slopes a'(u_k)."""
        units = [linear(x, self.skips[0]) + shifts[0]]
        for positive, skip, shift in zip(positives, list(self.skips)[1:], shifts[1:], strict=True):
            units.append(linear(softplus(units[-1]), positive) + linear(x, skip) + shift)
        return units, [torch.sigmoid(unit) for unit in units]
