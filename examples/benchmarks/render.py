"""The tables of the documentation, from the records of the benchmarks."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from growth_figure import STYLES, draw_growth
from measure import RECORDS

from pyro_flows_vi.infer.checkpoint import write_atomically

IMAGES = RECORDS.parents[1] / "images"
CLOCKS = {"process_time": "processor time of one thread", "perf_counter": "time of day"}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows])


def setting(record: dict[str, Any]) -> str:
    machine = record["machine"]
    versions = {**machine["versions"], "pyro-flows-vi": record["version"]}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"Machine: {machine['machine']}, {machine['cores']} cores, {machine['threads']} in use; "
        f"Python {machine['python']}; {listed}."
    )


def grid(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line for each family: the ratio at every dimension with the fastest peer, and their median."""
    dims = sorted({row["dim"] for row in rows})
    cells = {(row["family"], row["dim"]): row for row in rows}
    lines = []
    for family in dict.fromkeys(row["family"] for row in rows):
        found = [cells.get((family, dim)) for dim in dims]
        shown = ["–" if row is None else f"{row['ratio']:.2f} ({row['fastest_peer']})" for row in found]
        median = statistics.median(row["ratio"] for row in found if row is not None)
        lines.append([family, *shown, f"{median:.2f}"])
    return lines


def layers(record: dict[str, Any]) -> str:
    rows = record["rows"]
    dims, lines = sorted({row["dim"] for row in rows}), grid(rows)
    overall = statistics.median(row["ratio"] for row in rows)
    wrapped = statistics.median(row["ratio_as_torch_transform"] for row in rows)
    text = f"""## One layer

{table(["family", *(f"D = {dim}" for dim in dims), "median"], lines)}

A *ratio* is our time over that of the fastest peer, which is named in brackets: below 1 we are faster. Each is
the median over turns that the competitors took one after the other in one run ({CLOCKS[record["clock"]]}), for
forward, log-determinant and backward of {record["batch"]} points. The median of all ratios is {overall:.2f}; through
torch's interface for transforms, which looks for NaN and inf on the way, it is {wrapped:.2f}. Differences of
a tenth are within the noise.

Two rows do not compare like with like. Pyro's Sylvester flow returns a log-determinant that is wrong. And the
residual flow of normflows has only an estimator, which is compared with our exact log-determinant, the default,
and with an estimator of the same expected number of terms.
"""
    return text


def vae(record: dict[str, Any]) -> str:
    seconds = record["seconds"]
    steps = [[name, f"{1e3 * value:.2f}", f"{value / seconds['torch']:.2f}"] for name, value in seconds.items()]
    where = "on one GPU" if record.get("device", "cpu") != "cpu" else CLOCKS[record["clock"]]
    rows = [
        [f"{row['images']:,}", f"{row['samples']:,}", f"{row['peak_mib']:.0f}", f"{row['imported_mib']:.0f}"]
        for row in record["memory"]
    ]
    return f"""## A VAE

A training step of a 784-400-400-64 network on 100 images ({where}). *torch* is the same network in a plain loop, with
the divergence in closed form and nothing checked; *ours* is the training loop, with the norm of the gradient and its
checks, and the words after it are those of `compile`; *Pyro* is `SVI` on our model and guide.

{table(["step", "ms", "over torch"], steps)}

{table(["images", "samples", "peak MiB of `nll`", "MiB of the imports alone"], rows)}

The samples are taken in chunks of a fixed size, so the peak depends on that size and the number of images only;
hence the two rows bound 5000 samples of 10,000 images, which `--full` runs.
"""


def seeds(record: dict[str, Any]) -> str:
    modes = list(dict.fromkeys(name.split(",")[0] for name in record["rows"][0]["seconds"]))
    lines = []
    for row in record["rows"]:
        cells = []
        for mode in modes:
            alone, together = (row["seconds"][f"{mode}, {way}"] for way in ("one by one", "together"))
            cells += [f"{1e3 * alone:.2f}", f"{1e3 * together:.2f}", f"{together / alone:.2f}"]
        lines.append([row["model"], f"{row['parameters']:,}", *cells])
    header = [f"{mode}, {cell}" for mode in modes for cell in ("one by one", "together", "ratio")]
    where = "on one GPU" if record["device"] != "cpu" else CLOCKS[record["clock"]]
    return f"""## Several seeds of a VAE as one program

Milliseconds of a step of each of {record["seeds"]} seeds, on {record["batch"]} images each ({where}): those of as many
trainings one by one, and the one step of `train_seeds`. The named rows are those of the table, with the network of the
`demo` protocol (64 pixels, 64 hidden units); the last one is the network of the table above.

{table(["network", "parameters", *header], lines)}
"""


