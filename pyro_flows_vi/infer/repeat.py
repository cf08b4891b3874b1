"""Running something many times, each time with its own randomness, at once where that is possible."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from pyro_flows_vi.infer._vectorise import FAILURES

__all__ = ["CHUNK", "OwnNoise", "repeat", "seeded"]

#: runs at once
CHUNK = 500


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Torch's randomness from a seed, and as it was before afterwards; nothing without a seed."""
    if seed is None:
        yield
        return
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class OwnNoise(TorchFunctionMode):
    """Lets methods such as ``normal_`` fill a new tensor, which ``vmap`` can give to each run, not one for all."""

    filling = ("normal_", "uniform_", "exponential_", "cauchy_", "log_normal_", "geometric_", "bernoulli_", "random_")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.filling:
            args = (
                torch.zeros_like(args[0]) + 0.0 * torch.rand((), dtype=args[0].dtype, device=args[0].device),
                *args[1:],
            )
        return func(*args, **(kwargs or {}))


def repeat(one: Callable[..., Any], count: int, inputs: dict[str, Tensor] | None = None, *, what: str) -> Any:
    """``one(inputs_i)``, or ``one()``, for i up to ``count``: its nested tensors, stacked; no gradients.

    Vectorised by ``torch.func.vmap``; where that fails, one by one with a warning that says ``what`` was to blame.
    """
    rows = inputs or {}

    def run(index: Tensor, part: dict[str, Tensor]) -> Any:
        with OwnNoise():
            return one(part) if inputs is not None else one()

    places = torch.arange(count)
    with torch.no_grad():
        try:
            parts = [
                torch.func.vmap(run, randomness="different")(
                    index, {name: value[int(index[0]) : int(index[-1]) + 1] for name, value in rows.items()}
                )
                for index in places.split(CHUNK)
            ]
        except FAILURES as error:
            rest = [{name: value[i] for name, value in rows.items()} for i in range(count)]
            first = run(places[0], rest[0])  # an error of the model's own is raised here, as it is
            reason = str(error).strip().split("\n")[0]
            warnings.warn(
                f"{what} cannot be vectorised, and is run once per draw, which is slow: {reason}", stacklevel=4
            )
            parts = [tree_map(lambda x: x[None], run_) for run_ in (first, *(run(places[0], row) for row in rest[1:]))]
    structure = tree_flatten(parts[0])[1]
    columns = zip(*(tree_flatten(part)[0] for part in parts), strict=True)
    return tree_unflatten([torch.cat(column) for column in columns], structure)
