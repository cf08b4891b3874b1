"""Accuracy of guides on the suite of real posteriors, against long NUTS runs: one record a posterior, method and seed.

    python -m examples.benchmarks.accuracy                         # our default guide, all posteriors, two seeds
    python -m examples.benchmarks.accuracy rats --methods AutoNormal AutoIAFNormal --seeds 0
    python -m examples.benchmarks.accuracy --table                 # docs/accuracy_table.md of all records

Ours is ``fit(model, AutoFlow(model), *args)`` and nothing else; what the peers get is in ``peers.py``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_flows_vi.infer import write_atomically
from pyro_flows_vi.infer.verdict import KHAT_GOOD

from .posteriors import SUITE, scalars, truth
from .posteriors.check import feasible

RECORDS = Path(__file__).parents[2] / "docs" / "records" / "posteriors" / "accuracy"
NUM_DRAWS = 4000
#: marginals whose reference sd is a Monte Carlo figure itself are compared on this many draws
SUMMARY_DRAWS = 20_000


def ours(posterior: Any, seed: int, **options: Any) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    """Our default guide: draws by site, log weights, and how the fit went."""
    from pyro_flows_vi.guides import AutoFlow
    from pyro_flows_vi.infer import LogDensity, diagnose, fit

    torch.manual_seed(seed)
    guide = AutoFlow(posterior.model)
    result = fit(posterior.model, guide, *posterior.args, seed=seed, progress=False, **options)
    log_density = LogDensity(posterior.model, *posterior.args)
    with torch.no_grad():
        latent, log_q = guide.rsample_and_log_prob(SUMMARY_DRAWS)
        log_weights = torch.cat([log_density(part) for part in latent.split(1000)]) - log_q
        values = [log_density.constrain(part) for part in latent.split(1000)]
    draws = {site.name: torch.cat([v[site.name] for v in values]) for site in guide.layout}
    report = {"steps": result.steps, "converged": result.converged, "kept": result.kept, "reason": result.stop_reason}
    report |= {"restart_elbos": result.restart_elbos, "skipped": result.skipped_steps}
    return (
        draws,
        log_weights,
        report | {"diagnose": lambda: diagnose(posterior.model, guide, *posterior.args, fit=result, seed=seed)},
    )


def errors_of(name: str, draws: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Of every scalar the error of the mean in sds of the truth, and the log ratio of the sds."""
    errors: dict[str, list[float]] = {}
    for site, columns in truth(name)["sites"].items():
        x = draws[site].double().reshape(len(draws[site]), -1).numpy()
        for i, sd in enumerate(columns["sd"]):
            if sd > 0:
                label = f"{site}[{i}]" if columns["shape"] else site
                errors[label] = [(x[:, i].mean() - columns["mean"][i]) / sd, math.log(x[:, i].std() / sd)]
    assert errors.keys() == scalars(truth(name)).keys()
    return errors


def measure(name: str, method: str, seed: int, **options: Any) -> dict[str, Any]:
    """Fit and compare with the truth."""
    from pyro_flows_vi.infer.pareto import psis

    posterior = SUITE[name]
    began = time.perf_counter()
    if method == "ours":
        draws, log_weights, report = ours(posterior, seed, **options)
    else:
        from .peers import run_peer

        draws, log_weights, report = run_peer(posterior, method, seed, feasible)
    seconds = time.perf_counter() - began
    if "diagnose" in report:
        report["verdict"] = report.pop("diagnose")().verdict
    errors = errors_of(name, draws)
    table = np.array(list(errors.values()))
    labels = list(errors)
    worst = np.abs(table).argmax(axis=0)
    weights = log_weights.double().numpy()
    khats = [psis(torch.from_numpy(part))[1] for part in weights.reshape(-1, NUM_DRAWS)]
    ratio = np.exp(weights - weights.max())
    return {
        "posterior": name,
        "method": method,
        "seed": seed,
        "dim": len(errors),
        "worst_mean_error": float(np.abs(table[:, 0]).max()),
        "worst_mean_scalar": labels[worst[0]],
        "worst_log_sd_ratio": float(np.abs(table[:, 1]).max()),
        "worst_sd_scalar": labels[worst[1]],
        "khat": float(np.median(khats)),
        "khats": [float(k) for k in khats],
        "elbo": float(weights.mean()),
        "elbo_se": float(weights.std() / math.sqrt(len(weights))),
        "iw_elbo": float(np.log(ratio.mean()) + weights.max()),
        "ess": float(ratio.sum() ** 2 / (ratio**2).sum() / len(ratio)),
        "seconds": seconds,
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    } | report


GOALS = {"worst_mean_error": 0.1, "worst_log_sd_ratio": 0.1, "khat": 0.7}
TABLE = Path(__file__).parents[2] / "docs" / "accuracy_table.md"


#: what the columns of a table of one method show: the key of a record, and how
COLUMNS = {"mean error": "worst_mean_error", "log sd ratio": "worst_log_sd_ratio", "k-hat": "khat"}
NOTE = (
    "Mean error: the worst over all scalars, in posterior standard deviations of the reference run. Each cell is the "
    "worst of the seeds. k-hat: the median over five sets of 4000 draws. ELBO gap: between the importance-weighted "
    "bound of 20,000 draws and the ELBO. Verdict: the words of `diagnose`. Seconds: with tracing, of the slower seed; "
    "ours one fit at a time, the peers' on another day and beside other work, so that these do not compare."
)


