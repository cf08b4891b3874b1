"""Permutations of the coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_flows_vi.transforms.base import Flow

__all__ = ["Permute", "permute", "reverse"]


class Permute(Flow):
    r"""A fixed permutation :math:`y_i = x_{\pi(i)}`, with :math:`\log|\det J| = 0`.

    It is kept in the ``state_dict``, so that a reloaded flow is the same map. O(D) both ways.

    Args:
        permutation: the indices 0, ..., D - 1 in the order of y.

    Raises:
        ValueError: if they are not a permutation.

    Example:
        >>> Permute(torch.tensor([2, 0, 1]))(torch.tensor([10.0, 20.0, 30.0]))
        tensor([30., 10., 20.])
    """

    permutation: Tensor

    def __init__(self, permutation: Tensor) -> None:
        if permutation.dim() != 1 or not torch.equal(
            permutation.sort().values, torch.arange(permutation.numel(), device=permutation.device)
        ):
            raise ValueError(f"expected a permutation of 0, ..., D - 1, got {permutation.tolist()}")
        super().__init__(permutation.numel())
        self.register_buffer("permutation", permutation.clone())

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D)."""
        return x[..., self.permutation], x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D)."""
        return y[..., self.permutation.argsort()], y.new_zeros(y.shape[:-1])


def permute(input_dim: int, permutation: Tensor | None = None, dim: int = -1) -> Permute:
    """A given or random permutation, with Pyro's signature; only the last dimension can be permuted."""
    if dim != -1:
        raise ValueError(f"expected dim=-1, since flows act on vectors; got dim={dim}")
    permutation = torch.randperm(input_dim) if permutation is None else permutation
    if len(permutation) != input_dim:
        raise ValueError(f"expected a permutation of {input_dim} coordinates, got {len(permutation)}")
    return Permute(permutation)


def reverse(input_dim: int) -> Permute:
    """The reversal of the coordinates."""
    return Permute(torch.arange(input_dim).flip(0))
