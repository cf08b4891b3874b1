"""Which way the steps of a training are run, and the choice where that is left to it."""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import time
from contextlib import suppress
from typing import Any, Protocol

import torch

from pyro_flows_vi.infer._step_graph import Step, Untraceable
from pyro_flows_vi.infer.parallel import Ranks

__all__ = ["Driver", "Work", "has_compiler", "require_mode"]

MODES = ("trace", "inductor", "cudagraph")
#: steps after which a mode is judged by the median of their times
TRIAL = 12
#: what a trace costs, in eager steps, and the share of each that it saves
STEPS_OF_A_TRACE, SAVED_BY_TRACE = 100.0, 0.5
#: expected steps from which on a trace is worth a try; its calls of kernels over those of a step, beyond which it is
#: given up; and more calls that do not matter
LEAST_STEPS, MOST_CALLS, MORE_CALLS = 300, 1.5, 500
#: seconds that the inductor takes for each second of the trace, and at the least
INDUCTOR_PER_TRACE, INDUCTOR_LEAST = 50.0, 20.0
#: the share that a compiler saves of a traced step, without the products of matrices in it
SAVED_BY_COMPILER = 0.7

logger = logging.getLogger(__name__)


def require_mode(compile: str | bool) -> None:
    """Raise a ValueError for a word that is none, or a mode that this machine does not have."""
    if not isinstance(compile, bool) and compile not in ("auto", *MODES):
        words = ", ".join(map(repr, MODES))
        raise ValueError(f"expected compile to be 'auto', {words}, True or False, got {compile!r}")
    if compile == "cudagraph" and not torch.cuda.is_available():
        raise ValueError("expected a GPU for compile='cudagraph', found none: use compile='auto'")
    if compile == "inductor" and not has_compiler():
        raise ValueError("expected a C++ compiler for compile='inductor', found none: install g++ or use 'trace'")


