"""Training steps as one graph each: a loss, its gradient, clipping, Adam or Adamax, and averaging."""

from __future__ import annotations

import abc
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from pyro_flows_vi.infer._step_graph import (
    Limit,
    Step,
    Untraceable,
    finish,
    lift_draws,
    put_back,
    share_of_products,
    watch_buffers,
)
from pyro_flows_vi.infer._update import MOMENTS, update
from pyro_flows_vi.infer._vectorise import FAILURES, graph_of

__all__ = ["CompiledSteps"]

#: seconds after which a run of steps is over, so that Ctrl-C and the progress bar wait no longer
PATIENCE = 0.25
#: numbers in a parameter, on average, above which joining them costs more than a call for each
LARGE = 4096


class CompiledSteps(abc.ABC):
    """Runs the steps of a training as calls of one function.

    .. math:: (c, \\theta, m, v, \\bar\\theta; \\text{controls}, \\text{data}, \\epsilon) \\mapsto
              (c', \\theta', m', v', \\bar\\theta'; \\text{report})

    with the optimiser's moments, the average, the counts of steps c, step size and other controls, minibatch or other
    tensors, and base draws. The draws are made outside the graph by the generator calls that the graph would make, so
    that a seed means the same in every mode. Nothing in a run waits for the results: they are read once, at its end,
    where also the parameters, the average and the optimiser's state are written back, so that a run starts from
    wherever the last step, of whatever mode, ended. A step whose report is not finite changes nothing. Many small
    parameters are joined into one vector, since then the calls cost more than the copies; a few large ones stay as they
    are.

    Args:
        parameters: what is trained.
        optimizer: a plain Adam or Adamax.
        mode: ``"trace"``, ``"inductor"`` or ``"cudagraph"``.
        clip_norm: the gradient is scaled down to this norm where it is longer.
        averaging: whether the parameters are averaged.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        mode: str,
        clip_norm: float | None = None,
        averaging: bool = False,
    ) -> None:
        self.parameters, self.optimizer, self.mode = parameters, optimizer, mode
        self.clip_norm, self.averaging = clip_norm, averaging
        self.traces = 0
        self.products = 0.0  # the share of products of matrices in the time of a step, once it is traced
        self.sizes = [p.numel() for p in parameters]
        self._steps: dict[tuple[Any, ...], Step] = {}
        self.flat = sum(self.sizes) <= LARGE * len(self.sizes)
        self._moments: list[tuple[list[Tensor], list[Tensor]]] = []  # as last written back, joined and in pieces

    # -- what is trained -----------------------------------------------------------------------------

    @abc.abstractmethod
    def loss(self, pieces: list[Tensor], control: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """The loss with these parameters, and the numbers of the report; ``control`` begins with the step size."""

    @abc.abstractmethod
    def controls(self, most: int) -> list[list[float]]:
        """The controls of the next steps."""

    @abc.abstractmethod
    def tensors(self) -> list[Tensor] | None:
        """The data of the next step; ``None`` where it is of another shape than the first, or there is none."""

    def example(self) -> list[Tensor]:
        """Data of the shapes that a step is made for."""
        tensors = self.tensors()
        assert tensors is not None
        return tensors

    def taken(self) -> None:
        """A step with these data was done."""
        return

    def before_trace(self) -> None:
        """Make ready what :meth:`loss` needs."""
        return

    def modules(self) -> list[nn.Module]:
        """Whose buffers must stay as they are."""
        return []

    def average(self) -> tuple[list[Tensor], int]:
        """The average of the parameters, and of how many."""
        return [], 0

    def set_averaged(self, count: int) -> None:
        """Say of how many steps the average is now."""
        return

    # -- steps ---------------------------------------------------------------------------------------

    def rows(self, most: int) -> list[list[float]]:
        """At least one step and up to ``most``, as many as fit into a quarter of a second.

        Returns:
            the report of each, and the norm of its gradient.
        """
        tensors, device, reports = self.tensors(), self.parameters[0].device, []
        controls = torch.tensor(self.controls(most), dtype=torch.float64).to(device)
        step = self.prepare()
        with torch.no_grad():
            state: Sequence[Tensor] = self._gather()
            until = time.perf_counter() + PATIENCE
            for control in controls:
                assert tensors is not None
                state, report = step(*state, control, *tensors)
                reports.append(report)
                self.taken()
                if time.perf_counter() > until or (tensors := self.tensors()) is None:
                    break
            self._scatter(state)
        return torch.stack(reports).tolist()

    def prepare(self, deadline: float = math.inf, calls: float = math.inf) -> Step:
        """The step for tensors of the present shapes, traced and compiled if there is none yet.

        Raises:
            Untraceable: if a trace fails, is not done at the time ``deadline``, or has more than so many ``calls``.
        """
        key = tuple((t.shape, t.dtype, t.device) for t in self.example())
        if key not in self._steps:
            self.traces += 1
            inputs = self._inputs()
            control = inputs[self._size]
            with torch.random.fork_rng([t for t in {control.device} if t.type == "cuda"]):
                graph, draws = self._trace(inputs, Limit(deadline, calls))
                inputs = (*inputs, *(draw() for draw in draws))
                step = finish(graph, inputs, self._size, self.mode, without_python=self.flat)
                if self.mode == "trace" and not control.is_cuda:
                    self.products = share_of_products(graph, inputs)
            self._steps[key] = lambda *values: step(*values, *(draw() for draw in draws))
        return self._steps[key]

    def count_calls(self) -> int:
        """The calls of kernels in a step that is not traced, whose loops end as soon as they are done."""
        self.before_trace()
        before = watch_buffers(self.modules())
        try:
            with torch.random.fork_rng(), torch.no_grad(), Limit() as limit:
                self._step(*(value.clone() for value in self._inputs()))
        finally:
            put_back(before)
        return limit.calls

    # -- tracing -------------------------------------------------------------------------------------

    def _trace(self, inputs: tuple[Tensor, ...], limit: Limit) -> tuple[GraphModule, list[Callable[[], Tensor]]]:
        self.before_trace()
        before = watch_buffers(self.modules())
        try:
            with limit:
                graph = graph_of(self._step, *(value.clone() for value in inputs))
        except Untraceable:
            raise
        except FAILURES as error:
            reads = "value out of a tracing tensor" in str(error)
            said = "it goes on by values that it computes, such as whether a solver has converged"
            raise Untraceable(said if reads else str(error).strip().split("\n")[0]) from error
        finally:
            changed = put_back(before)
        if changed:
            raise Untraceable("a module keeps a state that a step changes")
        trained = {p.data_ptr() for p in self.parameters}
        if any(constant.data_ptr() in trained for constant in (*graph.parameters(), *graph.buffers())):
            raise Untraceable("a parameter is used in a way that a trace does not see")
        draws = lift_draws(graph.graph)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        return graph, draws

    def _step(self, *values: Tensor) -> list[Tensor]:
        """One step; what is traced."""
        parameters, first, second, averages, counts = self._parts(values)
        control, *tensors = values[self._size :]
        pieces = [
            piece.view_as(p).detach().requires_grad_(p.requires_grad)
            for piece, p in zip(self._pieces(parameters), self.parameters, strict=True)
        ]
        with torch.enable_grad():
            loss, report = self.loss(pieces, control, tuple(tensors))
            moved = [piece for piece in pieces if piece.requires_grad]
            found = iter(torch.autograd.grad(loss, moved, materialize_grads=True))
        gradients = self._joined([next(found) if piece.requires_grad else torch.zeros_like(piece) for piece in pieces])
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        numbers = torch.stack([number.double() for number in (*report, norm)])
        finite = numbers.isfinite().all()
        if self.clip_norm is not None:
            scale = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            gradients = [gradient * scale for gradient in gradients]
        counts.add_(finite)
        steps, averaged = counts.unbind()
        trained = parameters, first, second
        update(self.optimizer, trained, gradients, steps, control[0], finite, self._fused(gradients[0]))
        for average, parameter in zip(averages, parameters, strict=False):
            average.lerp_(parameter, (finite / averaged.clamp(min=1.0)).to(average.dtype))
        return [numbers]

    def _fused(self, gradient: Tensor) -> bool:
        """Whether the update is one kernel."""
        # the inductor makes one of it anyway, and TorchScript drops a kernel that only writes into lists
        kernel = self.mode == "cudagraph" or (self.mode == "trace" and not self.flat)
        return kernel and (not gradient.is_cuda or gradient.dtype == torch.float32)

    # -- the state -----------------------------------------------------------------------------------

    def _inputs(self) -> tuple[Tensor, ...]:
        """The state, the controls of the next step, and data of the right shapes."""
        with torch.no_grad():
            state = self._gather()
            control = torch.tensor(self.controls(1)[0], dtype=torch.float64).to(state[0].device)
            return (*state, control, *self.example())

    @property
    def _size(self) -> int:
        """Tensors in the state."""
        return (1 if self.flat else len(self.sizes)) * (4 if self.averaging else 3) + 1

    def _parts(self, state: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], Tensor]:
        """Parameters, moments, average and counts; the lists are of one vector, or of a tensor for each parameter."""
        k = 1 if self.flat else len(self.sizes)
        counts, *tensors = state[: self._size]
        return tensors[:k], tensors[k : 2 * k], tensors[2 * k : 3 * k], tensors[3 * k :], counts

    def _joined(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat([t.reshape(-1) for t in tensors])] if self.flat else list(tensors)

    def _pieces(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return tensors[0].split(self.sizes) if self.flat else tensors

    def _gather(self) -> list[Tensor]:
        """What the training holds: counts, parameters, moments, and the average if there is one."""
        states: list[Any] = [self.optimizer.state.get(p, {}) for p in self.parameters]
        pairs = list(zip(states, self.parameters, strict=True))
        moments = []
        for k, name in enumerate(MOMENTS[type(self.optimizer)]):
            joined, written = self._moments[k] if self._moments else ([], [])
            if not joined or any(s.get(name) is not piece for s, piece in zip(states, written, strict=True)):
                joined = self._joined([state[name] if state else torch.zeros_like(p) for state, p in pairs])
            moments += joined
        average, averaged = self.average()
        steps = max(float(state.get("step", 0.0)) for state in states)
        counts = torch.tensor([steps, averaged], dtype=torch.float64).to(self.parameters[0].device)
        return [counts, *self._joined(self.parameters), *moments, *(self._joined(average) if self.averaging else [])]

    def _scatter(self, state: Sequence[Tensor]) -> None:
        """Write back what :meth:`_gather` takes."""
        *lists, counts = self._parts(state)
        parameters, first, second, average = (
            [piece.view_as(p) for piece, p in zip(self._pieces(part), self.parameters, strict=True)] if part else []
            for part in lists
        )
        self._moments = [(lists[1], first), (lists[2], second)]
        if lists[0][0] is not self.parameters[0]:
            torch._foreach_copy_(list(self.parameters), parameters)
        if self.averaging and lists[3][0] is not self.average()[0][0]:
            torch._foreach_copy_(self.average()[0], average)
        steps, averaged = counts.tolist()
        self.set_averaged(int(averaged))
        names, each = MOMENTS[type(self.optimizer)], self._counters(steps, len(parameters))
        for p, count, pair in zip(self.parameters, each, zip(first, second, strict=True), strict=True):
            self.optimizer.state[p] = {"step": count, **dict(zip(names, pair, strict=True))}

    def _counters(self, steps: float, number: int) -> Sequence[Tensor]:
        """Counts of steps for so many parameters, as the optimiser keeps them."""
        fused, capturable = (self.optimizer.param_groups[0].get(option) for option in ("fused", "capturable"))
        device = self.parameters[0].device if fused or capturable else "cpu"
        return torch.full((number,), steps, dtype=torch.float32 if fused else None, device=device).unbind()
