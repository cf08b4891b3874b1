"""The data sets by name: their files, how they are split, and what is drawn once when they are loaded."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_flows_vi.datasets._readers import Published, read_amat, read_idx, read_npy
from pyro_flows_vi.datasets._sources import DATA_VARIABLE, download, find
from pyro_flows_vi.datasets.dataset import VALUES, Dataset, Values, to_values

__all__ = ["BINARISATION_SEED", "SPLIT_SEED", "load", "names"]

#: what the validation and test rows of dynamically binarised data are drawn with, unless told otherwise
BINARISATION_SEED = 2016

#: what rows are shuffled with before a split, unless told otherwise
SPLIT_SEED = 123

Bytes = NDArray[np.uint8]
PathLike = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class _Raw:
    """Grey levels ``(n, height, width)`` of the three parts, before anything is drawn."""

    train: Bytes
    validation: Bytes
    test: Bytes
    white: int
    split_seed: int | None = None


_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
# The hashes are of the uncompressed content: every mirror's compression is welcome.
_MNIST_TRAIN, _MNIST_VALIDATION = 60_000, 10_000
_MNIST_FILES = {
    "train-images-idx3-ubyte": Published(
        (60_000, 28, 28), "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    "t10k-images-idx3-ubyte": Published(
        (10_000, 28, 28), "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
}
_AMAT_SHAPE = (28, 28)
_AMAT_LINES = {"train": 50_000, "valid": 10_000, "test": 10_000}
_FREY = Published((1965, 28, 20), "2177ea074dc1d5ce35294c687dfce79ced65db6d7b745d95a2e1757fcfbe41c0")
_FREY_HELD_OUT = 200
_DIGITS_HELD_OUT = 250


def _mnist(data_dir: PathLike | None, split_seed: int, verify: bool) -> _Raw:
    options = [(name, f"{name}.gz") for name in _MNIST_FILES]
    paths = find("mnist", options, ("", "mnist", "MNIST/raw"), data_dir, "; without either, the files are downloaded")
    if paths is None:
        train, test = (
            download(f"{name}.gz", _MNIST_MIRRORS, partial(read_idx, ndim=3, published=published))
            for name, published in _MNIST_FILES.items()
        )
    else:
        train, test = (
            read_idx(path, ndim=3, published=published if verify else None)
            for path, published in zip(paths, _MNIST_FILES.values(), strict=True)
        )
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(
            "mnist: expected training and test images of one size, "
            f"got {train.shape[1:]} and {test.shape[1:]}; take both files from one source"
        )
    held_out = _share("mnist", len(train), _MNIST_VALIDATION, _MNIST_TRAIN)
    return _Raw(train[:-held_out], train[-held_out:], test, white=255)


def _static_mnist(data_dir: PathLike | None, split_seed: int, verify: bool) -> _Raw:
    options = [(f"binarized_mnist_{part}.amat",) for part in _AMAT_LINES]
    folders = ("", "static_mnist", "mnist", "binarized_mnist", "MNIST_static")
    paths = _local(find("static_mnist", options, folders, data_dir), "static_mnist", options)
    train, validation, test = (
        read_amat(path, math.prod(_AMAT_SHAPE), num_lines if verify else None).reshape(-1, *_AMAT_SHAPE)
        for path, num_lines in zip(paths, _AMAT_LINES.values(), strict=True)
    )
    return _Raw(train, validation, test, white=1)


def _freyfaces(data_dir: PathLike | None, split_seed: int, verify: bool) -> _Raw:
    options = [("freyfaces.npy",)]
    (path,) = _local(find("freyfaces", options, ("", "freyfaces"), data_dir), "freyfaces", options)
    images = read_npy(path, _FREY if verify else None)
    held_out = _share("freyfaces", len(images), _FREY_HELD_OUT, _FREY.shape[0])
    return _shuffled(images, held_out, split_seed, white=255)


def _digits(data_dir: PathLike | None, split_seed: int, verify: bool) -> _Raw:
    from sklearn.datasets import load_digits

    return _shuffled(load_digits().images.astype(np.uint8), _DIGITS_HELD_OUT, split_seed, white=16)


def _local(paths: list[Path] | None, name: str, options: Sequence[Sequence[str]]) -> list[Path]:
    if paths is None:
        files = ", ".join(names[0] for names in options)
        raise ValueError(
            f"{name}: expected a directory with {files}, got none: these files are not downloaded; "
            f"pass data_dir, or set the environment variable {DATA_VARIABLE}"
        )
    return paths


def _share(name: str, count: int, part: int, whole: int) -> int:
    """``part`` of ``whole``, scaled to ``count`` images: exact for the published data."""
    if count < 3:
        raise ValueError(f"{name}: expected at least 3 images to split, got {count}")
    return max(1, count * part // whole)


def _shuffled(images: Bytes, held_out: int, split_seed: int, white: int) -> _Raw:
    # NumPy guarantees that this generator's stream never changes, and published splits were made with it.
    images = images[np.random.RandomState(split_seed).permutation(len(images))]
    train, validation, test = np.split(images, [-2 * held_out, -held_out])
    return _Raw(train, validation, test, white, split_seed)


_LOADERS: dict[str, tuple[Callable[[PathLike | None, int, bool], _Raw], Values]] = {
    "mnist": (_mnist, "binary"),
    "static_mnist": (_static_mnist, "binary"),
    "freyfaces": (_freyfaces, "unit"),
    "digits": (_digits, "binary"),
}


def names() -> tuple[str, ...]:
    """The names that :func:`load` knows."""
    return tuple(_LOADERS)


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    values: Values | None = None,
    seed: int = BINARISATION_SEED,
    split_seed: int = SPLIT_SEED,
    verify: bool = True,
) -> Dataset:
    """A data set by name: training rows as stored, validation and test rows ready to be scored.

    * ``mnist``: 28 x 28, split into 50,000, 10,000 and 10,000; binary, drawn dynamically. Files:
      ``train-images-idx3-ubyte`` and ``t10k-images-idx3-ubyte``, plain or ``.gz``. The order is kept, and
      the last 10,000 training images are for validation.
    * ``static_mnist``: the same split, drawn once by the authors of "The Neural Autoregressive Distribution
      Estimator" (Larochelle, Murray, 2011). Files: ``binarized_mnist_train.amat``, ``_valid`` and ``_test``.
    * ``freyfaces``: 28 x 20, 1565, 200 and 200; from 0 to 1 in 256 levels. File: ``freyfaces.npy``. Shuffled
      by ``split_seed`` before the split; 123, 321 and 231 give the splits of the code of "Sylvester
      Normalizing Flows for Variational Inference" (van den Berg et al., 2018), arXiv:1803.05649.
    * ``digits``: 8 x 8, 1297, 250 and 250; 17 grey levels, binary, drawn dynamically. Ships with
      scikit-learn, so there is no file. Shuffled by ``split_seed`` before the split.

    Files are looked for in ``data_dir``, or else in the directory that the environment variable
    ``PYRO_FLOWS_VI_DATA`` names, and in the usual folders below it (``mnist``, ``MNIST/raw``,
    ``static_mnist``, ``freyfaces``). With neither given, MNIST is downloaded once (12 MB) into the user's
    cache directory. A directory that is given and lacks a file is an error, never a download. Labels are not
    read.

    Args:
        name: one of :func:`names`.
        data_dir: the data directory.
        values: "binary", "unit" or "levels", see :class:`Dataset`; ``None`` for the form named above.
        seed: what the validation and test rows of grey data are binarised with, validation first. It is part
            of the benchmark, not of a run: results compare only where it is the same.
        split_seed: what Frey faces and digits are shuffled with.
        verify: whether files have to hold the published data, by shape and by the SHA-256 of the uncompressed
            content (``.amat`` files: by their number of lines). With ``False`` any intact files of the
            format will do, split in the same proportions. A download is always verified.

    Raises:
        ValueError: for an unknown name or form of values, a seed that is not a whole number from 0 to
            2**32 - 1, a file that is missing, damaged or not the published one, or a failed download.

    >>> data = load("digits")
    >>> generator = torch.Generator().manual_seed(0)
    >>> next(data.batches(100, generator)).shape, data.test.unique()
    (torch.Size([100, 64]), tensor([0., 1.]))
    """
    if name not in _LOADERS:
        raise ValueError(f"unknown data set {name!r}: expected one of {', '.join(_LOADERS)}")
    loader, default = _LOADERS[name]
    values = default if values is None else values
    if values not in VALUES:
        raise ValueError(f"{name}: expected values to be one of {', '.join(VALUES)}, got {values!r}")
    for argument, number in (("seed", seed), ("split_seed", split_seed)):
        if not isinstance(number, int) or not 0 <= number < 2**32:
            raise ValueError(f"expected {argument} to be a whole number from 0 to 2**32 - 1, got {number!r}")

    raw = loader(data_dir, split_seed, verify)
    if raw.white == 1 and values != "binary":
        raise ValueError(f"{name}: the data are stored binary: expected values 'binary', got {values!r}")
    drawn = values == "binary" and raw.white > 1
    source = np.random.RandomState(seed)  # not torch's generator, whose stream may change between versions
    validation, test = (_held_out(rows, raw.white, values, source) for rows in (raw.validation, raw.test))
    return Dataset(
        name=name,
        train=torch.from_numpy(np.array(raw.train.reshape(len(raw.train), -1))),
        validation=validation,
        test=test,
        image_shape=(raw.train.shape[1], raw.train.shape[2]),
        values=values,
        white=raw.white,
        binarisation_seed=seed if drawn else None,
        split_seed=raw.split_seed,
    )


def _held_out(images: Bytes, white: int, values: Values, source: np.random.RandomState) -> torch.Tensor:
    """Rows in the form of ``values``; a grey image that has to be binary is drawn here, once."""
    rows = np.array(images.reshape(len(images), -1))
    if values == "binary" and white > 1:
        rows, white = (source.random_sample(rows.shape) * white < rows).astype(np.uint8), 1
    return to_values(torch.from_numpy(rows), white, values)
