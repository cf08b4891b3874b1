"""Affine coupling flow: NICE and RealNVP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_flows_vi.numerics.tempered import scale_shift, temper, unscale_unshift
from pyro_flows_vi.transforms._split import SplitFlow

__all__ = ["AffineCoupling", "affine_coupling", "conditional_affine_coupling"]


class AffineCoupling(SplitFlow):
    r"""Affine coupling flow: one part of the coordinates sets the scale and the shift of the rest.

    .. math::
        y_A = x_A, \qquad y_B = \sigma(x_A) \odot x_B + \mu(x_A), \qquad \log|\det J| = \sum_{i \in B} \log \sigma_i

    with :math:`\log \sigma = \tau(s)`, :math:`\tau(s) = 4 \operatorname{asinh}(s / 4)`, as for
    :class:`~pyro_flows_vi.transforms.AffineAutoregressive`; the additive form has :math:`\sigma = 1`. Damped, it has
    :math:`\log \sigma = \tau(\operatorname{asinh} s)`: the scale grows like s, and then more slowly yet, so that a
    chain does not explode where its networks have seen no data. What is lost is steepness, which posteriors want, as
    that of a funnel.

    The first steps of a chain split the coordinates into halves, the next into alternate quarters, and so on; every
    second step takes the complement. After :math:`2 \lceil \log_2 D \rceil` steps every coordinate has met every other
    in both roles. Both directions are one pass of the network.

    Source: NICE: Non-linear independent components estimation (Dinh et al., 2014), arXiv:1410.8516; Density estimation
    using Real NVP (Dinh et al., 2016), arXiv:1605.08803.

    Args:
        input_dim: D.
        context_dim: C, or ``None``; the network sees the context beside :math:`x_A`.
        hidden_dims: widths of the network's hidden layers; ``(max(32, 2 D),) * 2``, at most 128 wide, by default.
        additive: whether to leave out the scale (NICE).
        step: k, which chooses the split.
        given: the coordinates A, where step k is not to choose them.
        damped: whether the scale is damped.
        interleaved: whether the first steps take every other coordinate, the next every other pair, and so on: for
            vectors whose neighbours resemble each other, such as pixels.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_dims: Sequence[int] | None = None,
        additive: bool = False,
        step: int = 0,
        given: Sequence[int] | None = None,
        damped: bool = False,
        interleaved: bool = False,
    ) -> None:
        init = torch.zeros(1 if additive else 2)
        super().__init__(input_dim, context_dim, hidden_dims, init, step, given, interleaved)
        self.additive, self.damped = additive, damped and not additive

    def _shift_and_raw(self, given: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, raw = self._params(given, context).chunk(2, dim=-1)
        return shift, temper(raw, 1.0) if self.damped else raw

    def _map(self, moved: Tensor, given: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if not self.additive:
            return scale_shift(moved, *self._shift_and_raw(given, context))
        shift = self._params(given, context)
        return moved + shift, torch.zeros_like(shift)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One pass of the network."""
        given, moved = self._split(x)
        moved, log_scale = self._map(moved, given, context)
        return self._join(given, moved), log_scale.sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One pass of the network."""
        given, moved = self._split(y)
        if self.additive:
            return self._join(given, moved - self._params(given, context)), y.new_zeros(y.shape[:-1])
        moved, log_scale = unscale_unshift(moved, *self._shift_and_raw(given, context))
        return self._join(given, moved), log_scale.sum(-1)

    def _forward_and_score(self, x: Tensor, score: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        given, moved = self._split(x)
        moved, log_scale = self._map(moved, given, context)
        score_given, score_moved = self._split(score)
        score_moved = score_moved * torch.exp(-log_scale.detach())
        if given.shape[-1]:
            outputs, cotangents = [moved, log_scale], [score_moved, torch.ones_like(log_scale)]
            if self.additive:
                outputs, cotangents = outputs[:1], cotangents[:1]
            (pulled,) = torch.autograd.grad(outputs, given, cotangents, retain_graph=True)
            score_given = score_given - pulled
        return self._join(given, moved), log_scale.sum(-1), self._join(score_given, score_moved)

    def extra_repr(self) -> str:
        """The dimensions and the form, for ``repr``."""
        return f"{super().extra_repr()}, additive={self.additive}, damped={self.damped}"


def affine_coupling(input_dim: int, hidden_dims: Sequence[int] | None = None, **kwargs: Any) -> AffineCoupling:
    """An affine coupling flow, called like Pyro's; ``step=1`` turns the roles round."""
    return AffineCoupling(input_dim, None, hidden_dims, **kwargs)


def conditional_affine_coupling(
    input_dim: int, context_dim: int, hidden_dims: Sequence[int] | None = None, **kwargs: Any
) -> AffineCoupling:
    """An affine coupling flow with a context, called like Pyro's."""
    return AffineCoupling(input_dim, context_dim, hidden_dims, **kwargs)
