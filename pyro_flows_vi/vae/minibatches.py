"""What a training needs of its data, and minibatches of which the next one can be seen before it is taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Minibatches", "TrainingData"]


class TrainingData(Protocol):
    """What :func:`train` needs of a dataset; :class:`pyro_flows_vi.datasets.Dataset` has it.

    Images are drawn on the device of ``validation`` and moved to that of the model.
    """

    @property
    def train(self) -> Tensor:
        """The training images as they are stored ``(N, ...)``; only counted here."""

    @property
    def validation(self) -> Tensor:
        """Fixed images ``(M, D)``."""

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """One epoch of shuffled minibatches ``(B, D)``, drawn from ``generator`` alone."""


class Minibatches:
    """What is left of an epoch.

    Nothing is drawn before it is asked for.

    Args:
        items: the minibatches.
    """

    def __init__(self, items: Iterable[Tensor]) -> None:
        self._items = iter(items)
        self._ahead: list[Tensor] = []

    def peek(self) -> Tensor | None:
        """The next one; ``None`` at the end."""
        self._ahead = self._ahead or list(islice(self._items, 1))
        return self._ahead[0] if self._ahead else None

    def take(self) -> Tensor:
        """The next one, which is then gone."""
        x = self.peek()
        assert x is not None
        self._ahead = []
        return x
