"""Activation normalisation."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_flows_vi.nets.parameters import ParameterNet
from pyro_flows_vi.numerics.stable import log_softplus
from pyro_flows_vi.transforms.base import Flow

__all__ = ["ActNorm"]


class ActNorm(Flow):
    r"""Activation normalisation: :math:`y = s \odot x + b`, with
    :math:`s = \operatorname{softplus}(a + \log(e - 1))` and :math:`\log|\det J| = \sum_i \log s_i`.

    It starts at the identity. :meth:`initialize` sets it from data so that y has mean 0 and variance 1; it is
    a call of its own, since a forward pass changes no state. O(D) both ways.

    Source: Glow: Generative flow with invertible 1x1 convolutions (Kingma and Dhariwal, 2018), arXiv:1807.03039.

    Args:
        input_dim: D.
        context_dim: C; then s and b are functions of the context.
    """

    def __init__(self, input_dim: int, context_dim: int | None = None) -> None:
        super().__init__(input_dim, context_dim)
        self.params = ParameterNet({"shift": torch.zeros(input_dim), "scale": torch.zeros(input_dim)}, context_dim)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        """Set scale and shift from a sample ``(*batch, D)`` and return y.

        Raises:
            ValueError: for fewer than two points, a coordinate that is constant, or a flow with a context.
        """
        if self.context_dim is not None:
            raise ValueError("expected a flow without a context: an amortised ActNorm has no values of its own to set")
        rows = x.reshape(-1, self.input_dim)
        sd = rows.std(0, correction=min(1, len(rows) - 1))
        if len(rows) < 2 or not bool((sd > 0).all()):
            raise ValueError(f"expected at least 2 points that vary in every coordinate, got {len(rows)} with sd {sd}")
        raw = 1.0 / sd  # the inverse of softplus(a + log(e - 1)), in a form that does not overflow
        scale = raw + torch.log(-torch.expm1(-raw)) - torch.log(torch.expm1(torch.ones_like(raw)))
        self.params.get_parameter("scale").copy_(scale)
        self.params.get_parameter("shift").copy_(-rows.mean(0) / sd)
        return self.forward_and_log_det(x)[0]

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D)."""
        p = self.params(context)
        log_scale = log_softplus(p["scale"])
        return x * log_scale.exp() + p["shift"], log_scale.sum(-1).expand(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D)."""
        p = self.params(context)
        log_scale = log_softplus(p["scale"])
        return (y - p["shift"]) * torch.exp(-log_scale), log_scale.sum(-1).expand(y.shape[:-1])
