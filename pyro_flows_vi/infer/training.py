"""The loop of a fit, one step at a time, with a state that can be saved and gone on from."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor, nn

from pyro_flows_vi.infer.checkpoint import load_checkpoint, save_checkpoint
from pyro_flows_vi.infer.compile_mode import Driver
from pyro_flows_vi.infer.fit_steps import FitSteps, Outcome, fit_refusal
from pyro_flows_vi.infer.gaussian import GaussianFit
from pyro_flows_vi.infer.parallel import generator_states, set_generator_states
from pyro_flows_vi.infer.plateau import Plateau
from pyro_flows_vi.infer.problems import Problem

__all__ = ["Training"]

#: steps over which the step size rises to its first value, since Adam's first steps know no scale
WARM_UP = 50


class Training:
    """A problem on its way; see :func:`pyro_flows_vi.infer.fit`."""

    work = "fit"

    def __init__(self, problem: Problem) -> None:
        self.problem, self.ranks = problem, problem.share.ranks
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
        compile: str | bool = False,
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
        self.earlier: list[Tensor] = []  # the end of an earlier cooldown
        self.driver = Driver(self, compile)

    def advance(self, until: int) -> str:
        """One step, or several where they are compiled, but none after ``until``; says what the stopping rule says."""
        said = "go on"
        most = min(until - self.step, self.plateau.until_judged())
        for outcome in self.driver.run(most):
            self.step += 1
            said = self._judge(outcome) if outcome.finite else self._skip(outcome.elbo)
        return said

    def eager_step(self) -> Outcome:
        """One step of the optimiser, unless the loss or its gradient is not finite."""
        self.set_rates(self.rate_factor(self.step))
        for parameter in self.parameters:  # also those that the optimiser does not have, which count in the norm
            parameter.grad = None
        with self.problem.share as share:
            estimate = self.problem.estimate(self.step / self.max_steps)
            estimate.loss.backward()
            elbo = float(share.average(self.parameters, estimate.log_weights.mean())[0])
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        finite = math.isfinite(elbo) and math.isfinite(float(norm))
        if finite:
            self.optimizer.step()
            self.averaged += 1
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1.0 / self.averaged)
        return Outcome(elbo, finite, self.optimizer.param_groups[0]["lr"])

    def compiled_steps(self, mode: str) -> FitSteps:
        """The same steps as graphs."""
        return FitSteps(self, mode)

    def refusal(self) -> str | None:
        """Why that cannot be, as far as can be told without trying."""
        return fit_refusal(self)

    @property
    def over(self) -> bool:
        """Whether the stopping rule has ended it."""
        return self.schedule is None and self.plateau.over

    @property
    def converged(self) -> bool:
        """Whether its criterion was met, even if more steps followed."""
        return self.schedule is None and self.plateau.converged

    def expected_steps(self) -> int:
        """How many steps are still to come, if in doubt rather too few."""
        left = self.max_steps - self.step
        if self.schedule is not None:
            return left
        return min(left, self.plateau.expected_steps())

    def _judge(self, outcome: Outcome) -> str:
        self.skipped_in_a_row = 0
        remaining = self.max_steps - self.step if self.schedule is None else math.inf
        best = self.plateau.best
        moving = self.plateau.until_judged() == 1 and self._is_tempering()
        said = self.plateau.update(outcome.elbo, remaining, moving)
        if not self.plateau.pending:  # the end of a window
            self._record(outcome.rate)
            if self.plateau.latest[0] > best:
                self.best = self._copy()
        if said == "stop" and self._goes_on(remaining):
            said = "cooldown"
        if said == "collapse":
            self._restore(self.best)
            self.optimizer.state.clear()
        if said in ("cooldown", "collapse"):
            self.averaged = 0
        return said

    def _goes_on(self, remaining: float) -> bool:
        """Whether another cooldown begins; the end of this one is then a candidate for that of the fit."""
        if self.schedule is not None:
            return False
        with self._generators_kept():
            goes_on = self.plateau.again(lambda: self.ranks.from_first(self.problem.gap), remaining)
        if goes_on:
            self.best, self.earlier = self._copy(), self._copy()
        return goes_on

    def _is_tempering(self) -> bool:
        """Whether the power of the log density is another one than at the end."""
        tempering = getattr(self.problem, "tempering", None)
        return tempering is not None and tempering(self.step / self.max_steps) != tempering(1.0)

    def keep_the_best(self) -> tuple[str, float, float]:
        """Compare the candidates on the same draws, leave the best in place; its name, ELBO and standard error."""
        candidates = {"last": self._copy(), "start": self.start}
        if not self.over:  # the end may be that of a bad stretch
            candidates["best"] = self.best
        if self.earlier:
            candidates["earlier"] = self.earlier
        if self.averaged:
            candidates["average"] = self.average
        results: dict[str, tuple[float, float]] = {}
        for name, values in candidates.items():
            self._restore(values)
            with self._generators_kept():
                weights = self.problem.log_weights().double()
            mean, se = float(weights.mean()), float(weights.std() / math.sqrt(len(weights)))
            results[name] = (mean, se) if math.isfinite(mean) else (-math.inf, math.nan)
        results = self.ranks.from_first(lambda: results)
        best = max(results, key=lambda name: results[name][0])
        self._restore(candidates[best])
        return best, *results[best]

    def missed(self, restarts: list[GaussianFit]) -> list[float]:
        """What of the posterior the guide lacks where the restarts ended; the generators stay as they are."""
        with self._generators_kept():
            return self.problem.missed(restarts)

    def _generators_kept(self) -> AbstractContextManager[None]:
        return torch.random.fork_rng({p.device for p in self.parameters if p.is_cuda})

    def postfix(self) -> str:
        """The last window in words, for the progress bar."""
        if not self.history["elbo"]:
            return ""
        return f"ELBO {self.history['elbo'][-1]:.2f} ± {self.history['elbo_se'][-1]:.2f}"

    # -- saving --------------------------------------------------------------------------------------

    def save(self, path: str | Path, restarts: list[GaussianFit]) -> None:
        """Write the whole state, in the first process."""
        if not self.ranks.first:
            return
        state = {
            "module": self._module_state(),
            "parameters": [p.detach() for p in self.parameters],
            "start": self.start,
            "best": self.best,
            "average": self.average,
            "earlier": self.earlier,
            "optimizer": self.optimizer.state_dict(),
            "plateau": self.plateau.state(),
            "history": self.history,
            "counts": [self.step, self.skipped, self.skipped_in_a_row, self.averaged],
            "restarts": [vars(fit) for fit in restarts],
            "mode": self.driver.state(),
            "rng": generator_states(),
        }
        save_checkpoint(path, state, kind="fit", settings=self.problem.signature)

    def load(self, path: str | Path) -> list[GaussianFit]:
        """Go on from a saved state; returns the restarts."""
        _, state = self.ranks.from_first(lambda: load_checkpoint(path, kind="fit", settings=self.problem.signature))
        if state["module"] is not None:
            self.problem.guide.load_state_dict(state["module"])  # type: ignore[attr-defined]
        self._restore(state["parameters"])
        self.start, self.best, self.average, self.earlier = (
            [value.to(p.device) for value, p in zip(state[name], self.parameters, strict=bool(state[name]))]
            for name in ("start", "best", "average", "earlier")
        )
        self.optimizer.load_state_dict(state["optimizer"])
        self.plateau = Plateau(**state["plateau"])
        self.history = state["history"]
        self.step, self.skipped, self.skipped_in_a_row, self.averaged = state["counts"]
        self.plateau.extend(self.max_steps - self.step)
        self.driver.resume(state.get("mode"))
        set_generator_states(state["rng"])
        return [GaussianFit(**fit) for fit in state["restarts"]]

    def _module_state(self) -> dict[str, Any] | None:
        guide = getattr(self.problem, "guide", None)
        return guide.state_dict() if isinstance(guide, nn.Module) else None

    # -- parts of a step -----------------------------------------------------------------------------

    def rate_factor(self, step: int) -> float:
        """The step size of a step, over the first one."""
        ahead = step - self.step
        scale = self.plateau.step_size(ahead) if self.schedule is None else self.schedule(step / self.max_steps)
        return min(1.0, (step + 1) / WARM_UP) * scale

    def set_rates(self, factor: float) -> None:
        """Let the optimiser take steps of ``factor`` times the first size."""
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor

    def _skip(self, elbo: float) -> str:
        self.skipped += 1
        self.plateau.skip()
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
        return torch.optim.Adam(parameters, lr=learning_rate, betas=(0.9, 0.95), fused=True)
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