def elbo_steps(records: Sequence[dict[str, Any]]) -> str:
    """A table for each dimension, with a column for each number of particles."""
    tables = []
    for dim in sorted({record["dim"] for record in records}):
        cells = sorted((r for r in records if r["dim"] == dim), key=lambda record: record["particles"])
        rows = []
        for name in dict.fromkeys(name for record in cells for name in record["seconds"]):
            found = [(record["seconds"].get(name), record["seconds"][record["ours"]]) for record in cells]
            rows.append([name, *("–" if s is None else f"{1e3 * s:.2f} ({s / best:.2f})" for s, best in found)])
        counts = [f"{record['particles']:,} particle{'s' if record['particles'] > 1 else ''}" for record in cells]
        tables.append(f"### D = {dim}\n\n{table(['step', *counts], rows)}\n")
    reasons: dict[str, list[str]] = {}
    for record in records:
        for name, why in record["absent"].items():
            where = f"D = {record['dim']}, {record['particles']:,}"
            reasons.setdefault(f"{name}: {why}", []).append(where)
    missing = "".join(f"\n- {line} ({'; '.join(where)})" for line, where in sorted(reasons.items()))
    missing = f"\n\nNot there:\n{missing}\n" if missing else ""
    return f"""## A step of variational inference

Milliseconds of a step of the plain ELBO with Adam ({CLOCKS[records[0]["clock"]]}), and in brackets over our fastest.
The guide has two IAF layers. The model is eight schools at D = 10, and a linear regression on 2 D rows beyond. The
words after *ours* are those of `fit(compile=...)`; our step includes the norm of the gradient, clipping, averaging and
the stopping rule. Pyro's particles are vectorised, but for the row that has one in every column.

{chr(10).join(tables)}{missing}
"""


def growth(record: dict[str, Any]) -> str:
    """The slopes in a table, and the figure."""
    draw_growth(record, IMAGES / "growth.png")
    axes = list(dict.fromkeys(row["axis"] for row in record["rows"]))
    cells = {(row["name"], row["pass"], row["axis"]): row for row in record["rows"]}
    lines = []
    for name, kind in dict.fromkeys((row["name"], row["pass"]) for row in record["rows"]):
        found = [cells.get((name, kind, axis)) for axis in axes]
        shown = ["–" if row is None else f"{row['slope']:.2f} (at most {row['expected']})" for row in found]
        lines.append([f"{name}, {kind}" if kind in STYLES else name, *shown])
    memory = "; ".join(
        f"slope {row['slope']:.2f} in {row['axis']}, {row['mib'][-1]:.0f} MiB at {row['sizes'][-1]:,}"
        for row in record["memory"]
    )
    at = ", ".join(f"{axis} {value}" for axis, value in record["at"].items())
    return f"""## Growth of cost

![seconds against sizes](images/growth.png)

{table(["slope in", *axes], lines)}

The slope of the logarithm of the time ({CLOCKS[record["clock"]]}) in that of a size, and in brackets the power that
the arithmetic has: of forward, log-determinant and backward where nothing else is said. The line is fitted where a
call takes at least four times as long as at the smallest size, and to no fewer than the three largest sizes, so that
overhead is the minor part; where a slope is far below the power, it is not even there. The sizes that do not move are
{at}, and D = {record["inverse_dim"]} for the inverses. All networks have two hidden layers of
128 units; the step is that of the eager loop, with an IAF guide of a linear regression. Peak memory of the step,
beyond what is there before: {memory}. The grey lines have slope one.
"""


