"""Noise that turns counts into real numbers: uniform, or learned for each image."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pyro_flows_vi import flows
from pyro_flows_vi.density.data import to_rows
from pyro_flows_vi.transforms.base import Flow

__all__ = ["Dequantisation", "UniformDequantisation", "VariationalDequantisation", "dequantise"]


def dequantise(x: Any, columns: list[int] | None = None, *, width: float = 1.0, seed: int = 0) -> Tensor:
    r"""Add uniform noise from [0, width) to columns of numbers that are multiples of ``width``.

    With noise of that width, the mean of a density's ``log_prob`` at the noisy values, plus the logarithm of ``width``
    for each column, is a lower bound of the log-probability of the values themselves.

    Args:
        x: ``(*batch, D)``: a tensor, an array or a data frame of numbers.
        columns: which; all by default.
        width: the step between two values.
        seed: of the noise; torch's generator is left as it was.

    Example:
        >>> dequantise(torch.zeros(1000, 2), [1]).amax(0).ceil()
        tensor([0., 1.])
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        x = to_rows(x, "x", torch.get_default_dtype())
    generator = torch.Generator(x.device).manual_seed(seed)
    noise = width * torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    if columns is None:
        return x + noise
    chosen = torch.zeros(x.shape[-1], dtype=torch.bool, device=x.device)
    chosen[columns] = True
    return torch.where(chosen, x + noise, x)


class Dequantisation(nn.Module):
    """Noise u in :math:`(0, 1)^D` for an image of D levels, with log q(u | x)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Noise ``(*batch, D)`` and log q ``(*batch)``, for images x ``(*batch, D)`` of levels 0, 1, ..."""
        raise TypeError(f"{type(self).__name__} is a Dequantisation and has to define forward")


class UniformDequantisation(Dequantisation):
    """Uniform noise, whose log q is zero.

    Source: A note on the evaluation of generative models (Theis, van den Oord, Bethge, 2015), arXiv:1511.01844.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One uniform number a pixel."""
        return torch.rand_like(x), x.new_zeros(x.shape[:-1])


class VariationalDequantisation(Dequantisation):
    r"""Noise from a conditional flow g, which learns where within a level a density would have it.

    .. math::
        u = \sigma(g(\epsilon; x)), \quad \epsilon \sim \operatorname{Logistic}(0, 1), \qquad
        \log q(u | x) = \sum_i \log \sigma'(\epsilon_i) - \log |\det \partial g / \partial \epsilon|
                        - \sum_i \log \sigma'(g_i)

    With g the identity, as every flow here starts, u is uniform. The bound that it makes,

    .. math::
        \log P(x) \ge E_{q(u | x)} \left[\log p(x + u) - \log q(u | x)\right],

    is tight where q(u | x) is the density's own posterior of u. The image enters g as its context, scaled to [-1, 1].

    Source: Flow++: Improving flow-based generative models with variational dequantization and architecture design
    (Ho et al., 2019), arXiv:1902.00275.

    Args:
        flow: a name of :func:`pyro_flows_vi.flows.names`, or a flow with ``input_dim`` and ``context_dim`` D.
        input_dim: D.
        levels: how many values a pixel has.
        num_transforms: steps of the flow, where it is named.
        **options: options of the flow, where it is named.
    """

    def __init__(
        self, flow: str | Flow, input_dim: int, levels: int = 256, *, num_transforms: int = 2, **options: Any
    ) -> None:
        super().__init__()
        if isinstance(flow, str):
            flow = flows.build(flow, input_dim, input_dim, num_transforms, **options)
            if flow.fast_inverse and not flow.fast_forward:  # noise is drawn, and never scored elsewhere
                flow = flow.inv
        if (flow.input_dim, flow.context_dim) != (input_dim, input_dim):
            raise ValueError(
                f"expected a flow with input_dim and context_dim {input_dim}, the number of pixels, "
                f"got {flow.input_dim} and {flow.context_dim}"
            )
        self.flow, self.levels = flow, levels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One pass of the flow."""
        context = (2.0 * x + 1.0) / self.levels - 1.0
        tiny = torch.finfo(x.dtype).tiny
        eps = torch.logit(torch.rand_like(x).clamp(tiny, 1.0 - torch.finfo(x.dtype).eps))
        v, log_det = self.flow.forward_and_log_det(eps, context)
        log_q = (_log_slope(eps) - _log_slope(v)).sum(-1) - log_det
        return torch.sigmoid(v), log_q


def _log_slope(x: Tensor) -> Tensor:
    """log of the logistic density, which is the slope of the sigmoid."""
    return logsigmoid(x) + logsigmoid(-x)


def bits_per_dim(log_likelihood: Tensor, dim: int) -> Tensor:
    """Nats of whole images as bits a pixel."""
    return -log_likelihood / (dim * math.log(2.0))
