"""What makes the graph of a fit's step, and runs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_flows_vi.infer.objectives import Estimate

if TYPE_CHECKING:
    from pyro_flows_vi.infer.problems import FlowProblem

__all__ = ["STATE", "Deadline", "GraphTarget", "Holder", "Step", "Untraceable", "finish", "lift_draws"]

#: tensors that a step takes and gives back: parameters, Adam's two moments, the average, and two counts
STATE = 5

Step = Callable[..., Sequence[Tensor]]


class Untraceable(ValueError):
    """Why the steps of a fit cannot be one graph."""


class Holder(nn.Module):
    """An objective as a module, whose parameters a functional call can replace."""

    def __init__(self, problem: FlowProblem) -> None:
        super().__init__()
        self.guide, self.problem = problem.guide, problem

    def forward(self, target: Any, temperature: Any) -> Estimate:
        return self.problem.objective(self.guide, target, self.problem.num_particles, temperature)


class GraphTarget:
    """A log density by its graph, differentiable once."""

    has_parameters = False

    def __init__(self, graph: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.graph = graph

    def value_and_score(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        value, score = self.graph(latent.detach())
        return value.detach(), score.detach()

    def __call__(self, latent: Tensor) -> Tensor:
        value, score = self.value_and_score(latent)
        return value + (score * (latent - latent.detach())).sum(-1)


class Deadline(TorchDispatchMode):
    """Ends a trace that takes too long."""

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self.deadline = deadline

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if time.perf_counter() > self.deadline:
            raise Untraceable("the trace takes longer than it can save")
        return func(*args, **(kwargs or {}))


def lift_draws(graph: Graph) -> list[Callable[[], Tensor]]:
    """Turn the random numbers of a graph into inputs; returns the calls that draw them, in order."""
    draws: list[Callable[[], Tensor]] = []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.nodes):
        if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
            continue
        if node.all_input_nodes or node.target._schema.is_mutable:
            raise Untraceable(f"random numbers of {node.target} depend on what the step computes")
        draws.append(_Draw(node))
        with graph.inserting_after(last):
            last = graph.placeholder(f"draw_{len(draws)}")
        node.replace_all_uses_with(last)
        graph.erase_node(node)
    return draws


class _Draw:
    """The call of one node."""

    def __init__(self, node: Node) -> None:
        self.call, self.args, self.kwargs = node.target, node.args, node.kwargs

    def __call__(self) -> Tensor:
        return self.call(*self.args, **self.kwargs)  # type: ignore[operator]


def finish(graph: GraphModule, inputs: tuple[Tensor, ...], mode: str) -> Step:
    """The function that runs a graph in a mode, made for tensors like ``inputs``."""
    if mode == "inductor":
        import torch._inductor

        with torch.no_grad():
            return torch._inductor.compile(graph, list(inputs))
    return _Captured(graph, inputs) if mode == "cudagraph" else graph.forward


class _Captured:
    """A step as a CUDA graph, replayed on tensors that stay where they are.

    The state is written in place at the end of the graph; where it is handed in again, nothing is copied. Written by
    the rules of :class:`torch.cuda.graph` on a machine without a GPU, where it was not run.
    """

    def __init__(self, function: Step, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = [value.clone() for value in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.no_grad():
            for _ in range(3):  # workspaces and lazy modules are made now, and not while capturing
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph), torch.no_grad():
            *state, self.outcome = function(*self.inputs)
            for old, new in zip(self.inputs[:STATE], state, strict=True):
                old.copy_(new)

    def __call__(self, *values: Tensor) -> list[Tensor]:
        for mine, value in zip(self.inputs, values, strict=True):
            if mine is not value:
                mine.copy_(value, non_blocking=True)
        self.graph.replay()
        return [*self.inputs[:STATE], self.outcome.clone()]
