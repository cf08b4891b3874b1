"""A stand-in for CUDA graphs on the processor: it keeps the calls of kernels, and makes them again on the same memory.

As on a GPU, a replay runs no Python and reads and writes the very tensors of the capture, and a capture refuses what
makes the processor wait for a value. What only a GPU can show is the order of streams and the memory pool.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
#: calls whose result the processor has to see
WAITS = {_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.equal.default, _aten.masked_select.default}


class CUDAGraph:
    """The calls of a capture, in order."""

    captured = 0

    def __init__(self) -> None:
        CUDAGraph.captured += 1
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        with torch.no_grad():
            for call, args, kwargs, outputs in self.calls:
                for old, new in zip(tree_leaves(outputs), tree_leaves(call(*args, **kwargs)), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # else a view, or in place
                        old.copy_(new)


class Capture(TorchDispatchMode):
    """``torch.cuda.graph``; here the calls are made while they are captured, too."""

    def __init__(self, graph: CUDAGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        masked = func is _aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        if masked or func in WAITS or torch.Tag.nondeterministic_seeded in func.tags:
            raise RuntimeError(f"{func} is not permitted while a stream is capturing")
        outputs = func(*args, **(kwargs or {}))
        self.graph.calls.append((func, args, kwargs or {}, outputs))
        return outputs


class Stream:
    """Nothing runs beside anything."""

    def wait_stream(self, other: Stream) -> None: ...


@pytest.fixture
def cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> type[CUDAGraph]:
    """Lets ``compile="cudagraph"`` run on the processor; the class counts its captures."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", CUDAGraph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(CUDAGraph, "captured", 0)
    return CUDAGraph
