"""The tables of a folder of records: one for each data set and protocol, beside the published rows of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pyro_flows_vi import flows
from pyro_flows_vi.density.published import Number, Published, published
from pyro_flows_vi.density.records import load_records, objective_of
from pyro_flows_vi.infer.text_table import NONE, check_style, minutes, plus_minus, render, where_run

__all__ = ["cell", "render_tables"]

#: the columns of results for each kind of data, by the field of a record
COLUMNS = {
    "target": {
        "nats": "log-likelihood",
        "kl_forward": "KL(p‖q)",
        "kl_forward_most": "99.9 %",
        "kl_reverse": "KL(q‖p)",
        "kl_reverse_most": "99.9 %",
    },
    "table": {"nats": "log-likelihood"},
    "images": {"bits_per_dim": "bits/dim", "nats_of_logits": "nats of logits", "nats": "nats"},
}
REVERSE_COLUMNS = {
    name: COLUMNS["target"][name] for name in ("kl_reverse", "kl_reverse_most", "kl_forward", "kl_forward_most")
}
LAST = ("parameters", "minutes", "source")
UCI = ("power", "gas", "hepmass", "miniboone", "bsds300")
BITS_DIGITS = 3


def render_tables(folder: str | os.PathLike[str], *, style: str = "markdown", recalled: bool = False) -> str:
    """The tables of the records in ``folder``, made from them alone.

    Records share a table where they agree in the data, down to their fingerprint, in what was done to pixels, and in
    the published protocol beside which they stand.

    Args:
        folder: with the records (``*.json``).
        style: ``"markdown"``, or ``"text"`` for a terminal.
        recalled: whether to print published numbers that nobody has read in a source yet.

    Raises:
        ValueError: for an unknown style, a folder without records, and a bad record.
    """
    check_style(style)
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in load_records(Path(folder)):
        groups.setdefault(_key(record), []).append(record)
    order = ["target", "reverse-kl", "table", "images"]
    keys = sorted(groups, key=lambda key: (order.index(key[0]), *map(str, key[1:])))
    return "\n".join(_table(groups[key], style, recalled) for key in keys)


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    data, images = record["data"], record["images"] or {}
    kind = data["kind"] if objective_of(record) == "likelihood" else objective_of(record)
    done = images.get("logit_level"), images.get("dequantisation")
    return kind, data["name"], data["sha256"], *done, _protocol(record)


def _protocol(record: dict[str, Any]) -> str | None:
    """The published protocol that a record keeps to; ``None`` where there is none."""
    images = record["images"]
    if images is None:
        return "uci" if record["data"]["name"] in UCI else None
    if images["dequantisation"] != "uniform":
        return None
    flow = record["flow"]["flow"]
    vectors = flow not in flows.names() or "shape" not in flows.options(flow)  # which those of that table are
    return "maf" if images["logit_level"] == 1e-6 and vectors else "bits"


def _table(records: list[dict[str, Any]], style: str, recalled: bool) -> str:
    first = records[0]
    reverse = objective_of(first) == "reverse-kl"
    columns = REVERSE_COLUMNS if reverse else COLUMNS[first["data"]["kind"]]
    protocol = _protocol(first)
    others = [] if protocol is None else published(first["data"]["name"], protocol, recalled=recalled)
    several = len({r["seed"] for r in records}) > 1
    rows = [_our_row(r, list(columns), several) for r in records] + [_their_row(p, list(columns)) for p in others]
    header = ["flow", *columns.values(), "steps" if reverse else "epochs", *LAST]
    return render(_title(first), header, rows, _notes(records, others), style)


def _title(record: dict[str, Any]) -> str:
    data, images = record["data"], record["images"]
    if objective_of(record) == "reverse-kl":
        return f"{data['name']} by KL(q‖p), from no data"
    sizes = f"{data['train']:,} training and {data['test']:,} test rows of {data['dim']}"
    if images is None:
        return f"{data['name']}: {sizes}"
    kind = "; flows on vectors" if _protocol(record) == "maf" else ""
    return (
        f"{data['name']}: {sizes}, {images['levels']} levels, {images['dequantisation']} noise, "
        f"logit level {images['logit_level']:g}{kind}"
    )


def _our_row(record: dict[str, Any], columns: list[str], seeds: bool) -> list[str]:
    training, results = record["training"], record["results"] or {}
    name = record["row"].removesuffix("-reverse-kl") + (f" (seed {record['seed']})" if seeds else "")
    cells = [cell(column, results.get(column), results.get(f"{column}_se")) for column in columns]
    if objective_of(record) == "reverse-kl":
        epochs = f"{training['steps']:,}"
    else:
        epochs = f"{training['epochs']} (best {training['best_epoch']})"
    return [name, *cells, epochs, f"{record['parameters']:,}", minutes(training["seconds"]), "this library"]


def cell(column: str, value: float | None, error: float | None) -> str:
    """A result of a record with its standard error, in the digits that it deserves."""
    if value is None:
        return NONE
    digits = BITS_DIGITS if column.startswith(("bits", "kl")) else 2
    if abs(value) >= 1e6:  # one point far from the others, at which a flow overflows almost
        return f"{value:.2g}" if error is None else f"{value:.2g} ± {error:.2g}"
    return f"{value:.{digits}f}" if error is None else f"{value:.{digits}f} ± {error:.{digits}f}"


def _their_row(row: Published, columns: list[str]) -> list[str]:
    shown = {"bits_per_dim": row.bits, ("nats" if row.protocol == "uci" else "nats_of_logits"): row.nats}
    cells = [_number(shown.get(column)) for column in columns]
    readings = sorted({n.reading for n in (row.nats, row.bits) if n is not None})
    return [row.model, *cells, NONE, NONE, NONE, f"{row.source} ({', '.join(readings)})"]


def _number(number: Number | None) -> str:
    if number is None:
        return NONE
    return f"{number.value:.2f}" if number.bar is None else plus_minus(number.value, number.bar)


def _notes(records: list[dict[str, Any]], others: list[Published]) -> list[str]:
    """What a reader has to know to judge the numbers."""
    kind = "reverse-kl" if objective_of(records[0]) == "reverse-kl" else records[0]["data"]["kind"]
    what = {
        "target": "Nats a point, on draws that no fit has seen. KL(p‖q) is from these, with the target's "
        "known density p; KL(q‖p) from as many draws of the flow, and empty where p is 0 at one of them or unknown. "
        "99.9 %: the mean to the left without the largest thousandth of its terms. Where the two differ much, a few "
        "points far out decide the mean: there one density all but vanishes.",
        "reverse-kl": "Nats a point. KL(q‖p) is what was minimised, and here is from 20,000 draws of the flow, with "
        "the known log Z of p; KL(p‖q) is from as many draws of p. 99.9 %: the mean to the left without the largest "
        "thousandth of its terms.",
        "table": "Nats a test row, higher is better.",
        "images": "Bits per dimension of the test images, lower is better, a bound by the noise; nats of logits: the "
        "density of the logits of noisy pixels, higher is better.",
    }
    notes = [f"{what[kind]} ± is one standard error over the test set."]
    budgets: dict[str, list[str]] = {}
    for r in records:
        flow = r["flow"]
        options = ", ".join(f"{k} = {v}" for k, v in flow["options"].items())
        settings = ", ".join(f"{k} = {v}" for k, v in r["overrides"].items())
        steps = f"{flow['num_transforms']} step{'s' * (flow['num_transforms'] != 1)} of {flow['flow']}" + (
            f" ({options})" if options else ""
        )
        budgets.setdefault(f"settings that differ from the defaults: {settings or 'none'}", []).append(
            f"{r['row'].removesuffix('-reverse-kl')}: {steps}"
        )
    notes += [f"Budget: {'; '.join(rows)}; {settings}." for settings, rows in budgets.items()]
    reasons = sorted({r["training"]["stop_reason"] for r in records})
    machines = sorted({where_run(r["machine"]) for r in records})
    notes.append(f"Training ended by: {', '.join(reasons)}; trained on {', '.join(machines)}.")
    if any(p.protocol == "bits" for p in others):
        notes.append("Published rows are each of the preprocessing of their paper, which bits per dimension allow for.")
    if any(r["results"] is None for r in records):
        notes.append("Rows without values have not been evaluated yet.")
    if others:
        bars: dict[str, list[str]] = {}
        for p in others:
            for n in (p.nats, p.bits):
                if n is not None and n.bar_is is not None:
                    bars.setdefault(n.bar_is, []).append(p.model)
        told = "; ".join(f"{what} ({', '.join(dict.fromkeys(models))})" for what, models in bars.items())
        notes.append(
            f"± of published rows: {told}. second-hand: read in a later paper or in notes that quote the table."
        )
    return notes
