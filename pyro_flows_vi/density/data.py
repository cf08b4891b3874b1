"""From whatever a user has to rows of numbers, and what is wrong with them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

__all__ = ["Moments", "Pairs", "Rows", "measure", "to_rows"]

#: rows that are looked at together
CHUNK = 65_536
#: columns that a message names at most
NAMED = 8

Pair = tuple[Tensor, Tensor | None]


def to_rows(values: Any, name: str, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Tensors, arrays and numeric data frames as floating point numbers.

    Raises:
        ValueError: for what has no numbers, such as text, dates or missing entries.
    """
    if not isinstance(values, Tensor):
        array = np.asarray(values)  # data frames of any make know how to become an array
        if array.dtype.kind not in "biuf":
            try:
                array = array.astype(np.float64)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"expected {name} to be numeric, got {type(values).__name__} of {array.dtype}: {error}; "
                    "encode or drop the columns that are not numbers"
                ) from error
        values = torch.from_numpy(np.array(array))
    if values.is_complex():
        raise ValueError(f"expected {name} to be real, got {values.dtype}")
    return values.to(device=device, dtype=dtype)


class Rows:
    """Training rows in memory, in a new order each epoch; the order comes from torch's generator."""

    def __init__(self, x: Tensor, context: Tensor | None, batch_size: int) -> None:
        self.x, self.context, self.batch_size = x, context, batch_size
        self.steps = -(-len(x) // batch_size)

    def in_order(self) -> Iterator[Pair]:
        """All rows, in chunks."""
        parts = self.x.split(CHUNK)
        yield from zip(parts, [None] * len(parts) if self.context is None else self.context.split(CHUNK), strict=True)

    def epoch(self) -> Iterator[Pair]:
        """One epoch of shuffled minibatches."""
        for rows in torch.randperm(len(self.x)).split(self.batch_size):
            place = rows.to(self.x.device)
            yield self.x[place], None if self.context is None else self.context[place]


class Pairs:
    """The minibatches of a ``DataLoader``, whose batches are x, or x and a context."""

    def __init__(self, loader: DataLoader[Any], dtype: torch.dtype, with_context: bool) -> None:
        self.loader, self.dtype, self.with_context = loader, dtype, with_context
        self.steps = len(loader)

    def in_order(self) -> Iterator[Pair]:
        """All batches, as the loader gives them."""
        for batch in self.loader:
            yield self._pair(batch)

    epoch = in_order

    def _pair(self, batch: Any) -> Pair:
        parts = tuple(batch) if isinstance(batch, list | tuple) else (batch,)
        wanted = 2 if self.with_context else 1
        if len(parts) < wanted:
            raise ValueError(f"expected a DataLoader whose batches are pairs (x, context), got {len(parts)} part")
        context = to_rows(parts[1], "context", self.dtype) if self.with_context else None
        return to_rows(parts[0], "x", self.dtype), context


@dataclass
class Moments:
    """Mean and standard deviation of every column, and what else decides whether a density can be fitted."""

    count: int
    mean: Tensor
    square: Tensor
    low: Tensor
    high: Tensor
    whole: Tensor
    """whether all values of a column are whole numbers"""

    @property
    def sd(self) -> Tensor:
        """Standard deviations."""
        return (self.square / max(self.count - 1, 1)).sqrt()

    @property
    def constant(self) -> Tensor:
        """Which columns do not vary."""
        return self.high == self.low

    def require_density(self, *, discrete: bool = False) -> None:
        """Raise or warn where the rows cannot have a density over all columns.

        Args:
            discrete: whether noise will be added, with which whole numbers and constants have a density too.
        """
        if bool(self.constant.any()) and not discrete:
            raise ValueError(
                f"expected columns that vary, got constant columns {_named(self.constant)}: their density is infinite; "
                "drop them"
            )
        if self.count < len(self.mean):
            raise ValueError(
                f"expected at least as many rows as columns, got {self.count} rows of {len(self.mean)} columns: "
                "the likelihood would grow without bound; use more rows or fewer columns"
            )
        if bool(self.whole.any()) and not discrete:
            warnings.warn(
                f"columns {_named(self.whole)} hold whole numbers only. A density can put an ever higher and narrower "
                "peak on each of these values, so the likelihood diverges and says nothing. Add noise to them "
                "(density.dequantise, or density.ImageDensity for images), or drop them",
                stacklevel=4,
            )


def measure(pairs: Iterable[Tensor], name: str = "x") -> Moments:
    """The moments of all rows, in one pass, with float64 sums.

    Raises:
        ValueError: for rows that are not ``(N, D)``, of different widths, none at all, or with NaN or infinite values.
    """
    total: Moments | None = None
    first = 0
    for rows in pairs:
        if rows.ndim != 2 or 0 in rows.shape:
            hint = "; for a single variable pass one column, x[:, None]" if rows.ndim == 1 else ""
            raise ValueError(f"expected {name} of shape (N, D) with at least one row, got {tuple(rows.shape)}{hint}")
        if total is not None and rows.shape[1] != len(total.mean):
            raise ValueError(f"expected {name} of {len(total.mean)} columns throughout, got {rows.shape[1]}")
        bad = ~rows.isfinite()
        if bool(bad.any()):
            row = int(bad.any(1).nonzero()[0]) + first
            raise ValueError(
                f"expected finite values in {name}, got {int(bad.sum())} that are NaN or infinite, in columns "
                f"{_named(bad.any(0))}, first in row {row}; drop or impute these rows"
            )
        first += len(rows)
        values = rows.double()
        exact = rows.abs() < 1.0 / torch.finfo(rows.dtype).eps  # beyond, every number is a whole one
        mean = values.mean(0)
        whole = ((rows == rows.round()) & exact).all(0)
        part = Moments(len(rows), mean, (values - mean).square().sum(0), rows.amin(0), rows.amax(0), whole)
        total = part if total is None else _merged(total, part)
    if total is None:
        raise ValueError(f"expected at least one row in {name}, got none")
    return total


def _merged(a: Moments, b: Moments) -> Moments:
    count, gap = a.count + b.count, b.mean - a.mean
    return Moments(
        count,
        a.mean + gap * (b.count / count),
        a.square + b.square + gap.square() * (a.count * b.count / count),
        torch.minimum(a.low, b.low),
        torch.maximum(a.high, b.high),
        a.whole & b.whole,
    )


def _named(columns: Tensor) -> str:
    places = columns.nonzero().flatten().tolist()
    return ", ".join(map(str, places[:NAMED])) + (f" and {len(places) - NAMED} more" if len(places) > NAMED else "")
