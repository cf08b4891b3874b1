"""When to lower the step size and when to stop, decided by statistics of the ELBO."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Plateau"]


@dataclass
class Plateau:
    r"""The stopping rule of a fit.

    The ELBOs of ``window`` steps make a mean :math:`\bar e` with a standard error s. A window is progress where
    :math:`\bar e` beats the best mean at the present step size by more than
    :math:`\max(2 \sqrt{s^2 + s_{best}^2}, \mathrm{tolerance})`. ``patience`` windows without progress lower the step
    size by ``factor``; after ``drops`` such drops the next plateau is convergence. A window that falls short of the
    best by five standard errors and one nat is a collapse: the caller goes back to the best parameters, with a
    smaller step.

    Args:
        window: steps in a window.
        patience: windows without progress at one step size.
        drops: how often the step size is lowered.
        factor: by how much.
        tolerance: nats of progress that are too few to go on for.
    """

    window: int = 100
    patience: int = 2
    drops: int = 3
    factor: float = 0.3
    tolerance: float = 1e-3
    scale: float = 1.0
    dropped: int = 0
    stale: int = 0
    best: float = -math.inf
    best_se: float = 0.0
    pending: list[float] = field(default_factory=list)
    latest: tuple[float, float] = (math.nan, math.nan)

    def update(self, elbo: float) -> str:
        """Take the ELBO of a step.

        Returns:
            ``"go on"``, or where a window ends ``"progress"``, ``"drop"``, ``"collapse"`` or ``"stop"``.
        """
        self.pending.append(elbo)
        if len(self.pending) < self.window:
            return "go on"
        mean, se = self.latest = self._summary()
        self.pending = []
        noise = math.hypot(se, self.best_se)
        if mean > self.best + max(2.0 * noise, self.tolerance):
            self.best, self.best_se, self.stale = mean, se, 0
            return "progress"
        if mean < self.best - max(5.0 * noise, 1.0):
            self._lower()
            return "collapse"
        self.stale += 1
        if self.stale < self.patience:
            return "progress" if mean > self.best else "go on"
        if self.dropped == self.drops:
            return "stop"
        self.dropped += 1
        self._lower()
        self.best, self.best_se = mean, se  # what counts from here on is progress at the new step size
        return "drop"

    def _summary(self) -> tuple[float, float]:
        count = len(self.pending)
        mean = math.fsum(self.pending) / count
        variance = math.fsum((e - mean) ** 2 for e in self.pending) / max(count - 1, 1)
        return mean, math.sqrt(variance / count)

    def _lower(self) -> None:
        self.scale *= self.factor
        self.stale = 0

    def state(self) -> dict[str, Any]:
        """Everything, for a checkpoint; ``Plateau(**state)`` goes on from there."""
        return asdict(self)
