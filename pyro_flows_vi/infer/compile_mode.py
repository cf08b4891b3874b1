"""Which way the steps of a fit are run, and the choice where that is left to the fit."""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from pyro_flows_vi.infer._step_graph import Untraceable
from pyro_flows_vi.infer.compiled import CompiledSteps, Outcome, refusal

if TYPE_CHECKING:
    from pyro_flows_vi.infer.training import Training

__all__ = ["Driver", "expected_steps", "has_compiler", "require_mode"]

MODES = ("trace", "inductor", "cudagraph")
#: steps after which a mode is judged by the median of their times
TRIAL = 12
#: what a trace costs, in eager steps, and the share of each that it saves
STEPS_OF_A_TRACE, SAVED_BY_TRACE = 80.0, 0.15
#: seconds that the inductor takes for each second of the trace, and at the least
INDUCTOR_PER_TRACE, INDUCTOR_LEAST = 50.0, 20.0
#: the share of a traced step that a compiler saves
SAVED_BY_COMPILER = 0.6

logger = logging.getLogger(__name__)


def require_mode(compile: str | bool) -> None:
    """Raise a ValueError for a word that is none, or a mode that this machine does not have."""
    if compile is not False and compile not in ("auto", *MODES):
        raise ValueError(f"expected compile to be 'auto', {', '.join(map(repr, MODES))} or False, got {compile!r}")
    if compile == "cudagraph" and not torch.cuda.is_available():
        raise ValueError("expected a GPU for compile='cudagraph', found none: use compile='auto'")
    if compile == "inductor" and not has_compiler():
        raise ValueError("expected a C++ compiler for compile='inductor', found none: install g++ or use 'trace'")


def has_compiler() -> bool:
    """Whether the inductor finds a C++ compiler."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name)


def expected_steps(training: Training) -> int:
    """How many steps are still to come, if in doubt rather too few."""
    left = training.max_steps - training.step
    if training.schedule is not None:
        return left
    rule = training.plateau
    least = rule.window * rule.patience * (rule.drops + 1)
    return min(left, max(least - training.step, left // 2))


class Driver:
    """Runs steps in one mode.

    ``"auto"`` begins step by step. After some steps it traces, unless the rest of the run is too short for the
    trace to be paid back, and gives a trace up that takes longer than half of what it can save. It goes back where
    the graph turns out no faster. Of long runs, it then has the graph compiled: by the inductor where that is expected
    to take less than half of the time that it saves. Each choice is logged with its numbers.

    Args:
        training: whose steps are run.
        compile: a mode, ``"auto"`` or ``False``.

    Raises:
        ValueError: for a mode that this training cannot have.
    """

    def __init__(self, training: Training, compile: str | bool) -> None:
        self.training = training
        self.mode: str | bool = False
        self.steps: CompiledSteps | None = None
        self.undecided = compile == "auto"
        self._seconds: list[float] = []
        self._others: list[tuple[str | bool, CompiledSteps | None, float]] = []  # modes before this one, with times
        reason = None if compile is False else refusal(training)
        if reason is not None and not self.undecided:
            raise ValueError(f"compile={compile!r} cannot be had: {reason}; use compile='auto' or False")
        if reason is not None:
            self._settle(reason)
        elif not self.undecided:
            self._turn_to(compile)

    def run(self, most: int) -> list[Outcome]:
        """Up to ``most`` steps, and at least one."""
        if self.undecided and len(self._seconds) >= TRIAL:
            self._choose()
        began = time.perf_counter()
        try:
            outcomes = [self.training.eager_step()] if self.steps is None else self.steps.run(most)
        except Untraceable as error:
            raise ValueError(f"compile={self.mode!r} cannot be had: {error}; use compile='auto' or False") from error
        if self.undecided:
            self._seconds += [(time.perf_counter() - began) / len(outcomes)] * len(outcomes)
        return outcomes

    def state(self) -> str | bool | None:
        """The mode for a checkpoint; ``None`` where a choice is still to be made."""
        return None if self.undecided and self.steps is None else self.mode

    def resume(self, mode: str | bool | None) -> None:
        """Go on in the mode of a checkpoint, where the choice is left to the fit."""
        if not self.undecided or mode is None:
            return
        with suppress(ValueError):  # what another machine had, and this one has not, is chosen anew
            require_mode(mode)
            self._turn_to(mode)
            self._settle("so does the checkpoint")

    # -- the choice ----------------------------------------------------------------------------------

    def _turn_to(self, mode: str | bool) -> None:
        self.mode, self.steps = mode, CompiledSteps(self.training, str(mode)) if mode else None

    def _settle(self, why: str) -> None:
        self.undecided = False
        if self.training.ranks.first:
            logger.info("fit goes on with compile=%r: %s", self.mode, why)

    def _choose(self) -> None:
        """Judge the mode of the last steps, and perhaps try the next one."""
        seconds, self._seconds = statistics.median(self._seconds), []
        said = f"a step takes {1e3 * seconds:.2f} ms"
        if self._others:
            before, steps, others = self._others[-1]
            said += f", and {1e3 * others:.2f} ms with compile={before!r}"
            if seconds >= others:
                self.mode, self.steps = before, steps
                self._settle(said)
                return
        if self.mode in ("inductor", "cudagraph"):
            self._settle(said)
            return
        on_gpu = self.training.parameters[0].is_cuda
        expected = expected_steps(self.training)
        if not self.mode:
            mode, cost, saved = "trace", STEPS_OF_A_TRACE * seconds, SAVED_BY_TRACE * expected * seconds
        else:
            mode, saved = "cudagraph" if on_gpu else "inductor", SAVED_BY_COMPILER * expected * seconds
            cost = self._traced_in if on_gpu else max(INDUCTOR_LEAST, INDUCTOR_PER_TRACE * self._traced_in)
        said += f"; of {expected} more steps {mode!r} would save {saved:.1f} s at a cost of {cost:.1f} s"
        if cost > saved / 2:
            self._settle(said)
        elif mode == "inductor" and not has_compiler():
            self._settle(f"{said}, but there is no C++ compiler")
        else:
            self._try(mode, seconds, saved, said)

    def _try(self, mode: str, seconds: float, saved: float, said: str) -> None:
        began, steps = time.perf_counter(), CompiledSteps(self.training, mode)
        try:
            steps.prepare(began + saved / 2)
        except Exception as error:  # whatever a tracer or a compiler raises, the steps before are there
            self._settle(f"{mode!r} failed: {str(error).strip()[:200]} ({said})")
            return
        self._traced_in = time.perf_counter() - began
        logger.info("fit tries compile=%r: %s", mode, said)
        self._others.append((self.mode, self.steps, seconds))
        self.mode, self.steps = mode, steps
