"""Partial pooling: an intercept and a slope for each of 32 counties, some with two houses and some with forty.

    python -m examples.radon

The data are made from a stated seed in the manner of the radon measurements that Gelman and Hill made well known. The
model is written in the centred form, which is the better one for counties with many houses and the worse one for those
with few: 70 latent numbers for which no single form suits a sampler. The flow guide is fitted to it as it stands, and
set beside the long runs of ``examples/benchmarks/posteriors``. The draws also go to ArviZ, with the counties' names.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor

from examples.benchmarks.posteriors import scalars, truth
from examples.comparison import (
    arguments,
    compare,
    intervals,
    outcome,
    print_table,
    save_figure,
    save_record,
    summaries,
)
from pyro_flows_vi.guides import AutoFlow
from pyro_flows_vi.infer import diagnose, fit, to_arviz

COUNTIES = 32
POPULATION = ("mu_intercept", "mu_slope", "gamma", "sd_intercept", "sd_slope", "sigma")


def data(seed: int = 20) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """County and floor of each house, uranium in each county, and log radon in each house."""
    rng = np.random.default_rng(seed)
    sizes = np.clip(np.exp(rng.normal(1.8, 0.9, COUNTIES)).astype(int), 2, 40)
    county = np.repeat(np.arange(COUNTIES), sizes)
    uranium = rng.normal(0.0, 0.4, COUNTIES)
    intercept = 1.5 + 0.7 * uranium + 0.25 * rng.normal(size=COUNTIES)
    slope = -0.65 + 0.3 * rng.normal(size=COUNTIES)
    floor = (rng.random(county.size) < 0.25).astype(float)
    log_radon = intercept[county] + slope[county] * floor + 0.75 * rng.normal(size=county.size)
    numbers = (torch.as_tensor(part).to(torch.get_default_dtype()) for part in (uranium, floor, log_radon))
    return (torch.as_tensor(county), *numbers)  # type: ignore[return-value]


def model(county: Tensor, uranium: Tensor, floor: Tensor, log_radon: Tensor) -> None:
    """Centred."""
    mu_intercept = pyro.sample("mu_intercept", dist.Normal(0.0, 5.0))
    mu_slope = pyro.sample("mu_slope", dist.Normal(0.0, 5.0))
    gamma = pyro.sample("gamma", dist.Normal(0.0, 5.0))
    sd_intercept = pyro.sample("sd_intercept", dist.HalfNormal(1.0))
    sd_slope = pyro.sample("sd_slope", dist.HalfNormal(1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
    with pyro.plate("counties", len(uranium)):
        intercept = pyro.sample("intercept", dist.Normal(mu_intercept + gamma * uranium, sd_intercept))
        slope = pyro.sample("slope", dist.Normal(mu_slope, sd_slope))
    with pyro.plate("houses", len(log_radon)):
        pyro.sample("obs", dist.Normal(intercept[county] + slope[county] * floor, sigma), obs=log_radon)


def main(argv: list[str] | None = None) -> None:
    """Fit, diagnose, compare."""
    options = arguments(__doc__, argv, steps=5000)
    arrays = data()
    guide = AutoFlow(model)
    result = fit(model, guide, *arrays, max_steps=options.steps, seed=options.seed)
    print(result)
    report = diagnose(model, guide, *arrays, fit=result, seed=options.seed)
    print(report, "\n")
    names = [f"county {i}" for i in range(COUNTIES)]
    groups = to_arviz(model, guide, *arrays, num_draws=500, coords={"counties": names}, seed=options.seed)
    wide = groups["posterior"]["intercept"].std(("chain", "draw"))
    print(f"least known intercept: {wide.counties.values[wide.values.argmax()]}\n")

    torch.manual_seed(options.seed)
    ours = summaries(guide.sample_posterior(20_000, *arrays))
    theirs = scalars(truth("radon_like"))
    rows = compare(ours, theirs)
    print_table(rows)

    figure = Figure(figsize=(8.0, 6.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    houses = torch.bincount(arrays[0], minlength=COUNTIES)
    order = houses.argsort(descending=True).tolist()
    for axes, site in ((left, "intercept"), (right, "slope")):
        intervals(axes, ours, theirs, [f"{site}[{i}]" for i in order])
        axes.set_yticks(range(COUNTIES), [str(int(houses[i])) for i in order], fontsize="x-small")
        axes.set_xlabel(f"{site}: 90 % intervals and means")
    left.set_ylabel("houses in the county")
    save_figure(figure, options.out, "radon")
    save_record(
        options.record,
        "radon",
        options,
        **outcome(result, report),
        reference="NumPyro's NUTS on the non-centred form, four chains of 6,000 draws",
        scalars={label: row for label, row in rows.items() if label in POPULATION},
        worst={
            "shift": max(abs(row["shift"]) for row in rows.values()),
            "log_sd_ratio": max(abs(row["log_sd_ratio"]) for row in rows.values()),
        },
    )


if __name__ == "__main__":
    main()
