"""The checks at a flow's door: shapes, contexts, finite values."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_flows_vi.numerics.tracing import is_traced

if TYPE_CHECKING:
    from pyro_flows_vi.transforms.base import Flow

__all__ = ["blame_parameters", "checked", "is_finite", "positive", "require_finite", "require_finite_parameters"]

Pair = tuple[Tensor, Tensor]


def checked(method: Callable[..., Pair]) -> Callable[..., Pair]:
    """Wrap one of the pair with the checks at the door; ``value`` is expanded to the broadcast batch."""

    @functools.wraps(method)
    def at_the_door(self: Flow, value: Tensor, context: Tensor | None = None) -> Pair:
        shape = value.shape
        if shape[-1:] != (self.input_dim,):
            raise ValueError(f"{type(self).__name__}: expected shape (*batch, {self.input_dim}), got {tuple(shape)}")
        if 0 in shape:
            raise ValueError(f"{type(self).__name__}: expected at least one point, got an empty batch {tuple(shape)}")
        if context is None:
            if self.context_dim is not None:
                raise ValueError(
                    f"{type(self).__name__}: expected a context of shape (*batch, {self.context_dim}), got none; "
                    "pass context=... or use flow.condition(context)"
                )
        elif self.context_dim is None:
            raise ValueError(
                f"{type(self).__name__}: got a context of shape {tuple(context.shape)}, but the flow was built "
                "without context_dim"
            )
        else:
            if context.shape[-1:] != (self.context_dim,):
                raise ValueError(
                    f"{type(self).__name__}: expected context of shape (*batch, {self.context_dim}), "
                    f"got {tuple(context.shape)}"
                )
            if context.shape[:-1] != shape[:-1]:
                try:
                    batch = torch.broadcast_shapes(shape[:-1], context.shape[:-1])
                except RuntimeError:
                    raise ValueError(
                        f"{type(self).__name__}: the context's batch {tuple(context.shape[:-1])} does not broadcast "
                        f"against the batch {tuple(shape[:-1])} of the points"
                    ) from None
                value = value.expand(*batch, self.input_dim)
        return method(self, value, context)

    return at_the_door


def is_finite(value: Tensor) -> bool:
    """Whether a value holds neither NaN nor inf."""
    return math.isfinite(value.detach().sum()) or bool(value.isfinite().all())  # a finite sum is the cheap proof


def require_finite(flow: Flow, name: str, value: Tensor) -> None:
    if Distribution._validate_args and not is_traced(value) and not is_finite(value):
        raise ValueError(
            f"{type(flow).__name__}: {name} holds {int((~value.isfinite()).sum())} values that are NaN or infinite, "
            "expected finite real vectors"
        )


def blame_parameters(flow: Flow, result: Tensor) -> None:
    """Raise if ``result`` is not finite because a parameter is not; an honest overflow passes."""
    if Distribution._validate_args and not is_traced(result) and not is_finite(result):
        require_finite_parameters(flow)


def require_finite_parameters(flow: nn.Module) -> None:
    for key, parameter in flow.named_parameters():
        if not is_finite(parameter):
            raise ValueError(
                f"{type(flow).__name__}: parameter {key!r} holds NaN or infinite values; "
                "load a good checkpoint or train with a smaller step"
            )


def positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"expected {name} to be a positive integer, got {value!r}")
    return value
