"""Tables of numbers: the five benchmarks of density estimation, and two that ship with scikit-learn.

>>> from pyro_flows_vi.datasets import load_table
>>> table = load_table("breast_cancer")
>>> table.describe()["train"], table.dim
(462, 10)
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_flows_vi.datasets._frame_pickle import read_frame
from pyro_flows_vi.datasets._sources import DATA_VARIABLE, find

__all__ = ["Table", "load_table", "table_names"]

Floats = NDArray[np.floating[Any]]
Split = tuple[Floats, Floats, Floats]
PathLike = str | os.PathLike[str]

#: where the files of the five benchmarks are published
SOURCE = "https://zenodo.org/records/1161203 (data.tar.gz)"
#: a value that comes back more often is no draw from a density
MOST_REPEATS = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Rows of a table as float32, split, and on the scale on which results are published."""

    name: str
    train: Tensor = dataclasses.field(repr=False)
    validation: Tensor = dataclasses.field(repr=False)
    test: Tensor = dataclasses.field(repr=False)

    @property
    def dim(self) -> int:
        """The number of columns."""
        return self.train.shape[1]

    def describe(self) -> dict[str, Any]:
        """What a record has to say about the data, in JSON's types; records that agree saw the same rows."""
        digest = hashlib.sha256()
        for rows in (self.train, self.validation, self.test):
            digest.update(f"{rows.dtype} {tuple(rows.shape)}\n".encode())
            digest.update(rows.contiguous().numpy().data)
        sizes = {part: len(getattr(self, part)) for part in ("train", "validation", "test")}
        return {"name": self.name, **sizes, "dim": self.dim, "sha256": digest.hexdigest()[:16]}


def table_names() -> tuple[str, ...]:
    """The names that :func:`load_table` knows."""
    return tuple(_LOADERS)


def load_table(name: str, data_dir: PathLike | None = None) -> Table:
    """A table by name, in the published preprocessing and split.

    ``power``, ``gas``, ``hepmass``, ``miniboone`` and ``bsds300`` are read from the files that "Masked autoregressive
    flow for density estimation" (Papamakarios, Pavlakou, Murray, 2017), arXiv:1705.07057, was published with, and
    prepared as its code does: columns removed, noise added, standardised by training and validation rows, split.
    They are ``power/data.npy``, ``gas/ethylene_CO.pickle``, ``hepmass/1000_train.csv`` and ``1000_test.csv``,
    ``miniboone/data.npy`` and ``BSDS300/BSDS300.hdf5``, in ``data_dir`` or in the directory that the environment
    variable ``PYRO_FLOWS_VI_DATA`` names. Nothing is downloaded. The pickle is read without executing code.

    ``breast_cancer`` (the ten columns "mean" of 569 tumours) and ``wine`` (thirteen columns of 178 wines, whole numbers
    dequantised) ship with scikit-learn; shuffled, and split and standardised in the same way. They are small: what a
    table of theirs shows is how a flow overfits.

    Args:
        name: one of :func:`table_names`.
        data_dir: the data directory.

    Raises:
        ValueError: for an unknown name, a file that is missing (it says which, and where it is published), or damaged.
    """
    if name not in _LOADERS:
        raise ValueError(f"unknown table {name!r}: expected one of {', '.join(_LOADERS)}")
    parts = _LOADERS[name](data_dir)
    for part, rows in zip(("training", "validation", "test"), parts, strict=True):
        if len(rows) == 0 or not np.isfinite(rows).all():
            raise ValueError(f"{name}: expected finite {part} rows, got {len(rows)}, some of them not finite or none")
    train, validation, test = (torch.from_numpy(rows.astype(np.float32)) for rows in parts)
    return Table(name, train, validation, test)


def _files(name: str, folder: str, files: tuple[str, ...], data_dir: PathLike | None) -> list[Path]:
    wanted = ", ".join(f"{folder}/{file}" for file in files)
    where = f"; the files are published at {SOURCE}"
    found = find(name, [(file,) for file in files], (folder, ""), data_dir, where)
    if found is None:
        raise ValueError(
            f"{name}: expected a directory with {wanted}, got none; pass data_dir, or set the environment variable "
            f"{DATA_VARIABLE}{where}"
        )
    return found


def _array(path: Path, columns: int | None) -> Floats:
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # damaged bytes make NumPy's reader raise almost anything
        raise ValueError(f"{path}: not a NumPy array file, or a damaged one ({error}); copy it again") from error
    wanted = "(rows, columns)" if columns is None else f"(rows, {columns})"
    if array.ndim != 2 or array.dtype.kind not in "fiu" or (columns is not None and array.shape[1] != columns):
        raise ValueError(f"{path}: expected numbers of shape {wanted}, got {array.dtype} of shape {array.shape}")
    return array.astype(np.float64)


def _split(rows: Floats) -> Split:
    """The last tenth for the test, the last tenth of the others for validation."""
    test = int(0.1 * len(rows))
    rest = len(rows) - test
    validation = int(0.1 * rest)
    return rows[: rest - validation], rows[rest - validation : rest], rows[rest:]


