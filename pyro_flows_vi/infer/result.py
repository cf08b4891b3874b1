"""What a fit returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["FitResult"]


@dataclass
class FitResult:
    """How a fit went; the guide holds the best parameters that it found.

    Attributes:
        elbo: the ELBO of the guide as it is now, from fresh draws, with its standard error ``elbo_se``.
        converged: whether the stopping rule was met, also where another cooldown followed and did not come to its end.
        stop_reason: why the fit ended, in words.
        steps: optimiser steps done.
        skipped_steps: steps left out since the loss or a gradient was not finite.
        restart_elbos: the ELBOs at which the Gaussian stage arrived from each of its starts.
        restart_missed: where the best start is better than all others by a nat and more, the part of the posterior
            about the Gaussian of each that the guide does not have: all zero if the others are of no account.
        kept: which parameters the guide holds: ``"start"``, ``"last"``, ``"average"``, ``"best"`` of a fit that did not
            come to its end, or ``"earlier"``, where another cooldown brought nothing.
        history: curves by name: ``step``, ``elbo``, ``elbo_se`` and ``learning_rate`` of every window.
        seconds: wall time.
        settings: what the fit was called with.
    """

    elbo: float
    elbo_se: float
    converged: bool
    stop_reason: str
    steps: int
    skipped_steps: int
    restart_elbos: list[float]
    restart_missed: list[float]
    kept: str
    seconds: float
    history: dict[str, list[float]] = field(repr=False)
    settings: dict[str, Any] = field(repr=False)

    def __str__(self) -> str:
        """One line."""
        skipped = f", {self.skipped_steps} steps skipped" if self.skipped_steps else ""
        return (
            f"ELBO {self.elbo:.3f} ± {self.elbo_se:.3f} after {self.steps} steps in {self.seconds:.1f} s: "
            f"{'converged' if self.converged else 'not converged'} ({self.stop_reason}){skipped}"
        )
