"""The contract of a flow: one pair of methods, from which torch's and Pyro's interfaces are derived."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.conditional import ConditionalTransform
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_flows_vi.transforms._door import blame_parameters, checked, positive, require_finite
from pyro_flows_vi.transforms._memo import Memo, is_fleeting
from pyro_flows_vi.transforms._score import score_by_inverse

__all__ = ["Conditioned", "Flow", "Inverse"]

Pair = tuple[Tensor, Tensor]


class Flow(ConditionalTransform, TransformModule):
    r"""A learnable bijection :math:`f_\theta : \mathbb{R}^D \to \mathbb{R}^D`, optionally given a context.

    A family implements two methods and inherits everything else:

    * ``forward_and_log_det(x, context=None) -> (y, log_det)``, base to target;
    * ``inverse_and_log_det(y, context=None) -> (x, log_det)``, with the *forward* log-determinant at ``x``.

    Both are pure functions of their arguments and the parameters. Here they get a door check, and from them come
    ``flow(x)``, ``flow.inv``, ``flow.log_abs_det_jacobian(x, y)``, ``flow.condition(context)``, and so what Pyro needs.

    Args:
        input_dim: D, the size of the last dimension.
        context_dim: C, the size of the last dimension of the context; ``None`` for a flow without one.

    Shapes: ``x`` and ``y`` are ``(*batch, D)``, ``context`` is ``(*context_batch, C)`` with a batch that
    broadcasts against that of ``x``, ``log_det`` has the broadcast batch shape.

    Raises:
        ValueError: for another last dimension, an empty batch, a context that is missing, unexpected or does not
            broadcast; through torch's interface also for NaN or inf, when torch's argument validation is on.
    """

    bijective = True
    domain = constraints.real_vector
    codomain = constraints.real_vector

    #: whether one call in that direction costs about one pass of the flow's network
    fast_forward: bool = True
    fast_inverse: bool = True
    exact_log_det: bool = True  #: whether ``log_det`` is exact, rather than an unbiased estimate
    triangular: bool = False  #: whether y_i depends on x_1, ..., x_i only

    def __init__(self, input_dim: int, context_dim: int | None = None) -> None:
        super().__init__(cache_size=0)  # see Memo
        self.input_dim = positive("input_dim", input_dim)
        self.context_dim = None if context_dim is None else positive("context_dim", context_dim)
        self._memo: Memo | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("forward_and_log_det", "inverse_and_log_det"):
            if name in cls.__dict__:
                setattr(cls, name, checked(cls.__dict__[name]))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """Map base to target: ``(y, log|det dy/dx|)``."""
        raise TypeError(f"{type(self).__name__} is a Flow and has to define forward_and_log_det")

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Pair:
        """Map target to base: ``(x, log|det dy/dx| at x)``."""
        raise TypeError(f"{type(self).__name__} is a Flow and has to define inverse_and_log_det")

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""``(y, log_det, score at y)``, for a draw ``x`` of a base with ``score`` :math:`\nabla_x \log p(x)`.

        The score of y is :math:`\nabla_y \log q(y) = J^{-T} (\nabla_x \log p(x) - \nabla_x \log|\det J|)`, without
        a graph; y and log_det have theirs. Cheap for couplings and linear flows; an inverse pass for most others.
        """
        x = x.expand(torch.broadcast_shapes(x.shape, () if context is None else (*context.shape[:-1], 1)))
        with torch.enable_grad():
            return self._forward_and_score(x if x.requires_grad else x.detach().requires_grad_(), score, context)

    def _forward_and_score(self, x: Tensor, score: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x, context)
        return y, log_det, score_by_inverse(self, y, score, context)

    def condition(self, context: Tensor) -> Flow:
        """Bind a context ``(*context_batch, C)``; a flow without ``context_dim`` is returned as it is."""
        return self if self.context_dim is None else Conditioned(self, context)

    @property
    def inv(self) -> Flow:
        """The inverse as a :class:`Flow` that shares the parameters of this one."""
        inverse: Flow | None = self._inv() if self._inv is not None else None  # type: ignore[call-arg]
        if inverse is None:
            inverse = Inverse(self)
            self._inv = weakref.ref(inverse)  # type: ignore[assignment]  # torch's attribute, as torch uses it
        return inverse

    @property
    def sign(self) -> int:
        """+1 for D = 1, where every flow here increases; not defined for D > 1."""
        if self.input_dim != 1:
            raise ValueError(f"sign is defined for input_dim=1, got input_dim={self.input_dim}")
        return 1

    def _call(self, x: Tensor) -> Tensor:
        require_finite(self, "x", x)
        y, log_det = self.forward_and_log_det(x)
        blame_parameters(self, y)
        y = y.view_as(y)  # a handle of our own: dropping it drops the memo
        self._remember(x, y, log_det, handle=y)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x = self._recall(y=y)[0]
        if x is None:
            require_finite(self, "y", y)
            x, log_det = self.inverse_and_log_det(y)
            blame_parameters(self, x)
            x = x.view_as(x)
            self._remember(x, y, log_det, handle=x)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log|det dy/dx| at ``x``, of the batch shape; where nothing can be remembered, at ``y`` if that is cheaper."""
        log_det = self._recall(x=x, y=y)[1]
        if log_det is not None:
            return log_det
        backwards = is_fleeting(y) and self.fast_inverse and not self.fast_forward
        return self.inverse_and_log_det(y)[1] if backwards else self.forward_and_log_det(x)[1]

    def with_cache(self, cache_size: int = 1) -> Flow:
        """The flow itself: there is no cache that could be switched."""
        return self

    def forward_shape(self, shape: torch.Size | tuple[int, ...]) -> torch.Size:
        """The shape of y for a shape of x."""
        return torch.Size(shape)

    def inverse_shape(self, shape: torch.Size | tuple[int, ...]) -> torch.Size:
        """The shape of x for a shape of y."""
        return torch.Size(shape)

    def _remember(self, x: Tensor, y: Tensor, log_det: Tensor, handle: Tensor) -> None:
        self._memo = None if is_fleeting(handle) else Memo(self, x, y, log_det, handle)

    def _recall(self, x: Tensor | None = None, y: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        memo = self._memo
        return (None, None) if memo is None else memo.match(self, x, y)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Flow:
        self._memo = None  # .to() and .double() change values without raising a version counter
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_memo": None}

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    __repr__ = nn.Module.__repr__

    def __dir__(self) -> list[str]:  # torch.jit reads every name in it, and sign is not always defined
        return [name for name in super().__dir__() if name != "sign" or self.input_dim == 1]

    def extra_repr(self) -> str:
        """The dimensions, for ``repr``."""
        return f"input_dim={self.input_dim}" + (f", context_dim={self.context_dim}" if self.context_dim else "")


class Inverse(Flow):
    """A flow turned round: ``forward`` is the inverse of ``flow``. An IAF turned round is a MAF.

    Args:
        flow: the flow; its parameters are those of the inverse.
    """

    def __init__(self, flow: Flow) -> None:
        super().__init__(flow.input_dim, flow.context_dim)
        self.flow = flow
        self.fast_forward, self.fast_inverse = flow.fast_inverse, flow.fast_forward
        self.triangular = flow.triangular

    @property
    def exact_log_det(self) -> bool:  # type: ignore[override]
        """As that of the flow, whose mode may change."""
        return self.flow.exact_log_det

    @property
    def inv(self) -> Flow:
        """The flow that was turned round, whose inverse is this very object."""
        self.flow._inv = weakref.ref(self)  # type: ignore[assignment]
        return self.flow

    @property
    def sign(self) -> int:
        """As that of the flow."""
        return self.flow.sign

    def condition(self, context: Tensor) -> Flow:
        """Bind a context; the result is the inverse of the conditioned flow."""
        return self.flow.condition(context).inv

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """The inverse of ``flow``, and minus its log-determinant."""
        y, log_det = self.flow.inverse_and_log_det(x, context)
        return y, -log_det

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Pair:
        """``flow`` itself, and minus its log-determinant."""
        x, log_det = self.flow.forward_and_log_det(y, context)
        return x, -log_det

    # The memo is that of the flow, so that one direction can answer for the other.
    def _call(self, x: Tensor) -> Tensor:
        return self.flow._inverse(x)

    def _inverse(self, y: Tensor) -> Tensor:
        known = self.flow._recall(x=y)
        memo = self.flow._memo
        return self.flow._call(y) if known[0] is None or memo is None else memo.y()  # type: ignore[return-value]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Minus the log-determinant of ``flow`` at ``y``."""
        return -self.flow.log_abs_det_jacobian(y, x)

    def forward_shape(self, shape: torch.Size | tuple[int, ...]) -> torch.Size:
        """As ``flow.inverse_shape``."""
        return self.flow.inverse_shape(shape)

    def inverse_shape(self, shape: torch.Size | tuple[int, ...]) -> torch.Size:
        """As ``flow.forward_shape``."""
        return self.flow.forward_shape(shape)


