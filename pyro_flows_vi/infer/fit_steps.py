"""The steps of a fit as one graph: of a flow guide on a log density, or of a Pyro guide under Pyro's handlers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from pyro_flows_vi.infer._step_graph import Untraceable, put_in_place, refused_flows
from pyro_flows_vi.infer._update import refused_optimizer
from pyro_flows_vi.infer._vectorise import is_random
from pyro_flows_vi.infer.compiled import CompiledSteps
from pyro_flows_vi.infer.objectives import ELBO, IWELBO, DReG, PathELBO, Renyi, whole_groups
from pyro_flows_vi.infer.problems import PyroProblem

if TYPE_CHECKING:
    from pyro_flows_vi.infer.training import Training

__all__ = ["FitSteps", "Outcome", "fit_refusal"]

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


def fit_refusal(training: Training) -> str | None:
    """Why the steps of this fit cannot be one graph, as far as can be told without trying."""
    problem: Any = training.problem
    if reason := refused_flows(problem.guide):
        return reason
    if not isinstance(problem, PyroProblem):
        if type(problem.objective) not in PURE:
            return f"the objective {type(problem.objective).__name__} is not one of this package, and may do anything"
        if problem.log_density.has_parameters:
            return "the model has parameters of its own"
    return refused_optimizer(training.optimizer, training.parameters)


class FitSteps(CompiledSteps):
    """Those of a :class:`~pyro_flows_vi.infer.training.Training`."""

    def __init__(self, training: Training, mode: str) -> None:
        super().__init__(training.parameters, training.optimizer, mode, training.clip_norm, averaging=True)
        self.training = training
        self.problem: Any = training.problem
        self._log_density: Callable[..., tuple[Tensor, Tensor]] | None = None

    def run(self, most: int) -> list[Outcome]:
        """At least one step and up to ``most`` of them, as many as fit into a quarter of a second."""
        training, first = self.training, self.training.step
        rates = [training.base_rates[0] * training.rate_factor(first + k) for k in range(most)]
        rows = self.rows(most)
        training.set_rates(training.rate_factor(first + len(rows) - 1))
        finite = [all(map(math.isfinite, row)) for row in rows]
        return [Outcome(row[0], good, rate) for row, good, rate in zip(rows, finite, rates, strict=False)]

    def controls(self, most: int) -> list[list[float]]:
        """Step size and temperature."""
        training, tempering, rows = self.training, getattr(self.problem, "tempering", None), []
        for step in range(training.step, training.step + most):
            temperature = 1.0 if tempering is None else tempering(step / training.max_steps)
            rows.append([training.base_rates[0] * training.rate_factor(step), temperature])
        return rows

    def tensors(self) -> list[Tensor]:
        """The arguments of the model; those of a Pyro pair, which stay the same in a fit, are constants."""
        log_density = getattr(self.problem, "log_density", None)
        return [] if log_density is None else [leaf for leaf in log_density.leaves if isinstance(leaf, Tensor)]

    def modules(self) -> list[nn.Module]:
        """The guide, and the model where it is a module."""
        owners = (self.problem.guide, getattr(self.problem, "model", None))
        return [owner for owner in owners if isinstance(owner, nn.Module)]

    def average(self) -> tuple[list[Tensor], int]:
        """That since the step size began to fall."""
        return self.training.average, self.training.averaged

    def set_averaged(self, count: int) -> None:
        """Of the training."""
        self.training.averaged = count

    def before_trace(self) -> None:
        """Trace the log density by itself."""
        if isinstance(self.problem, PyroProblem):
            return
        guide, objective = self.problem.guide, self.problem.objective
        count = whole_groups(self.problem.num_particles, getattr(objective, "num_samples", 1))
        log_density, _ = self.problem.log_density._graph(guide.affine.location().detach().repeat(count, 1))
        if log_density is None or is_random(log_density):
            raise Untraceable("the model draws random numbers, or its code cannot be run for all particles at once")
        self._log_density = log_density

    def loss(self, pieces: list[Tensor], control: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """That of the problem, and its ELBO."""
        problem, log_density = self.problem, self._log_density
        if isinstance(problem, PyroProblem):
            estimate = problem.estimate_in_graph(pieces)
            return estimate.loss, [estimate.log_weights.mean()]
        assert log_density is not None
        target = GraphTarget(lambda latent: log_density(latent, *tensors))
        temperature = 1.0 if problem.tempering is None else control[1]
        with put_in_place(problem.guide, self.parameters, pieces):
            estimate = problem.objective(problem.guide, target, problem.num_particles, temperature)
        return estimate.loss, [estimate.log_weights.mean()]


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
