"""Plain multilayer perceptrons."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["MLP", "check_widths"]


def check_widths(hidden_dims: Sequence[int]) -> Sequence[int]:
    """``hidden_dims`` as it is, or ``ValueError`` where it is not a sequence of positive integers."""
    if isinstance(hidden_dims, str) or not isinstance(hidden_dims, Sequence):
        raise ValueError(f"expected hidden_dims to be a sequence of widths such as (64, 64), got {hidden_dims!r}")
    for width in hidden_dims:
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f"expected hidden_dims to be positive integers, got {tuple(hidden_dims)}")
    return hidden_dims


class MLP(nn.Module):
    r"""A dense network :math:`W_L\, a(W_{L-1} \cdots a(W_1 x + b_1) \cdots) + b_L`.

    Args:
        in_dim: size of the input's last dimension.
        out_dim: size of the output's last dimension.
        hidden_dims: widths of the hidden layers; empty for a linear map.
        activation: the elementwise map a between layers.

    Example:
        >>> import torch
        >>> MLP(2, 3, [16])(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self, in_dim: int, out_dim: int, hidden_dims: Sequence[int] = (), activation: type[nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        widths = [in_dim, *check_widths(hidden_dims)]
        self.hidden = nn.Sequential(
            *(layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), activation()))
        )
        self.last = nn.Linear(widths[-1], out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*batch, in_dim)`` to ``(*batch, out_dim)``."""
        result: Tensor = self.last(self.hidden(x))
        return result
