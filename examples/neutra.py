"""NeuTra: a flow guide straightens Neal's funnel, and NUTS walks in the straightened space.

    python -m examples.neutra

In the funnel, v is normal with the sd 3 and every x is normal with the sd exp(v / 2). NUTS on it as it is takes steps
that are too long for the neck. ``NeuTraReparam`` puts a trained guide's flow between NUTS and the model: what the
guide gets wrong is then NUTS's to put right. The law of v is known, so no long run is needed as a truth.
From "NeuTra-lizing bad geometry in Hamiltonian Monte Carlo using neural transport" (Hoffman et al., 2019),
arXiv:1903.03704.
"""

from __future__ import annotations

from statistics import NormalDist

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro import poutine
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor

from examples.comparison import arguments, nuts, pair, save_figure, save_record
from pyro_flows_vi.guides import AutoFlow
from pyro_flows_vi.infer import fit

SCALE, DIM = 3.0, 4
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def model() -> None:
    """Neal's funnel."""
    v = pyro.sample("v", dist.Normal(0.0, SCALE))
    pyro.sample("x", dist.Normal(0.0, (v / 2.0).exp()).expand([DIM]).to_event(1))


def quantiles(v: Tensor) -> list[float]:
    """Of the levels above."""
    return v.double().quantile(torch.tensor(LEVELS, dtype=torch.float64)).tolist()


def main(argv: list[str] | None = None) -> None:
    """Train the guide, then run NUTS twice."""
    options = arguments(__doc__, argv, steps=5000, warmup=300, draws=1000)
    chain = {"warmup": options.warmup, "draws": options.draws, "seed": options.seed}
    guide = AutoFlow(model)
    result = fit(model, guide, max_steps=options.steps, seed=options.seed)
    print(result)
    torch.manual_seed(options.seed)
    ours = guide.sample_posterior(options.draws)

    plain = nuts(model, **chain)
    neutra = NeuTraReparam(guide)
    straight = nuts(poutine.reparam(model, config=lambda _: neutra), max_tree_depth=6, **chain)
    (latent,) = straight["draws"].values()
    with torch.no_grad():
        moved = neutra.transform_sample(latent)

    rows = {
        "truth": [NormalDist(0.0, SCALE).inv_cdf(level) for level in LEVELS],
        "flow guide": quantiles(ours["v"]),
        "NUTS": quantiles(plain["draws"]["v"]),
        "NeuTra": quantiles(moved["v"]),
    }
    print(f"\n{'quantiles of v':16}" + "".join(f"{level:>9.0%}" for level in LEVELS))
    for name, row in rows.items():
        print(f"{name:16}" + "".join(f"{value:>9.2f}" for value in row))
    chains = {
        name: {"divergences": run["divergences"], "ess": min(run["ess"].values()), "seconds": run["seconds"]}
        for name, run in (("NUTS", plain), ("NeuTra", straight))
    }
    for name, row in chains.items():
        print(f"{name}: {row['divergences']} divergences, effective size {row['ess']:.0f}, {row['seconds']:.0f} s")

    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    clouds = (("NUTS", plain["draws"]), ("flow guide", ours), ("NUTS through the flow (NeuTra)", moved))
    for axes, (name, draws) in zip(panels, clouds, strict=True):
        pair(axes, draws["x"][:, 0], draws["v"], name, reference=name == "NUTS", count=options.draws)
        axes.set_title(name, fontsize="small")
        axes.set_xlim(-20.0, 20.0)
        axes.set_ylim(-10.0, 10.0)
        axes.set_xlabel("x[0]")
    panels[0].set_ylabel("v")
    save_figure(figure, options.out, "neutra")
    fitted = vars(result) | {"history": None, "settings": None}
    save_record(options.record, "neutra", options, fit=fitted, levels=list(LEVELS), quantiles=rows, chains=chains)


if __name__ == "__main__":
    main()
