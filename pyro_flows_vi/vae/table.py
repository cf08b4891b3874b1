"""The table of a folder of records, beside the published rows of the same protocol and binarisation."""

from __future__ import annotations

import math
import os
import statistics
from pathlib import Path
from typing import Any

from pyro_flows_vi.infer.text_table import NONE, check_style, minutes, plus_minus, render, where_run
from pyro_flows_vi.vae.published import Number, Published, published
from pyro_flows_vi.vae.records import load_record
from pyro_flows_vi.vae.rows import ROWS

__all__ = ["render_table"]

HEADER = (
    "posterior",
    "-ELBO",
    "NLL",
    "NLL - none",
    "samples",
    "ESS",
    "epochs",
    "parameters",
    "minutes",
    "source",
)


def render_table(folder: str | os.PathLike[str], *, style: str = "markdown", recalled: bool = False) -> str:
    """The table of the records in ``folder``, made from them alone.

    Values are in nats per image on the test set, with standard errors over its images. The column
    ``NLL - none`` is the mean difference to the run without a flow, image by image, which is known much
    better than either.

    Args:
        folder: with the records (``*.json``) of one protocol, data set and binarisation.
        style: ``"markdown"``, or ``"text"`` for a terminal.
        recalled: whether to print published numbers that nobody has read in a source yet.

    Raises:
        ValueError: for an unknown style, a folder without records, a bad record, and for records of different
            protocols, data or binarisations, which are not comparable.
    """
    check_style(style)
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise ValueError(f"{folder}: expected a folder with records (*.json), found none; train a row first")
    records = [load_record(path) for path in paths]
    _check_comparable(paths, records)
    order = {name: place for place, name in enumerate(ROWS)}
    records.sort(key=lambda r: (order.get(r["row"], len(order)), r["row"], r["seed"]))
    first = records[0]
    data = first["data"]
    others = published(first["protocol"], data["name"], data["binarisation"], recalled=recalled)
    several = len({r["seed"] for r in records}) > 1
    rows = [_our_row(r, _reference(r, records), several) for r in records]
    rows += [_published_row(p) for p in others]
    title = f"Protocol {first['protocol']}, {data['name']}, {_binarisation(data)}"
    notes = _notes(records, bool(others))
    return render(title, HEADER, rows, notes, style)


def _check_comparable(paths: list[Path], records: list[dict[str, Any]]) -> None:
    """Raise unless all records are of the same protocol, data and binarisation."""
    first = records[0]
    for name, get in (
        ("binarisation", lambda r: r["data"]["binarisation"]),
        ("protocol", lambda r: r["protocol"]),
        ("data set", lambda r: r["data"]["name"]),
        ("content of the data", lambda r: r["data"]["sha256"]),
    ):
        for path, record in zip(paths, records, strict=True):
            if get(record) != get(first):
                raise ValueError(
                    f"records of different {name} do not belong in one table: {paths[0]} has {get(first)!r}, "
                    f"{path} has {get(record)!r}; keep them in separate folders"
                )


