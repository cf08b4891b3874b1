"""``pyro-flows-vi density``: fit flows to targets, tables and images, evaluate them, and print the tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pyro_flows_vi.cli.common import FOLDER, device_option, settings, told

__all__ = ["RECORDS", "density"]

#: where the committed records are, seen from the root of a checkout
RECORDS = Path("docs") / "records" / "density"


@click.group()
def density() -> None:
    """Densities learned from data: train flows, evaluate them, and print the tables."""


def _folder_option(command: Callable[..., Any]) -> Callable[..., Any]:
    text = "Folder with the data files of tables and images; else PYRO_FLOWS_VI_DATA."
    return click.option("--data-dir", type=click.Path(path_type=Path), help=text)(command)


@density.command()
@click.argument("data")
@click.option("--flow", default="nsf", show_default=True, help="Family of the flow.")
@click.option(
    "--num-transforms", type=click.IntRange(min=1), default=5, show_default=True, help="Number of flow steps."
)
@click.option("--flow-option", "options", multiple=True, metavar="NAME=VALUE", help="Set an option of the flow.")
@click.option(
    "--objective",
    type=click.Choice(["likelihood", "reverse-kl"]),
    default="likelihood",
    show_default=True,
    help="What is fitted: the data, or the known density of a target by KL(q‖p).",
)
@click.option("--name", help="Name of the row in the table, instead of the flow's.")
@click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Set a field of the fit's settings.")
@click.option("--logit-level", type=float, help="Of images: the level of the logit; 1e-6 for mnist, else 0.05.")
@click.option(
    "--dequantisation", type=click.Choice(["uniform", "variational"]), help="Of images: the noise; uniform by default."
)
@_folder_option
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--out", type=FOLDER, default=Path("runs/density"), show_default=True, help="Folder for record and density."
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint, where there is one.")
@click.option("--overwrite", is_flag=True, help="Replace an older run.")
@device_option()
@told
def train(
    data: str,
    flow: str,
    num_transforms: int,
    options: tuple[str, ...],
    objective: str,
    name: str | None,
    overrides: tuple[str, ...],
    logit_level: float | None,
    dequantisation: str | None,
    data_dir: Path | None,
    seed: int,
    out: Path,
    resume: bool,
    overwrite: bool,
    device: str | None,
) -> None:
    """Fit a flow to DATA and write the record.

    DATA is a target in the plane (moons, rings, checkerboard, gaussians, pinwheel, spirals, u1, u2, u3, u4), a table
    (power, gas, hepmass, miniboone, bsds300; breast_cancer and wine need no file) or images (mnist, freyfaces; digits
    need no file). Ctrl-C saves the state; the same command with --resume ends with the same bits.
    """
    from pyro_flows_vi.density.problems import load_problem
    from pyro_flows_vi.density.runs import train_run

    pixels = {"logit_level": logit_level, "dequantisation": dequantisation}
    path = train_run(
        load_problem(data, data_dir),
        flow,
        out,
        name=name,
        num_transforms=num_transforms,
        flow_options=settings(options),
        objective=objective,
        images={key: value for key, value in pixels.items() if value is not None},
        settings=settings(overrides),
        seed=seed,
        resume=resume,
        overwrite=overwrite,
        device=device,
    )
    where = "" if data_dir is None else f" --data-dir {data_dir}"
    click.echo(f"record: {path}\nnext: pyro-flows-vi density evaluate {path}{where}")


@density.command()
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@_folder_option
@click.option(
    "--samples", type=click.IntRange(min=1), default=1, show_default=True, help="Draws of the noise for each image."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the draws.")
@click.option("--plot", is_flag=True, help="Also draw density and samples, beside the record.")
@device_option()
@told
def evaluate(
    records: tuple[Path, ...], data_dir: Path | None, samples: int, seed: int, plot: bool, device: str | None
) -> None:
    """Score the test rows with fitted densities, given by their RECORDS, and add the results to them."""
    from pyro_flows_vi.density.plot import plot_density
    from pyro_flows_vi.density.problems import load_problem
    from pyro_flows_vi.density.records import load_record
    from pyro_flows_vi.density.runs import evaluate_run, load_run
    from pyro_flows_vi.density.table import cell

    for path in records:
        problem = load_problem(load_record(path)["data"]["name"], data_dir)
        record = evaluate_run(path, problem, num_samples=samples, seed=seed, device=device)
        results = record["results"]
        line = f"{record['data']['name']}, {record['row']}: {cell('nats', results['nats'], results['nats_se'])} nats"
        for field, words in (("kl_forward", "KL(p‖q)"), ("kl_reverse", "KL(q‖p)"), ("bits_per_dim", "bits/dim")):
            if results.get(field) is not None:
                line += f", {words} {cell(field, results[field], results[f'{field}_se'])}"
        click.echo(line)
        if plot:
            drawn = plot_density(load_run(path, problem), problem, path.with_suffix(".png"), seed=seed)
            click.echo(f"plot: {drawn}")


@density.command()
@click.option("--records", type=FOLDER, default=RECORDS, show_default=True, help="Folder with the records.")
@click.option("--style", type=click.Choice(["text", "markdown"]), default="text", show_default=True)
@click.option(
    "--write", type=click.Path(dir_okay=False, path_type=Path), help="Also write the tables, as Markdown, to this file."
)
@told
def table(records: Path, style: str, write: Path | None) -> None:
    """Print the tables that the records make, each beside the published rows of the same protocol."""
    from pyro_flows_vi.density.table import render_tables
    from pyro_flows_vi.infer.checkpoint import write_atomically

    click.echo(render_tables(records, style=style))
    if write is not None:
        write_atomically(write, render_tables(records, style="markdown").encode())
