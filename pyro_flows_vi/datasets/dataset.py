"""A data set as a trainer sees it: fresh minibatches to train on, fixed rows to be judged by."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["VALUES", "Dataset", "Values", "to_values"]

Values = Literal["binary", "unit", "levels"]

#: what pixels can be handed out as
VALUES: tuple[Values, ...] = ("binary", "unit", "levels")


def to_values(x: Tensor, white: int, values: Values, generator: torch.Generator | None = None) -> Tensor:
    r"""Stored grey levels as float32 pixels.

    * ``"binary"``: one draw of :math:`b_j \sim \mathrm{Bernoulli}(x_j / w)`, w the level of white;
    * ``"unit"``: :math:`x_j / w`;
    * ``"levels"``: :math:`x_j`.

    Black is always 0 and white always 1 in a draw, so data with two levels pass unchanged and use no
    randomness.

    Args:
        x: grey levels ``(*batch, D)``, uint8 from 0 to ``white``.
        white: w, the level that means 1.
        values: one of the three.
        generator: the source of the draws, on the device of ``x``.
    """
    if values == "binary" and white > 1:
        return torch.rand(x.shape, generator=generator, device=x.device).mul_(white).lt(x).float()
    return x.float().div_(white) if values == "unit" else x.float()


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Training rows as they are stored, validation and test rows as a likelihood scores them.

    What a likelihood wants to see is ``values``:

    * ``"binary"``, 0.0 or 1.0, for a Bernoulli. Grey data are binarised dynamically: training rows are drawn
      anew each time that they are used, validation and test rows once, when the data are loaded. Data that
      are stored with two levels are binarised statically: they are what they are.
    * ``"unit"``, from 0.0 to 1.0, for a Gaussian, or for a categorical likelihood over ``levels`` values.
    * ``"levels"``, 0.0, 1.0, ... as stored.

    Static and dynamic binarisation are two different data sets ("On the quantitative analysis of deep belief
    networks" (Salakhutdinov, Murray, 2008) drew MNIST once for all), and their results are not comparable.

    Args:
        name: what the data are called.
        train: uint8 ``(n, D)``, grey levels from 0 to ``white``.
        validation: float32 ``(n, D)``, in the form of ``values``.
        test: float32 ``(n, D)``, in the form of ``values``.
        image_shape: height and width, with D = height * width.
        values: "binary", "unit" or "levels".
        white: the stored level that means 1.0: 255 for bytes, 1 for data that are stored binary.
        binarisation_seed: what validation and test were drawn with; ``None`` if nothing was drawn.
        split_seed: what the rows were shuffled with before the split; ``None`` if they were not.

    Raises:
        ValueError: for tensors of another dtype, shape or range, or without rows, and for an unknown
            ``values``.
    """

    name: str
    train: Tensor = dataclasses.field(repr=False)
    validation: Tensor = dataclasses.field(repr=False)
    test: Tensor = dataclasses.field(repr=False)
    image_shape: tuple[int, int]
    values: Values = "binary"
    white: int = 255
    binarisation_seed: int | None = None
    split_seed: int | None = None

    def __post_init__(self) -> None:
        if self.values not in VALUES:
            raise ValueError(f"{self.name}: expected values to be one of {', '.join(VALUES)}, got {self.values!r}")
        dim = math.prod(self.image_shape)
        for part, dtype in (("train", torch.uint8), ("validation", torch.float32), ("test", torch.float32)):
            rows = getattr(self, part)
            if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] != dim or rows.dtype != dtype:
                raise ValueError(
                    f"{self.name}: expected {part} to be {dtype} of shape (n, {dim}) with at least one row, "
                    f"got {rows.dtype} of shape {tuple(rows.shape)}; flatten and convert the images first"
                )
        brightest = int(self.train.max())
        if not 1 <= self.white <= 255 or brightest > self.white:
            raise ValueError(
                f"{self.name}: expected grey levels from 0 to white, a number from 1 to 255, "
                f"got levels up to {brightest} with white = {self.white}"
            )
        highest = self.white if self.values == "levels" else 1
        for part in ("validation", "test"):
            low, high = (float(v) for v in torch.aminmax(getattr(self, part)))  # NaN spreads through both
            if not (low >= 0 and high <= highest):
                raise ValueError(
                    f"{self.name}: expected {part} to hold {self.values!r} values from 0 to {highest}, "
                    f"got values from {low:g} to {high:g}; scale them first"
                )

    @property
    def dim(self) -> int:
        """D, the number of pixels."""
        return self.train.shape[1]

    @property
    def levels(self) -> int:
        """How many values a pixel can take: 2 for binary data, else ``white`` + 1."""
        return 2 if self.values == "binary" else self.white + 1

    @property
    def binarisation(self) -> str | None:
        """ "dynamic", "static", or ``None`` for data that are not binary."""
        if self.values != "binary":
            return None
        return "dynamic" if self.white > 1 else "static"

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """One epoch of training minibatches, shuffled, and binarised as they are handed out.

        The shuffle and the draws come from ``generator`` alone, so its state at the start of an epoch decides
        the epoch bit by bit: save that state to resume. Costs one uniform number per pixel and holds
        one minibatch; nothing of the size of the training set is made.

        Args:
            batch_size: rows per minibatch; the last one may be smaller.
            generator: on the device of ``train``.

        Yields:
            float32 ``(batch_size, D)``.

        Raises:
            ValueError: at the call, for a batch size that is not a positive whole number, or a generator on
                another device.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"expected a batch_size of at least 1, got {batch_size!r}")
        self._check_generator(generator)
        return self._batches(batch_size, generator)

    def _batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        order = torch.randperm(len(self.train), generator=generator, device=generator.device)
        for rows in order.split(batch_size):
            yield to_values(self.train[rows], self.white, self.values, generator)

    def train_epoch(self, generator: torch.Generator) -> Tensor:
        """The whole training set in its own order, binarised anew; float32 ``(n, D)``, 157 MB for MNIST."""
        self._check_generator(generator)
        return to_values(self.train, self.white, self.values, generator)

    def binarise(self, x: Tensor, generator: torch.Generator) -> Tensor:
        r"""One draw of :math:`b_j \sim \mathrm{Bernoulli}(x_j / w)`, w the level of white.

        Args:
            x: grey levels ``(*batch, D)``, uint8 from 0 to ``white``, such as rows of ``train``.
            generator: on the device of ``x``.

        Returns:
            float32 zeros and ones, shaped as ``x``.

        Raises:
            ValueError: where ``x`` is not uint8, has another last dimension, or levels above ``white``.
        """
        if x.dtype != torch.uint8 or x.shape[-1:] != (self.dim,) or (x.numel() and int(x.max()) > self.white):
            raise ValueError(
                f"{self.name}: expected uint8 levels from 0 to {self.white} of shape (*batch, {self.dim}), "
                f"got {x.dtype} of shape {tuple(x.shape)}; pass rows of dataset.train"
            )
        return to_values(x, self.white, "binary", generator)

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on ``device``, where shuffling and binarising then happen too."""
        parts = {part: getattr(self, part).to(device) for part in ("train", "validation", "test")}
        return dataclasses.replace(self, **parts)

    def sha256(self) -> str:
        """The fingerprint of all rows in their split, order and form (a quarter of a second for MNIST)."""
        digest = hashlib.sha256()
        for rows in (self.train, self.validation, self.test):
            digest.update(f"{rows.dtype} {tuple(rows.shape)}\n".encode())
            digest.update(rows.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a record has to say about the data, in JSON's types; records that agree saw the same rows."""
        return {
            "name": self.name,
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
            "dim": self.dim,
            "image_shape": list(self.image_shape),
            "values": self.values,
            "levels": self.levels,
            "binarisation": self.binarisation,
            "binarisation_seed": self.binarisation_seed,
            "split_seed": self.split_seed,
            "sha256": self.sha256()[:16],
        }

    def _check_generator(self, generator: torch.Generator) -> None:
        if generator.device.type != self.train.device.type:
            raise ValueError(
                f"{self.name}: expected a generator on {self.train.device}, where the data are, got one on "
                f"{generator.device}; move the data with dataset.to({str(generator.device)!r})"
            )
