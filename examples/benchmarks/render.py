"""The tables of the documentation, from the records of the three benchmarks."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import RECORDS

from pyro_flows_vi.infer.checkpoint import write_atomically

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


def layers(record: dict[str, Any]) -> str:
    rows = record["rows"]
    dims = sorted({row["dim"] for row in rows})
    cells = {(row["family"], row["dim"]): row for row in rows}
    lines = []
    for family in dict.fromkeys(row["family"] for row in rows):
        found = [cells.get((family, dim)) for dim in dims]
        shown = ["–" if row is None else f"{row['ratio']:.2f} ({row['fastest_peer']})" for row in found]
        median = statistics.median(row["ratio"] for row in found if row is not None)
        lines.append([family, *shown, f"{median:.2f}"])
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


def residual(record: dict[str, Any]) -> str:
    rows = [[str(row["num_terms"]), f"{row['saved_bytes'] / 2**20:.2f}"] for row in record["rows"]]
    return f"""## Memory of the residual flow

Saved for the backward pass of {record["batch"]} points at D = {record["dim"]}:

{table(["terms of the series", "MiB"], rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--out", type=Path, default=RECORDS.parents[1] / "performance_table.md")
    options = parser.parse_args()
    parts = {"transforms": layers, "vae": vae, "residual_memory": residual}
    texts = []
    for name, render in parts.items():
        record = json.loads((options.records / f"{name}.json").read_text(encoding="utf-8"))
        texts.append(render(record) + "\n" + setting(record) + "\n")
    write_atomically(options.out, "\n".join(texts).encode())


if __name__ == "__main__":
    main()
