"""The settings of a fit, and how it went."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self  # in the standard library from Python 3.11 on

__all__ = ["CURVES", "DensityFit", "Evaluation", "FitSettings", "Settings"]

#: one number per epoch for each of these
CURVES = ("train", "validation", "learning_rate", "seconds")
SCHEDULES = ("constant", "cosine")


class Settings:
    """What the dataclasses of settings share."""

    @classmethod
    def make(cls, **settings: Any) -> Self:
        """The defaults with some fields replaced; ``ValueError`` for an unknown field."""
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ValueError(f"unknown setting {', '.join(unknown)}: expected one of {', '.join(known)}")
        return cls(**settings)

    def as_dict(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def require_positive(self, names: Iterable[str], zero: bool = False) -> None:
        """Raise ``ValueError`` for fields that are not positive numbers, or integers where the default is one."""
        for name in names:
            value, whole = getattr(self, name), isinstance(getattr(type(self), name), int)
            good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if not good or not (0 <= value < math.inf) or (value == 0 and not zero):
                kind = "a positive integer" if whole else "a finite, positive number"
                raise ValueError(f"expected {name} to be {kind}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class FitSettings(Settings):
    """How a density is trained; see :meth:`~pyro_flows_vi.density.flow_density.FlowDensity.fit`."""

    batch_size: int = 256
    max_epochs: int = 500
    #: epochs without a better validation likelihood after which the fit ends
    patience: int = 30
    learning_rate: float = 1e-3
    #: ``"constant"``, or ``"cosine"``: down to zero over ``max_epochs``
    schedule: str = "constant"
    weight_decay: float = 0.0
    #: largest norm of the gradient; ``None`` for no clipping
    clip_norm: float | None = 5.0
    #: so many steps in a row with a loss or gradient that is not finite end the fit
    max_skipped: int = 20

    def __post_init__(self) -> None:
        self.require_positive(("batch_size", "max_epochs", "patience", "max_skipped", "learning_rate"))
        self.require_positive(() if self.clip_norm is None else ("clip_norm",))
        self.require_positive(("weight_decay",), zero=True)
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}: expected one of {', '.join(SCHEDULES)}")

    def rate(self, epoch: int) -> float:
        """The learning rate in ``epoch``, counted from 0."""
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * epoch / self.max_epochs))


@dataclasses.dataclass
class DensityFit:
    """How far a fit is, and how it went.

    Likelihoods are means over rows in nats, in the data's own units; of images they are the bound that was maximised.
    """

    #: one number per finished epoch for each of the curves; ``validation`` is empty where there is none
    curves: dict[str, list[float]] = dataclasses.field(
        default_factory=lambda: {name: [] for name in CURVES}, repr=False
    )
    epochs: int = 0
    #: minibatches done of the epoch after these
    batches: int = 0
    #: sums over the unfinished epoch: likelihood, rows, seconds
    sums: list[float] = dataclasses.field(default_factory=lambda: [0.0] * 3, repr=False)
    best_epoch: int = 0
    #: the mean validation log-likelihood of the parameters that were kept
    best: float = -math.inf
    #: steps left out because the loss or a gradient was not finite, in all and since the last good one
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    #: ``"early stopping"``, ``"max_epochs"``, ``"interrupted"``, or ``""`` while training
    stop_reason: str = ""
    #: what the fit was called with
    settings: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def seconds(self) -> float:
        """Wall time, with validation, and without the time between two sessions."""
        return sum(self.curves["seconds"]) + self.sums[2]

    def __str__(self) -> str:
        """One line."""
        skipped = f", {self.skipped_steps} steps skipped" if self.skipped_steps else ""
        value = f"validation log-likelihood {self.best:.3f} in epoch {self.best_epoch} of {self.epochs}"
        if not self.curves["validation"]:
            train = self.curves["train"]
            value = f"training log-likelihood {train[-1] if train else math.nan:.3f} after {self.epochs} epochs"
        return f"{value}, in {self.seconds:.1f} s ({self.stop_reason}){skipped}"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The mean log-likelihood of rows, in nats, with its standard error over them."""

    mean: float
    se: float
    count: int
    #: per row: float64 ``(N,)``
    values: Tensor = dataclasses.field(repr=False, compare=False)

    def without_lowest(self, share: float) -> float:
        """The mean without the lowest ``share`` of the rows: what a few rows far out do not decide."""
        return float(self.values.sort().values[math.ceil(share * self.count) :].mean())

    @classmethod
    def of(cls, values: Tensor) -> Evaluation:
        """From the log-likelihoods of rows."""
        values = values.double().cpu()
        se = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
        return cls(float(values.mean()), se, len(values), values)
