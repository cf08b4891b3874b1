"""The one cache of the package: what a call computed, for the ``log_prob`` that follows it."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_flows_vi.numerics.tracing import is_traced
from pyro_flows_vi.transforms._door import require_finite_parameters

__all__ = ["Memo", "is_fleeting"]


class Memo:
    """What one call through torch's interface computed, for the ``log_prob`` that follows a sample.

    It holds the tensor that the caller received only weakly and goes with it, so that no graph and no
    batch outlives its user. It answers for the very tensors it was made for, as long as they, the parameters
    (identity, version and content), the grad mode and the training mode are the same, and no backward pass has run
    through it.
    """

    __slots__ = ("__weakref__", "log_det", "prints", "stamp", "state", "x", "y")

    def __init__(self, flow: nn.Module, x: Tensor, y: Tensor, log_det: Tensor, handle: Tensor) -> None:
        # A callback that held the memo would make a cycle, and the memo would wait for the collector.
        forget = functools.partial(_forget, weakref.ref(flow), weakref.ref(self))
        weak = weakref.ref(handle, forget)
        self.x: Callable[[], Tensor | None] = weak if handle is x else lambda: x
        self.y: Callable[[], Tensor | None] = weak if handle is y else lambda: y
        self.log_det = log_det
        self.state = _state(flow)
        self.stamp = self._stamp(flow, x, y)
        self.prints = _fingerprints(self.state)
        if Distribution._validate_args and not all(map(math.isfinite, self.prints)):
            require_finite_parameters(flow)
        for tensor in (handle, log_det):
            if tensor.requires_grad:
                tensor.register_hook(forget)

    def _stamp(self, flow: nn.Module, x: Tensor, y: Tensor) -> tuple[Any, ...]:
        modes = [module.training for module in flow.modules()]  # which decide between an estimate and the exact value
        return torch.is_grad_enabled(), x._version, y._version, [t._version for t in self.state], modes

    def match(self, flow: nn.Module, x: Tensor | None, y: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        mine_x, mine_y = self.x(), self.y()
        if (
            mine_x is None
            or mine_y is None
            or (x is not None and x is not mine_x)
            or (y is not None and y is not mine_y)
        ):
            return None, None
        state = _state(flow)
        same = len(state) == len(self.state) and all(a is b for a, b in zip(state, self.state, strict=True))
        same = same and self._stamp(flow, mine_x, mine_y) == self.stamp
        return (mine_x, self.log_det) if same and _fingerprints(state) == self.prints else (None, None)


def _forget(flow_ref: weakref.ref[Any], memo_ref: weakref.ref[Memo], _: object) -> None:
    flow, memo = flow_ref(), memo_ref()
    if flow is not None and memo is not None and flow._memo is memo:
        flow._memo = None


def _state(flow: nn.Module) -> list[Tensor]:
    """Every tensor that the flow's values depend on."""
    bound = [module.context for module in flow.modules() if isinstance(getattr(module, "context", None), Tensor)]
    return [*flow.parameters(), *flow.buffers(), *bound]  # type: ignore[list-item]


@torch.no_grad()
def _fingerprints(state: list[Tensor]) -> list[float]:
    """Sum and norm of every tensor: a fused optimiser, and a write to ``.data``, raise no version counter."""
    values = [t if t.is_floating_point() else t.float() for t in state]
    numbers = [torch.stack([t.sum() for t in values]), torch.stack(torch._foreach_norm(values))] if values else []
    return [number for row in numbers for number in row.tolist()]


def is_fleeting(value: Tensor) -> bool:
    """Whether nothing can be remembered of a value, since nobody can tell it from another one."""
    return is_traced(value) or value.is_inference()
