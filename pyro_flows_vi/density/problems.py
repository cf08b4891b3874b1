"""What the command line can fit a density to: targets in the plane, tables, images."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import Any

from torch import Tensor

from pyro_flows_vi import datasets
from pyro_flows_vi.datasets import load_table, table_names
from pyro_flows_vi.density.targets import TARGETS, Target, target

__all__ = ["IMAGES", "Problem", "load_problem", "problem_names"]

IMAGES = ("digits", "freyfaces", "mnist")
#: rows that are drawn from a target for training, validation and test, each with a seed of its own
ROWS = (20_000, 5_000, 20_000)


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Rows to fit and rows to be judged by.

    Attributes:
        name: what it is called.
        kind: ``"target"``, ``"table"`` or ``"images"``.
        train: ``(N, D)``; of images the levels 0, 1, ...
        validation: ``(M, D)``.
        test: ``(K, D)``.
        description: what a record says of the data.
        target: the target, whose density may be known.
        shape: height and width of an image.
        levels: how many values a pixel has.
    """

    name: str
    kind: str
    train: Tensor = dataclasses.field(repr=False)
    validation: Tensor = dataclasses.field(repr=False)
    test: Tensor = dataclasses.field(repr=False)
    description: dict[str, Any]
    target: Target | None = None
    shape: tuple[int, int] | None = None
    levels: int | None = None

    @property
    def dim(self) -> int:
        """D."""
        return self.train.shape[1]


def problem_names() -> tuple[str, ...]:
    """The names that :func:`load_problem` knows."""
    return (*TARGETS, *table_names(), *IMAGES)


def load_problem(name: str, data_dir: str | os.PathLike[str] | None = None) -> Problem:
    """A problem by its name: a target, a table of :func:`pyro_flows_vi.datasets.load_table`, or images.

    Args:
        name: one of :func:`problem_names`.
        data_dir: for the files of tables and images.

    Raises:
        ValueError: for an unknown name, and for files that are missing or damaged.

    Example:
        >>> load_problem("digits").levels
        17
    """
    if name in TARGETS:
        return _from_target(target(name))
    if name in table_names():
        table = load_table(name, data_dir)
        return Problem(name, "table", table.train, table.validation, table.test, {"kind": "table", **table.describe()})
    if name in IMAGES:
        images = datasets.load(name, data_dir, values="levels")
        return Problem(
            name,
            "images",
            images.train.float(),
            images.validation,
            images.test,
            {"kind": "images", **images.describe()},
            shape=images.image_shape,
            levels=images.levels,
        )
    raise ValueError(f"unknown data {name!r}: expected one of {', '.join(problem_names())}")


def _from_target(chosen: Target) -> Problem:
    parts = [chosen.sample(count, seed) for seed, count in enumerate(ROWS)]
    digest = hashlib.sha256()
    for rows in parts:
        digest.update(rows.contiguous().numpy().data)
    sizes = dict(zip(("train", "validation", "test"), ROWS, strict=True))
    description = {"kind": "target", "name": chosen.name, **sizes, "dim": 2, "sha256": digest.hexdigest()[:16]}
    train, validation, test = parts
    return Problem(chosen.name, "target", train, validation, test, description, target=chosen)
