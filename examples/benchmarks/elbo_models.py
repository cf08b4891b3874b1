"""The models of the benchmarks of a step: eight schools, and linear regressions of any size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
SCHOOLS_DIM = 10


def schools(effects: Tensor, errors: Tensor) -> None:
    """The model, for Pyro and for us; Pyro's vectorised particles are dimensions on the left."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    eta = pyro.sample("eta", dist.Normal(torch.zeros(8), 1.0).to_event(1))
    pyro.sample("effects", dist.Normal(mu[..., None] + tau[..., None] * eta, errors).to_event(1), obs=effects)


def regression(x: Tensor, y: Tensor) -> None:
    """The model of other dimensions."""
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(w @ x.T, 1.0).to_event(1), obs=y)


class Work(NamedTuple):
    """A model with its data, and what the guides for it look like."""

    dim: int
    model: Callable[..., None]
    args: tuple[Tensor, Tensor]
    log_density: Callable[[Tensor], Tensor]  # by hand
    hidden: list[int]


def work(dim: int, rows: int | None = None) -> Work:
    """Eight schools for its dimension, and a regression for every other, on 2 D rows or as many as are said."""
    if dim == SCHOOLS_DIM and rows is None:
        return Work(dim, schools, (EFFECTS, ERRORS), schools_by_hand, [16, 16])
    rows = 2 * dim if rows is None else rows
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, dim, generator=generator) / math.sqrt(dim)
    y = x @ torch.randn(dim, generator=generator) + torch.randn(rows, generator=generator)
    constant = -0.5 * (rows + dim) * math.log(2 * math.pi)

    def by_hand(w: Tensor) -> Tensor:
        return constant - 0.5 * (w.square().sum(-1) + (y - w @ x.T).square().sum(-1))

    return Work(dim, regression, (x, y), by_hand, [dim, dim])


def schools_by_hand(u: Tensor) -> Tensor:
    """The log density of eight schools in unconstrained space, up to a constant."""
    mu, log_tau, eta = u[:, 0], u[:, 1], u[:, 2:]
    tau = log_tau.exp()
    residual = (EFFECTS - mu[:, None] - tau[:, None] * eta) / ERRORS
    log_p = -0.5 * ((mu / 5.0).square() + eta.square().sum(-1) + residual.square().sum(-1))
    return log_p - torch.log1p((tau / 5.0).square()) + log_tau
