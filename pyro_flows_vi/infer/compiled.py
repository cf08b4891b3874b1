"""Steps of a fit as one graph: draws, flow, log density, gradient, clipping, Adam and averaging."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_flows_vi.infer._step_graph import (
    STATE,
    Deadline,
    GraphTarget,
    Holder,
    Step,
    Untraceable,
    finish,
    lift_draws,
)
from pyro_flows_vi.infer._vectorise import FAILURES, is_random
from pyro_flows_vi.infer.objectives import ELBO, IWELBO, DReG, Estimate, PathELBO, Renyi, whole_groups

if TYPE_CHECKING:
    from pyro_flows_vi.infer.problems import FlowProblem
    from pyro_flows_vi.infer.training import Training

__all__ = ["CompiledSteps", "Outcome", "refusal"]

#: seconds after which a run of steps is over, so that Ctrl-C and the progress bar wait no longer
PATIENCE = 0.25
#: of which it is known that a second call does what the first did
PURE = (ELBO, PathELBO, IWELBO, DReG, Renyi)


class Outcome(NamedTuple):
    """What a step tells the stopping rule.

    Attributes:
        elbo: the estimate.
        finite: whether it, and the norm of the gradient, are finite; the step is left out otherwise.
        rate: the step size.
    """

    elbo: float
    finite: bool
    rate: float


def refusal(training: Training) -> str | None:
    """Why the steps of this fit cannot be one graph, as far as can be told without trying."""
    problem: Any = training.problem
    if training.ranks.size > 1:
        return "several processes share each step, and average its gradient midway"
    if not hasattr(problem, "log_density"):
        return "only flow guides are compiled, and this guide is trained by Pyro's handlers"
    if type(problem.objective) not in PURE:
        return f"the objective {type(problem.objective).__name__} is not one of this package, and may do anything"
    if problem.log_density.has_parameters:
        return "the model has parameters of its own"
    optimizer = training.optimizer
    others = ("weight_decay", "amsgrad", "maximize", "differentiable", "decoupled_weight_decay")
    if type(optimizer) is not torch.optim.Adam or len(optimizer.param_groups) > 1:
        return f"the optimiser is {type(optimizer).__name__}, not one plain Adam"
    if changed := [name for name in others if optimizer.param_groups[0].get(name)]:
        return f"of Adam's options, {', '.join(changed)} is not in the graph"
    if len({(p.dtype, p.device) for p in training.parameters}) > 1:
        return "the parameters have several dtypes or devices"
    return None


class CompiledSteps:
    """Runs the steps of a fit as calls of one function of flat vectors.

    .. math:: (\\theta, m, v, \\bar\\theta, c, \\eta, \\beta, \\epsilon) \\mapsto (\\theta', m', v', \\bar\\theta', c',
              \\text{outcome})

    with Adam's moments, the average, the counts of steps c, step size, temperature and base draws. The draws are made
    outside the graph by the generator calls that the graph would make, so that a seed means the same in every mode.
    Nothing in a run waits for the results: they are read once, at its end, where also the parameters, the average and
    the optimiser's state are written back, so that a run starts from wherever the last step, of whatever mode, ended.

    Args:
        training: whose steps are run.
        mode: ``"trace"``, ``"inductor"`` or ``"cudagraph"``.
    """

    def __init__(self, training: Training, mode: str) -> None:
        self.training, self.mode = training, mode
        self.problem: FlowProblem = training.problem  # type: ignore[assignment]
        self.traces = 0
        self.sizes = [p.numel() for p in training.parameters]
        self._steps: dict[tuple[Any, ...], Step] = {}

    def run(self, most: int) -> list[Outcome]:
        """At least one step and up to ``most`` of them, as many as fit into a quarter of a second."""
        training, tempering = self.training, self.problem.tempering
        factors = [training.rate_factor(training.step + k) for k in range(most)]
        temperatures = [
            1.0 if tempering is None else tempering((training.step + k) / training.max_steps) for k in range(most)
        ]
        rates = [training.base_rates[0] * factor for factor in factors]
        device, outcomes = training.parameters[0].device, []
        controls = torch.tensor([rates, temperatures], dtype=torch.float64).T.contiguous().to(device)
        step = self.prepare()
        tensors = self._tensors()
        with torch.no_grad():
            state: Sequence[Tensor] = self._gather()
            until = time.perf_counter() + PATIENCE
            for control in controls:
                *state, outcome = step(*state, control, *tensors)
                outcomes.append(outcome)
                if time.perf_counter() > until:
                    break
            self._scatter(state)
        training.set_rates(factors[len(outcomes) - 1])
        rows = torch.stack(outcomes).tolist()
        return [Outcome(elbo, finite == 1.0, rate) for (elbo, finite), rate in zip(rows, rates, strict=False)]

    def prepare(self, deadline: float = math.inf) -> Step:
        """The step for tensors of the present shapes, traced and compiled if there is none yet.

        Raises:
            Untraceable: if a trace fails, or is not done at the time ``deadline``.
        """
        tensors = self._tensors()
        key = (self.problem.num_particles, *((t.shape, t.dtype, t.device) for t in tensors))
        if key not in self._steps:
            self.traces += 1
            with torch.no_grad():
                inputs = (*self._gather(), self._flat([torch.ones(2, dtype=torch.float64)]), *tensors)
            with torch.random.fork_rng([t for t in {inputs[0].device} if t.type == "cuda"]):
                graph, draws = self._trace(inputs, deadline)
                step = finish(graph, (*inputs, *(draw() for draw in draws)), self.mode)
            self._steps[key] = lambda *values: step(*values, *(draw() for draw in draws))
        return self._steps[key]

    # -- tracing -------------------------------------------------------------------------------------

    def _trace(self, inputs: tuple[Tensor, ...], deadline: float) -> tuple[GraphModule, list[Callable[[], Tensor]]]:
        guide, objective = self.problem.guide, self.problem.objective
        count = whole_groups(self.problem.num_particles, getattr(objective, "num_samples", 1))
        latent = guide.affine.location().detach().repeat(count, 1)
        log_density, _ = self.problem.log_density._graph(latent)
        if log_density is None or is_random(log_density):  # type: ignore[arg-type]
            raise Untraceable("the model draws random numbers, or its code cannot be run for all particles at once")
        before = [(buffer, buffer._version, buffer.detach().clone()) for buffer in guide.buffers()]
        holder = Holder(self.problem)
        try:
            # one mode for the shapes of all nodes: the tracer would make one for each, at a third of its time
            with tracing(TracingContext(FakeTensorMode())), Deadline(deadline):
                graph: GraphModule = make_fx(lambda *values: self._step(holder, log_density, *values))(*inputs)
        except Untraceable:
            raise
        except FAILURES as error:
            reads = "value out of a tracing tensor" in str(error)
            said = "it goes on by values that it computes, such as whether a solver has converged"
            raise Untraceable(said if reads else str(error).strip().split("\n")[0]) from error
        finally:
            changed = [(buffer, value) for buffer, version, value in before if buffer._version != version]
            for buffer, value in changed:
                buffer.data.copy_(value)
        if changed:
            raise Untraceable("the flow keeps a state that a step changes")
        draws = lift_draws(graph.graph)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        return graph, draws

    def _step(
        self,
        holder: Holder,
        log_density: Callable[..., tuple[Tensor, Tensor]],
        parameters: Tensor,
        first: Tensor,
        second: Tensor,
        average: Tensor,
        counts: Tensor,
        control: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        """One step; what is traced."""
        training, (rate, temperature) = self.training, control.unbind()
        pieces = [
            piece.view_as(p).detach().requires_grad_(p.requires_grad)
            for piece, p in zip(parameters.split(self.sizes), training.parameters, strict=True)
        ]
        names = [f"guide.{name}" for name, _ in self.problem.guide.named_parameters()]
        target = GraphTarget(lambda latent: log_density(latent, *tensors))
        with torch.enable_grad():
            estimate: Estimate = functional_call(
                holder,
                dict(zip(names, pieces, strict=True)),
                (target, 1.0 if self.problem.tempering is None else temperature),
            )
            moved = [piece for piece in pieces if piece.requires_grad]
            found = iter(torch.autograd.grad(estimate.loss, moved, materialize_grads=True))
        gradient = self._flat([next(found) if piece.requires_grad else torch.zeros_like(piece) for piece in pieces])
        elbo, norm = estimate.log_weights.mean(), torch.linalg.vector_norm(gradient)
        finite = elbo.isfinite() & norm.isfinite()
        gradient = gradient * (training.clip_norm / (norm + 1e-6)).clamp(max=1.0)

        group = training.optimizer.param_groups[0]
        decay, decay_of_squares = group["betas"]
        new_counts = counts + finite
        steps, averaged = new_counts.unbind()
        new_first = torch.lerp(first, gradient, 1.0 - decay)
        new_second = second * decay_of_squares + (1.0 - decay_of_squares) * gradient.square()
        spread = new_second.sqrt() / (1.0 - decay_of_squares**steps).sqrt() + group["eps"]
        new_parameters = parameters - (rate / (1.0 - decay**steps)) * (new_first / spread)
        new_average = average + (new_parameters - average) / averaged
        pairs = zip(
            (new_parameters, new_first, new_second, new_average), (parameters, first, second, average), strict=True
        )
        kept = [torch.where(finite, new, old) for new, old in pairs]
        return *kept, new_counts, torch.stack([elbo.double(), finite.double()])

    # -- the state -----------------------------------------------------------------------------------

    def _tensors(self) -> list[Tensor]:
        return [leaf for leaf in self.problem.log_density.leaves if isinstance(leaf, Tensor)]

    def _flat(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t.reshape(-1) for t in tensors]).to(self.training.parameters[0].device)

    def _gather(self) -> tuple[Tensor, ...]:
        """What the training holds, as flat vectors."""
        training = self.training
        states: list[Any] = [training.optimizer.state.get(p, {}) for p in training.parameters]
        pairs = list(zip(states, training.parameters, strict=True))
        moments = [
            self._flat([state[name] if state else torch.zeros_like(p) for state, p in pairs])
            for name in ("exp_avg", "exp_avg_sq")
        ]
        steps = max(float(state.get("step", 0.0)) for state in states)
        counts = self._flat([torch.tensor([steps, training.averaged], dtype=torch.float64)])
        return self._flat(training.parameters), *moments, self._flat(training.average), counts

    def _scatter(self, state: Sequence[Tensor]) -> None:
        """Write back what :meth:`_gather` takes."""
        training = self.training
        parameters, first, second, average = (
            [piece.view_as(p) for piece, p in zip(flat.split(self.sizes), training.parameters, strict=True)]
            for flat in state[: STATE - 1]
        )
        torch._foreach_copy_(training.parameters, parameters)
        torch._foreach_copy_(training.average, average)
        steps, averaged = state[STATE - 1].tolist()
        training.averaged = int(averaged)
        counts = torch.full((len(parameters),), steps, dtype=torch.float32, device=parameters[0].device).unbind()
        for p, count, m, v in zip(training.parameters, counts, first, second, strict=True):
            training.optimizer.state[p] = {"step": count, "exp_avg": m, "exp_avg_sq": v}
