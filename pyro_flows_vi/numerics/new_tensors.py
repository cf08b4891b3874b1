"""The dtype and the device of new tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["placement", "precision"]


@contextmanager
def precision(dtype: torch.dtype | None) -> Iterator[None]:
    """New floating tensors have this dtype inside, those that are read from files too; nothing without a dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def placement(values: Any) -> Iterator[None]:
    """New tensors are on the device of those in ``values``, where that is one and not the processor.

    So a model that says ``Normal(0.0, 1.0)`` runs where its data are.

    Args:
        values: any nesting of tuples, lists and dicts.

    Example:
        >>> with placement((torch.zeros(2, device="meta"), 3)):
        ...     torch.zeros(1).device
        device(type='meta')
    """
    devices = {leaf.device for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.device.type != "cpu"}
    if len(devices) != 1:
        yield
        return
    with devices.pop():
        yield
