"""Linear flow in LU form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from pyro_flows_vi.nets.parameters import ParameterNet
from pyro_flows_vi.numerics.linear import matvec
from pyro_flows_vi.transforms.base import Flow

__all__ = ["LULinear"]


class LULinear(Flow):
    r"""A linear map :math:`y = L U x + b` with a unit lower triangular L and an upper triangular U.

    .. math:: \log|\det J| = \sum_i \log u_{ii}, \qquad u_{ii} = e^{d_i}

    Starts at the identity. O(D^2) both ways; the inverse solves two triangular systems.

    Source: Glow: Generative flow with invertible 1x1 convolutions (Kingma and Dhariwal, 2018), arXiv:1807.03039, for
    the parametrisation.

    Args:
        input_dim: D.
        context_dim: C; then L, U and b are functions of the context.
        hidden_dims: hidden layers of that function; empty for a linear map.
    """

    def __init__(self, input_dim: int, context_dim: int | None = None, hidden_dims: Sequence[int] = ()) -> None:
        super().__init__(input_dim, context_dim)
        init = {"lu": torch.zeros(input_dim, input_dim), "bias": torch.zeros(input_dim)}  # packed as in LAPACK
        self.params = ParameterNet(init, context_dim, hidden_dims)

    def _constrained(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(L - I, U, bias, log-determinant)."""
        p = self.params(context)
        log_diagonal = p["lu"].diagonal(dim1=-2, dim2=-1)
        lower = torch.tril(p["lu"], -1)
        upper = torch.triu(p["lu"], 1) + log_diagonal.exp().diag_embed()
        return lower, upper, p["bias"], log_diagonal.sum(-1)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Two products, O(D^2)."""
        lower, upper, bias, log_det = self._constrained(context)
        if lower.dim() == 2 and x.numel() > self.input_dim**2:  # more points than rows
            return linear(x, torch.addmm(upper, lower, upper), bias), log_det.expand(x.shape[:-1])
        x = matvec(upper, x)
        return x + matvec(lower, x) + bias, log_det.expand(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Two triangular systems, O(D^2)."""
        lower, upper, bias, log_det = self._constrained(context)
        shifted = y - bias
        if shifted.dtype in (torch.float16, torch.bfloat16):  # for which torch has no solver
            shifted, lower, upper = shifted.float(), lower.float(), upper.float()
        # One right-hand side for each point, or, where points have matrices of their own, one system for each.
        column = shifted.reshape(-1, self.input_dim).mT if lower.dim() == 2 else shifted[..., None]
        column = torch.linalg.solve_triangular(lower, column, upper=False, unitriangular=True)
        column = torch.linalg.solve_triangular(upper, column, upper=True)
        return column.mT.reshape(y.shape).to(y.dtype), log_det.expand(y.shape[:-1])
