"""The loop of a fit, one step at a time, with a state that can be saved and gone on from."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from pyro import poutine
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor, nn

from pyro_flows_vi.infer._particles import particle_elbo
from pyro_flows_vi.infer.checkpoint import load_checkpoint, save_checkpoint
from pyro_flows_vi.infer.log_density import LogDensity
from pyro_flows_vi.infer.objectives import ELBO, Estimate, Objective, Tempering
from pyro_flows_vi.infer.plateau import Plateau

__all__ = ["FlowProblem", "Problem", "PyroProblem", "Training"]

#: steps over which the step size rises to its first value, since Adam's first steps know no scale
WARM_UP = 50
#: draws on which the candidates of the end are compared, and how many at once
FINAL_DRAWS, CHUNK = 8192, 1024


class Problem(Protocol):
    """What is trained: parameters and estimates of an objective."""

    signature: dict[str, Any]
    learning_rate: float

    def estimate(self, fraction: float) -> Estimate:
        """One estimate with gradients, when ``fraction`` of the run is over."""

    def parameters(self) -> list[Tensor]:
        """The leaves that are trained."""

    def log_weights(self) -> Tensor:
        """Log weights of many draws of the guide as it is, without gradients."""


class FlowProblem:
    """A flow guide and a log density, under an objective."""

    def __init__(
        self,
        guide: Any,
        log_density: LogDensity,
        objective: Objective | None,
        num_particles: int,
        tempering: Tempering | None,
    ) -> None:
        self.guide, self.log_density, self.num_particles, self.tempering = guide, log_density, num_particles, tempering
        self.objective: Objective = ELBO() if objective is None else objective
        even = any(name.endswith("weight_units") for name, _ in guide.named_parameters())
        self.learning_rate = 0.3 if even else 0.03
        self.signature = {
            "flow": guide.flow_name,
            "sites": [[site.name, list(site.unconstrained_shape)] for site in guide.layout],
            "objective": type(self.objective).__name__,
            "particles": num_particles,
        }

    def estimate(self, fraction: float) -> Estimate:
        """As the objective has it."""
        temperature = 1.0 if self.tempering is None else self.tempering(fraction)
        return self.objective(self.guide, self.log_density, self.num_particles, temperature)

    def parameters(self) -> list[Tensor]:
        """Those of the guide, and of the model where it has any."""
        own = list(self.guide.parameters())
        known = {id(p) for p in own}
        return own + [p for p in self.log_density.parameters() if id(p) not in known]

    @torch.no_grad()
    def log_weights(self) -> Tensor:
        """In chunks."""
        parts = []
        for _ in range(FINAL_DRAWS // CHUNK):
            latent, log_q = self.guide.rsample_and_log_prob(CHUNK)
            parts.append(self.log_density(latent) - log_q)
        return torch.cat(parts)


class PyroProblem:
    """Any Pyro model and guide, under ``Trace_ELBO``."""

    def __init__(
        self, model: Callable[..., Any], guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any], num_particles: int
    ) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        self.elbo = particle_elbo(model, guide, args, kwargs, num_particles)
        self.learning_rate = 0.01
        self.signature = {"flow": type(guide).__name__, "particles": num_particles}
        with poutine.trace(param_only=True) as capture:
            self.estimate(0.0)
        values: Any = [site["value"] for site in capture.trace.nodes.values()]
        self._parameters = list({id(leaf): leaf for leaf in map(_leaf, values)}.values())

    def estimate(self, fraction: float) -> Estimate:
        """The loss, and the ELBO in place of log weights."""
        loss: Tensor = self.elbo.differentiable_loss(self.model, self.guide, *self.args, **self.kwargs)
        return Estimate(loss, -loss.detach()[None])

    def parameters(self) -> list[Tensor]:
        """All that the guide and the model used."""
        return self._parameters

    @torch.no_grad()
    def log_weights(self) -> Tensor:
        """ELBO estimates, which have the mean of log weights."""
        return torch.cat([self.estimate(1.0).log_weights for _ in range(64)])


class Training:
    """A problem on its way; see :func:`pyro_flows_vi.infer.fit`."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.step, self.skipped, self.skipped_in_a_row, self.averaged = 0, 0, 0, 0
        self.history: dict[str, list[float]] = {"step": [], "elbo": [], "elbo_se": [], "learning_rate": []}

    def configure(
        self,
        optimizer: Any,
        learning_rate: float | None,
        schedule: Callable[[float], float] | None,
        clip_norm: float,
        plateau: Plateau,
        max_steps: int,
        max_skipped: int,
    ) -> None:
        """Make the optimiser and set the rules."""
        self.schedule, self.clip_norm, self.plateau = schedule, clip_norm, copy.deepcopy(plateau)
        self.max_steps, self.max_skipped = max_steps, max_skipped
        self.parameters = self.problem.parameters()
        rate = self.problem.learning_rate if learning_rate is None else learning_rate
        self.optimizer = _make_optimizer(optimizer, self.parameters, rate)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.start = self._copy()
        self.best = self._copy()
        self.average = self._copy()

    def advance(self) -> str:
        """One step; says what the stopping rule says."""
        self._set_rates()
        self.optimizer.zero_grad(set_to_none=True)
        estimate = self.problem.estimate(self.step / self.max_steps)
        estimate.loss.backward()
        elbo = float(estimate.log_weights.mean())
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.step += 1
        if not (math.isfinite(elbo) and math.isfinite(float(norm))):
            return self._skip(elbo)
        self.skipped_in_a_row = 0
        self.optimizer.step()
        self.averaged += 1
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1.0 / self.averaged)
        rate = self.optimizer.param_groups[0]["lr"]
        window = len(self.plateau.pending) + 1 == self.plateau.window
        said = self.plateau.update(elbo)
        if window:
            self._record(rate)
        if said == "progress":
            self.best = self._copy()
        elif said == "collapse":
            self._restore(self.best)
            self.optimizer.state.clear()
        if said in ("drop", "collapse"):
            self.averaged = 0
        return said

    def keep_the_best(self) -> tuple[str, float, float]:
        """Compare the candidates on the same draws, leave the best in place; its name, ELBO and standard error."""
        candidates = {"last": self._copy(), "start": self.start}
        if self.averaged:
            candidates["average"] = self.average
        results: dict[str, tuple[float, float]] = {}
        state = torch.get_rng_state()
        for name, values in candidates.items():
            self._restore(values)
            torch.set_rng_state(state)
            weights = self.problem.log_weights().double()
            mean, se = float(weights.mean()), float(weights.std() / math.sqrt(len(weights)))
            results[name] = (mean, se) if math.isfinite(mean) else (-math.inf, math.nan)
        best = max(results, key=lambda name: results[name][0])
        self._restore(candidates[best])
        return best, *results[best]

    def postfix(self) -> str:
        """The last window in words, for the progress bar."""
        if not self.history["elbo"]:
            return ""
        return f"ELBO {self.history['elbo'][-1]:.2f} ± {self.history['elbo_se'][-1]:.2f}"

    # -- saving --------------------------------------------------------------------------------------

    def save(self, path: str | Path, restart_elbos: list[float]) -> None:
        """Write the whole state."""
        state = {
            "module": self._module_state(),
            "parameters": [p.detach() for p in self.parameters],
            "start": self.start,
            "best": self.best,
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "plateau": self.plateau.state(),
            "history": self.history,
            "counts": [self.step, self.skipped, self.skipped_in_a_row, self.averaged],
            "restart_elbos": restart_elbos,
            "rng": torch.get_rng_state(),
        }
        save_checkpoint(path, state, kind="fit", settings=self.problem.signature)

    def load(self, path: str | Path) -> list[float]:
        """Go on from a saved state; returns the ELBOs of the restarts."""
        _, state = load_checkpoint(path, kind="fit", settings=self.problem.signature)
        if state["module"] is not None:
            self.problem.guide.load_state_dict(state["module"])  # type: ignore[attr-defined]
        self._restore(state["parameters"])
        self.start, self.best, self.average = state["start"], state["best"], state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.plateau = Plateau(**state["plateau"])
        self.history = state["history"]
        self.step, self.skipped, self.skipped_in_a_row, self.averaged = state["counts"]
        torch.set_rng_state(state["rng"])
        return list(state["restart_elbos"])

    def _module_state(self) -> dict[str, Any] | None:
        guide = getattr(self.problem, "guide", None)
        return guide.state_dict() if isinstance(guide, nn.Module) else None

    # -- parts of a step -----------------------------------------------------------------------------

    def _set_rates(self) -> None:
        factor = min(1.0, (self.step + 1) / WARM_UP)
        factor *= self.plateau.scale if self.schedule is None else self.schedule(self.step / self.max_steps)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor

    def _skip(self, elbo: float) -> str:
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.max_skipped:
            self._restore(self.best)
            raise ValueError(
                f"the loss or its gradient was not finite in {self.skipped_in_a_row} steps in a row (ELBO {elbo}); "
                "the guide holds the best parameters so far. Try a smaller learning_rate, dtype=torch.float64, or "
                "check the model for values that overflow"
            )
        return "go on"

    def _record(self, rate: float) -> None:
        mean, se = self.plateau.latest
        for name, value in (("step", self.step), ("elbo", mean), ("elbo_se", se), ("learning_rate", rate)):
            self.history[name].append(float(value))

    def _copy(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def _restore(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)


def _make_optimizer(optimizer: Any, parameters: list[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    if optimizer is None:
        return torch.optim.Adam(parameters, lr=learning_rate, betas=(0.9, 0.99), fused=True)
    if isinstance(optimizer, PyroOptim):
        if callable(optimizer.pt_optim_args):
            raise ValueError("expected an optimiser of pyro.optim with one dict of arguments, got a function of them")
        if isinstance(optimizer, PyroLRScheduler) or optimizer.pt_clip_args:
            raise ValueError("expected a plain optimiser of pyro.optim: use fit's schedule and clip_norm")
        constructor: Any = optimizer.pt_optim_constructor
        made = constructor(parameters, **optimizer.pt_optim_args)
    else:
        made = optimizer(parameters)
    if not isinstance(made, torch.optim.Optimizer) or isinstance(made, torch.optim.LBFGS):
        raise ValueError(
            f"expected optimizer to be a function from parameters to a stochastic optimiser of torch, or one of "
            f"pyro.optim; it made a {type(made).__name__}"
        )
    return made


def _leaf(value: Any) -> Tensor:
    return value.unconstrained() if hasattr(value, "unconstrained") else value