def _reference(record: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluated run without a flow to compare with: of the same seed if there is one."""
    runs = [r for r in records if r["row"] == "none" and r["results"] is not None]
    return next((r for r in runs if r["seed"] == record["seed"]), runs[0] if runs else None)


def _our_row(record: dict[str, Any], reference: dict[str, Any] | None, seeds: bool) -> tuple[str, ...]:
    training, results = record["training"], record["results"]
    name = record["row"] + (f" (seed {record['seed']})" if seeds else "")
    epochs = f"{training['epochs']} (best {training['best_epoch']})"
    rest = (f"{record['parameters']['total']:,}", minutes(training["seconds"]), "this library")
    if results is None:
        return (name, NONE, NONE, NONE, NONE, NONE, epochs, *rest)
    return (
        name,
        plus_minus(results["negative_elbo"], results["negative_elbo_se"]),
        plus_minus(results["nll"], results["nll_se"]),
        _difference(record, reference),
        str(results["num_samples"]),
        f"{results['ess_median']:.0f}",
        epochs,
        *rest,
    )


def _difference(record: dict[str, Any], reference: dict[str, Any] | None) -> str:
    """NLL minus that of the reference, paired by image."""
    if reference is None or reference is record or _unpaired(record, reference):
        return NONE
    mine, theirs = (r["results"]["log_evidence"] for r in (record, reference))
    gaps = [b - a for a, b in zip(mine, theirs, strict=True)]
    error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
    return f"{statistics.fmean(gaps):+.2f} ± {error:.2f}"


def _unpaired(record: dict[str, Any], reference: dict[str, Any]) -> bool:
    """Whether two estimates differ in the number of samples, on which their bias depends, or in their images."""
    mine, theirs = record["results"], reference["results"]
    return mine["num_samples"] != theirs["num_samples"] or len(mine["log_evidence"]) != len(theirs["log_evidence"])


def _published_row(row: Published) -> tuple[str, ...]:
    def show(number: Number | None) -> str:
        if number is None:
            return NONE
        text = f"{number.value:.2f}" if number.spread is None else plus_minus(number.value, number.spread)
        return f"{text} ({number.reading})"

    samples = NONE if row.num_samples is None or row.nll is None else str(row.num_samples)
    return (
        row.posterior,
        show(row.negative_elbo),
        show(row.nll),
        NONE,
        samples,
        NONE,
        NONE,
        NONE,
        NONE,
        row.source,
    )


def _binarisation(data: dict[str, Any]) -> str:
    return f"{data['binarisation']} binarisation" if data["binarisation"] else "not binarised"


def _notes(records: list[dict[str, Any]], with_published: bool) -> list[str]:
    """What a reader has to know to judge the numbers: budget, differences from the protocol, errors."""
    notes = [
        "Nats per image; ± is the standard error over the test images. NLL: importance-weighted estimate "
        "with the stated number of samples; -ELBO: from the same draws; ESS: effective number of these "
        "samples, median over the images."
    ]
    budgets: dict[str, list[str]] = {}
    for r in records:
        changes = ", ".join(f"{k} = {v}" for k, v in r["overrides"].items())
        budgets.setdefault(changes or "none", []).append(r["row"])
    if len(budgets) == 1:
        (changes,) = budgets
        notes.append(f"Settings of all rows that differ from the preset: {changes}.")
    else:
        each = "; ".join(f"{', '.join(rows)}: {changes}" for changes, rows in budgets.items())
        notes.append(f"The rows were trained with different settings. What differs from the preset: {each}.")
    reasons = sorted({f"{r['training']['stop_reason']}" for r in records})
    machines = sorted({where_run(r["machine"]) for r in records})
    notes.append(f"Training ended by: {', '.join(reasons)}; trained on {', '.join(machines)}.")
    evaluated = [r["results"] for r in records if r["results"] is not None]
    if evaluated:
        counts = sorted({r["num_images"] for r in evaluated})
        worst = max(r["nll_mc_se"] for r in evaluated)
        notes.append(
            f"Test images: {', '.join(f'{c:,}' for c in counts)}. Another seed of the importance samples "
            f"would move an NLL by about {worst:.2g} nats at most (one standard error)."
        )
    pairs = [(r, _reference(r, records)) for r in records if r["results"] is not None]
    apart = list(dict.fromkeys(r["row"] for r, other in pairs if other is not None and _unpaired(r, other)))
    if apart:
        notes.append(
            f"No difference to 'none' is given for {', '.join(apart)}: evaluated with another number of samples, or on "
            "other images, than 'none'. The estimate falls with the number of samples."
        )
    if with_published:
        notes.append(
            "± of published rows is the spread over their repeated runs. second-hand: read in a later paper "
            "or in notes that quote the table; recalled: not read in any source."
        )
    return notes
