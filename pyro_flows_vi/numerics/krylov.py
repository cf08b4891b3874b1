r"""Functions of a symmetric positive matrix from products with it alone, by Lanczos' method."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["lanczos_log_and_solve"]


def lanczos_log_and_solve(product: Callable[[Tensor], Tensor], v: Tensor, num_products: int) -> tuple[Tensor, Tensor]:
    r""":math:`v^\top \log(H)\, v` and :math:`H^{-1} v` from ``num_products`` products with H.

    An orthonormal basis Q of the Krylov space of v, in which H is tridiagonal, :math:`T = Q^\top H Q`, gives
    :math:`\|v\|^2 (\log T)_{11}` and :math:`\|v\|\, Q T^{-1} e_1`, the latter what conjugate gradients arrive at. Both
    are exact with D products, and before that their errors fall geometrically, faster the better H is
    conditioned. If v is random with :math:`\mathbb{E}\, v v^\top = I`, the first has the expectation
    :math:`\log\det H`. Nothing is read back to the host: it works under ``torch.func.vmap``.

    Source: Fast estimation of tr(f(A)) via stochastic Lanczos quadrature (Ubaru et al., 2017), SIAM J. Matrix Anal.
    Appl. 38(4).

    Args:
        product: w -> H w for w of the shape of v, H symmetric and positive.
        v: ``(*batch, D)``.
        num_products: the size of the basis; more than D are not taken.

    Returns:
        ``(*batch)`` and ``(*batch, D)``.

    Example:
        >>> matrix = torch.tensor([2.0, 3.0])
        >>> value, solution = lanczos_log_and_solve(lambda w: matrix * w, torch.ones(2), 2)
        >>> bool(torch.isclose(value, matrix.log().sum()))
        True
    """
    size = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    basis, diagonal, off = [v / size], [], []
    floor = 100.0 * torch.finfo(v.dtype).eps
    alive = torch.ones_like(size, dtype=torch.bool)
    for k in range(min(num_products, v.shape[-1])):
        image = product(basis[-1])
        along = (basis[-1] * image).sum(-1, keepdim=True)
        # Where the space is exhausted the basis goes on with zeros, and T with a block of its own.
        diagonal.append(torch.where(alive, along, 1.0))
        if k + 1 == min(num_products, v.shape[-1]):
            break
        scale = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
        stacked = torch.stack(basis, dim=-1)
        for _ in range(2):  # rounding loses what one pass removes
            image = image - (stacked @ (stacked.mT @ image.unsqueeze(-1))).squeeze(-1)
        length = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
        alive = alive & (length > floor * scale)
        off.append(torch.where(alive, length, 0.0))
        basis.append(torch.where(alive, image / torch.where(alive, length, 1.0), 0.0))
    tridiagonal = torch.diag_embed(torch.cat(diagonal, -1))
    if off:
        sides = torch.cat(off, -1)
        tridiagonal = tridiagonal + torch.diag_embed(sides, 1) + torch.diag_embed(sides, -1)
    half = v.dtype in (torch.float16, torch.bfloat16)
    eigenvalues, vectors = (
        part.to(v.dtype) for part in torch.linalg.eigh(tridiagonal.float() if half else tridiagonal)
    )
    first = vectors[..., 0, :]
    eigenvalues = eigenvalues.clamp_min(torch.finfo(v.dtype).tiny)
    value = size[..., 0].square() * (first.square() * eigenvalues.log()).sum(-1)
    weights = (vectors @ (first / eigenvalues).unsqueeze(-1)).squeeze(-1)
    solution = size * (torch.stack(basis, dim=-1) @ weights.unsqueeze(-1)).squeeze(-1)
    return value, solution