class Conditioned(Flow):
    """A flow with its context bound: a flow without one, whose batch shape is that of the context.

    In a ``TransformedDistribution`` the base is expanded to the context's batch, so that every row of the
    context has a base draw of its own. Gradients reach the context.

    Args:
        flow: a flow with ``context_dim`` C.
        context: ``(*context_batch, C)``.
    """

    def __init__(self, flow: Flow, context: Tensor) -> None:
        super().__init__(flow.input_dim)
        if context.shape[-1:] != (flow.context_dim,):
            raise ValueError(
                f"{type(flow).__name__}: expected context of shape (*batch, {flow.context_dim}), "
                f"got {tuple(context.shape)}"
            )
        require_finite(flow, "context", context)
        self.flow = flow
        self.context = context
        self.fast_forward, self.fast_inverse = flow.fast_forward, flow.fast_inverse
        self.triangular = flow.triangular

    @property
    def exact_log_det(self) -> bool:  # type: ignore[override]
        """As that of the flow, whose mode may change."""
        return self.flow.exact_log_det

    @property
    def sign(self) -> int:
        """As that of the flow."""
        return self.flow.sign

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """``flow`` at the bound context."""
        return self.flow.forward_and_log_det(x, self.context)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Pair:
        """The inverse of ``flow`` at the bound context."""
        return self.flow.inverse_and_log_det(y, self.context)

    def forward_shape(self, shape: torch.Size | tuple[int, ...]) -> torch.Size:
        """The shape broadcast with the batch of the context."""
        try:
            return torch.broadcast_shapes(shape, (*self.context.shape[:-1], 1))
        except RuntimeError as error:
            raise ValueError(f"points {tuple(shape)}, context {tuple(self.context.shape)}: {error}") from error

    inverse_shape = forward_shape

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Flow:
        super()._apply(fn, recurse)
        self.context = fn(self.context)
        return self
