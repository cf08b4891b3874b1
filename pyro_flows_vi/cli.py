"""The command line: ``pyro-flows-vi demo`` and ``pyro-flows-vi vae train | evaluate | table``."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pyro_flows_vi import __version__

__all__ = ["main"]

#: where the committed records are, seen from the root of a checkout
RECORDS = Path("docs") / "records" / "vae"
DEMO_ROWS = ("none", "planar-10", "sylvester-triangular", "iaf")

F = TypeVar("F", bound=Callable[..., Any])


class _BadInput(click.ClickException):
    exit_code = 2


def _told(command: F) -> F:
    """Turn the library's errors into a message and exit code 2, and an interruption into 130."""

    @functools.wraps(command)
    def told(*args: Any, **kwargs: Any) -> Any:
        from pyro_flows_vi.vae import TrainingInterrupted

        try:
            return command(*args, **kwargs)
        except (ValueError, OSError) as error:
            raise _BadInput(str(error)) from error
        except TrainingInterrupted as stop:
            click.echo(f"\n{stop}", err=True)
            raise SystemExit(130) from stop

    return told  # type: ignore[return-value]


def _data_options(command: F) -> F:
    data = click.option(
        "--data",
        default="mnist",
        show_default=True,
        help="Data set: mnist, static_mnist, freyfaces or digits (which needs no file).",
    )
    folder = click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        help="Folder with the data files; else PYRO_FLOWS_VI_DATA, else a download.",
    )
    return data(folder(command))


