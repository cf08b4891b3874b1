"""Whether values can decide what a function does."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

__all__ = ["is_traced", "is_transformed"]


def is_transformed() -> bool:
    """Whether a compiler or a functorch transform looks on, which wants operations with derivatives of their own."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.maybe_current_level() is not None
    )


def is_traced(value: Tensor) -> bool:
    """Whether a compiler, a tracer or a functorch transform is looking on, for whom values are unknown.

    A dispatch mode that only counts calls, and says so by an attribute ``only_counts``, knows them.
    """
    return (
        is_transformed()
        or value.is_meta
        or any(not getattr(mode, "only_counts", False) for mode in _get_current_dispatch_mode_stack())
    )
