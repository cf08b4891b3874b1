"""Quasi-random draws, from which the marginal quantiles of a flow are read."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["log_normal", "symmetric_draws"]


def symmetric_draws(count: int, dim: int) -> Tensor:
    """``count + 1`` points of a standard normal, in mirror images and the origin: medians of linear maps are exact.

    The same each time; ``(count + 1, dim)`` in double precision.
    """
    if dim <= torch.quasirandom.SobolEngine.MAXDIM:
        uniform = torch.quasirandom.SobolEngine(dim, scramble=True, seed=0).draw(count // 2, dtype=torch.float64)
        half = torch.special.ndtri(uniform.clamp(1e-9, 1.0 - 1e-9))
    else:
        generator = torch.Generator("cpu").manual_seed(0)
        half = torch.randn(count // 2, dim, generator=generator, dtype=torch.float64, device="cpu")
    return torch.cat([half, half.new_zeros(1, dim), -half])


def log_normal(x: Tensor) -> Tensor:
    """The log density of N(0, I) at ``(*batch, D)``."""
    return -0.5 * (x.square().sum(-1) + x.shape[-1] * math.log(2.0 * math.pi))