def _device(context: click.Context, option: click.Parameter, name: str | None) -> str | None:
    """The name of a device that torch has on this machine."""
    import torch

    if name is not None:
        try:
            torch.empty(0, device=name)
        except (AssertionError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise click.BadParameter(f"expected a device of this machine, got {name!r}: {reason}") from error
    return name


def _settings(assignments: tuple[str, ...]) -> dict[str, Any]:
    """``name=value`` pairs, with values as JSON where they are JSON and as text otherwise."""
    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, sign, value = assignment.partition("=")
        if not sign or not name:
            raise ValueError(f"expected name=value, got {assignment!r}")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
        if isinstance(settings[name], list):
            settings[name] = tuple(settings[name])
    return settings


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pyro-flows-vi")
def main() -> None:
    """Normalizing flows for variational inference in Pyro."""


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder for records, checkpoints, table and plot.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Epochs for each row, instead of the preset's.")
@click.option(
    "--samples", type=click.IntRange(min=1), default=500, show_default=True, help="Importance samples per image."
)
@_told
def demo(out: Path, epochs: int | None, samples: int) -> None:
    """Train small VAEs with four posteriors on embedded digits; ends with a table and a plot.

    A row that is finished is kept, and one that was interrupted is resumed.
    """
    from pyro_flows_vi import datasets
    from pyro_flows_vi.vae import plot_curves, render_table

    started = time.perf_counter()
    overrides = {} if epochs is None else {"max_epochs": epochs, "warmup_epochs": min(20, epochs // 2)}
    data = datasets.load("digits")
    for name in DEMO_ROWS:
        _finish_row(data, "demo", name, out, samples, 0, overrides, None)
    table = render_table(out, style="text")
    click.echo("\n" + table)
    plot = plot_curves(out, out / "curves.png")
    click.echo(f"records and checkpoints: {out}\nplot: {plot}\n{time.perf_counter() - started:.0f} s in all")


@main.group()
def vae() -> None:
    """Variational autoencoders with flow posteriors: train, evaluate, and print the table."""


@vae.command()
@click.argument("row")
@click.option("--protocol", default="mlp", show_default=True, help="Preset: mlp, gated-conv or demo.")
@_data_options
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/vae"),
    show_default=True,
    help="Folder for the record and the checkpoint.",
)
@click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Override a field of the protocol.")
@click.option("--flow", "options", multiple=True, metavar="NAME=VALUE", help="Set an option of the row's flow.")
@click.option("--num-transforms", type=int, help="Number of flow steps, instead of the row's.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint, where there is one.")
@click.option("--overwrite", is_flag=True, help="Replace an older run.")
@click.option("--device", callback=_device, help="cpu or cuda; the GPU where there is one by default.")
@_told
def train(
    row: str,
    protocol: str,
    data: str,
    data_dir: Path | None,
    seed: int,
    out: Path,
    overrides: tuple[str, ...],
    options: tuple[str, ...],
    num_transforms: int | None,
    resume: bool,
    overwrite: bool,
    device: str | None,
) -> None:
    """Train one ROW of the table (none, planar-10, iaf, ...) and write its record.

    Ctrl-C saves the state; the same command with --resume ends with the same bits.
    """
    from pyro_flows_vi import datasets
    from pyro_flows_vi.vae import train_row

    path = train_row(
        datasets.load(data, data_dir),
        protocol,
        row,
        out,
        seed=seed,
        overrides=_settings(overrides),
        num_transforms=num_transforms,
        flow_options=_settings(options),
        resume=resume,
        overwrite=overwrite,
        device=device,
    )
    where = "" if data_dir is None else f" --data-dir {data_dir}"
    click.echo(f"record: {path}\nnext: pyro-flows-vi vae evaluate {path} --data {data}{where}")


@vae.command()
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@_data_options
@click.option(
    "--samples", type=click.IntRange(min=1), default=5000, show_default=True, help="Importance samples per image."
)
@click.option("--images", type=click.IntRange(min=2), help="Only the first so many test images.")
@click.option("--seed", default=0, show_default=True, help="Seed of the draws.")
@click.option("--device", callback=_device, help="cpu or cuda; the GPU where there is one by default.")
@_told
def evaluate(
    records: tuple[Path, ...],
    data: str,
    data_dir: Path | None,
    samples: int,
    images: int | None,
    seed: int,
    device: str | None,
) -> None:
    """Estimate the test NLL of trained rows, given by their RECORDS, and add it to them."""
    from pyro_flows_vi import datasets
    from pyro_flows_vi.vae import evaluate_row

    loaded = datasets.load(data, data_dir)
    for path in records:
        record = evaluate_row(path, loaded, samples, seed=seed, max_images=images, device=device)
        results = record["results"]
        click.echo(
            f"{record['row']}: -ELBO {results['negative_elbo']:.2f} ± {results['negative_elbo_se']:.2f}, "
            f"NLL {results['nll']:.2f} ± {results['nll_se']:.2f} nats ({samples} samples)"
        )


@vae.command()
@click.option(
    "--records",
    type=click.Path(path_type=Path),
    default=RECORDS,
    show_default=True,
    help="Folder with the records of one protocol and data set.",
)
@_data_options
@click.option("--train-missing", is_flag=True, help="First train and evaluate the rows without a result.")
@click.option("--row", "rows", multiple=True, help="With --train-missing: only this row; may be repeated.")
@click.option("--protocol", default="mlp", show_default=True, help="With --train-missing: the preset.")
@click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="With --train-missing: as in train.")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=5000,
    show_default=True,
    help="With --train-missing: as in evaluate.",
)
@click.option("--seed", default=0, show_default=True, help="With --train-missing: seed of the runs.")
@click.option("--device", callback=_device, help="cpu or cuda; the GPU where there is one by default.")
@click.option("--style", type=click.Choice(["text", "markdown"]), default="text", show_default=True)
@click.option("--write", type=click.Path(path_type=Path), help="Also write the table, as Markdown, to this file.")
@_told
def table(
    records: Path,
    data: str,
    data_dir: Path | None,
    train_missing: bool,
    rows: tuple[str, ...],
    protocol: str,
    overrides: tuple[str, ...],
    samples: int,
    seed: int,
    device: str | None,
    style: str,
    write: Path | None,
) -> None:
    """Print the table that the records make, beside the published rows of the same protocol.

    With --data-dir the records are first compared with the data there. With --train-missing one command makes the
    whole table; rows that are finished are kept, and interrupted ones resumed.
    """
    from pyro_flows_vi import datasets
    from pyro_flows_vi.infer.checkpoint import differences, write_atomically
    from pyro_flows_vi.vae import ROWS, load_records, render_table

    if train_missing:
        loaded = datasets.load(data, data_dir)
        for name in rows or ROWS:
            _finish_row(loaded, protocol, name, records, samples, seed, _settings(overrides), device)
    elif data_dir is not None:
        description = datasets.load(data, data_dir).describe()
        for record in load_records(records):
            changed = differences(record["data"], description)
            if changed:
                raise ValueError(f"{records}: the record of {record['row']!r} is of other data: {'; '.join(changed)}")
        click.echo(f"the records in {records} are of the data in {data_dir}\n")
    click.echo(render_table(records, style=style))
    if write is not None:
        write_atomically(write, render_table(records, style="markdown").encode())


def _finish_row(
    data: Any, protocol: str, name: str, folder: Path, samples: int, seed: int, overrides: dict[str, Any], device: Any
) -> None:
    """Train and evaluate a row, unless its record has a result already."""
    from pyro_flows_vi.vae import evaluate_row, load_record, record_path, train_row

    path = record_path(folder, protocol, name, data.name, seed)
    if path.exists() and load_record(path)["results"] is not None:
        click.echo(f"{name}: finished before, kept ({path})")
        return
    train_row(data, protocol, name, folder, seed=seed, overrides=overrides, resume=True, device=device)
    evaluate_row(path, data, samples, device=device)