def _standardised(parts: Split) -> Split:
    """By mean and standard deviation of training and validation rows together."""
    seen = np.vstack(parts[:2])
    mean, sd = seen.mean(0), seen.std(0)
    return (parts[0] - mean) / sd, (parts[1] - mean) / sd, (parts[2] - mean) / sd


def _power(data_dir: PathLike | None) -> Split:
    (path,) = _files("power", "power", ("data.npy",), data_dir)
    rows, source = _array(path, 8), np.random.RandomState(42)
    source.shuffle(rows)
    rows = np.delete(rows, [1, 3], axis=1)  # reactive power and intensity, which say what others say
    count = len(rows)
    # in the order in which the published code draws: voltage, active power, three meters; the time has none
    voltage, active, meters = 0.01 * source.rand(count, 1), 0.001 * source.rand(count, 1), source.rand(count, 3)
    return _standardised(_split(rows + np.hstack([active, voltage, meters, np.zeros((count, 1))])))


def _gas(data_dir: PathLike | None) -> Split:
    (path,) = _files("gas", "gas", ("ethylene_CO.pickle",), data_dir)
    columns, rows = read_frame(path)
    missing = [name for name in ("Meth", "Eth", "Time") if name not in columns]
    if missing:
        raise ValueError(f"{path}: expected columns Meth, Eth and Time, got {', '.join(map(str, columns))}")
    rows = rows[:, [i for i, name in enumerate(columns) if name not in ("Meth", "Eth", "Time")]]
    # the first column that is nearly another one goes, until there is none
    while (twins := (np.corrcoef(rows.T) > 0.98).sum(axis=1) > 1).any():
        rows = np.delete(rows, int(twins.argmax()), axis=1)
    return _split((rows - rows.mean(0)) / rows.std(0, ddof=1))


def _hepmass(data_dir: PathLike | None) -> Split:
    paths = _files("hepmass", "hepmass", ("1000_train.csv", "1000_test.csv"), data_dir)
    train, test = (_signal(path) for path in paths)
    test = test[:, :-1]  # a column that the training file does not have
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"{paths[1]}: expected one column more than in {paths[0].name}, "
            f"got {test.shape[1] + 1} and {train.shape[1]} features"
        )
    mean, sd = train.mean(0), train.std(0, ddof=1)
    train, test = (train - mean) / sd, (test - mean) / sd
    kept = [i for i, column in enumerate(train.T) if (column == column.min()).sum() <= MOST_REPEATS]
    train, test = train[:, kept], test[:, kept]
    validation = int(0.1 * len(train))
    return train[: len(train) - validation], train[len(train) - validation :], test


def _signal(path: Path) -> Floats:
    """The rows of class 1 without their class, as many columns as the header has."""
    with path.open(encoding="utf-8") as file:
        width = len(file.readline().split(","))
    try:
        rows = np.loadtxt(path, delimiter=",", skiprows=1, usecols=range(width), ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path}: expected lines of {width} numbers after a header: {error}") from error
    signal: Floats = rows[rows[:, 0] == 1.0, 1:]
    if len(signal) == 0:
        raise ValueError(f"{path}: expected rows of class 1 in the first column, got none of {len(rows)}")
    return signal


def _miniboone(data_dir: PathLike | None) -> Split:
    (path,) = _files("miniboone", "miniboone", ("data.npy",), data_dir)
    return _standardised(_split(_array(path, None)))


def _bsds300(data_dir: PathLike | None) -> Split:
    import h5py

    (path,) = _files("bsds300", "BSDS300", ("BSDS300.hdf5",), data_dir)
    try:
        with h5py.File(path, "r") as file:
            train, validation, test = (np.asarray(file[part], np.float32) for part in ("train", "validation", "test"))
    except (OSError, KeyError) as error:
        raise ValueError(f"{path}: expected an HDF5 file with train, validation and test: {error}") from error
    return train, validation, test


def _breast_cancer(data_dir: PathLike | None) -> Split:
    from sklearn.datasets import load_breast_cancer

    return _embedded(np.asarray(load_breast_cancer().data)[:, :10])


def _wine(data_dir: PathLike | None) -> Split:
    from sklearn.datasets import load_wine

    return _embedded(np.asarray(load_wine().data))


def _embedded(rows: Floats) -> Split:
    """Shuffled, whole numbers dequantised, split and standardised, as POWER is."""
    source = np.random.RandomState(42)
    rows = source.permutation(rows)
    whole = (rows == rows.round()).all(0)
    return _standardised(_split(rows + whole * source.rand(*rows.shape)))


_LOADERS: dict[str, Callable[[PathLike | None], Split]] = {
    "power": _power,
    "gas": _gas,
    "hepmass": _hepmass,
    "miniboone": _miniboone,
    "bsds300": _bsds300,
    "breast_cancer": _breast_cancer,
    "wine": _wine,
}
