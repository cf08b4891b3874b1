"""The rules by which a report becomes a verdict; `diagnose` says where the thresholds come from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from pyro_flows_vi.infer.report import Report

__all__ = ["mild", "serious"]

TRUST, RESAMPLE, DISTRUST = "trust", "do not trust without importance resampling", "do not trust"
KHAT_GOOD, KHAT_MOST = 0.5, 0.7
#: of all weight, that of a tail whose shape is of no account
TAIL = 0.01
ESS_LEAST = 400
#: in nats
GAP_GOOD, RESTARTS = 1.0, 1.0
#: of a mean in sds, and of a log sd; and in standard errors, what is no noise
MOVE, NOISE = 0.1, 2.0
SHARE_OF_FAILURES = 0.01


def serious(report: Report) -> list[tuple[str, str]]:
    """The reasons not to trust a guide, each with what to try."""
    found = []
    share = f"{report.failed} of {report.num_draws} draws"
    blame = ", ".join(map(repr, report.blamed))
    if report.failed > SHARE_OF_FAILURES * report.num_draws:
        why = f"the density is NaN or infinite at {share}, first at {blame or 'the guide'}"
        found.append((why, "look at the arguments of the distributions at these sites, or use float64"))
    if report.converged is False:
        why = f"the fit stopped unconverged{f' ({report.stop_reason})' if report.stop_reason else ''}"
        found.append((why, "let the fit go on: more steps"))
    for mode in report.missed:
        where = ", ".join(f"{k} = {_short(v)}" for k, v in list(mode.values.items())[:4])
        why = f"a mode with {_percent(mode.share)} of the mass lies at {where}, and the guide "
        why += f"has {_percent(mode.guide_share)} there"
        what = (
            "start the fit at that mode (init_to_value with report.missed[0].values) and compare the ELBOs, or, if "
            "modes "
            "differ by a symmetry such as the order of components, remove it by an ordered site"
        )
        found.append((why, what))
    richer = "fit longer, or with a richer flow (more transforms, another family), or reparametrise the model"
    if report.khat > report.khat_most and report.tail_share > TAIL:
        why = f"k-hat is {report.khat:.2f}, above {report.khat_most:.2f}: the guide's tails are too light somewhere"
        found.append((why, richer))
    if report.gap > 0.5 * math.log(report.num_draws):
        why = f"the ELBO is {report.gap:.1f} nats below the importance-weighted bound"
        found.append((why, richer))
    if min(report.ess, report.ess_smoothed) < ESS_LEAST:
        why = f"the draws are worth only {min(report.ess, report.ess_smoothed):.0f} exact ones, of {ESS_LEAST} wanted"
        more = math.ceil(1.5 * ESS_LEAST * report.num_draws / max(report.ess, 1.0) / 1000) * 1000
        what = f"draw more: num_draws={more}" if report.ess > 0.05 * report.num_draws else richer
        found.append((why, what))
    missed = max(report.restart_missed, default=0.0)
    if missed > 0.0 or (_alone(report) and not _confirmed(report)):
        ordered = sorted(report.restart_elbos, reverse=True)
        why = f"the restarts disagree: the best ELBO is {ordered[0]:.1f}, the next {ordered[1]:.1f}"
        why += f", and {_percent(missed)} of the mass lies where another one ended" if missed else ""
        found.append((why, "fit with more restarts, and start at different places"))
    return found


def _alone(report: Report) -> bool:
    finite = sorted((elbo for elbo in report.restart_elbos if math.isfinite(elbo)), reverse=True)
    return len(finite) > 1 and finite[0] - finite[1] > max(RESTARTS, 4.0 * report.restart_se)


def _confirmed(report: Report) -> bool:
    """Whether other places were looked at, and the guide lacks none of them."""
    return not report.missed and bool(report.modes or report.restart_missed)


def mild(report: Report) -> list[tuple[str, str]]:
    """The reasons not to trust a guide's draws without their weights, each with what to do."""
    found = []
    if report.khat > (KHAT_GOOD if report.tail_share > TAIL else report.khat_most):
        found.append(f"k-hat is {report.khat:.2f}, and {_percent(report.tail_share)} of the weight lies in the tail")
    if report.gap > GAP_GOOD:
        found.append(f"the ELBO is {report.gap:.1f} nats below the importance-weighted bound")
    if report.empty > SHARE_OF_FAILURES * report.num_draws:
        found.append(f"{report.empty} of {report.num_draws} draws lie where the posterior has no density")
    label, move = report.worst("mean_move")
    if abs(move) > MOVE:
        found.append(f"weights move the mean of {label} by {-move:+.2f} sds")
    label, ratio = report.worst("log_sd_ratio")
    if abs(ratio) > MOVE:
        found.append(f"the guide's sd of {label} is {math.exp(ratio):.2f} times the weighted one")
    what = "do not trust the draws as they are: use resample(draw_weighted(...), 1000), or to_arviz(..., resample=True)"
    return [(why, what) for why in found]


def _percent(share: float) -> str:
    return f"{100.0 * share:.1f} %" if share < 0.995 else "nearly all"


def _short(value: Tensor) -> str:
    numbers = [f"{number:.3g}" for number in value.reshape(-1)[:3].tolist()]
    return numbers[0] if value.numel() == 1 else f"[{', '.join(numbers)}{', ...' if value.numel() > 3 else ''}]"