def posterior_time(record: dict[str, Any]) -> str:
    settings, rows = record["settings"], []
    for name, row in record["rows"].items():
        for method, found in row.items():
            if "error" in found:
                rows.append([name, method, found["error"], "–", "–"])
                continue
            seconds = f"{found['seconds']:.1f}"
            if not found.get("reached", True):
                seconds = f"{found['seconds']:.1f}, and {row['ours']['elbo'] - found['elbo']:.2f} nats short"
            errors = [f"{found[key]:.3f}" if key in found else "–" for key in ("mean_error", "log_sd_ratio")]
            rows.append([name, method, seconds, *errors])
    return f"""## Time to a posterior

{table(["posterior", "method", "seconds", "worst mean error", "worst log sd ratio"], rows)}

Wall-clock seconds of one thread, one after the other, with tracing and compilation. *ours* is `fit` with its defaults.
Pyro's guide was trained until its ELBO was within {settings["tolerance"]} nats of ours, or {settings["times"]:g} times
our seconds were over. NUTS had {settings["warm_up"]} steps of warm-up and {settings["draws"]} draws: one chain of
Pyro's, {settings["chains"]} vectorised ones of NumPyro's. Errors are against the reference runs, in their sds.
"""


def residual(record: dict[str, Any]) -> str:
    rows = [[str(row["num_terms"]), f"{row['saved_bytes'] / 2**20:.2f}"] for row in record["rows"]]
    return f"""## Memory of the residual flow

Saved for the backward pass of {record["batch"]} points at D = {record["dim"]}:

{table(["terms of the series", "MiB"], rows)}
"""


def continuous(record: dict[str, Any]) -> str:
    words = {"dopri5": lambda row: f"adaptive, tolerance {row['tolerance']:g}", "rk4": lambda row: "fixed steps"}
    rows = [
        [words[row["solver"]](row), str(row["evaluations"]), f"{row['saved_bytes'] / 2**20:.2f}"]
        for row in record["rows"]
    ]
    return f"""## Memory of the continuous flow

Saved for the backward pass of {record["batch"]} points at D = {record["dim"]}:

{table(["solver", "evaluations of the velocity", "MiB"], rows)}
"""


def density(record: dict[str, Any]) -> str:
    lines, wrapped = grid(record["rows"]), [row["ratio_as_pyro_distribution"] for row in record["rows"]]
    dims = sorted({row["dim"] for row in record["rows"]})
    overall = statistics.median(row["ratio"] for row in record["rows"])
    return f"""## A density

{table(["family", *(f"D = {dim}" for dim in dims), "median"], lines)}

The same ratio, for `log_prob` and its gradient to all parameters, of {record["batch"]} points and
{record["transforms"]} transforms ({CLOCKS[record["clock"]]}): each library by its own density, of which ours
looks for NaN and inf. The median is {overall:.2f}; in a distribution of Pyro, whose interface remembers, it is
{statistics.median(wrapped):.2f}.
"""


def inverse(record: dict[str, Any]) -> str:
    rows = []
    for row in record["rows"]:
        faster = ", ".join(f"{ratio:.1f} ({name})" for name, ratio in row["times_faster"].items()) or "–"
        errors = [f"{row[key]:.0e}" for key in ("round_trip", "single_precision")]
        rows.append([row["family"], str(row["dim"]), faster, f"{row['passes']:.1f}", *errors])
    return f"""## The direction that is searched for

{table(["family", "D", "times faster than", "cost in forward passes", "round trip", "float32"], rows)}

One layer and {record["batch"]} points, without a graph ({CLOCKS[record["clock"]]}): the time of the peer over ours, and
ours over that of our forward direction. *Round trip* is the error of forward after inverse in double precision,
*float32* that of single precision against it, both relative to one plus the value. The networks have weights as a
linear layer has them at first; the more strongly coordinates depend on each other, the more rounds the inverse takes.
The planar layer of normflows has a closed inverse, as its activation is a leaky rectifier; for tanh no peer has one,
nor for a Sylvester flow.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--out", type=Path, default=RECORDS.parents[1] / "performance_table.md")
    options = parser.parse_args()
    parts = {
        "transforms": layers,
        "density": density,
        "inverse": inverse,
        "vae": vae,
        "seeds": seeds,
        "posterior_time": posterior_time,
        "residual_memory": residual,
        "continuous_memory": continuous,
        "growth": growth,
    }
    texts = []
    for name, render in parts.items():
        path = options.records / f"{name}.json"
        if not path.exists():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        texts.append(render(record) + "\n" + setting(record) + "\n")
    paths = sorted(options.records.glob("elbo_step-*.json"))
    if paths:
        records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        texts.append(elbo_steps(records) + "\n" + setting(records[0]) + "\n")
    write_atomically(options.out, "\n".join(texts).encode())


if __name__ == "__main__":
    main()
