"""A step of several trainings as one graph."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from pyro_flows_vi.infer._step_graph import Limit, Step, Untraceable
from pyro_flows_vi.infer._update import MOMENTS, update
from pyro_flows_vi.infer.compiled import LARGE, CompiledSteps
from pyro_flows_vi.vae._stack import Stack
from pyro_flows_vi.vae.trainer import Outcome

if TYPE_CHECKING:
    from pyro_flows_vi.vae.seeds import Seeds

__all__ = ["SeedSteps"]


class SeedSteps(CompiledSteps):
    """Those of the :class:`~pyro_flows_vi.vae._stack.Stack` of the moment, with a norm and a count for each member.

    The state is that of one training, with the members as the first dimension of every tensor.

    Args:
        seeds: whose stack is trained; where it is another one than at the last step, there is a new trace.
        mode: see :class:`CompiledSteps`.
    """

    def __init__(self, seeds: Seeds, mode: str) -> None:
        self.seeds = seeds
        self._owners: list[int] = []  # of the draws of a trace
        self._begin(seeds.stack, mode)

    def _begin(self, stack: Stack, mode: str) -> None:
        first, self.stack = stack.members[0], stack
        super().__init__(stack.trained, stack.optimiser, mode, first.settings.clip_norm)
        self.rows_in_a_batch = min(first.settings.batch_size, len(first.data.train))
        self.sizes = [p.numel() for p in first.parameters]
        self.flat = sum(self.sizes) <= LARGE * len(self.sizes)

    def _follow(self) -> None:
        if self.stack is not self.seeds.stack:
            self._begin(self.seeds.stack, self.mode)

    def run(self, most: int) -> list[list[Outcome]]:
        """At least one step of each and up to ``most`` of this epoch, as many as fit into a quarter of a second."""
        self._follow()
        if self.tensors() is None:
            return [self.stack.step()]
        steps: list[list[list[float]]] = self.rows(most)  # type: ignore[assignment]
        return [[(*row, self.rows_in_a_batch) for row in rows] for rows in steps]  # type: ignore[misc]

    def controls(self, most: int) -> list[list[float]]:
        """Step size and weight of the KL term."""
        return [[self.stack.members[0].rate, self.stack.members[0].beta]] * most

    def tensors(self) -> list[Tensor] | None:
        """The next minibatches of the epoch."""
        next_ones = [member.minibatches.peek() for member in self.stack.members]
        whole = [x for x in next_ones if x is not None and len(x) == self.rows_in_a_batch]
        return [torch.stack(whole)] if len(whole) == len(next_ones) else None

    def example(self) -> list[Tensor]:
        """As many rows as whole minibatches have."""
        x = self.stack.members[0].minibatches.peek()
        assert x is not None
        return [x[torch.arange(self.rows_in_a_batch, device=x.device) % len(x)].repeat(len(self.stack.members), 1, 1)]

    def taken(self) -> None:
        """Go on to the next."""
        for member in self.stack.members:
            member.minibatches.take()

    def before_trace(self) -> None:
        """Turn to the stack of the moment."""
        self._follow()

    def modules(self) -> list[nn.Module]:
        """Of the one model that stands for all."""
        return [self.stack.members[0].vae]

    def loss(self, pieces: list[Tensor], control: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """The sum over the members, and a report of each."""
        (x,) = tensors
        report = self.stack.losses(x, control[1], pieces, self._draw)
        return report[0].sum(), report

    # -- the graph -----------------------------------------------------------------------------------

    def prepare(self, deadline: float = math.inf, calls: float = math.inf) -> Step:
        """As of one training; the members' streams stay where they are."""
        self._follow()
        states = [member.stream.state for member in self.stack.members]
        try:
            return super().prepare(deadline, calls)
        finally:
            for member, state in zip(self.stack.members, states, strict=True):
                member.stream.state = state

    def _trace(self, inputs: tuple[Tensor, ...], limit: Limit) -> tuple[GraphModule, list[Callable[[], Tensor]]]:
        self._owners = []
        graph, draws = super()._trace(inputs, limit)
        if len(draws) != len(self._owners):
            raise Untraceable("it is not clear which of its random numbers are whose")
        members = self.stack.members
        return graph, [functools.partial(members[i].stream, draw) for i, draw in zip(self._owners, draws, strict=True)]

    def _draw(self, i: int, call: Callable[[], Tensor]) -> Tensor:
        self._owners.append(i)
        return call()

    def _step(self, *values: Tensor) -> list[Tensor]:
        """One step of each; what is traced."""
        parameters, first, second, _, counts = self._parts(values)
        control, *tensors = values[self._size :]
        pieces = [
            piece.view_as(p).detach().requires_grad_()
            for piece, p in zip(self._pieces(parameters), self.parameters, strict=True)
        ]
        with torch.enable_grad():
            loss, report = self.loss(pieces, control, tuple(tensors))
            gradients = self._joined(torch.autograd.grad(loss, pieces, materialize_grads=True))
        gradients, *state = [[_rows(t) for t in part] for part in (gradients, parameters, first, second)]
        norms = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in gradients])
        norm = torch.linalg.vector_norm(norms, dim=0)
        numbers = torch.stack([number.double() for number in (*report, norm)], dim=1)
        finite = numbers.isfinite().all(1)
        if self.clip_norm is not None:
            scale = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            gradients = [gradient * scale[:, None] for gradient in gradients]
        counts.add_(finite)
        if self._fused(gradients[0]):
            for i in range(len(counts)):
                own = tuple([t[i] for t in part] for part in state)
                update(self.optimizer, own, [g[i] for g in gradients], counts[i], control[0], finite[i], True)  # type: ignore[arg-type]
        else:
            each = tuple(state)
            update(self.optimizer, each, gradients, counts[:, None], control[0], finite[:, None], False)  # type: ignore[arg-type]
        return [numbers]

    # -- the state -----------------------------------------------------------------------------------

    def _joined(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat([_rows(t) for t in tensors], dim=1)] if self.flat else list(tensors)

    def _pieces(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return tensors[0].split(self.sizes, dim=1) if self.flat else tensors

    def _gather(self) -> list[Tensor]:
        members, names = self.stack.members, MOMENTS[type(self.optimizer)]
        states = [[member.optimiser.state[p] for p in member.parameters] for member in members]
        moments: list[Tensor] = []
        for k, name in enumerate(names):
            stacked, written = self._moments[k] if self._moments else ([], [])
            there = [state.get(name) for own in states for state in own]
            if not stacked or any(a is not b for a, b in zip(there, written, strict=True)):
                rows = zip(zip(*states, strict=True), self.parameters, strict=True)
                each = [[s[name] if s else torch.zeros_like(p[0]) for s in some] for some, p in rows]
                stacked = self._joined([torch.stack(some) for some in each])
            moments += stacked
        steps = [max(float(state.get("step", 0.0)) for state in own) for own in states]
        counts = torch.tensor(steps, dtype=torch.float64).to(self.parameters[0].device)
        return [counts, *self._joined(self.parameters), *moments]

    def _scatter(self, state: Sequence[Tensor]) -> None:
        *lists, _, counts = self._parts(state)
        parameters, first, second = (
            [piece.view_as(p) for piece, p in zip(self._pieces(part), self.parameters, strict=True)] for part in lists
        )
        if lists[0][0] is not self.parameters[0]:
            torch._foreach_copy_(list(self.parameters), parameters)
        members, names = self.stack.members, MOMENTS[type(self.optimizer)]
        written = [[moment[i] for i in range(len(members)) for moment in moments] for moments in (first, second)]
        self._moments = list(zip(lists[1:], written, strict=True))
        places = iter(zip(*written, strict=True))
        for member, steps in zip(members, counts.tolist(), strict=True):
            for p, count in zip(member.parameters, self._counters(steps, len(first)), strict=True):
                member.optimiser.state[p].update({"step": count, **dict(zip(names, next(places), strict=True))})


def _rows(tensor: Tensor) -> Tensor:
    """One row for each member."""
    return tensor.reshape(len(tensor), -1)
