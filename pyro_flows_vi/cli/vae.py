"""``pyro-flows-vi vae``: train rows of the table, evaluate them, and print the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pyro_flows_vi.cli.common import (
    FOLDER,
    choices_told,
    data_options,
    device_option,
    echo_kept,
    settings,
    shared,
    told,
)

__all__ = ["RECORDS", "vae"]

#: where the committed records are, seen from the root of a checkout
RECORDS = Path("docs") / "records" / "vae"


@click.group()
def vae() -> None:
    """Variational autoencoders with flow posteriors: train, evaluate, and print the table."""


@vae.command()
@click.argument("row")
@click.option("--protocol", default="mlp", show_default=True, help="Preset: mlp, gated-conv or demo.")
@data_options
@click.option(
    "--seed",
    "seeds",
    type=int,
    multiple=True,
    default=(0,),
    show_default=True,
    help="May be repeated: the seeds are then trained as one program, with a record each.",
)
@click.option(
    "--out",
    type=FOLDER,
    default=Path("runs/vae"),
    show_default=True,
    help="Folder for the record and the checkpoint.",
)
@click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Override a field of the protocol.")
@click.option("--flow", "options", multiple=True, metavar="NAME=VALUE", help="Set an option of the row's flow.")
@click.option("--num-transforms", type=int, help="Number of flow steps, instead of the row's.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint, where there is one.")
@click.option("--overwrite", is_flag=True, help="Replace an older run.")
@click.option(
    "--compile",
    "mode",
    type=click.Choice(["no", "auto", "trace", "inductor", "cudagraph"]),
    default="no",
    show_default=True,
    help="Run each step as one graph; auto measures what pays, and says so.",
)
@device_option()
@told
@shared
def train(
    row: str,
    protocol: str,
    data: str,
    data_dir: Path | None,
    seeds: tuple[int, ...],
    out: Path,
    overrides: tuple[str, ...],
    options: tuple[str, ...],
    num_transforms: int | None,
    resume: bool,
    overwrite: bool,
    mode: str,
    device: str | None,
) -> None:
    """Train one ROW of the table (none, planar-10, iaf, ...) and write its record.

    Ctrl-C saves the state; the same command with --resume ends with the same bits. Processes that torchrun started
    share every minibatch of one seed.
    """
    from pyro_flows_vi import datasets
    from pyro_flows_vi.infer.parallel import join
    from pyro_flows_vi.vae import train_row, train_row_seeds

    ranks = join()
    with choices_told():
        common: dict[str, Any] = {
            "overrides": settings(overrides),
            "num_transforms": num_transforms,
            "flow_options": settings(options),
            "resume": resume,
            "overwrite": overwrite,
            "compile": False if mode == "no" else mode,
            "device": device,
        }
        loaded = ranks.after_first(lambda: datasets.load(data, data_dir))
        if len(seeds) == 1:
            paths = [train_row(loaded, protocol, row, out, seed=seeds[0], **common)]
        else:
            paths = train_row_seeds(loaded, protocol, row, out, seeds=seeds, **common)
    where = "" if data_dir is None else f" --data-dir {data_dir}"
    if ranks.first:
        for path in paths:
            click.echo(f"record: {path}")
        click.echo(f"next: pyro-flows-vi vae evaluate {' '.join(map(str, paths))} --data {data}{where}")


@vae.command()
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@data_options
@click.option(
    "--samples", type=click.IntRange(min=1), default=5000, show_default=True, help="Importance samples per image."
)
@click.option("--images", type=click.IntRange(min=2), help="Only the first so many test images.")
@click.option("--seed", default=0, show_default=True, help="Seed of the draws.")
@device_option()
@told
@shared
def evaluate(
    records: tuple[Path, ...],
    data: str,
    data_dir: Path | None,
    samples: int,
    images: int | None,
    seed: int,
    device: str | None,
) -> None:
    """Estimate the test NLL of trained rows, given by their RECORDS, and add it to them.

    Processes that torchrun started share the images.
    """
    from pyro_flows_vi import datasets
    from pyro_flows_vi.infer.parallel import join
    from pyro_flows_vi.vae import evaluate_row

    ranks = join()
    loaded = ranks.after_first(lambda: datasets.load(data, data_dir))
    for path in records:
        record = evaluate_row(path, loaded, samples, seed=seed, max_images=images, device=device)
        results = record["results"]
        if ranks.first:
            click.echo(
                f"{record['row']}: -ELBO {results['negative_elbo']:.2f} ± {results['negative_elbo_se']:.2f}, "
                f"NLL {results['nll']:.2f} ± {results['nll_se']:.2f} nats ({samples} samples)"
            )


@vae.command()
@click.option(
    "--records",
    type=FOLDER,
    default=RECORDS,
    show_default=True,
    help="Folder with the records of one protocol and data set.",
)
@data_options
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
@click.option("--seed", default=0, show_default=True, help="With --train-missing: of runs and draws.")
@device_option()
@click.option("--style", type=click.Choice(["text", "markdown"]), default="text", show_default=True)
@click.option(
    "--write", type=click.Path(dir_okay=False, path_type=Path), help="Also write the table, as Markdown, to this file."
)
@told
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
    whole table; rows that are finished as asked are kept, and interrupted ones resumed.
    """
    from pyro_flows_vi import datasets
    from pyro_flows_vi.infer.checkpoint import differences, write_atomically
    from pyro_flows_vi.vae import ROWS, finish_row, load_records, record_path, render_table

    if not train_missing and (rows or overrides):
        raise ValueError("--row and --set say what to train: give them with --train-missing")
    if train_missing:
        loaded = datasets.load(data, data_dir)
        for name in rows or ROWS:
            if not finish_row(
                loaded, protocol, name, records, samples, seed=seed, overrides=settings(overrides), device=device
            ):
                echo_kept(name, record_path(records, protocol, name, loaded.name, seed))
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
