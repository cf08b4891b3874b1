"""A density in the plane: one flow family beside another, by the exact Kullback-Leibler divergence.

    python -m examples.density

The energy U3 of "Variational inference with normalizing flows" (Rezende, Mohamed, 2015) has two strands that meet. Its
normalising constant is known, so KL(p‖q) of a fitted density q is exact but for sampling error.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from examples.comparison import arguments, save_figure, save_record
from pyro_flows_vi.density import FlowDensity, target
from pyro_flows_vi.density.plot import plot_plane

FAMILIES = ("realnvp", "maf", "nsf")


def main(argv: list[str] | None = None) -> None:
    """Fit, score, draw."""
    options = arguments(__doc__, argv, steps=1500, rows=10_000)
    energy = target("u3")
    assert energy.log_prob is not None
    train, test = energy.sample(options.rows, seed=0), energy.sample(options.rows, seed=1)
    log_p = energy.log_prob(test.double())
    epochs = max(1, options.steps * 256 // options.rows)
    figure = Figure(figsize=(10.5, 3.5 * len(FAMILIES)), layout="constrained")
    rows = {}
    for axes, name in zip(figure.subplots(len(FAMILIES), 3), FAMILIES, strict=True):
        density = FlowDensity(name, num_transforms=4)
        result = density.fit(train, max_epochs=epochs, learning_rate=3e-3, schedule="cosine", seed=options.seed)
        gap = log_p - density.evaluate(test).values
        rows[name] = {"kl": float(gap.mean()), "se": float(gap.std() / len(gap) ** 0.5), "seconds": result.seconds}
        print(f"{name:8} KL(p‖q) {rows[name]['kl']:.3f} ± {rows[name]['se']:.3f} nats; {result}")
        torch.manual_seed(options.seed)
        plot_plane(axes, density, test[:2000], density.sample(2000), 7.0)
        axes[1].set_title(f"{name}: KL {rows[name]['kl']:.3f}")
    save_figure(figure, options.out, "density")
    save_record(options.record, "density", options, fit={"steps": options.steps}, scalars=rows)


if __name__ == "__main__":
    main()
