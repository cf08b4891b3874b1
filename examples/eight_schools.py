"""Eight schools in the centred form: a funnel, which no Gaussian fits and which NUTS needs another form for.

    python -m examples.eight_schools

The effect theta of a course in each of eight schools comes from a population with the mean mu and the spread tau.
Where tau is small, all thetas must lie close to mu; so the posterior is wide at one end and infinitely narrow at the
other. The flow guide is fitted to the model as it is written. The plot sets it beside a short NUTS chain on the
non-centred form, which has no funnel, and the table beside the long runs of ``examples/benchmarks/posteriors``.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor

from examples.benchmarks.posteriors import scalars, truth
from examples.comparison import (
    arguments,
    compare,
    nuts,
    outcome,
    pair,
    print_table,
    save_figure,
    save_record,
    summaries,
)
from pyro_flows_vi.guides import AutoFlow
from pyro_flows_vi.infer import diagnose, fit

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def model(errors: Tensor, effects: Tensor) -> None:
    """The funnel."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(effects)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("obs", dist.Normal(theta, errors), obs=effects)


def without_funnel(errors: Tensor, effects: Tensor) -> None:
    """The same posterior of mu, tau and theta = mu + tau eta."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(effects)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(mu + tau * eta, errors), obs=effects)


def main(argv: list[str] | None = None) -> None:
    """Fit, diagnose, run NUTS, compare."""
    options = arguments(__doc__, argv, steps=5000, warmup=300, draws=1000)
    guide = AutoFlow(model)
    result = fit(model, guide, ERRORS, EFFECTS, max_steps=options.steps, seed=options.seed)
    print(result)
    report = diagnose(model, guide, ERRORS, EFFECTS, fit=result, seed=options.seed)
    print(report, "\n")
    torch.manual_seed(options.seed)
    ours = guide.sample_posterior(20_000, ERRORS, EFFECTS)
    rows = compare(summaries(ours), scalars(truth("eight_schools_centred")))
    print_table(rows)

    chain = nuts(without_funnel, ERRORS, EFFECTS, warmup=options.warmup, draws=options.draws, seed=options.seed)
    theirs = chain["draws"]
    theta = theirs["mu"][:, None] + theirs["tau"][:, None] * theirs["eta"]

    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    pair(left, theta[:, 0], theirs["tau"].log(), "NUTS, non-centred form", reference=True, count=options.draws)
    pair(
        right, ours["theta"][:, 0], ours["tau"].log(), "flow guide, centred form", reference=False, count=options.draws
    )
    left.set_ylabel("log tau")
    for axes in (left, right):
        axes.set_xlabel("theta[0]")
        axes.set_xlim(-20.0, 40.0)
        axes.set_ylim(-4.0, 4.0)
        axes.legend(loc="lower right", fontsize="small", markerscale=4.0)
    save_figure(figure, options.out, "eight_schools")
    save_record(
        options.record,
        "eight_schools",
        options,
        **outcome(result, report),
        reference="NumPyro's NUTS on the non-centred form, four chains of 10,000 draws",
        chain={key: chain[key] for key in ("divergences", "seconds")},
        scalars=rows,
    )


if __name__ == "__main__":
    main()
