"""Learning curves of a folder of records."""

from __future__ import annotations

import os
from pathlib import Path

from pyro_flows_vi.vae.records import load_records

__all__ = ["plot_curves"]


def plot_curves(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Draw the validation -ELBO of every record in ``folder`` against the epoch, and save the figure.

    Args:
        folder: with the records (``*.json``).
        path: where to; the suffix decides the format.

    Returns:
        ``path``.

    Raises:
        ValueError: for a folder without records, or a bad record.
    """
    from matplotlib.figure import Figure  # not pyplot, which would choose a backend for everybody

    records = load_records(folder)
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for record in records:
        curves = record["training"]["curves"]
        values = [-value for value in curves["validation_elbo"]]
        axes.plot(range(1, len(values) + 1), values, label=f"{record['row']} (seed {record['seed']})", linewidth=1.2)
    finals = [-r["training"]["best_validation_elbo"] for r in records]
    starts = [-r["training"]["curves"]["validation_elbo"][0] for r in records]
    # the first epochs fall from far above; what distinguishes the rows is at the bottom
    margin = 0.1 * (min(starts) - min(finals))
    axes.set_ylim(min(finals) - 0.2 * margin, max(finals) + 4 * margin)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation -ELBO (nats)")
    data = records[0]["data"]
    axes.set_title(f"{records[0]['protocol']}, {data['name']}")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
