"""One self-contained page on a posterior: verdict, numbers, tables and plots."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["render_page"]

#: scalars in the table, histograms, and scalars in the pairs plot
ROWS, MARGINALS, PAIRS = 200, 12, 4
#: points of a cloud
POINTS = 1500
COLOURS = {"trust": "#2f7d4f", "do not trust without importance resampling": "#b07a10", "do not trust": "#b3261e"}
COLOUR = "#3b4c63"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.verdict { color: #fff; padding: .6rem 1rem; border-radius: .3rem; font-weight: 600; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .15rem .8rem .15rem 0; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; }
img { max-width: 100%; }
"""

Columns = list[tuple[str, "np.ndarray[Any, Any]"]]


def render_page(record: Mapping[str, Any], report: Any, draws: Mapping[str, np.ndarray[Any, Any]] | None) -> str:
    """The page as HTML.

    Args:
        record: settings, versions and the fit, as in ``report.json``.
        report: the diagnosis.
        draws: of the posterior by site, each ``(n, *shape)``; without them there are no plots of it.
    """
    asked, fit = record["asked"], record["fit"]
    parts = [
        f"<h1>The posterior of {_text(asked['model'])}</h1>",
        f'<p class="verdict" style="background:{COLOURS[report.verdict]}">Verdict: {_text(report.verdict)}</p>',
        _list(report.reasons),
        "".join(f"<p>Next: {_text(what)}</p>" for what in report.advice),
        "<h2>Diagnosis</h2>",
        _table(("", "", ""), _numbers(report)),
        "<h2>Scalars</h2>",
        "<p>Of the guide's draws, and with importance weights; those that the weights move most come first.</p>",
        _summary(report),
    ]
    if draws:
        columns = _columns(draws, report)
        parts += ["<h2>Marginals</h2>", _image(_marginals(columns[:MARGINALS]), "histograms of scalars")]
        if len(columns) > 1:
            parts += ["<h2>Pairs</h2>", _image(_pairs(columns[:PAIRS]), "pairs of scalars")]
    parts += ["<h2>Fit</h2>", f"<p>{_text(_fit_line(fit))}</p>"]
    if fit["history"] and fit["history"]["step"]:
        parts.append(_image(_curve(fit["history"]), "the ELBO by the step"))
    parts += ["<h2>Settings</h2>", _settings(record)]
    title = f"Posterior of {_text(asked['model'])}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _text(value: Any) -> str:
    return html.escape(str(value))


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in items) + "</ul>"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in header) + "</tr>"] if any(header) else []
    lines += ["<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>" + "\n".join(lines) + "</table>"


def _numbers(report: Any) -> list[tuple[str, str, str]]:
    return [
        ("Pareto k-hat", f"{report.khat:.2f}", "of use below 0.7, good below 0.5"),
        ("effective draws", f"{report.ess:.0f}", f"of {report.num_draws}"),
        ("ELBO", f"{report.elbo:.3f} ± {report.elbo_se:.3f}", ""),
        ("log evidence", f"{report.iw_elbo:.3f} ± {report.iw_elbo_se:.3f}", "importance-weighted bound"),
        ("modes found", str(len(report.modes)), report.modes_note or f"{len(report.missed)} of them missed"),
    ]


def _scalars(report: Any) -> list[tuple[str, tuple[int, ...], str, list[float]]]:
    """Site, index, label and summaries of every scalar, those that the weights move most first."""
    keys = ("mean", "sd", "q0", "q1", "q2", "weighted_mean", "weighted_sd", "mean_move", "log_sd_ratio")
    rows = []
    for name, site in report.sites.items():
        tensors = {f"q{i}": part for i, part in enumerate(site.quantiles)} | {
            key: getattr(site, key) for key in keys if not key.startswith("q")
        }
        for index in np.ndindex(*site.shape):
            label = f"{name}[{', '.join(map(str, index))}]" if index else name
            rows.append((name, index, label, [float(tensors[key][index]) for key in keys]))
    return sorted(rows, key=lambda row: -max(abs(row[3][-2]), abs(row[3][-1])))


def _summary(report: Any) -> str:
    rows = _scalars(report)
    header = ("", "mean", "sd", "5 %", "50 %", "95 %", "weighted mean", "weighted sd", "moved by", "sd ratio")
    shown = [
        (label, *(f"{number:.4g}" for number in numbers[:-2]), f"{-numbers[-2]:+.2f} sd", _ratio(numbers[-1]))
        for _, _, label, numbers in rows[:ROWS]
    ]
    more = f"<p>and {len(rows) - ROWS} more, in report.json</p>" if len(rows) > ROWS else ""
    return _table(header, shown) + more


def _ratio(log_ratio: float) -> str:
    return f"{math.exp(min(log_ratio, 700.0)):.2f}" if math.isfinite(log_ratio) else "–"


def _fit_line(fit: Mapping[str, Any]) -> str:
    ended = "converged" if fit["converged"] else "not converged"
    skipped = f", {fit['skipped_steps']} steps skipped" if fit["skipped_steps"] else ""
    return f"{ended} ({fit['stop_reason']}) after {fit['steps']} steps in {fit['seconds']:.1f} s{skipped}"


def _settings(record: Mapping[str, Any]) -> str:
    asked, flow = record["asked"], record["flow"]
    rows = [("model", asked["model"]), ("seed", asked["seed"]), ("flow", flow["name"])]
    rows += [("num_transforms", flow["num_transforms"])]
    rows += [(f"flow: {key}", value) for key, value in flow["options"].items()]
    rows += [(f"fit: {key}", value) for key, value in asked["fit"].items()]
    for name, value in asked["arguments"].items():
        if isinstance(value, dict) and "sha256" in value:
            value = f"{value['dtype']} {tuple(value['shape'])}"
        rows.append((f"argument: {name}", value))
    rows += [(f"version: {key}", value) for key, value in record["versions"].items()]
    return _table(("", ""), ((key, "–" if value is None else value) for key, value in rows))


# -- plots -------------------------------------------------------------------------------------------


def _columns(draws: Mapping[str, np.ndarray[Any, Any]], report: Any) -> Columns:
    """The scalars that vary, in the order of the table."""
    columns = []
    for name, index, label, _ in _scalars(report):
        place: tuple[Any, ...] = (slice(None), *index)
        values = draws[name][place].astype(np.float64)
        if np.ptp(values) > 0:
            columns.append((label, values))
    return columns


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # not pyplot, which would choose a backend for everybody

    return Figure(figsize=(width, height), layout="constrained")


def _image(figure: Any, words: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{_text(words)}" src="data:image/png;base64,{encoded}">'


def _middle(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Where nearly all draws are: a heavy tail would leave one bar of a histogram."""
    low, high = np.quantile(values, [0.005, 0.995])
    return (float(low), float(high)) if low < high else (float(values.min()), float(values.max()))


def _marginals(columns: Columns) -> Any:
    across = min(4, max(len(columns), 1))
    down = math.ceil(len(columns) / across)
    figure = _figure(2.4 * across, 1.9 * down)
    for place, (label, values) in enumerate(columns, 1):
        axes = figure.add_subplot(down, across, place)
        axes.hist(values, bins=40, range=_middle(values), density=True, color=COLOUR)
        axes.set_title(label, fontsize="small")
        axes.set_yticks([])
        axes.tick_params(labelsize="x-small")
    return figure


def _pairs(columns: Columns) -> Any:
    size = len(columns)
    figure = _figure(2.2 * size, 2.0 * size)
    for row, (y_label, y) in enumerate(columns):
        for column, (x_label, x) in enumerate(columns[: row + 1]):
            axes = figure.add_subplot(size, size, row * size + column + 1)
            if row == column:
                axes.hist(x, bins=40, range=_middle(x), color=COLOUR)
                axes.set_yticks([])
            else:
                axes.plot(x[:POINTS], y[:POINTS], ".", markersize=2.0, alpha=0.4, color=COLOUR)
                axes.set_ylim(_middle(y))
            axes.set_xlim(_middle(x))
            axes.tick_params(labelsize="x-small")
            if row == size - 1:
                axes.set_xlabel(x_label, fontsize="small")
            if column == 0 and row:
                axes.set_ylabel(y_label, fontsize="small")
    return figure


def _curve(history: Mapping[str, Sequence[float]]) -> Any:
    figure = _figure(7.0, 3.0)
    axes = figure.add_subplot()
    axes.errorbar(history["step"], history["elbo"], yerr=history["elbo_se"], linewidth=1.2, color=COLOUR)
    axes.set_xlabel("step")
    axes.set_ylabel("ELBO (nats)")
    axes.grid(alpha=0.3)
    return figure
