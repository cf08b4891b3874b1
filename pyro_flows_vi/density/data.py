"""From whatever a user has to rows of numbers, and what is wrong with them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

__all__ = [
    "LOOK",
    "Moments",
    "Pair",
    "Pairs",
    "Rows",
    "column_names",
    "listed",
    "measure",
    "require_columns",
    "require_rows",
    "to_rows",
]

#: rows that are looked at together
CHUNK = 65_536
#: columns that a message names at most
NAMED = 8
#: rows in which values that repeat, and columns that determine each other, are looked for
LOOK = 4096

Pair = tuple[Tensor, Tensor | None]


def to_rows(values: Any, name: str, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Tensors, arrays and numeric data frames as floating point numbers.

    Raises:
        ValueError: for what has no numbers, such as text, dates or missing entries; with the columns to blame.
    """
    if not isinstance(values, Tensor):
        if values is None or isinstance(values, str | Mapping):
            raise ValueError(f"expected {name} to be a tensor, an array or a data frame, got {type(values).__name__}")
        values = torch.from_numpy(np.array(_numbers(values, name)))
    if values.is_complex():
        raise ValueError(f"expected {name} to be real, got {values.dtype}")
    if values.layout != torch.strided or values.is_meta:
        kind = "one without values" if values.is_meta else f"a {values.layout} one; convert it with .to_dense()"
        raise ValueError(f"expected {name} to be a dense tensor, got {kind}")
    return values.to(device=device, dtype=dtype)


def column_names(values: Any) -> list[str] | None:
    """Those of a data frame; ``None`` for what has none."""
    names = None if isinstance(values, Tensor | np.ndarray) else getattr(values, "columns", None)
    names = list(names) if isinstance(names, Iterable) else []
    # a frame without names counts its columns, and the columns of some tables are the data
    return [str(name) for name in names] if names and all(isinstance(name, str | tuple) for name in names) else None


def require_columns(values: Any, name: str, known: list[str] | None) -> None:
    """Raise ``ValueError`` for a data frame of as many columns with other names than those that a density knows."""
    names = column_names(values)
    if known is not None and names is not None and len(names) == len(known) and names != known:
        raise ValueError(
            f"expected {name} with the columns {_joined(known)}, in this order, as in the data frame that the density "
            f"was fitted to, got {_joined(names)}; select them by name"
        )


def _numbers(values: Any, name: str) -> np.ndarray[Any, Any]:
    """An array of numbers; data frames of any make know how to become an array."""
    kind = type(values).__name__
    if isinstance(values, np.ma.MaskedArray) and np.ma.getmaskarray(values).any():
        count = int(np.ma.getmaskarray(values).sum())
        raise ValueError(f"expected {name} without missing entries, got {count} that are masked; drop or impute them")
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"expected {name} to be rows of one length, got {kind}: {error}") from error
    if array.dtype.kind in "biufc":
        array = array.astype(np.float64) if array.dtype.itemsize > 8 and array.dtype.kind == "f" else array
        return array.astype(array.dtype.newbyteorder("="), copy=False)  # the order of bytes that torch knows
    if array.dtype.kind not in "OSU":
        raise ValueError(f"expected {name} to be numeric, got {kind} of {array.dtype}; turn it into numbers first")
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected {name} to be numeric, got {kind} of {array.dtype}{_not_numeric(values, array)}: {error}; "
            "encode the columns that are not numbers (categories as indicator columns), or drop them, and drop or "
            "impute rows with missing entries"
        ) from error


