"""Coupling flow of any increasing map of one variable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows_vi.transforms._split import SplitFlow
from pyro_flows_vi.transforms.elementwise.base import ElementwiseMap, require_map

__all__ = ["Coupling"]


class Coupling(SplitFlow):
    r"""Coupling flow: one part of the coordinates sets the parameters of an increasing map of each of the rest.

    .. math::
        y_A = x_A, \qquad y_i = m(x_i; \phi_i(x_A)) \quad (i \in B), \qquad
        \log|\det J| = \sum_{i \in B} \log m'(x_i; \phi_i)

    Step k of a chain splits the coordinates as an interleaved :class:`~pyro_flows_vi.transforms.AffineCoupling` does.
    Both directions are one pass of the network, and the map or its inverse.

    Source: Neural spline flows (Durkan et al., 2019), arXiv:1906.04032, for couplings of maps other than affine ones.

    Args:
        input_dim: D.
        context_dim: C, or ``None``; the network sees the context beside :math:`x_A`.
        hidden_dims: widths of the network's hidden layers; ``(max(32, 2 D),) * 2``, at most 128 wide, by default.
        map: the map m, an :class:`~pyro_flows_vi.transforms.elementwise.base.ElementwiseMap`.
        step: k, which chooses the split.

    Raises:
        ValueError: for a ``map`` that is none.

    Example:
        >>> from pyro_flows_vi.transforms.elementwise import CubicSpline
        >>> Coupling(3, map=CubicSpline(bins=4), step=1)(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_dims: Sequence[int] | None = None,
        *,
        map: ElementwiseMap,
        step: int = 0,
    ) -> None:
        super().__init__(input_dim, context_dim, hidden_dims, require_map(map).initial(), step, interleaved=True)
        self.map = map
        self.fast_inverse = map.fast_inverse

    def _map_params(self, given: Tensor, context: Tensor | None) -> Tensor:
        return self._params(given, context).unflatten(-1, (self.map.num_params, -1)).mT

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One pass of the network and one evaluation of the map."""
        given, moved = self._split(x)
        moved, log_slope = self.map.forward_and_log_slope(moved, self._map_params(given, context))
        return self._join(given, moved), log_slope.sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One pass of the network and one inverse of the map."""
        given, moved = self._split(y)
        moved, log_slope = self.map.inverse_and_log_slope(moved, self._map_params(given, context))
        return self._join(given, moved), log_slope.sum(-1)

    def _forward_and_score(self, x: Tensor, score: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        given, start = self._split(x)
        moved, log_slope = self.map.forward_and_log_slope(start, self._map_params(given, context))
        score_given, score_moved = self._split(score)
        ones = torch.ones_like(log_slope)
        if log_slope.requires_grad:  # this first gradient does not reach the network
            (bend,) = torch.autograd.grad(log_slope, start, ones, retain_graph=True, materialize_grads=True)
            score_moved = score_moved - bend
        score_moved = score_moved * torch.exp(-log_slope.detach())
        if given.shape[-1]:
            outputs, cotangents = [moved, log_slope], [score_moved, ones]
            if not log_slope.requires_grad:
                outputs, cotangents = outputs[:1], cotangents[:1]
            (pulled,) = torch.autograd.grad(
                outputs, given, cotangents, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            score_given = score_given - pulled
        return self._join(given, moved), log_slope.sum(-1), self._join(score_given, score_moved)
