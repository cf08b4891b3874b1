"""Householder flow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows_vi.nets.parameters import ParameterNet
from pyro_flows_vi.numerics.linear import reflect
from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.base import Flow

__all__ = ["Householder", "conditional_householder", "householder"]


class Householder(Flow):
    r"""A product of reflections :math:`y = \prod_k (I - 2 v_k v_k^\top / \|v_k\|^2)\, x`, a rotation with
    :math:`\log|\det J| = 0`.

    An even number of reflections starts near the identity, in pairs that nearly cancel; an odd number cannot.
    O(D) per reflection both ways.

    Source: Improving variational auto-encoders using Householder flow (Tomczak and Welling, 2016), arXiv:1611.09630.

    Args:
        input_dim: D.
        context_dim: C; then the vectors are functions of the context.
        hidden_dims: hidden layers of that function; empty for a linear map.
        num_reflections: the number of reflections.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_dims: Sequence[int] = (),
        num_reflections: int = 2,
    ) -> None:
        super().__init__(input_dim, context_dim)
        pairs = torch.randn(-(-positive("num_reflections", num_reflections) // 2), input_dim)
        pairs *= input_dim**0.5 / pairs.norm(dim=-1, keepdim=True)  # beside a short one the noise would be a turn
        v = pairs.repeat_interleave(2, dim=0)[:num_reflections]
        self.params = ParameterNet({"v": v + 0.01 * torch.randn_like(v)}, context_dim, hidden_dims)
        self.num_reflections = num_reflections

    @property
    def sign(self) -> int:
        """In one dimension every reflection turns the line round."""
        return super().sign * (-1) ** self.num_reflections

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D) per reflection."""
        x = reflect(x, self.params(context)["v"])
        return x, x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same reflections in reverse order."""
        y = reflect(y, self.params(context)["v"], reverse=True)
        return y, y.new_zeros(y.shape[:-1])


def householder(input_dim: int, count_transforms: int | None = None) -> Householder:
    """A Householder flow, with Pyro's signature and its default of D // 2 + 1 reflections."""
    return Householder(input_dim, num_reflections=input_dim // 2 + 1 if count_transforms is None else count_transforms)


def conditional_householder(
    input_dim: int, context_dim: int, hidden_dims: Sequence[int] | None = None, count_transforms: int = 1
) -> Householder:
    """A Householder flow with a context, with Pyro's signature and default network."""
    hidden_dims = (10 * input_dim, 10 * input_dim) if hidden_dims is None else hidden_dims
    return Householder(input_dim, context_dim, hidden_dims, count_transforms)
