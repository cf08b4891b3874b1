"""What a diagnosis found, the verdict on it, and how both are printed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_flows_vi.infer.layout import _labels
from pyro_flows_vi.infer.modes import Mode
from pyro_flows_vi.infer.verdict import (
    DISTRUST,
    ESS_LEAST,
    GAP_GOOD,
    KHAT_GOOD,
    KHAT_MOST,
    MOVE,
    NOISE,
    RESAMPLE,
    TRUST,
    mild,
    serious,
)

__all__ = ["QUANTILES", "Report", "SiteSummary"]

QUANTILES = (0.05, 0.5, 0.95)
#: scalars in the printed table
ROWS = 12


@dataclass(frozen=True)
class SiteSummary:
    """A site's scalars with equal weights and with Pareto-smoothed importance weights, each of the site's shape.

    Attributes:
        latent: whether it is a latent site, not a ``pyro.deterministic``.
        shape: the site's.
        mean: of the guide's draws.
        sd: as well.
        quantiles: of the levels 5 %, 50 % and 95 %, one row each.
        weighted_mean: with importance weights.
        weighted_sd: as well.
        weighted_quantiles: as well.
        mean_move: (mean - weighted mean) / weighted sd.
        log_sd_ratio: log(sd / weighted sd).
        mean_move_se: the standard error of ``mean_move``, and ``log_sd_ratio_se`` that of ``log_sd_ratio``.
    """

    latent: bool
    shape: tuple[int, ...]
    mean: Tensor
    sd: Tensor
    quantiles: Tensor
    weighted_mean: Tensor
    weighted_sd: Tensor
    weighted_quantiles: Tensor
    mean_move: Tensor
    log_sd_ratio: Tensor
    mean_move_se: Tensor
    log_sd_ratio_se: Tensor


@dataclass
class Report:
    """The findings of :func:`~pyro_flows_vi.infer.diagnostics.diagnose`; ``print(report)`` is for people.

    Attributes:
        num_draws: n.
        khat: Pareto k-hat of the weights.
        tail_share: by how much the weights in the tail that k-hat is fitted to exceed its threshold, over all weight.
        ess: the effective size of the raw weights.
        ess_smoothed: of the Pareto-smoothed weights.
        elbo: the ELBO, with its standard error ``elbo_se``; -inf if a draw has no density under the model.
        iw_elbo: the importance-weighted bound, with ``iw_elbo_se``, which is too small where k-hat is large.
        gap: ``iw_elbo - elbo``, an estimate of KL(q || p), with ``gap_se``.
        failed: draws at which the weight was NaN or +inf; they are left out.
        empty: draws at which the model has no density.
        blamed: the sites to blame for the first of these.
        sites: summaries by site.
        modes: the modes that were found without the guide's help, and ``modes_note``, why none was.
        converged: of the fit, with ``stop_reason`` and ``skipped_steps``; ``None`` if not known.
        restart_elbos: of the fit, as is ``restart_missed``.
    """

    num_draws: int
    khat: float
    tail_share: float
    ess: float
    ess_smoothed: float
    elbo: float
    elbo_se: float
    iw_elbo: float
    iw_elbo_se: float
    gap: float
    gap_se: float
    failed: int
    empty: int
    blamed: list[str]
    sites: dict[str, SiteSummary] = field(default_factory=dict)
    modes: list[Mode] = field(default_factory=list)
    modes_note: str = ""
    converged: bool | None = None
    stop_reason: str = ""
    skipped_steps: int = 0
    restart_elbos: list[float] = field(default_factory=list)
    restart_missed: list[float] = field(default_factory=list)
    restart_se: float = 0.0

    def read_fit(self, fit: Any) -> None:
        """Take over what a fit tells about itself."""
        self.converged = getattr(fit, "converged", None)
        self.stop_reason = str(getattr(fit, "stop_reason", ""))
        self.skipped_steps = int(getattr(fit, "skipped_steps", 0) or 0)
        self.restart_elbos = [float(elbo) for elbo in getattr(fit, "restart_elbos", None) or []]
        self.restart_missed = [float(share) for share in getattr(fit, "restart_missed", None) or []]
        self.restart_se = float(getattr(fit, "elbo_se", 0.0) or 0.0)

    @property
    def khat_most(self) -> float:
        """The largest k-hat at which n weights are of use."""
        return min(1.0 - 1.0 / math.log10(self.num_draws), KHAT_MOST)

    @property
    def missed(self) -> list[Mode]:
        """The modes of which the guide has too little."""
        return [mode for mode in self.modes if mode.missed]

    @property
    def verdict(self) -> str:
        """``"trust"``, ``"do not trust without importance resampling"`` or ``"do not trust"``."""
        if serious(self):
            return DISTRUST
        return RESAMPLE if mild(self) else TRUST

    @property
    def reasons(self) -> list[str]:
        """Why, one sentence each."""
        found = serious(self) or mild(self)
        return [why for why, _ in found] or [
            f"k-hat is {self.khat:.2f}, {self.num_draws} draws are worth {self.ess:.0f} exact ones, and weights move "
            f"no mean by more than {MOVE} sds and {NOISE:.0f} standard errors"
        ]

    @property
    def advice(self) -> list[str]:
        """What to try next."""
        found = serious(self) or mild(self)
        return list(dict.fromkeys(what for _, what in found)) or ["use the draws as they are"]

    @property
    def resampling_helps(self) -> bool:
        """Whether the draws are off and their weights put that right."""
        return self.verdict == RESAMPLE

    def worst(self, quantity: str) -> tuple[str, float]:
        """The latent scalar with the largest ``mean_move`` or ``log_sd_ratio`` above its noise: its label, and that."""
        best = ("", 0.0)
        for name, site in self.sites.items():
            values, noise = getattr(site, quantity).reshape(-1), getattr(site, f"{quantity}_se").reshape(-1)
            values = torch.where(values.abs() < NOISE * noise, 0.0, values).nan_to_num(nan=math.inf)
            if len(values) and site.latent:
                place = int(values.abs().argmax())
                if abs(float(values[place])) > abs(best[1]):
                    best = _label(name, site.shape, place), float(values[place])
        return best

    # -- printing ------------------------------------------------------------------------------------

    def __str__(self) -> str:
        """The verdict, why, what next, the numbers, and the scalars that weights move most."""
        lines = [f"Verdict: {self.verdict}"]
        lines += [f"  - {why}" for why in self.reasons]
        lines += [f"Next: {what}" for what in self.advice] + [""]
        tail = f"{100 * self.tail_share:.1f} % in the tail" if self.tail_share < math.inf else "a tail without a mean"
        table = [
            (
                "Pareto k-hat",
                f"{self.khat:.2f}",
                f"good below {KHAT_GOOD}, of use below {self.khat_most:.2f}; {tail}",
            ),
            (
                "effective draws",
                f"{self.ess:.0f}",
                f"of {self.num_draws}; {self.ess_smoothed:.0f} smoothed; {ESS_LEAST} wanted",
            ),
            ("ELBO", f"{self.elbo:.3f} ± {self.elbo_se:.3f}", ""),
            ("log evidence", f"{self.iw_elbo:.3f} ± {self.iw_elbo_se:.3f}", "importance-weighted bound"),
            ("gap", f"{self.gap:.3f} ± {self.gap_se:.3f}", f"about KL(q || p); good below {GAP_GOOD:.0f}"),
            ("modes found", str(len(self.modes)), self.modes_note or f"{len(self.missed)} of them missed by the guide"),
        ]
        if self.failed or self.empty:
            table.append(
                (
                    "draws left out",
                    str(self.failed + self.empty),
                    f"{self.failed} NaN or inf, {self.empty} of no density",
                )
            )
        if self.converged is not None:
            skipped = f"; {self.skipped_steps} steps skipped" if self.skipped_steps else ""
            table.append(("fit", "converged" if self.converged else "unconverged", self.stop_reason + skipped))
        if len(self.restart_elbos) > 1:
            ordered = sorted(self.restart_elbos, reverse=True)
            table.append(("restarts", str(len(ordered)), "ELBO " + ", ".join(f"{elbo:.1f}" for elbo in ordered[:4])))
        lines += [f"  {name:<16}{value:>20}   {note}".rstrip() for name, value, note in table]
        return "\n".join([*lines, "", *self._rows()])

    def _rows(self) -> list[str]:
        rows = []
        for name, site in self.sites.items():
            columns = [getattr(site, key).reshape(-1).tolist() for key in _COLUMNS]
            rows += [(f"{name}", site.shape, i, row) for i, row in enumerate(zip(*columns, strict=True))]
        rows.sort(key=lambda row: -max(abs(row[3][4]), abs(row[3][5])))
        labelled = [(_label(name, shape, i), values) for name, shape, i, values in rows[:ROWS]]
        width = max([8, *(len(label) for label, _ in labelled)])
        lines = [f"  {'':<{width}}{'mean':>11}{'sd':>11}{'weighted':>11}{'sd':>11}{'moved by':>11}{'sd ratio':>11}"]
        for label, (mean, sd, weighted, weighted_sd, move, ratio) in labelled:
            numbers = "".join(f"{number:>11.4g}" for number in (mean, sd, weighted, weighted_sd))
            lines.append(f"  {label:<{width}}{numbers}{-move:>+8.2f} sd{math.exp(min(ratio, 700.0)):>11.2f}")
        if len(rows) > ROWS:
            lines.append(f"  and {len(rows) - ROWS} scalars that weights move less")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON values; numbers that are not finite are ``None``."""
        own = {k: v for k, v in vars(self).items() if k not in ("sites", "modes")}
        sites = {name: vars(site) for name, site in self.sites.items()}
        modes = [vars(mode) | {"missed": mode.missed} for mode in self.modes]
        words = {"verdict": self.verdict, "reasons": self.reasons, "advice": self.advice}
        result: dict[str, Any] = _plain(
            words | own | {"sites": sites, "modes": modes, "quantile_levels": list(QUANTILES)}
        )
        return result


_COLUMNS = ("mean", "sd", "weighted_mean", "weighted_sd", "mean_move", "log_sd_ratio")


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _label(name: str, shape: tuple[int, ...], place: int) -> str:
    return _labels(name, torch.Size(shape))[place]
