"""Several runs as one program under ``torch.func.vmap``, in which each draws what it would draw alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

__all__ = ["AsOne", "Stream"]

_T = TypeVar("_T")

#: what draws from torch's generators; of anything else that does, vmap says that it must not
_DRAWS = {
    torch.randn, torch.rand, torch.randint, torch.randperm, torch.randn_like, torch.rand_like, torch.randint_like,
    torch.normal, torch.bernoulli, torch.Tensor.bernoulli, torch.multinomial, torch.Tensor.multinomial, torch.poisson,
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
}  # fmt: skip


class Stream:
    """The state of torch's generators for one run among several.

    Args:
        seed: as of ``torch.manual_seed``.
        device: whose generator is meant, beside that of the processor.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.state: tuple[Tensor, Tensor | None] = self._now()

    def __call__(self, call: Callable[[], _T]) -> _T:
        """What ``call`` gives with this stream in the place of torch's; torch's is lost."""
        cpu, cuda = self.state
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, self.device)
        try:
            return call()
        finally:
            self.state = self._now()

    def _now(self) -> tuple[Tensor, Tensor | None]:
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return torch.get_rng_state(), cuda


class AsOne(TorchFunctionMode):
    """Under ``vmap`` over runs, lets each of them draw from its own stream, and keeps gradients from being copied.

    Args:
        index: a number for each run, over which ``vmap`` goes.
        draw: ``(i, call)`` to what ``call`` gives with the stream of run i.
    """

    def __init__(self, index: Tensor, draw: Callable[[int, Callable[[], Tensor]], Tensor]) -> None:
        super().__init__()
        self.index, self.draw = index, draw

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs and args[0].dim() == 2:
            return _linear(*args)
        if func not in _DRAWS:
            return func(*args, **(kwargs or {}))
        leaves, structure = tree_flatten((args, kwargs or {}))

        def call(i: int, own: Sequence[Any]) -> Tensor:
            args, kwargs = tree_unflatten(own, structure)
            return self.draw(i, lambda: func(*args, **kwargs))

        return _OneByOne.apply(self.index, call, *leaves)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As ``F.linear``, with a gradient that lies in memory as the stacked weights do."""
    y = torch.mm(weight, x.mT).mT
    return y if bias is None else y + bias


class _OneByOne(torch.autograd.Function):
    """``call(i, leaves_i)`` for each of the runs that ``vmap`` goes over, with gradients."""

    @staticmethod
    def forward(index: Tensor, call: Callable[[int, Sequence[Any]], Tensor], *leaves: Any) -> Tensor:
        return call(int(index), leaves)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: under vmap, the calls themselves are recorded."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        index: Tensor,
        call: Callable[[int, Sequence[Any]], Tensor],
        *leaves: Any,
    ) -> tuple[Tensor, int]:
        pairs = list(zip(leaves, in_dims[2:], strict=True))
        results = [  # numbers are drawn in the order of the memory, which is to be that of a run alone
            call(i, [leaf if dim is None else leaf.select(dim, i).contiguous() for leaf, dim in pairs])
            for i in range(info.batch_size)
        ]
        return torch.stack(results), 0
