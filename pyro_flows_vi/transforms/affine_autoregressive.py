"""Affine autoregressive flow: the IAF step and, turned round, MAF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_flows_vi.nets.masked import MADE
from pyro_flows_vi.numerics.tempered import scale_shift, temper, unscale_unshift
from pyro_flows_vi.transforms._score import score_by_substitution
from pyro_flows_vi.transforms.base import Flow

__all__ = ["AffineAutoregressive", "affine_autoregressive", "conditional_affine_autoregressive"]


class AffineAutoregressive(Flow):
    r"""Affine autoregressive flow, the step of the inverse autoregressive flow (IAF).

    .. math::
        y_i = \sigma_i(x_{<i})\, x_i + \mu_i(x_{<i}), \qquad \log|\det J| = \sum_i \log \sigma_i

    with :math:`\log \sigma = \tau(s)`, or in the gated form :math:`\sigma = \operatorname{sigmoid}(\tau(s))` and
    :math:`y_i = \sigma_i x_i + (1 - \sigma_i) \mu_i`. The scale has no bounds:
    :math:`\tau(s) = 4 \operatorname{asinh}(s / 4)` is s for moderate s and grows logarithmically beyond, where an
    exponential would overflow. Damped, s is replaced by :math:`\operatorname{asinh} s`, as in
    :class:`~pyro_flows_vi.transforms.AffineCoupling`. ``flow.inv`` is the step of the masked autoregressive flow (MAF).

    Forward is one pass of the network. The inverse is sequential in the coordinates, but costs a few passes and not
    D: see :meth:`~pyro_flows_vi.nets.masked.MADE.sequential`.

    Source: Improved variational inference with inverse autoregressive flow (Kingma et al., 2016), arXiv:1606.04934;
    Masked autoregressive flow for density estimation (Papamakarios et al., 2017), arXiv:1705.07057.

    Args:
        input_dim: D.
        context_dim: C, or ``None``.
        hidden_dims: widths of the hidden layers; ``(10 * D,)`` by default.
        gated: whether to use the gated form.
        damped: whether the scale is damped.
    """

    fast_inverse = False
    triangular = True
    #: starts the gate at 0.88: mostly copy
    gate_bias = 2.0

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_dims: Sequence[int] | None = None,
        gated: bool = False,
        damped: bool = False,
    ) -> None:
        super().__init__(input_dim, context_dim)
        self.gated, self.damped = gated, damped
        hidden_dims = (10 * input_dim,) if hidden_dims is None else hidden_dims
        init = torch.tensor([0.0, self.gate_bias if gated else 0.0])
        self.net = MADE(input_dim, init, hidden_dims, context_dim)

    def _shift_and_raw(self, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = params.unbind(-2)
        return shift, temper(raw, 1.0) if self.damped else raw

    def _map(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = self._shift_and_raw(params)
        if not self.gated:
            return scale_shift(x, shift, raw)
        shift, log_scale = _gate(shift, raw)
        return torch.addcmul(shift, x, log_scale.exp()), log_scale

    def _inverse_map(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = self._shift_and_raw(params)
        if not self.gated:
            return unscale_unshift(y, shift, raw)
        shift, log_scale = _gate(shift, raw)
        return (y - shift) * torch.exp(-log_scale), log_scale

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One pass of the network."""
        y, log_scale = self._map(x, self.net(x, context))
        return y, log_scale.sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Coordinates in sequence, which together cost the arithmetic of one pass or little more."""

        def step(part: slice, params: Tensor) -> tuple[Tensor, Tensor]:
            return self._inverse_map(y[..., part], params)

        x, log_scale = self.net.sequential(y.shape[:-1], step, context)
        return x, log_scale.sum(-1)

    def _forward_and_score(self, x: Tensor, score: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        y, log_scale = self._map(x, self.net(x, context))
        return y, log_scale.sum(-1), score_by_substitution(x, y, log_scale, score)

    def extra_repr(self) -> str:
        """The dimensions and the form, for ``repr``."""
        return f"{super().extra_repr()}, gated={self.gated}, damped={self.damped}"


def _gate(shift: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    """The shift and the logarithm of the scale, which is a gate between the old value and a new one."""
    gate = temper(raw)
    return shift * torch.sigmoid(-gate), logsigmoid(gate)


def affine_autoregressive(
    input_dim: int, hidden_dims: Sequence[int] | None = None, **kwargs: Any
) -> AffineAutoregressive:
    """An affine autoregressive flow, with Pyro's signature; ``stable=True`` is Pyro's name for ``gated=True``."""
    return AffineAutoregressive(input_dim, None, hidden_dims, **_renamed(kwargs))


def conditional_affine_autoregressive(
    input_dim: int, context_dim: int, hidden_dims: Sequence[int] | None = None, **kwargs: Any
) -> AffineAutoregressive:
    """An affine autoregressive flow with a context, with Pyro's signature."""
    return AffineAutoregressive(input_dim, context_dim, hidden_dims, **_renamed(kwargs))


def _renamed(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"gated" if name == "stable" else name: value for name, value in kwargs.items()}
