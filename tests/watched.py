"""Training data that can be watched, and changed, as they are drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pyro_flows_vi import datasets

DIGITS = datasets.load("digits")
Change = Callable[[int, Tensor], Tensor | None]


class Watched:
    """Digits in few rows, with something done to each minibatch."""

    def __init__(self, change: Change = lambda k, x: None, rows: int = 200) -> None:
        self.data = dataclasses.replace(DIGITS, train=DIGITS.train[:rows], validation=DIGITS.validation[:50])
        self.train, self.validation = self.data.train, self.data.validation
        self.change, self.count = change, 0

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        for x in self.data.batches(batch_size, generator):
            self.count += 1
            changed = self.change(self.count, x)
            yield x if changed is None else changed
