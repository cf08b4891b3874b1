"""``pyro-flows-vi demo``: small VAEs on embedded data, from training to a table and a plot."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import click

from pyro_flows_vi.cli.common import FOLDER, echo_kept, told

__all__ = ["DEMO_ROWS", "demo"]

DEMO_ROWS = ("none", "planar-10", "sylvester-triangular", "iaf")


@click.command()
@click.option(
    "--out",
    type=FOLDER,
    default=Path("runs/demo"),
    show_default=True,
    help="Folder for records, checkpoints, table and plot.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Epochs for each row, instead of the preset's.")
@click.option(
    "--samples", type=click.IntRange(min=1), default=500, show_default=True, help="Importance samples per image."
)
@told
def demo(out: Path, epochs: int | None, samples: int) -> None:
    """Train small VAEs with four posteriors on embedded digits; ends with a table and a plot.

    A row that is finished is kept, and one that was interrupted is resumed.
    """
    from pyro_flows_vi import datasets
    from pyro_flows_vi.vae import finish_row, plot_curves, record_path, render_table

    started = time.perf_counter()
    overrides = {} if epochs is None else {"max_epochs": epochs, "warmup_epochs": min(20, epochs // 2)}
    data = datasets.load("digits")
    with _one_thread():
        for name in DEMO_ROWS:
            if not finish_row(data, "demo", name, out, samples, overrides=overrides):
                echo_kept(name, record_path(out, "demo", name, data.name))
    table = render_table(out, style="text")
    click.echo("\n" + table)
    plot = plot_curves(out, out / "curves.png")
    click.echo(f"records and checkpoints: {out}\nplot: {plot}\n{time.perf_counter() - started:.0f} s in all")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread inside: the demo's tensors are tiny, and on a busy machine a second one slows it several times."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
