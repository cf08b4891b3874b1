"""Permutations of the coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.base import Flow

__all__ = ["Permute", "Reverse", "permute", "reverse"]


class Permute(Flow):
    r"""A fixed permutation :math:`y_i = x_{\pi(i)}`, with :math:`\log|\det J| = 0`.

    It is kept in the ``state_dict``, so that a reloaded flow is the same map. O(D) both ways.

    Args:
        permutation: the indices 0, ..., D - 1 in the order of y, as a tensor of integers or a list.

    Raises:
        ValueError: if they are not a permutation.

    Example:
        >>> Permute(torch.tensor([2, 0, 1]))(torch.tensor([10.0, 20.0, 30.0]))
        tensor([30., 10., 20.])
    """

    permutation: Tensor

    def __init__(self, permutation: Tensor | Sequence[int]) -> None:
        indices = _indices(permutation)
        if indices.dim() != 1 or not torch.equal(
            indices.sort().values, torch.arange(indices.numel(), device=indices.device)
        ):
            raise ValueError(f"expected a permutation of 0, ..., D - 1, got {indices.tolist()}")
        super().__init__(indices.numel())
        self.register_buffer("permutation", indices.clone())

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D)."""
        return x.index_select(-1, self.permutation), x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D)."""
        return y.index_select(-1, self.permutation.argsort()), y.new_zeros(y.shape[:-1])


class Reverse(Flow):
    r"""The reversal of the coordinates :math:`y_i = x_{D + 1 - i}`, with :math:`\log|\det J| = 0`; its own inverse.

    O(D), and faster than a permutation that could be any.
    """

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D)."""
        return x.flip(-1), x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D)."""
        return self.forward_and_log_det(y)


def _indices(permutation: Tensor | Sequence[int]) -> Tensor:
    """A tensor of integers as int64; ``ValueError`` for anything else."""
    try:
        indices = torch.as_tensor(permutation)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"expected a permutation of 0, ..., D - 1, got {permutation!r}") from error
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"expected a permutation of 0, ..., D - 1 as integers, got {indices.dtype}")
    return indices.long()


def permute(input_dim: int, permutation: Tensor | Sequence[int] | None = None, dim: int = -1) -> Permute:
    """A given or random permutation, with Pyro's signature; only the last dimension can be permuted."""
    if dim != -1:
        raise ValueError(f"expected dim=-1, since flows act on vectors; got dim={dim}")
    permutation = torch.randperm(positive("input_dim", input_dim)) if permutation is None else _indices(permutation)
    if permutation.dim() == 1 and len(permutation) != input_dim:
        raise ValueError(f"expected a permutation of {input_dim} coordinates, got {len(permutation)}")
    return Permute(permutation)


def reverse(input_dim: int) -> Reverse:
    """The reversal of the coordinates."""
    return Reverse(input_dim)
