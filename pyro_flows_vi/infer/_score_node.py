"""A log density whose gradient is known already, as a node of autograd's graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyro_flows_vi.infer.log_density import LogDensity

__all__ = ["WithScore"]


class WithScore(torch.autograd.Function):
    """The traced log density as one node of autograd's graph, whose derivative the trace has computed already."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, log_density: LogDensity) -> Tensor:
        value, score = log_density.value_and_score(latent)
        ctx.save_for_backward(latent, score)
        ctx.log_density, ctx.leaves = log_density, log_density.leaves
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        latent, score = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the derivative is to have derivatives itself
            of_one = torch.func.grad(ctx.log_density._log_joint)
            score = torch.func.vmap(of_one, (0, None), randomness="same")(latent, ctx.leaves)
        return gradient[:, None] * score, None
