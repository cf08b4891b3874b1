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

    def add_epoch(self, validation: float, beta: float, rate: float, seconds: float, *, warmup_epochs: int) -> bool:
        """Close the unfinished epoch; whether its validation ELBO is the best so far."""
        elbo, log_likelihood, kl, images, _ = self.sums
        done = (elbo / images, log_likelihood / images, kl / images, validation, beta, rate, seconds)
        for name, number in zip(CURVES, done, strict=True):
            self.curves[name].append(number)
        self.epochs += 1
        self.batches, self.sums = 0, [0.0] * 5
        better = validation > self.best_elbo
        if better:
            self.best_elbo, self.best_epoch, self.waited = validation, self.epochs, 0
        elif self.epochs >= warmup_epochs:
            self.waited += 1
        return better

    def latest(self) -> dict[str, str]:
        """The last epoch in few words."""
        shown = {"beta": "beta", "train": "train_elbo", "validation": "validation_elbo"}
        return {name: f"{self.curves[curve][-1]:.2f}" for name, curve in shown.items()}
