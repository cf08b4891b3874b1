"""Matrix products whose matrices may be one for all points or one for each context."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["matvec", "reflect"]


def matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    """The product :math:`A v`, with A shared by leading dimensions of v that it does not have.

    ``torch.matmul`` would copy A along them; here they become the rows of one product.

    Args:
        matrix: ``(*matrix_batch, N, M)``.
        vector: ``(*batch, M)``, where ``batch`` ends in something that ``matrix_batch`` broadcasts against.

    Returns:
        ``(*batch, N)``.
    """
    if matrix.dim() == 2:
        return vector @ matrix.mT
    extra = vector.dim() - matrix.dim() + 1
    if extra <= 0:
        return (matrix @ vector[..., None])[..., 0]
    lead = vector.shape[:extra]
    rows = vector.flatten(0, extra - 1).movedim(0, -2)  # (*matrix_batch, extra, M)
    return (rows @ matrix.mT).movedim(-2, 0).unflatten(0, lead)


def reflect(x: Tensor, v: Tensor) -> Tensor:
    r"""Householder reflection :math:`x - 2 v (v^\top x) / \|v\|^2`; the identity where v = 0.

    Args:
        x: ``(*batch, D)``.
        v: ``(*v_batch, D)``, broadcast against x.
    """
    square = v.square().sum(-1, keepdim=True)
    unit = v * torch.where(square == 0, 1.0, square).rsqrt()
    return x - 2.0 * (x * unit).sum(-1, keepdim=True) * unit
