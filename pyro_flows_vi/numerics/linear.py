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


def reflect(x: Tensor, units: Tensor, reverse: bool = False, compact: Tensor | None = None) -> Tensor:
    r"""Householder reflections :math:`x \leftarrow x - 2 v_k v_k^\top x`, one after the other.

    Args:
        x: ``(*batch, D)``.
        units: the vectors :math:`v_k`, of norm 1 (or 0, which does nothing), ``(*v_batch, K, D)``.
        reverse: whether to begin with the last, which is the inverse.
        compact: ``compact_form(units)`` where it is known.
    """
    compact = compact_form(units) if compact is None else compact
    if compact is not None:
        first, second = (compact, units) if reverse else (units, compact)
        return x - (x @ first.mT) @ second
    steps = units.unbind(-2)
    for v in reversed(steps) if reverse else steps:
        x = torch.addcmul(x, torch.linalg.vecdot(x, v)[..., None], v, value=-2)
    return x


def compact_form(units: Tensor) -> Tensor | None:
    r"""The T V of the product of reflections :math:`I - V^\top T V`, :math:`T^{-1} = \mathrm{triu}(V V^\top, 1) + I/2`.

    The transpose is the product in reverse, so that one T V serves both ways: two thin matrix products in place of
    K passes over x. ``None`` where each point has vectors of its own, or there is only one.

    Args:
        units: as for :func:`reflect`.
    """
    if units.dim() != 2 or len(units) == 1:
        return None
    v = units.to(torch.promote_types(units.dtype, torch.float32))  # there is no bfloat16 solver
    gram = torch.triu(v @ v.mT, 1) + 0.5 * torch.eye(len(v), dtype=v.dtype, device=v.device)
    return torch.linalg.solve_triangular(gram, v, upper=True).to(units.dtype)
