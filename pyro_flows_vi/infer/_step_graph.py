"""What makes the graph of a training step, and runs it."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_flows_vi.transforms.continuous import penalised

__all__ = [
    "Limit",
    "Step",
    "Untraceable",
    "finish",
    "lift_draws",
    "put_back",
    "put_in_place",
    "refused_flows",
    "share_of_products",
    "watch_buffers",
]

#: takes the state, the controls, the tensors and the draws; changes the state in place and gives it back with a report
Step = Callable[..., tuple[Sequence[Tensor], Tensor]]

logger = logging.getLogger(__name__)

_aten = torch.ops.aten
#: random numbers for which of a tensor only its shape, dtype and device matter
_LIKE = {
    _aten.randn_like.default, _aten.rand_like.default, _aten.normal_.default, _aten.uniform_.default,
    _aten.exponential_.default, _aten.bernoulli_.float,
}  # fmt: skip
#: what no compiler makes faster than it is
_PRODUCTS = {
    _aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default, _aten.convolution.default,
    _aten.convolution_backward.default,
}  # fmt: skip


class Untraceable(ValueError):
    """Why the steps of a training cannot be one graph."""


@contextmanager
def put_in_place(module: nn.Module, parameters: Sequence[Tensor], pieces: Sequence[Tensor]) -> Iterator[None]:
    """Other tensors in the place of parameters or buffers, wherever the module holds them, for a while.

    ``torch.func.functional_call`` does not put back a parameter that a module holds by two names.
    """
    others = {id(p): piece for p, piece in zip(parameters, pieces, strict=True)}
    places: list[tuple[dict[str, Any], str, Any]] = [
        (held, name, parameter)
        for owner in module.modules()
        for held in (owner._parameters, owner._buffers)
        for name, parameter in held.items()
        if id(parameter) in others
    ]
    try:
        for place, name, parameter in places:
            place[name] = others[id(parameter)]
        yield
    finally:
        for place, name, parameter in places:
            place[name] = parameter


def refused_flows(owner: Any) -> str | None:
    """Why the flows in a module cannot be part of a graph."""
    said = "the penalty of a continuous flow (kinetic, jacobian) does not get out of a trace"
    return said if penalised(owner) else None


def watch_buffers(modules: Sequence[nn.Module]) -> list[tuple[Tensor, int, Tensor]]:
    """The buffers of modules, with their versions and their values, for :func:`put_back`."""
    buffers = [buffer for module in modules for buffer in module.buffers()]
    return [(buffer, buffer._version, buffer.detach().clone()) for buffer in buffers]


def put_back(before: list[tuple[Tensor, int, Tensor]]) -> bool:
    """Give buffers the values that they had; whether any had changed."""
    # not every kernel that writes into a buffer counts that as a new version of it
    changed = any(b._version != version or not torch.equal(b, value) for b, version, value in before)
    for buffer, _, value in before if changed else ():
        buffer.data.copy_(value)
    return changed


class Limit(TorchDispatchMode):
    """Counts the calls of kernels, and ends a trace that takes too long or becomes too long."""

    only_counts = True  # so that a step that is not traced goes on by its values under it too

    def __init__(self, deadline: float = math.inf, most_calls: float = math.inf) -> None:
        super().__init__()
        self.deadline, self.most_calls, self.calls = deadline, most_calls, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if time.perf_counter() > self.deadline:
            raise Untraceable("the trace takes longer than it can save")
        self.calls += 1
        if self.calls > self.most_calls:
            raise Untraceable("a trace has so many more calls of kernels than a step that it would not pay")
        return func(*args, **(kwargs or {}))


def lift_draws(graph: Graph) -> list[Callable[[], Tensor]]:
    """Turn the random numbers of a graph into inputs; returns the calls that draw them, in order."""
    draws: list[Callable[[], Tensor]] = []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.nodes):
        if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
            continue
        draws.append(_Draw(node))
        with graph.inserting_after(last):
            last = graph.placeholder(f"draw_{len(draws)}")
        last.meta = dict(node.meta)  # the shape, for compilers
        node.replace_all_uses_with(last)
        graph.erase_node(node)
    return draws


class _Draw:
    """The call of one node, on a fresh tensor where the node has one that it only fills or imitates."""

    def __init__(self, node: Node) -> None:
        self.call, self.args, self.kwargs = node.target, node.args, node.kwargs
        self.like: Tensor | None = None
        inputs, in_place = node.all_input_nodes, node.target._schema.is_mutable  # type: ignore[union-attr]
        if not inputs and not in_place:
            return
        filled = inputs == [node.args[0]] and (not in_place or list(inputs[0].users) == [node])
        if node.target not in _LIKE or not filled:
            raise Untraceable(f"random numbers of {node.target} depend on what the step computes")
        self.like, self.args = inputs[0].meta["val"], node.args[1:]

    def __call__(self) -> Tensor:
        like = self.like
        if like is None:
            return self.call(*self.args, **self.kwargs)  # type: ignore[operator]
        fresh = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        return self.call(fresh, *self.args, **self.kwargs)  # type: ignore[operator]


def share_of_products(graph: GraphModule, inputs: Sequence[Tensor]) -> float:
    """The share of products of matrices, and convolutions, in the time of a graph on a processor."""
    clock = _Clock(graph)
    began = time.perf_counter()
    clock.run(*(value.clone() for value in inputs))
    return clock.seconds / (time.perf_counter() - began)


class _Clock(Interpreter):
    """Runs a graph, and measures its products."""

    seconds = 0.0

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        began = time.perf_counter()
        result = super().call_function(target, args, kwargs)
        if target in _PRODUCTS:
            self.seconds += time.perf_counter() - began
        return result


def finish(graph: GraphModule, inputs: tuple[Tensor, ...], size: int, mode: str, without_python: bool) -> Step:
    """The function that runs a graph in a mode, made for tensors like ``inputs``, of which ``size`` are the state.

    Where the calls of kernels count, they should be made ``without_python``, which takes somewhat longer to make.
    """
    if mode == "cudagraph":
        return _Captured(graph, inputs, size)
    if mode == "inductor":
        import torch._inductor

        with torch.no_grad():
            options = {"cpp_wrapper": True} if without_python and not inputs[0].is_cuda else None
            run: Callable[..., Any] = torch._inductor.compile(graph, list(inputs), options=options)
    else:
        run = _interpreted(graph, inputs) if without_python else graph.forward

    def step(*values: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        (report,) = run(*values)
        return values[:size], report

    return step


def _interpreted(graph: GraphModule, inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
    """The graph in the interpreter of TorchScript, where a call of a kernel costs a third of what it costs in Python.

    TorchScript gets no new features, but nothing else runs a graph without Python and without a compiler. Where it
    is not to be had, the graph is run as it is.
    """
    try:
        plainly: Callable[[bool], Any] = torch.jit.optimized_execution  # type: ignore[attr-defined]
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # that it is deprecated, and what it cannot see in Python's numbers
            script = torch.jit.trace(graph, tuple(value.clone() for value in inputs), check_trace=False)
    except Exception as error:
        logger.info("TorchScript does not take the graph: %s", str(error).strip().split("\n")[0])
        return graph.forward

    def run(*values: Tensor) -> Any:
        with plainly(False):  # it would look for what to fuse, again and again
            return script(*values)

    return run


class _Captured:
    """A step as a CUDA graph, replayed on tensors that stay where they are.

    Where the state is handed in again that was given back, nothing of it is copied. Written by the rules of
    :class:`torch.cuda.graph` on a machine without a GPU: the tests run it with a stand-in that keeps the calls of
    kernels, makes them again, and refuses what waits for a value.
    """

    def __init__(self, function: Callable[..., Any], inputs: tuple[Tensor, ...], size: int) -> None:
        self.inputs, self.size = [value.clone() for value in inputs], size
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.no_grad():
            for _ in range(3):  # workspaces and lazy modules are made now, and not while capturing
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph), torch.no_grad():
            (self.report,) = function(*self.inputs)

    def __call__(self, *values: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        for mine, value in zip(self.inputs, values, strict=True):
            if mine is not value:
                mine.copy_(value, non_blocking=True)
        self.graph.replay()
        return self.inputs[: self.size], self.report.clone()
