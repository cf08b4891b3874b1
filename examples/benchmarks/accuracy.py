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
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_flows_vi.infer import write_atomically

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


GOALS = {"mean": 0.1, "sd": 0.1, "khat": 0.7}
TABLE = Path(__file__).parents[2] / "docs" / "accuracy_table.md"


def render(folder: Path) -> str:
    """The table of all records in Markdown: a row a posterior, the worse of the seeds in every cell, and the counts."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    methods = sorted({r["method"] for r in records}, key=lambda m: (m != "ours", m))
    lines = []
    for method in methods:
        mine = [r for r in records if r["method"] == method]
        names = [name for name in SUITE if any(r["posterior"] == name for r in mine)]
        lines += [
            f"**{method}**: {len(names)} posteriors",
            "",
            "| posterior | dim | mean error | log sd ratio | k-hat | ELBO gap | verdict | seconds | seeds |",
            "| --- | --: | --: | --: | --: | --: | --- | --: | --: |",
        ]
        passed = dict.fromkeys(GOALS, 0)
        for name in names:
            seeds = [r for r in mine if r["posterior"] == name]
            worst = {
                "mean": max(r["worst_mean_error"] for r in seeds),
                "sd": max(r["worst_log_sd_ratio"] for r in seeds),
                "khat": max(r["khat"] for r in seeds),
            }
            for goal, bound in GOALS.items():
                passed[goal] += worst[goal] <= bound
            gap = max(r["iw_elbo"] - r["elbo"] for r in seeds)
            seconds = max(r["seconds"] for r in seeds)
            lines.append(
                f"| {name} | {seeds[0]['dim']} | {worst['mean']:.3f} | {worst['sd']:.3f} | {worst['khat']:.2f} | "
                f"{gap:.3f} | {'; '.join(dict.fromkeys(r.get('verdict', '–') for r in seeds))} | {seconds:.0f} | "
                f"{len(seeds)} |"
            )
        counts = ", ".join(f"{goal} within {bound}: {passed[goal]}" for goal, bound in GOALS.items())
        lines += ["", f"Of {len(names)}: {counts}.", ""]
    lines.append(
        "Mean error: the worst over all scalars, in posterior standard deviations of the reference run. Each cell is "
        "the worst of the seeds. k-hat: the median over five sets of 4000 draws. ELBO gap: between the importance-"
        "weighted bound of 20,000 draws and the ELBO. Verdict: the words of `diagnose`. Seconds: with tracing, on a "
        "machine that did other work too."
    )
    return "\n".join(lines) + "\n"


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
                    print(f"{name:26s} {method} {seed}: {type(error).__name__}: {str(error)[:300]}", flush=True)
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
