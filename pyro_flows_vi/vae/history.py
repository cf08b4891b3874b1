"""How far a training run is, and how it went: what a checkpoint and a record keep of it."""

from __future__ import annotations

import dataclasses
import math

__all__ = ["CURVES", "History"]

#: one number per epoch for each of these
CURVES = (
    "train_elbo",
    "train_log_likelihood",
    "train_kl",
    "validation_elbo",
    "beta",
    "learning_rate",
    "seconds",
)


@dataclasses.dataclass
class History:
    """How far a training run is, and how it went."""

    #: one number per finished epoch for each of the curves
    curves: dict[str, list[float]] = dataclasses.field(default_factory=lambda: {name: [] for name in CURVES})
    #: finished epochs
    epochs: int = 0
    #: minibatches done of the epoch after these
    batches: int = 0
    #: sums over the images of the unfinished epoch: ELBO, log-likelihood, KL, images, seconds
    sums: list[float] = dataclasses.field(default_factory=lambda: [0.0] * 5)
    best_epoch: int = 0
    best_elbo: float = -math.inf
    #: epochs without improvement, counted after the warm-up
    waited: int = 0
    #: steps left out because the loss or a gradient was not finite, in all and since the last good one
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    #: ``"early stopping"``, ``"max_epochs"``, or ``""`` while training
    stop_reason: str = ""

    @property
    def seconds(self) -> float:
        """Wall time of the training, including validation and without the time between two sessions."""
        return sum(self.curves["seconds"]) + self.sums[4]
