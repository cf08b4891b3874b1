"""``pyro-flows-vi posterior``: the posterior of a user's model, from a file to NetCDF and a page."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pyro_flows_vi.cli.common import FOLDER, device_option, settings, told

__all__ = ["posterior"]

#: settings of `fit` that a word can express, with the type of each
FIT_SETTINGS: dict[str, tuple[type, ...]] = {
    "objective": (str,),
    "num_particles": (int,),
    "max_steps": (int,),
    "learning_rate": (float, int),
    "clip_norm": (float, int),
    "start": (str,),
    "restarts": (int,),
    "max_skipped": (int,),
    "checkpoint_every": (int,),
    "dtype": (str,),
}
OBJECTIVES = ("ELBO", "PathELBO", "IWELBO", "DReG", "Renyi")
DTYPES = ("float32", "float64")
INTERRUPTED = 130


@click.command()
@click.argument("model", metavar="MODULE:FUNCTION")
@click.option(
    "--data",
    multiple=True,
    metavar="[NAME=]FILE[:COLUMNS]",
    help="Arguments of the model from a .csv, .npz, .npy or .json file; may be repeated.",
)
@click.option("--args", "source", metavar="MODULE:FUNCTION", help="Arguments of the model from a function.")
@click.option("--flow", help="Family of the flow, instead of the default of AutoFlow.")
@click.option("--num-transforms", type=click.IntRange(min=1), help="Number of flow steps, instead of the family's.")
@click.option("--flow-option", "options", multiple=True, metavar="NAME=VALUE", help="Set an option of the flow.")
@click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Set an argument of fit.")
@click.option("--seed", default=0, show_default=True, help="Seed of all draws.")
@click.option(
    "--draws", type=click.IntRange(min=1), default=1000, show_default=True, help="Draws in posterior.nc and its plots."
)
@click.option(
    "--weighted-draws", type=click.IntRange(min=100), default=4000, show_default=True, help="Draws of the diagnosis."
)
@click.option(
    "--resample/--no-resample",
    default=None,
    help="Importance resampling of the draws in posterior.nc; as the verdict says by default.",
)
@click.option("--out", type=FOLDER, default=Path("runs/posterior"), show_default=True, help="Folder for the results.")
@click.option("--checkpoint", type=click.Path(dir_okay=False, path_type=Path), help="Instead of OUT/checkpoint.pt.")
@click.option("--resume", is_flag=True, help="Go on with the run in OUT, where there is one.")
@click.option("--overwrite", is_flag=True, help="Replace an older run in OUT.")
@device_option("Where the arguments of the model are, and it runs: cpu or cuda.", default="cpu", show_default=True)
@click.option("--progress/--no-progress", default=True, show_default=True, help="Show a progress bar.")
@told
def posterior(
    model: str,
    data: tuple[str, ...],
    source: str | None,
    flow: str | None,
    num_transforms: int | None,
    options: tuple[str, ...],
    overrides: tuple[str, ...],
    seed: int,
    draws: int,
    weighted_draws: int,
    resample: bool | None,
    out: Path,
    checkpoint: Path | None,
    resume: bool,
    overwrite: bool,
    device: str,
    progress: bool,
) -> None:
    """Fit a flow guide to the Pyro model that MODULE:FUNCTION or path/to/file.py:FUNCTION names, and diagnose it.

    The values of the model's arguments have their names: the columns of a CSV file, the arrays of an NPZ file, the keys
    of a JSON object. NAME=FILE.csv:AGE,BMI is a matrix of these columns, and NAME=FILE.csv:AGE one of them. Or
    --args names a function that returns them, as a dict, or in their order; without both, it is a function called
    "data" beside the model, if there is one.

    OUT gets guide.pt (the parameters), report.json (all numbers), report.html (a page with plots) and posterior.nc
    (ArviZ). Each is written as soon as it is known. Ctrl-C keeps the state of the fit, and --resume goes on.
    """
    import torch

    from pyro_flows_vi.cli._arguments import bind, describe, load_function, read_data, read_function
    from pyro_flows_vi.cli._run import Run
    from pyro_flows_vi.numerics.new_tensors import precision

    if data and source is not None:
        raise ValueError("expected the arguments from --data or from --args, got both")
    chosen = fit_settings(overrides)
    with precision(getattr(torch, chosen.get("dtype", "float32"))):
        function, module = load_function(model)
        if not data and source is None and callable(getattr(module, "data", None)) and _needs_arguments(function):
            source = f"{model.rpartition(':')[0]}:data"
        given = read_data(data) if source is None else read_function(source)
    args, kwargs, left = bind(function, given)
    if left:
        click.echo(f"not used, as the model has no such argument: {', '.join(left)}", err=True)
    asked = {
        "model": model,
        "arguments": describe(function, args, kwargs),
        "flow": flow,
        "num_transforms": num_transforms,
        "flow_options": settings(options),
        "fit": chosen,
        "seed": seed,
    }
    run = Run(function, args, kwargs, asked, out, checkpoint or out / "checkpoint.pt", device)
    run.open(resume, overwrite)
    result = run.fit(progress)
    click.echo(str(result))
    if result.stop_reason == "interrupted":
        click.echo(f"\ninterrupted: the state is in {run.checkpoint}, and --resume goes on from there", err=True)
        raise SystemExit(INTERRUPTED)
    report = run.diagnose(weighted_draws)
    click.echo(f"\n{report}\n")
    if resample is None:
        resample = report.resampling_helps
    write_netcdf(out / "posterior.nc", run.export(draws, resample))
    run.finish(draws, resample)
    click.echo(f"posterior: {out / 'posterior.nc'}{' (importance resampled)' if resample else ''}")
    click.echo(f"page: {out / 'report.html'}\nnumbers: {out / 'report.json'}\nverdict: {report.verdict}")


def _needs_arguments(function: Callable[..., Any]) -> bool:
    import inspect

    return bool(inspect.signature(function).parameters)


def fit_settings(overrides: tuple[str, ...]) -> dict[str, Any]:
    """``name=value`` words as arguments of ``fit``, still as JSON values.

    Raises:
        ValueError: for a name that is none, and a value of another type.
    """
    found = settings(overrides)
    for name, value in found.items():
        types = FIT_SETTINGS.get(name)
        if types is None:
            raise ValueError(f"fit has no setting {name!r} here: expected one of {', '.join(FIT_SETTINGS)}")
        if not isinstance(value, types) or isinstance(value, bool):
            raise ValueError(f"expected {name} to be of type {types[0].__name__}, got {value!r}")
        if isinstance(value, int | float) and not value > 0:
            raise ValueError(f"expected {name} to be positive, got {value!r}")
    for name, words in (("objective", OBJECTIVES), ("dtype", DTYPES)):
        if found.get(name, words[0]) not in words:
            raise ValueError(f"expected {name} to be one of {', '.join(words)}, got {found[name]!r}")
    return found


def write_netcdf(path: Path, groups: Any) -> None:
    """Write ArviZ data whole or not at all."""
    from pyro_flows_vi.infer import write_atomically

    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / path.name
        try:
            groups.to_netcdf(str(part))
        except ImportError as error:
            raise ValueError(f"{path} cannot be written without a package for NetCDF: pip install h5netcdf") from error
        write_atomically(path, part.read_bytes())
