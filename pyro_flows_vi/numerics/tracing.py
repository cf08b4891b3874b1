"""Whether values can decide what a function does."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["is_traced"]


def is_traced(value: Tensor) -> bool:
    """Whether a compiler, a tracer or a functorch transform is looking on, for whom values are unknown."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or value.is_meta
        or torch._C._functorch.maybe_current_level() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )
