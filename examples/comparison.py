"""What the examples share: arguments, NUTS, the table that sets a guide beside it, the plot and the record."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_flows_vi.infer import FitResult, write_atomically
from pyro_flows_vi.infer.records import versions
from pyro_flows_vi.infer.report import Report

__all__ = [
    "arguments",
    "compare",
    "intervals",
    "nuts",
    "outcome",
    "pair",
    "print_table",
    "save_figure",
    "save_record",
    "summaries",
]

RUNS = Path("runs") / "examples"
GUIDE, REFERENCE = "#c1440e", "#3b4c63"


def arguments(docstring: str | None, argv: list[str] | None, **defaults: int) -> argparse.Namespace:
    """The options of an example; ``defaults`` are its numbers, such as ``steps=3000``, each an option of its name."""
    parser = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}; fewer for a quick look")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RUNS, help=f"folder for the plot; default {RUNS}")
    parser.add_argument("--record", type=Path, default=RUNS, help=f"folder for the JSON record; default {RUNS}")
    return parser.parse_args(argv)


def nuts(model: Callable[..., Any], *args: Any, warmup: int, draws: int, seed: int, **options: Any) -> dict[str, Any]:
    """One chain of Pyro's NUTS.

    Returns:
        ``draws`` by site, ``divergences``, ``seconds``, and by site the smallest effective size, ``ess``.
    """
    pyro.set_rng_seed(seed)
    began = time.perf_counter()
    sampler = MCMC(NUTS(model, **options), num_samples=draws, warmup_steps=warmup, disable_progbar=True)
    sampler.run(*args)
    seconds = time.perf_counter() - began
    found = sampler.diagnostics()
    return {
        "draws": sampler.get_samples(),
        "divergences": len(found["divergences"]["chain 0"]),
        "ess": {name: float(torch.as_tensor(found[name]["n_eff"]).min()) for name in sampler.get_samples()},
        "seconds": seconds,
    }


def summaries(draws: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Mean, sd and the quantiles 5 % and 95 % of every scalar, by a name such as ``theta[3]``."""
    table = {}
    for site, value in draws.items():
        for index in np.ndindex(*value.shape[1:]):
            place = (slice(None), *index)
            column = value[place].double()
            label = f"{site}[{', '.join(map(str, index))}]" if index else site
            low, high = column.quantile(torch.tensor([0.05, 0.95], dtype=column.dtype)).tolist()
            table[label] = {"mean": float(column.mean()), "sd": float(column.std()), "q05": low, "q95": high}
    return table


def compare(
    guide: Mapping[str, Mapping[str, float]], reference: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Each scalar of the reference: means and sds of both, the shift in its sds, and the log ratio of the sds."""
    rows = {}
    for label, right in reference.items():
        ours = guide[label]
        scale = max(right["sd"], 1e-12)  # a chain that is too short may not have moved
        rows[label] = {
            "guide_mean": ours["mean"],
            "guide_sd": ours["sd"],
            "nuts_mean": right["mean"],
            "nuts_sd": right["sd"],
            "shift": (ours["mean"] - right["mean"]) / scale,
            "log_sd_ratio": float(np.log(ours["sd"] / scale)),
        }
    return rows


def print_table(rows: Mapping[str, Mapping[str, float]]) -> None:
    """The rows of :func:`compare`."""
    width = max(map(len, rows))
    print(f"{'':{width}}  {'guide':>9} {'± sd':>9}  {'NUTS':>9} {'± sd':>9}  {'shift':>8} {'sd ratio':>8}")
    for label, row in rows.items():
        numbers = f"{row['guide_mean']:9.3f} {row['guide_sd']:9.3f}  {row['nuts_mean']:9.3f} {row['nuts_sd']:9.3f}"
        print(f"{label:{width}}  {numbers}  {row['shift']:+5.2f} sd {np.exp(row['log_sd_ratio']):8.2f}")


def pair(axes: Axes, x: Tensor, y: Tensor, label: str, *, reference: bool, count: int = 1500) -> None:
    """A cloud of draws."""
    size = min(count, len(x))
    colour = REFERENCE if reference else GUIDE
    axes.plot(x[:size], y[:size], ".", color=colour, markersize=3.5, alpha=0.5, markeredgewidth=0.0, label=label)


def intervals(
    axes: Axes,
    guide: Mapping[str, Mapping[str, float]],
    reference: Mapping[str, Mapping[str, float]],
    labels: Sequence[str],
    *,
    in_sds: bool = False,
) -> None:
    """The 90 % intervals and means of scalars, the guide's below the reference's; ``in_sds`` of the reference."""
    for place, label in enumerate(labels):
        loc, scale = (reference[label]["mean"], reference[label]["sd"]) if in_sds else (0.0, 1.0)
        rows = ((reference[label], -0.15, REFERENCE, "NUTS"), (guide[label], 0.15, GUIDE, "flow guide"))
        for summary, offset, colour, who in rows:
            mean, low, high = ((summary[key] - loc) / scale for key in ("mean", "q05", "q95"))
            axes.plot([low, high], [place + offset] * 2, color=colour, linewidth=1.5, label=None if place else who)
            axes.plot(mean, place + offset, "o", color=colour, markersize=3.5)
    axes.set_yticks(range(len(labels)), labels, fontsize="small")
    axes.invert_yaxis()
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize="small", frameon=False)


def save_figure(figure: Figure, folder: Path, name: str) -> Path:
    """As ``folder/name.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=110)
    print(f"plot: {path}")
    return path


def outcome(result: FitResult, report: Report) -> dict[str, Any]:
    """How a fit went and what its diagnosis found, for a record."""
    return {
        "fit": vars(result) | {"history": None, "settings": None},
        "verdict": report.verdict,
        "khat": report.khat,
        "ess": report.ess,
        "num_draws": report.num_draws,
    }


def save_record(folder: Path, name: str, options: argparse.Namespace, **content: Any) -> Path:
    """What was asked, what came out, and with which versions, as ``folder/name.json``."""
    asked = {key: value for key, value in vars(options).items() if isinstance(value, int)}
    record = _rounded({"example": name, "options": asked, "versions": versions(), **content})
    path = folder / f"{name}.json"
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
    print(f"record: {path}")
    return path


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value