def worst_of(records: Sequence[dict[str, Any]], key: str) -> float:
    """The worst seed's value of a key of all records; what failed is worse than any number, and so is NaN."""
    values = [math.inf if "failed" in record else record[key] for record in records]
    return max(math.inf if math.isnan(value) else value for value in values)


def short(value: float, digits: int) -> str:
    """A number for a cell; what failed or is beyond all use has no digits."""
    return "fails" if math.isinf(value) else f"{value:.{digits}f}" if value < 100.0 else f"{value:.1e}"


def side_by_side(found: dict[str, dict[str, list[dict[str, Any]]]]) -> list[str]:
    """For each column a table of all methods on the posteriors that some peer has a record of."""
    names = [name for name in SUITE if len([m for m in found if name in found[m]]) > 1]
    lines = []
    for title, key in COLUMNS.items():
        lines += [f"**{title}, by method**", "", "| posterior | " + " | ".join(found) + " |"]
        lines.append("| --- |" + " --: |" * len(found))
        best = 0
        for name in names:
            values = [worst_of(found[m][name], key) if name in found[m] else math.nan for m in found]
            best += values[0] <= min(v for v in values[1:] if not math.isnan(v))
            lines.append(f"| {name} | " + " | ".join("" if math.isnan(v) else short(v, 3) for v in values) + " |")
        lines += ["", f"Ours is the best on {best} of {len(names)}.", ""]
    return lines


def of_method(method: str, found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The table of one method, a row a posterior, and how many rows are within the bounds."""
    names = [name for name in SUITE if name in found]
    lines = [f"**{method}**: {len(names)} posteriors", ""]
    lines.append("| posterior | dim | " + " | ".join(COLUMNS) + " | ELBO gap | verdict | seconds | seeds |")
    lines.append("| --- | --: | --: | --: | --: | --: | --- | --: | --: |")
    seconds = []
    for name in names:
        seeds = found[name]
        done = [r for r in seeds if "failed" not in r]
        if len(done) < len(seeds):
            reason = next(r["failed"] for r in seeds if "failed" in r).split(":")[0]
            lines.append(f"| {name} | | fails: {reason} | | | | | | {len(seeds)} |")
            continue
        cells = [short(worst_of(seeds, key), 2 if key == "khat" else 3) for key in COLUMNS.values()]
        gap = max(r["iw_elbo"] - r["elbo"] for r in seeds)
        seconds.append(max(r["seconds"] for r in seeds))
        verdicts = "; ".join(dict.fromkeys(r.get("verdict", "–") for r in seeds))
        lines.append(
            f"| {name} | {seeds[0]['dim']} | {' | '.join(cells)} | {gap:.3f} | {verdicts} | "
            f"{seconds[-1]:.0f} | {len(seeds)} |"
        )
    bounds = [*((title, key, GOALS[key]) for title, key in COLUMNS.items()), ("k-hat", "khat", KHAT_GOOD)]
    passed = (
        f"{title} within {most}: {sum(worst_of(found[n], key) <= most for n in names)}" for title, key, most in bounds
    )
    median = statistics.median(seconds or [math.nan])
    return [*lines, "", f"Of {len(names)}: {', '.join(passed)}. Median seconds: {median:.0f}.", ""]


def render(folder: Path) -> str:
    """The tables of all records in Markdown: the worse of the seeds in every cell, and the counts."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for record in sorted(records, key=lambda r: (r["method"] != "ours", r["method"], r["seed"])):
        found.setdefault(record["method"], {}).setdefault(record["posterior"], []).append(record)
    ours, *peers = found
    lines = [*of_method(ours, found[ours]), *side_by_side(found)]
    for method in peers:
        lines += of_method(method, found[method])
    return "\n".join([*lines, NOTE]) + "\n"


def main() -> None:
    """Measure what is asked for and has no record yet, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument("--methods", nargs="+", default=["ours"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--again", action="store_true", help="measure anew what has a record")
    parser.add_argument("--table", action="store_true", help="only write the table of all records into the docs")
    options = parser.parse_args()
    if options.table:
        write_atomically(TABLE, render(options.records).encode())
        return
    warnings.filterwarnings("ignore", category=UserWarning)
    for name in options.names or [n for n in SUITE if (RECORDS.parent / "truth" / f"{n}.json").exists()]:
        for method in options.methods:
            for seed in options.seeds:
                path = options.records / f"{name}-{method}-seed{seed}.json"
                if path.exists() and not options.again:
                    continue
                try:
                    record = measure(name, method, seed)
                except Exception as error:
                    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                    print(f"{name:26s} {method} {seed}: {reason}", flush=True)
                    if method != "ours":  # that a peer cannot do it is a result
                        failure = {"posterior": name, "method": method, "seed": seed, "failed": reason}
                        write_atomically(path, json.dumps(failure, indent=1).encode())
                    continue
                write_atomically(path, json.dumps(record, indent=1).encode())
                print(
                    f"{name:26s} {method} {seed} D={record['dim']:3d} mean {record['worst_mean_error']:.3f} "
                    f"({record['worst_mean_scalar']}) "
                    f"sd {record['worst_log_sd_ratio']:.3f} ({record['worst_sd_scalar']}) "
                    f"k {record['khat']:.2f} ess {record['ess']:.2f} gap {record['iw_elbo'] - record['elbo']:.3f} "
                    f"{record['seconds']:.0f} s {record.get('steps')} {record.get('reason')} {record.get('kept')}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
