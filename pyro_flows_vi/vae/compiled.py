"""The steps of a VAE's training as one graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyro_flows_vi.infer._step_graph import put_in_place
from pyro_flows_vi.infer.compiled import CompiledSteps

if TYPE_CHECKING:
    from pyro_flows_vi.vae.trainer import Outcome, Trainer

__all__ = ["VAESteps"]


class VAESteps(CompiledSteps):
    """Those of a :class:`~pyro_flows_vi.vae.trainer.Trainer`.

    The graph is for whole minibatches: a smaller one at the end of an epoch is an eager step.
    """

    def __init__(self, trainer: Trainer, mode: str) -> None:
        super().__init__(trainer.parameters, trainer.optimiser, mode, trainer.settings.clip_norm)
        self.trainer = trainer
        self.rows_in_a_batch = min(trainer.settings.batch_size, len(trainer.data.train))

    def run(self, most: int) -> list[Outcome]:
        """At least one step and up to ``most`` of this epoch, as many as fit into a quarter of a second."""
        if self.tensors() is None:
            return [self.trainer.eager_step()]
        return [(*row, self.rows_in_a_batch) for row in self.rows(most)]  # type: ignore[misc]

    def controls(self, most: int) -> list[list[float]]:
        """Step size and weight of the KL term."""
        return [[self.optimizer.param_groups[0]["lr"], self.trainer.beta]] * most

    def tensors(self) -> list[Tensor] | None:
        """The next minibatch of the epoch."""
        x = self.trainer.minibatches.peek()
        return None if x is None or len(x) != self.rows_in_a_batch else [x]

    def example(self) -> list[Tensor]:
        """As many rows as a whole minibatch has."""
        x = self.trainer.minibatches.peek()
        assert x is not None
        return [x[torch.arange(self.rows_in_a_batch, device=x.device) % len(x)]]

    def taken(self) -> None:
        """Go on to the next."""
        self.trainer.minibatches.take()

    def modules(self) -> list[nn.Module]:
        """All of the model."""
        return [self.trainer.vae]

    def loss(self, pieces: list[Tensor], control: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """As of the eager step."""
        (x,) = tensors
        with put_in_place(self.trainer.vae, self.parameters, pieces):
            terms = self.trainer.vae.elbo(x)
        return self.trainer.loss(terms, control[1])
