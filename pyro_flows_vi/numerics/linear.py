"""Matrix products whose matrices may be one for all points or one for each context."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["compact_form", "matvec", "reflect", "unit", "vecmat"]


def vecmat(vector: Tensor, matrix: Tensor) -> Tensor:
    r"""The product :math:`v^\top A`, with A shared by leading dimensions of v that it does not have.

    ``torch.matmul`` would copy A along them; here they become the rows of one product.

    Args:
        vector: ``(*batch, N)``, where ``batch`` ends in something that ``matrix_batch`` broadcasts against.
        matrix: ``(*matrix_batch, N, M)``.

    Returns:
        ``(*batch, M)``.
    """
    if matrix.dim() == 2:
        return vector @ matrix
    extra = vector.dim() - matrix.dim() + 1
    if extra <= 0:
        return (vector[..., None, :] @ matrix)[..., 0, :]
    rows = vector.flatten(0, extra - 1).movedim(0, -2)  # (*matrix_batch, extra, N)
    return (rows @ matrix).movedim(-2, 0).unflatten(0, vector.shape[:extra])


def matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    """The product :math:`A v`, as :func:`vecmat`."""
    return vecmat(vector, matrix.mT)


def unit(v: Tensor) -> Tensor:
    """v over its Euclidean norm along the last dimension; zero where v = 0."""
    square = v.square().sum(-1, keepdim=True)
    return v * torch.where(square == 0, 1.0, square).rsqrt()


def reflect(x: Tensor, vectors: Tensor, reverse: bool = False, compact: Tensor | None = None) -> Tensor:
    r"""Householder reflections :math:`x \leftarrow x - 2 v_k v_k^\top x / \|v_k\|^2`, one after the other.

    Args:
        x: ``(*batch, D)``.
        vectors: the vectors :math:`v_k`, of which 0 does nothing, ``(*v_batch, K, D)``.
        reverse: whether to begin with the last, which is the inverse.
        compact: ``compact_form(vectors)`` where it is known.
    """
    compact = compact_form(vectors) if compact is None else compact
    if compact is not None:
        first, second = (compact, vectors) if reverse else (vectors, compact)
        return x - (x @ first.mT) @ second
    steps = unit(vectors).unbind(-2)
    for v in reversed(steps) if reverse else steps:
        x = torch.addcmul(x, torch.linalg.vecdot(x, v)[..., None], v, value=-2)
    return x


def compact_form(vectors: Tensor) -> Tensor | None:
    r"""T V of the product of reflections :math:`I - V^\top T V`, where :math:`T^{-1} + T^{-\top} = V V^\top`.

    :math:`T^{-1}` is upper triangular. The transpose is the product in reverse, so that one T V serves both ways: two
    thin matrix products in place of K passes over x. ``None`` where each point has vectors of its own, or there is
    only one.

    Args:
        vectors: as for :func:`reflect`.
    """
    if vectors.dim() != 2 or len(vectors) == 1:
        return None
    v = vectors.to(torch.promote_types(vectors.dtype, torch.float32))  # there is no bfloat16 solver
    identity = torch.eye(len(v), dtype=v.dtype, device=v.device)
    upper = torch.triu(torch.ones_like(identity)) - 0.5 * identity
    inverse = torch.addcmul(identity * (4.0 * torch.finfo(v.dtype).tiny), v @ v.mT, upper)
    return torch.linalg.solve_triangular(inverse, v, upper=True).to(vectors.dtype)
