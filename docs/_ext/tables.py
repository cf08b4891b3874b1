"""Sphinx extension: writes the generated parts of the pages, from the code and from committed tables."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from click.testing import CliRunner
from sphinx.application import Sphinx
from sphinx.util import logging

from pyro_flows_vi import cli, flows
from pyro_flows_vi.testing import check_flow
from pyro_flows_vi.vae.protocols import PROTOCOLS, SOURCES, Protocol

logger = logging.getLogger(__name__)

PROGRAM = "pyro-flows-vi"
DIM = 10
CHECKED_DIM = 3
#: scripts of `examples` whose records are shown
EXAMPLES = ("eight_schools", "logistic_regression", "radon", "neutra")
STEPS = 4
#: families of which more than the default is checked for the table of errors
FORMS: dict[str, tuple[dict[str, Any], ...]] = {
    "sylvester": ({"form": "orthogonal"}, {"form": "householder"}, {"form": "triangular"}),
    "iaf": ({}, {"gated": True}),
    # networks that, at parameters of N(0, 2^2), have a Jacobian that float64 knows to the checks' tolerance
    "glow": ({"hidden_channels": 8},),
    "maf-mog": ({"hidden_dims": (6,), "components": 4},),
    "mixture-cdf": ({"hidden_dims": (6,)},),
    # at a tolerance below that of the checks, on a path that is solved while the pages are built
    "ffjord": ({"hidden_dims": (6,), "tolerance": 1e-10, "time": 0.05},),
}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def class_link(cls: type) -> str:
    return f"{{class}}`~{cls.__module__}.{cls.__qualname__}`"


def flow_table() -> str:
    """What each recipe of the registry declares, and how many parameters its default chain has."""
    rows = []
    for name in flows.names():
        flow = flows.build(name, DIM, num_transforms=STEPS)
        recipe = flows.describe(name)
        rows.append(
            [
                f"`{name}`",
                class_link(recipe.layer),
                "one pass" if flow.fast_forward else "sequential or iterative",
                "one pass" if flow.fast_inverse else "sequential or iterative",
                "exact" if flow.exact_log_det else "estimated in training",
                f"{sum(p.numel() for p in flow.parameters()):,}",
                recipe.source,
            ]
        )
    parameters = f"parameters (D = {DIM}, {STEPS} steps)"
    header = [
        "name",
        "one step",
        "sample: forward",
        "score data: inverse",
        "log-determinant",
        parameters,
        "source",
    ]
    return markdown_table(header, rows)


def error_cases() -> list[tuple[str, dict[str, Any]]]:
    """The families, and those of their forms that are checked one by one."""
    return [(name, options) for name in flows.names() for options in FORMS.get(name, ({},))]


def error_table() -> str:
    """The worst error of each family in the property checks, found while the pages are built."""
    rows = []
    for name, options in error_cases():
        worst: dict[str, float] = {}
        for context_dim in (None, 2):
            torch.manual_seed(0)
            flow = flows.build(name, CHECKED_DIM, context_dim=context_dim, num_transforms=1, **options)
            # A product of layers at N(0, 2^2) has a Jacobian that float64 knows less well than the checks ask.
            scales = (None, 0.5) if flows.describe(name).linear or name == "maf-mog" else (None, 0.5, 2.0)
            for check, error in check_flow(flow, scales=scales).items():
                worst[check] = max(error, worst.get(check, 0.0))
        checks = ("check_log_det", "check_inverse", "check_inverse_gradients")
        shown = f"`{name}`" + "".join(f", {option}={value!r}" for option, value in options.items())
        rows.append([shown, *(f"{worst[check]:.1e}" if worst[check] else "0" for check in checks)])
    return markdown_table(["flow", "log-determinant", "inverse", "gradients through the inverse"], rows)


def protocol_table() -> str:
    """What each preset says of network, optimiser and schedule."""
    header = ["name", "network", "latent", "batch", "optimiser", "warm-up", "stops after", "source"]
    return markdown_table(header, (protocol_row(preset) for preset in PROTOCOLS.values()))


def protocol_row(preset: Protocol) -> list[str]:
    widths = "–".join(map(str, preset.hidden_dims))
    network = {
        "mlp": f"gated dense layers {widths} on both sides",
        "gated-conv": f"gated convolutions on both sides, {widths} features",
    }[preset.network]
    falling = f" falling to {preset.final_learning_rate:g}" if preset.schedule == "cosine" else ""
    return [
        f"`{preset.name}`",
        network,
        str(preset.latent_dim),
        str(preset.batch_size),
        f"{preset.optimiser.capitalize()}, {preset.learning_rate:g}{falling}",
        f"{preset.warmup_epochs} epochs",
        f"{preset.early_stop_epochs} epochs without improvement, or {preset.max_epochs} in all",
        SOURCES[preset.name],
    ]


def command_help(command: click.Command, *path: str) -> Iterator[str]:
    """The help text of a command and of those below it, as a terminal shows it, one block each."""
    shown = CliRunner().invoke(cli.main, [*path, "--help"], prog_name=PROGRAM, terminal_width=100)
    assert shown.exit_code == 0, shown.output
    yield f"### `{' '.join([PROGRAM, *path])}`\n\n```text\n{shown.output}```\n"
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from command_help(child, *path, name)


def committed(docs: Path, name: str) -> str:
    """A table that a command made from records, as it was committed."""
    path = docs / f"{name}.md"
    if path.exists():
        return path.read_text(encoding="utf-8")
    return f"No table has been committed yet: `docs/{name}.md` is made by the command above.\n"


def example_part(docs: Path, name: str) -> str:
    """The figure and the table of an example, from the record that it left."""
    path = docs / "records" / "posteriors" / "examples" / f"{name}.json"
    if not path.exists():
        command = f"python -m examples.{name} --out docs/images --record docs/records/posteriors/examples"
        return f"No record has been committed yet: `{command}` makes it.\n"
    record = json.loads(path.read_text(encoding="utf-8"))
    fit, options = record["fit"], record["options"]
    notes = [f"{fit['steps']} steps ({fit['stop_reason']})"]
    if "verdict" in record:
        notes += [f"k-hat {record['khat']:.2f}", f"{record['ess']:.0f} effective draws of {record['num_draws']:,}"]
        notes += [f"verdict: {record['verdict']}", f"reference: {record['reference']}"]
    for who, chain in record.get("chains", {}).items():
        size = "unknown" if chain["ess"] is None else f"{chain['ess']:.0f}"
        notes.append(f"{who}: {chain['divergences']} divergences in {options['draws']:,} draws, effective size {size}")
    if "worst" in record:
        notes.append(f"largest shift of a mean among all scalars: {record['worst']['shift']:.2f} sds")
    image = f"![{name}](images/{name}.png)\n\n" if (docs / "images" / f"{name}.png").exists() else ""
    return f"{image}{example_table(record)}\nSeed {options['seed']}; {'; '.join(notes)}.\n"


def example_table(record: dict[str, Any]) -> str:
    """The guide's scalars beside those of NUTS, or quantiles beside known ones."""
    if "quantiles" in record:
        header = ["quantiles of v", *(f"{level:.0%}" for level in record["levels"])]
        rows = record["quantiles"].items()
        return markdown_table(header, ([name, *(f"{value:.2f}" for value in row)] for name, row in rows))
    header = ["scalar", "guide", "NUTS", "shift of the mean", "ratio of sds"]
    rows = [
        [
            f"`{label}`",
            f"{row['guide_mean']:.4g} ± {row['guide_sd']:.3g}",
            f"{row['nuts_mean']:.4g} ± {row['nuts_sd']:.3g}",
            f"{row['shift']:+.2f} sds",
            f"{math.exp(row['log_sd_ratio']):.2f}",
        ]
        for label, row in record["scalars"].items()
    ]
    return markdown_table(header, rows)


def write_tables(app: Sphinx) -> None:
    docs = Path(app.srcdir)
    logger.info("checking every flow of the registry for its table")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = {
            "flows": flow_table(),
            "errors": error_table(),
            "protocols": protocol_table(),
            "commands": "\n".join(command_help(cli.main)),
            "vae_table": committed(docs, "vae_table"),
            "density_table": committed(docs, "density_table"),
            "performance_table": committed(docs, "performance_table"),
            **{f"example_{name}": example_part(docs, name) for name in EXAMPLES},
        }
    folder = docs / "generated"
    folder.mkdir(exist_ok=True)
    for name, text in parts.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write_tables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
