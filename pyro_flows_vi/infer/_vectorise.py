"""A function of one particle, run for all of them: by vmap where that can be, or else in a loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

__all__ = ["FAILURES", "LinAlgError", "ParticleMap", "graph_of", "is_random"]

LinAlgError: type[Exception] = torch.linalg.LinAlgError  # type: ignore[attr-defined]
#: what vmap, and models under it, raise where they cannot go on
FAILURES = (RuntimeError, ValueError, TypeError)

#: what makes a tensor that a model may write into
_FRESH = {
    torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.linspace, torch.clone,
    torch.Tensor.clone, torch.Tensor.new_empty, torch.Tensor.new_zeros, torch.Tensor.new_ones, torch.Tensor.new_full,
    torch.empty_like, torch.zeros_like, torch.ones_like, torch.full_like,
}  # fmt: skip

#: above this, softplus is the identity in double precision
EXACT = 40.0

#: what repeats values
_EXPANDS = {torch.Tensor.expand, torch.Tensor.expand_as, torch.broadcast_to}
#: pointwise functions, and operators that are functions of their own: of repeated values they make repeated ones
_POINTWISE = {
    torch.abs, torch.add, torch.digamma, torch.div, torch.exp, torch.expm1, torch.lgamma, torch.log, torch.log1p,
    torch.mul, torch.neg, torch.pow, torch.reciprocal, torch.rsqrt, torch.sigmoid, torch.sqrt, torch.square, torch.sub,
    torch.tanh,
}  # fmt: skip
_POINTWISE |= {getattr(torch.Tensor, function.__name__) for function in _POINTWISE}
_POINTWISE |= {torch.Tensor.__pow__, torch.Tensor.__rpow__, torch.Tensor.__rsub__, torch.Tensor.__rdiv__, F.softplus}
#: whether the writes into a tensor are counted
_is_counted: Callable[[Tensor], bool] = torch._C._functorch.is_gradtrackingtensor

#: how Python code gets at a value
_READS = {
    torch.Tensor.__bool__, torch.Tensor.__float__, torch.Tensor.__index__, torch.Tensor.__int__, torch.Tensor.item,
    torch.Tensor.tolist, torch.Tensor.nonzero, torch.nonzero, torch.equal, torch.Tensor.equal,
}  # fmt: skip


def graph_of(function: Callable[..., Any], *inputs: Tensor) -> GraphModule:
    """``make_fx``, with one mode for the shapes of all nodes: it would make one for each, at a third of its time."""
    with tracing(TracingContext(FakeTensorMode())):
        graph: GraphModule = make_fx(function)(*inputs)
    return graph


def is_random(graph: GraphModule) -> bool:
    """Whether a graph draws random numbers."""
    tags = (getattr(node.target, "tags", ()) for node in graph.graph.nodes)
    return any(torch.Tag.nondeterministic_seeded in some for some in tags)


class ParticleMap:
    """Runs functions of one particle for ``(n, D)`` particles.

    The functions are run under ``torch.func.vmap``, at first with those operations said anew that vmap does not know
    (a write by a mask, a Cholesky factorisation that may fail for some particles only: NaN there). Under
    ``torch.func.grad``, functions of repeated values, such as the logarithm of one scale for all rows of
    the data, are computed once for each particle. If that fails, they are computed as they are, and the fresh tensors
    that a model writes its results into get a value for each particle; and if that fails, the functions run once per
    particle, with one warning.
    """

    def __init__(self) -> None:
        self.vectorized = True
        self.reads = False  # whether a trace may turn values that Python code reads into constants
        self._widen = False  # whether fresh tensors are made for each particle

    def vmap(self, one: Callable[..., Any], randomness: str = "same") -> Callable[..., Any]:
        """``one(row, *shared)`` for all rows at once, as it is said now."""

        def reworded(row: Tensor, *shared: Any) -> Any:
            with _Reworded(row.new_zeros(()) if self._widen else None, self.reads):
                return one(row, *shared)

        def all_rows(latent: Tensor, *shared: Any) -> Any:
            return torch.func.vmap(reworded, (0, *(None for _ in shared)), randomness=randomness)(latent, *shared)

        return all_rows

    def reword(self) -> bool:
        """Say it in the other way from now on; false when there is none left."""
        self._widen, other = True, not self._widen
        return other

    def __call__(self, one: Callable[..., Any], latent: Tensor, *shared: Any, randomness: str = "same") -> Any:
        """``one(row, *shared)`` for each row, stacked; what it draws is the ``"same"`` for all, or ``"different"``."""
        while self.vectorized:
            try:
                return self.vmap(one, randomness)(latent, *shared)
            except LinAlgError:
                break  # of one particle, for which the others shall not suffer
            except FAILURES as error:
                if not self.reword():
                    self._fall_back(one, latent, *shared, error=error)
        return tree_map(lambda *rows: torch.stack(rows), *(one(row, *shared) for row in latent))

    def _fall_back(self, one: Callable[..., Any], latent: Tensor, *shared: Any, error: Exception) -> None:
        with torch.no_grad():
            one(latent[0], *shared)  # an error of the model's own is raised here, as it is
        self.vectorized = False
        reason = str(error).strip().split("\n")[0]
        warnings.warn(
            f"the model cannot be vectorised, and is run once per particle, which is slow: {reason}", stacklevel=5
        )


class _Reworded(TorchFunctionMode):
    """Says what models and distributions do in operations that vmap knows.

    Args:
        zero: a zero for each particle, which fresh tensors are added to; ``None`` to leave them as they are.
        reads: whether ``int(x)`` and the like are constants for a trace, rather than an error.
    """

    def __init__(self, zero: Tensor | None, reads: bool) -> None:
        super().__init__()
        self.zero, self.reads = zero, reads

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.linalg.cholesky and "out" not in kwargs:
            factor, info = torch.linalg.cholesky_ex(*args, **kwargs)
            # A factor, and not a choice, of NaN: the gradient there is NaN too.
            return factor * torch.where(info == 0, 1.0, torch.nan).to(factor.dtype)[..., None, None]
        if func is F.binary_cross_entropy_with_logits and [v for v in kwargs.values() if v is not None] == ["none"]:
            logits, value = args
            # two kernels and as many for the gradient, where vmap would take torch's apart into thirty
            return F.softplus(logits, threshold=EXACT) - value * logits
        if func is torch.Tensor.__setitem__ and _is_mask(args[1], args[0]) and _is_scalar(args[2]):
            return args[0].copy_(torch.where(args[1], args[2], args[0]))
        if self.reads and func in _READS:
            with disable_proxy_modes_tracing():
                return func(*args, **kwargs)
        if func in _POINTWISE and any(_narrow(v) is not v for v in args) and not _has_tensors(kwargs):
            return _narrowly(func, args, kwargs)
        result = func(*args, **kwargs)
        if self.zero is None and func is torch.broadcast_tensors:
            return tuple(map(_remember, result, map(_narrow, args)))
        if self.zero is None and func in _EXPANDS and args:
            return _remember(result, _narrow(args[0]))
        if self.zero is not None and func in _FRESH and result.is_floating_point() and "out" not in kwargs:
            return result + self.zero.to(result)
        return result


def _is_mask(index: Any, tensor: Tensor) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and index.shape == tensor.shape


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.dim() == 0


def _has_tensors(kwargs: dict[str, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in kwargs.values())


def _narrow(value: Any) -> Any:
    """The tensor whose values this one repeats, or the tensor itself."""
    narrow, version = getattr(value, "_repeats", (value, None))
    return narrow if version is None or version == value._version else value


def _remember(wide: Tensor, narrow: Tensor) -> Tensor:
    """Let a tensor know whose values it repeats, until something is written into it.

    Not where writes are not counted, nor where the narrow tensor would bring a gradient that the wide one has not.
    """
    if torch.is_grad_enabled() and _is_counted(wide) and wide.dim() > 0 and wide.shape != narrow.shape:
        narrow = narrow.reshape(1) if narrow.dim() == 0 else narrow  # a scalar would not count for the dtype
        wide._repeats = narrow, wide._version  # type: ignore[attr-defined]
    return wide


def _narrowly(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A pointwise function of repeated values, of each of them once; a trace drops the wide copy if nothing uses it."""
    narrow = func(*map(_narrow, args), **kwargs)
    shape = torch.broadcast_shapes(*(value.shape for value in args if isinstance(value, Tensor)))
    if narrow is NotImplemented or narrow.shape == shape:
        return narrow
    return _remember(narrow.expand(shape).contiguous(), narrow)
