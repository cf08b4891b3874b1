"""Logistic regression on raw columns: slopes of very different size, and columns that say nearly the same.

    python -m examples.logistic_regression

Scikit-learn's breast-cancer table has the radius, the perimeter and the area of a tumour, which are nearly functions
of one another, and columns of the order 0.01 beside others of the order 1000. So the posterior is a thin sheet.
Nobody scales anything: ``fit`` finds a Gaussian frame first, and the flow is trained inside it.
The reference is a long NUTS run in coordinates that were whitened for it.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from torch import Tensor

from examples.benchmarks.posteriors import scalars, truth
from examples.comparison import arguments, compare, intervals, outcome, print_table, save_figure, save_record, summaries
from pyro_flows_vi.guides import AutoFlow
from pyro_flows_vi.infer import diagnose, fit


def data() -> tuple[Tensor, Tensor]:
    """The ten raw "mean" columns of 569 tumours, and whether each was benign."""
    table = load_breast_cancer()
    columns, benign = (torch.as_tensor(part) for part in (table.data[:, :10], table.target))
    return columns.to(torch.get_default_dtype()), benign.to(torch.get_default_dtype())


def model(columns: Tensor, benign: Tensor) -> None:
    """Wide priors on the raw scale."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 100.0))
    with pyro.plate("columns", columns.shape[1]):
        slope = pyro.sample("slope", dist.Normal(0.0, 100.0))
    with pyro.plate("tumours", len(benign)):
        pyro.sample("obs", dist.Bernoulli(logits=intercept + columns @ slope), obs=benign)


def main(argv: list[str] | None = None) -> None:
    """Fit, diagnose, compare."""
    options = arguments(__doc__, argv, steps=5000)
    arrays = data()
    guide = AutoFlow(model)
    result = fit(model, guide, *arrays, max_steps=options.steps, seed=options.seed)
    print(result)
    report = diagnose(model, guide, *arrays, fit=result, seed=options.seed)
    print(report, "\n")
    torch.manual_seed(options.seed)
    ours = summaries(guide.sample_posterior(20_000, *arrays))
    reference = scalars(truth("breast_cancer_logistic"))
    rows = compare(ours, reference)
    print_table(rows)

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.add_subplot()
    intervals(axes, ours, reference, list(rows), in_sds=True)
    names = [str(name).removeprefix("mean ") for name in load_breast_cancer().feature_names[:10]]
    shown = {"intercept": "intercept"} | {f"slope[{i}]": name for i, name in enumerate(names)}
    axes.set_yticks(range(len(rows)), [shown[label] for label in rows], fontsize="small")
    axes.set_xlabel("90 % intervals and means, less the reference mean, in reference sds")
    save_figure(figure, options.out, "logistic_regression")
    save_record(
        options.record,
        "logistic_regression",
        options,
        **outcome(result, report),
        reference="NumPyro's NUTS in whitened coordinates, four chains of 10,000 draws",
        scalars=rows,
    )


if __name__ == "__main__":
    main()
