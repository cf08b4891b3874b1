"""When to shorten the steps and when to stop, decided by statistics of the ELBO."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from pyro_flows_vi.transforms._door import positive

__all__ = ["Plateau"]

#: steps of another cooldown, as a multiple of all before it
AGAIN = 2


@dataclass
class Plateau:
    r"""The stopping rule of a fit: steps of one size while they bring progress, and then a cooldown.

    The ELBOs of ``window`` steps make a mean :math:`\bar e` with a standard error s. A window is progress where
    :math:`\bar e` beats the best mean by more than :math:`\max(2 \sqrt{s^2 + s_{best}^2}, \mathrm{tolerance})`. After
    ``patience`` windows in a row without progress, what keeps from the optimum is the noise of the gradient, and the
    step size falls to zero, with the square of the steps that are left, in ``cooldown`` times as many steps as there
    were, and in ``least_cooldown`` of them at least. At its end the fit has converged. A window that falls short of
    the best by five standard errors and one nat is a collapse: the caller goes back to the best parameters, with
    smaller steps.

    Where the number of steps is limited, the cooldown begins early enough to end with them; where more than one window
    was missing to a plateau, that is no convergence.

    If the cooldown raised the ELBO by more than it still falls short of the importance-weighted bound, and this
    shortfall is more than ``gap`` nats, the noise, more than the guide, kept the fit from the optimum: :meth:`again`
    then begins another cooldown, from steps of the full size and twice as long as all steps before it.

    Source: Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations (Hägele et al., 2024),
    arXiv:2405.18392, for a constant step size with a cooldown.

    Args:
        window: steps in a window.
        patience: windows in a row without progress.
        cooldown: steps of the cooldown over those before it.
        least_cooldown: steps of the cooldown at least, where so many are left.
        factor: by how much a collapse lowers the step size.
        tolerance: nats of progress that are too few to go on for.
        gap: nats between the ELBO and the importance-weighted bound that are too few for another cooldown.

    Raises:
        ValueError: for a window or a patience below one, a factor outside of (0, 1), and negative numbers elsewhere.
    """

    window: int = 100
    patience: int = 3
    cooldown: float = 1.0
    least_cooldown: int = 1000
    factor: float = 0.3
    tolerance: float = 5e-3
    gap: float = 0.05
    scale: float = 1.0
    steps: int = 0
    #: of the cooldown, and how many of these are left
    total: int = 0
    left: int = 0
    hurried: bool = False
    #: cooldowns begun, the ELBO of full steps before the first, and the ELBO before the last
    cooldowns: int = 0
    full: float = -math.inf
    level: float = -math.inf
    stale: int = 0
    best: float = -math.inf
    best_se: float = 0.0
    pending: list[float] = field(default_factory=list)
    latest: tuple[float, float] = (math.nan, math.nan)

    def __post_init__(self) -> None:
        for name in ("window", "patience"):
            positive(name, getattr(self, name))
        for name in ("cooldown", "least_cooldown", "tolerance", "gap"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"expected {name} to be zero or more, got {getattr(self, name)!r}")
        if not 0.0 < self.factor < 1.0:
            raise ValueError(f"expected factor to be between 0 and 1, got {self.factor!r}")

    def update(self, elbo: float, remaining: float = math.inf, moving: bool = False) -> str:
        """Take the ELBO of a step, after which so many may follow.

        While the target itself is ``moving``, as by tempering, no window is judged by those before it, and the steps
        until then do not count.

        Returns:
            ``"go on"``, or where a window ends ``"progress"``, ``"cooldown"``, ``"collapse"`` or ``"stop"``.
        """
        self.pending.append(elbo)
        self.steps += 1
        ends = self.left == 1 and not self.hurried
        self.left = max(self.left - 1, 0)
        if len(self.pending) < self.window and not ends:
            return "go on"
        mean, se = self.latest = self._summary()
        self.pending = []
        if ends:
            return "stop"
        better, noise = mean > self.best, math.hypot(se, self.best_se)
        if moving:
            self.steps = 0
        elif mean < (self.best if self.cooldowns < 2 else self.full) - max(5.0 * noise, 1.0):
            self.scale *= self.factor
            self.stale = 0
            return "collapse"
        elif mean > self.best + max(2.0 * noise, self.tolerance):
            self.best, self.best_se, self.stale = mean, se, 0
        else:
            self.stale += 1
        if self.total == 0 and remaining > 0:
            if self.stale >= self.patience:
                return self._cool(min(remaining, max(1, self.least_cooldown, self.cooldown * self.steps)), self.best)
            if self.cooldown * (self.steps + self.window) >= remaining - self.window:
                self.hurried = self.stale < max(self.patience - 1, 1)
                return self._cool(remaining, self.best)
        return "progress" if better else "go on"

    @property
    def over(self) -> bool:
        """Whether a cooldown that a plateau began has ended, and no other one has begun."""
        return self.total > 0 and self.left == 0 and not self.hurried

    @property
    def converged(self) -> bool:
        """Whether such a cooldown has ended at all."""
        return self.over or self.cooldowns > 1

    def skip(self) -> None:
        """Take note of a step that was left out: the cooldown goes on, but does not end with it."""
        self.left = max(self.left - 1, min(self.left, 1))

    def step_size(self, ahead: int = 0) -> float:
        """That of the next step, or of one so many steps later, over the first one."""
        return self.scale * ((max(self.left - ahead, 0) / self.total) ** 2 if self.total else 1.0)

    def until_judged(self) -> int:
        """Steps until the end of the window, or of the cooldown."""
        return min(self.window - len(self.pending), self.left or self.window)

    def extend(self, remaining: float) -> None:
        """Call off a cooldown that the number of steps had begun, if there are more of them now."""
        if self.hurried and remaining > self.left:
            self.total = self.left = 0
            self.cooldowns = max(self.cooldowns - 1, 0)
            self.hurried = False

    def expected_steps(self) -> int:
        """How many steps are still to come, if in doubt rather too few."""
        if self.total:
            return self.left
        until = self.window * self.patience
        return until + max(self.least_cooldown, int(self.cooldown * (self.steps + until)))

    def again(self, gap: Callable[[], float], remaining: float) -> bool:
        """Begin another cooldown after the one that has ended, if that promises something; whether it does.

        Args:
            gap: measures how many nats the ELBO falls short of the importance-weighted bound; called where it matters.
            remaining: steps that may follow.
        """
        mean, se = self.latest
        gained = mean - self.level
        if not (math.inf > gained > self.gap and remaining >= max(1, self.least_cooldown)):
            return False
        if not gained > gap() > self.gap:
            return False
        if mean > self.best:
            self.best, self.best_se = mean, se
        self._cool(min(remaining, AGAIN * self.steps), mean)
        return True

    def _cool(self, steps: float, level: float) -> str:
        self.total = self.left = int(steps)
        self.cooldowns, self.level = self.cooldowns + 1, level
        if self.cooldowns == 1:
            self.full = level
        return "cooldown"

    def _summary(self) -> tuple[float, float]:
        count = len(self.pending)
        mean = math.fsum(self.pending) / count
        variance = math.fsum((e - mean) ** 2 for e in self.pending) / max(count - 1, 1)
        return mean, math.sqrt(variance / count)

    def state(self) -> dict[str, Any]:
        """Everything, for a checkpoint; ``Plateau(**state)`` goes on from there."""
        return asdict(self)