def _not_numeric(values: Any, array: np.ndarray[Any, Any]) -> str:
    """The columns that do not become numbers, by their names where they have some."""
    if array.ndim != 2:
        return ""
    names = list(getattr(values, "columns", range(array.shape[1])))
    bad: list[str] = []
    for i, column in enumerate(array.T):
        try:
            column.astype(np.float64)
        except (TypeError, ValueError):
            bad.append(repr(names[i]))
    return f" with columns that are not: {_joined(bad)}"


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
        try:
            self.steps = len(loader)
        except TypeError as error:
            raise ValueError(
                "expected a DataLoader that knows how many batches it has, got one of a stream "
                f"({type(loader.dataset).__name__}); use a dataset with __len__"
            ) from error

    def in_order(self) -> Iterator[Pair]:
        """All batches, as the loader gives them."""
        for batch in self.loader:
            yield self._pair(batch)

    epoch = in_order

    def _pair(self, batch: Any) -> Pair:
        if isinstance(batch, Mapping):
            raise ValueError(
                f"expected a DataLoader whose batches are x or (x, context), got dicts of "
                f"{', '.join(map(str, batch))}; pick the entries by a collate_fn"
            )
        parts = tuple(batch) if isinstance(batch, list | tuple) else (batch,)
        wanted = 2 if self.with_context else 1
        if len(parts) < wanted:
            raise ValueError(f"expected a DataLoader whose batches are pairs (x, context), got {len(parts)} part")
        context = to_rows(parts[1], "context", self.dtype).detach() if self.with_context else None
        return to_rows(parts[0], "x", self.dtype).detach(), context


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
    repeated: Tensor
    """whether most values of a column come more than once, in the first rows"""

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
                f"expected columns that vary, got constant columns {listed(self.constant)} (in {self.low.dtype}): "
                "their density is infinite; drop them"
            )
        if self.count <= len(self.mean):
            raise ValueError(
                f"expected more training rows than columns, got {self.count} of {len(self.mean)} columns: "
                "the likelihood would grow without bound; use more rows or fewer columns"
            )
        for columns, what in (
            (self.whole, "hold whole numbers only"),
            (self.repeated & ~self.whole, "hold few values, each of them often"),
        ):
            if bool(columns.any()) and not discrete:
                warnings.warn(
                    f"columns {listed(columns)} {what}. A density can put an ever higher and narrower peak on each of "
                    "these values, so the likelihood diverges and says nothing. Add noise as wide as the step between "
                    "two values (density.dequantise, or density.ImageDensity for images), or drop them",
                    stacklevel=4,
                )


def measure(pairs: Iterable[Tensor], name: str = "x") -> Moments:
    """The moments of all rows, in one pass, with float64 sums.

    Raises:
        ValueError: for rows that are not ``(N, D)``, of different widths, none at all, or with NaN or infinite values.
    """
    total: Moments | None = None
    seen: list[Tensor] = []
    first = 0
    for rows in pairs:
        require_rows(rows, name, first)
        if total is not None and rows.shape[1] != len(total.mean):
            raise ValueError(f"expected {name} of {len(total.mean)} columns throughout, got {rows.shape[1]}")
        if first < LOOK:
            seen.append(rows[: LOOK - first])
        first += len(rows)
        values = rows.double()
        exact = rows.abs() < 1.0 / torch.finfo(rows.dtype).eps  # beyond, every number is a whole one
        mean = values.mean(0)
        whole = ((rows == rows.round()) & exact).all(0)
        square = (values - mean).square().sum(0)
        part = Moments(len(rows), mean, square, rows.amin(0), rows.amax(0), whole, torch.zeros_like(whole))
        total = part if total is None else _merged(total, part)
    if total is None:
        raise ValueError(f"expected at least one row in {name}, got none")
    total.repeated = _repeated(torch.cat(seen)) & ~total.constant
    return total


def require_rows(rows: Tensor, name: str, first: int = 0) -> None:
    """Raise ``ValueError`` unless rows are ``(N, D)`` and finite; ``first`` is the number of the first of them."""
    if rows.ndim != 2 or 0 in rows.shape:
        hint = "; for a single variable pass one column, x[:, None]" if rows.ndim == 1 else ""
        hint = "; flatten images and the like, x.flatten(1)" if rows.ndim > 2 else hint
        raise ValueError(f"expected {name} of shape (N, D) with at least one row, got {tuple(rows.shape)}{hint}")
    bad = ~rows.isfinite()
    if bool(bad.any()):
        row = int(bad.any(1).nonzero()[0]) + first
        raise ValueError(
            f"expected finite values in {name}, got {int(bad.sum())} that are NaN or infinite (in {rows.dtype}), in "
            f"columns {listed(bad.any(0))}, first in row {row}; drop or impute these rows"
        )


def _repeated(rows: Tensor) -> Tensor:
    """Of which columns less than half the values are different ones."""
    changes = rows.sort(dim=0).values.diff(dim=0) != 0
    return 2 * (changes.sum(0) + 1) < len(rows)


def _merged(a: Moments, b: Moments) -> Moments:
    count, gap = a.count + b.count, b.mean - a.mean
    return Moments(
        count,
        a.mean + gap * (b.count / count),
        a.square + b.square + gap.square() * (a.count * b.count / count),
        torch.minimum(a.low, b.low),
        torch.maximum(a.high, b.high),
        a.whole & b.whole,
        a.repeated,
    )


def listed(columns: Tensor) -> str:
    """The places of columns that are true, the first of them."""
    return _joined([str(place) for place in columns.nonzero().flatten().tolist()])


def _joined(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
