"""Planar flow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows_vi.nets.parameters import ParameterNet
from pyro_flows_vi.numerics.roots import solve_tanh
from pyro_flows_vi.numerics.stable import slope_from, softplus_one
from pyro_flows_vi.transforms.base import Flow

__all__ = ["Planar", "conditional_planar", "planar"]


class Planar(Flow):
    r"""Planar flow: one tanh ridge across a hyperplane.

    .. math::
        y = x + \hat u \tanh(w^\top x + b), \qquad
        \log|\det J| = \log\bigl(1 + w^\top \hat u \, \tanh'(w^\top x + b)\bigr)

    The map is invertible iff :math:`w^\top\hat u > -1`, which
    :math:`\hat u = u + (m(w^\top u) - w^\top u)\, w / \|w\|^2` with
    :math:`m(a) = \operatorname{softplus}(a + \log(e - 1)) - 1` ensures; m(0) = 0, so that u = 0 is the identity.

    Both directions cost O(D). The inverse solves one scalar equation, :math:`s + w^\top\hat u\tanh s = w^\top y + b`,
    by a fixed number of Newton steps.

    Source: Variational inference with normalizing flows (Rezende and Mohamed, 2015), arXiv:1505.05770.

    Args:
        input_dim: D.
        context_dim: C; then u, w and b are functions of the context.
        hidden_dims: hidden layers of that function; empty for a linear map.
    """

    def __init__(self, input_dim: int, context_dim: int | None = None, hidden_dims: Sequence[int] = ()) -> None:
        super().__init__(input_dim, context_dim)
        spread = input_dim**-0.5
        init = {
            "u": 0.01 * spread * torch.randn(input_dim),
            "w": spread * torch.randn(input_dim),
            "b": torch.zeros(()),
        }
        self.params = ParameterNet(init, context_dim, hidden_dims)

    def _constrained(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(u_hat, w, b, 1 + w.u_hat)."""
        p = self.params(context)
        u, w, b = p["u"], p["w"], p["b"]
        overlap, square = (w * u).sum(-1, keepdim=True), w.square().sum(-1, keepdim=True)
        gain = softplus_one(overlap)
        square = torch.where(square == 0, 1.0, square)  # w = 0 shifts by a constant, whatever u is
        return u + (gain - 1.0 - overlap) * (w / square), w, b, gain[..., 0]

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D)."""
        u, w, b, gain = self._constrained(context)
        tanh = torch.tanh(_dot(x, w) + b)
        return x + u * tanh[..., None], slope_from(tanh, gain)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D), with a scalar root per point."""
        u, w, b, gain = self._constrained(context)
        tanh = torch.tanh(solve_tanh(_dot(y, w) + b, gain))
        return y - u * tanh[..., None], slope_from(tanh, gain)


def _dot(x: Tensor, w: Tensor) -> Tensor:
    return x @ w if w.dim() == 1 else (x * w).sum(-1)


def planar(input_dim: int) -> Planar:
    """A planar flow, with Pyro's signature."""
    return Planar(input_dim)


def conditional_planar(input_dim: int, context_dim: int, hidden_dims: Sequence[int] | None = None) -> Planar:
    """A planar flow with a context, with Pyro's signature and default network."""
    hidden_dims = (10 * input_dim, 10 * input_dim) if hidden_dims is None else hidden_dims
    return Planar(input_dim, context_dim, hidden_dims)
