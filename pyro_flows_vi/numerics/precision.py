"""The dtype of new tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["precision"]


@contextmanager
def precision(dtype: torch.dtype | None) -> Iterator[None]:
    """New floating tensors have this dtype inside, those that are read from files too; nothing without a dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
