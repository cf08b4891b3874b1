"""Pictures of a density: its height over the plane and draws beside data, or a sheet of images."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_flows_vi.density.flow_density import FlowDensity
from pyro_flows_vi.density.problems import Problem
from pyro_flows_vi.infer.repeat import seeded

__all__ = ["plot_density", "plot_plane"]

NODES = 200
POINTS = 2000
SHEET = 6
#: pixels between two images of a sheet
GAP = 1


def plot_density(density: FlowDensity, problem: Problem, path: str | os.PathLike[str], *, seed: int = 0) -> Path:
    """Draw what a density has learned beside test rows of its problem, and save the figure.

    In the plane: draws of the target, the density, its draws. Of a table: draws over test rows, in the first pairs of
    columns. Of images: a sheet of test images and one of draws.

    Args:
        density: fitted.
        problem: what it was fitted to.
        path: where to; the suffix decides the format.
        seed: of the draws.

    Returns:
        ``path``.
    """
    from matplotlib.figure import Figure  # not pyplot, which would choose a backend for everybody

    with seeded(seed):
        draws = density.sample(SHEET**2 if problem.shape is not None else POINTS).cpu()
    if problem.target is not None:
        figure = Figure(figsize=(10.5, 3.6), layout="constrained")
        plot_plane(figure.subplots(1, 3), density, problem.test[:POINTS], draws, problem.target.bound)
    elif problem.shape is not None:
        figure = Figure(figsize=(8.0, 0.3 + 4.0 * problem.shape[0] / problem.shape[1]), layout="constrained")
        for axes, images, title in zip(figure.subplots(1, 2), (problem.test, draws), ("test", "draws"), strict=True):
            axes.imshow(_sheet(images[: SHEET**2], problem.shape).numpy(), cmap="gray", interpolation="nearest")
            axes.set_title(title)
            axes.set_axis_off()
    else:
        pairs = [(2 * i, 2 * i + 1) for i in range(min(3, problem.dim // 2))]
        figure = Figure(figsize=(3.6 * len(pairs), 3.6), layout="constrained")
        for axes, (i, j) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
            for rows, label in ((problem.test[:POINTS], "test"), (draws, "draws")):
                axes.plot(rows[:, i].numpy(), rows[:, j].numpy(), ".", markersize=2.0, alpha=0.6, label=label)
            axes.set_xlabel(f"column {i}")
            axes.set_ylabel(f"column {j}")
        axes.legend(fontsize="small")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


@torch.no_grad()
def plot_plane(axes: Any, density: FlowDensity, points: Tensor, draws: Tensor, bound: float) -> None:
    """Points, the density and its draws, in three axes of matplotlib, on [-bound, bound]^2.

    Args:
        axes: three of them.
        density: over the plane, without a context.
        points: of the target ``(N, 2)``.
        draws: of the density ``(M, 2)``.
        bound: half the width of the window.
    """
    grid = torch.linspace(-bound, bound, NODES)
    nodes = torch.cartesian_prod(grid, grid)
    height = torch.cat([density.log_prob(part) for part in nodes.split(4000)]).exp().reshape(NODES, NODES).T.cpu()
    window = (-bound, bound, -bound, bound)
    axes[1].imshow(height.numpy(), extent=window, origin="lower", cmap="viridis", interpolation="bilinear")
    for place, rows, title in ((0, points, "target"), (2, draws, "draws")):
        axes[place].plot(
            rows[:, 0].cpu().numpy(), rows[:, 1].cpu().numpy(), ".", markersize=2.0, alpha=0.6, color="#3b4c63"
        )
        axes[place].set_title(title)
    axes[1].set_title("density")
    for one in axes:
        one.set_ylim(-bound, bound)
        one.set_aspect("equal")
        one.set_xticks(one.get_yticks())  # those of a square; both have room for as many
        one.set_xlim(-bound, bound)


def _sheet(images: Tensor, shape: tuple[int, int]) -> Tensor:
    """Images in a square, with gaps between them, which are NaN: a colour map leaves those blank."""
    side, (height, width) = math.ceil(math.sqrt(len(images))), shape
    blank = images.new_full((side * side - len(images), images.shape[1]), math.nan)
    tiles = torch.cat([images, blank]).reshape(-1, *shape)
    tiles = torch.nn.functional.pad(tiles, (0, GAP, 0, GAP), value=math.nan).unflatten(0, (side, side))
    return tiles.permute(0, 2, 1, 3).reshape(side * (height + GAP), side * (width + GAP))[:-GAP, :-GAP]