def has_compiler() -> bool:
    """Whether the inductor finds a C++ compiler."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name)


class Steps(Protocol):
    """Compiled steps, as of :class:`~pyro_flows_vi.infer.compiled.CompiledSteps`."""

    products: float

    def run(self, most: int) -> list[Any]:
        """Up to ``most`` steps, and at least one."""

    def prepare(self, deadline: float = ..., calls: float = ...) -> Step:
        """The step, unless it is not done by then, or has more calls of kernels."""

    def count_calls(self) -> int:
        """The calls of kernels in a step that is not traced."""


class Work(Protocol):
    """A training, as far as a driver has to know it."""

    #: what it is called in the log
    work: str
    #: the processes that share it
    ranks: Ranks

    @property
    def parameters(self) -> list[Any]:
        """What is trained."""

    def eager_step(self) -> Any:
        """One step by itself."""

    def compiled_steps(self, mode: str) -> Any:
        """The :class:`Steps` of a mode."""

    def refusal(self) -> str | None:
        """Why the steps cannot be one graph, as far as can be told without trying."""

    def expected_steps(self) -> int:
        """How many steps are still to come, if in doubt rather too few."""


class Driver:
    """Runs steps in one mode.

    ``"auto"`` begins step by step. After some steps it traces, unless the rest of the run is too short for the
    trace to be paid back, and gives a trace up that takes longer than half of what it can save. Of long runs, it then
    has the graph compiled, where that is expected to take less than half of the time that it saves; products of
    matrices, whose share in a step it measures, are expected to stay as slow as they are. In the end it goes on in the
    mode that was fastest. Each choice is logged with its numbers.

    ``True`` looks at no clock, so that a seed always means the same: it traces before the first step, unless few
    steps are expected, and goes step by step where there is no trace or it is very long.

    Args:
        work: whose steps are run.
        compile: a mode, ``"auto"``, ``True`` or ``False``.

    Raises:
        ValueError: for a mode that this work cannot have.
    """

    def __init__(self, work: Work, compile: str | bool) -> None:
        self.work = work
        self.mode: str | bool = False
        self.steps: Steps | None = None
        self.undecided, self.hopeful = compile == "auto", compile is True
        self.demanded = not (self.undecided or self.hopeful)
        self._seconds: list[float] = []
        self._tried: list[tuple[str | bool, Steps | None, float]] = []  # with the seconds of a step
        shared = "several processes share each step, and average its gradient midway" if work.ranks.size > 1 else None
        reason = None if compile is False else shared or work.refusal()
        if reason is not None and self.demanded:
            raise ValueError(f"compile={compile!r} cannot be had: {reason}; use compile='auto' or False")
        if reason is not None:
            self._settle(reason)
        elif self.demanded:
            self._turn_to(compile)

    def run(self, most: int) -> list[Any]:
        """Up to ``most`` steps, and at least one."""
        if self.hopeful:
            self._hope()
        if self.undecided and len(self._seconds) >= TRIAL:
            self._choose()
        began = time.perf_counter()
        try:
            outcomes = [self.work.eager_step()] if self.steps is None else self.steps.run(most)
        except Untraceable as error:
            if self.demanded:
                said = f"compile={self.mode!r} cannot be had: {error}; use compile='auto' or False"
                raise ValueError(said) from error
            self._settle(f"there is no trace: {error}", (False, None, 0.0))  # as the checkpoint's machine had
            outcomes = [self.work.eager_step()]
        if self.undecided:
            self._seconds += [(time.perf_counter() - began) / len(outcomes)] * len(outcomes)
        return outcomes

    def state(self) -> str | bool | None:
        """The mode for a checkpoint; ``None`` where a choice is still to be made."""
        return None if (self.undecided or self.hopeful) and self.steps is None else self.mode

    def resume(self, mode: str | bool | None) -> None:
        """Go on in the mode of a checkpoint, where the choice is left to the driver."""
        if not (self.undecided or self.hopeful) or mode is None:
            return
        with suppress(ValueError):  # what another machine had, and this one has not, is chosen anew
            require_mode(mode)
            self._turn_to(mode)
            self._settle("so does the checkpoint")

    # -- the choice ----------------------------------------------------------------------------------

    def _turn_to(self, mode: str | bool) -> None:
        self.mode, self.steps = mode, self.work.compiled_steps(str(mode)) if mode else None

    def _settle(self, why: str, best: tuple[str | bool, Steps | None, float] | None = None) -> None:
        self.undecided = self.hopeful = False
        if best is not None:
            self.mode, self.steps, _ = best
        if self.work.ranks.first:
            logger.info("%s goes on with compile=%r: %s", self.work.work, self.mode, why)

    def _hope(self) -> None:
        """Trace, if that is likely to pay and can be done."""
        expected, steps = self.work.expected_steps(), self.work.compiled_steps("trace")
        if expected < LEAST_STEPS:
            self._settle(f"only {expected} steps are expected")
            return
        try:
            steps.prepare(calls=MOST_CALLS * steps.count_calls() + MORE_CALLS)
        except Exception as error:  # as below
            self._settle(f"there is no trace: {str(error).strip()[:200]}")
            return
        self._settle("a step is one graph", ("trace", steps, 0.0))

    def _choose(self) -> None:
        """Judge the mode of the last steps, and perhaps try the next one."""
        seconds, self._seconds = statistics.median(self._seconds), []
        self._tried.append((self.mode, self.steps, seconds))
        said = ", and ".join(f"{1e3 * time:.2f} ms with compile={mode!r}" for mode, _, time in self._tried[::-1])
        said = f"a step takes {said}"
        best = min(self._tried, key=lambda tried: tried[2])
        on_gpu, expected = self.work.parameters[0].is_cuda, self.work.expected_steps()
        if self.mode in ("inductor", "cudagraph"):
            self._settle(said, best)
            return
        if self.steps is None:
            mode, cost, saved = "trace", STEPS_OF_A_TRACE * seconds, SAVED_BY_TRACE * expected * seconds
        else:
            left = 1.0 - SAVED_BY_COMPILER * (1.0 - self.steps.products)
            saved = max(0.0, expected * (best[2] - left * seconds))
            mode = "cudagraph" if on_gpu else "inductor"
            cost = self._traced_in if on_gpu else max(INDUCTOR_LEAST, INDUCTOR_PER_TRACE * self._traced_in)
        said += f"; of {expected} more steps {mode!r} would save {saved:.1f} s at a cost of {cost:.1f} s"
        if cost >= saved / 2:
            self._settle(said, best)
        elif mode == "inductor" and not has_compiler():
            self._settle(f"{said}, but there is no C++ compiler", best)
        else:
            self._try(mode, saved, said, best)

    def _try(self, mode: str, saved: float, said: str, best: tuple[str | bool, Steps | None, float]) -> None:
        began, steps = time.perf_counter(), self.work.compiled_steps(mode)
        try:
            steps.prepare(began + saved / 2)
        except Exception as error:  # whatever a tracer or a compiler raises, the steps before are there
            self._settle(f"{mode!r} failed: {str(error).strip()[:200]} ({said})", best)
            return
        self._traced_in = time.perf_counter() - began
        logger.info("%s tries compile=%r: %s", self.work.work, mode, said)
        self.mode, self.steps = mode, steps
