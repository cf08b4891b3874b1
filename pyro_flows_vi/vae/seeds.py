"""Several trainings of one architecture as one program: the loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pyro_flows_vi.infer.compile_mode import Driver
from pyro_flows_vi.infer.interruption import Interruption, TrainingInterrupted
from pyro_flows_vi.infer.parallel import Ranks
from pyro_flows_vi.infer.progress import progress_bar
from pyro_flows_vi.transforms.continuous import penalised
from pyro_flows_vi.vae._seed_steps import SeedSteps
from pyro_flows_vi.vae._stack import Member, Stack, refused, unstack
from pyro_flows_vi.vae.history import History
from pyro_flows_vi.vae.trainer import Outcome

__all__ = ["Seeds", "SeedsFailed"]


class SeedsFailed(ValueError):
    """Some of several trainings failed, and the others are done.

    Attributes:
        histories: of all of them, in their order.
        failures: the errors of those that failed, by their place.
    """

    def __init__(self, histories: list[History], failures: dict[int, ValueError], seeds: Sequence[int]) -> None:
        self.histories, self.failures = histories, failures
        said = "; ".join(f"seed {seeds[place]}, {error}" for place, error in failures.items())
        super().__init__(f"{len(failures)} of {len(seeds)} trainings failed, the others are done: {said}")


class Seeds:
    """Steps of several trainings at once.

    Each member keeps its own minibatches, noise, optimiser, history and checkpoint, and is where a training by itself
    would be, up to rounding. What they share is a call. Members at another step than the others, after they were
    resumed, are trained until all are level; those that stop or fail leave the stack.

    Args:
        members: the trainings, of the same settings and data.
        compile: see :func:`~pyro_flows_vi.vae.train`.

    Raises:
        ValueError: for models that are not of one architecture, and those that cannot be one program.
    """

    work = "training"

    def __init__(self, members: Sequence[Member], compile: str | bool) -> None:
        self.members, self.ranks = list(members), Ranks()
        owned = [id(p) for member in members for p in member.vae.parameters()]
        if len(set(owned)) < len(owned):
            raise ValueError(refused("two of the models share parameters"))
        if penalised(members[0].vae):
            raise ValueError(refused("the penalty of a continuous flow (kinetic, jacobian) does not get out of a vmap"))
        if any(member.identity["parameters"] != members[0].identity["parameters"] for member in members):
            raise ValueError(refused("the models differ in names or shapes of their parameters"))
        try:
            self.stack = Stack(members)
            self.stack.check()
            self.driver = Driver(self, compile)
            kept = {member.kept_mode for member in members}
            if len(kept) == 1:
                self.driver.resume(kept.pop())
        except ValueError:
            unstack(members)
            raise
        for member in members:
            member.driver = self.driver  # whose mode a checkpoint keeps

    # -- the loop ------------------------------------------------------------------------------------

    @property
    def group(self) -> list[Member]:
        """The members whose steps are next."""
        return self.stack.members

    def run(self, interruption: Interruption, checkpoint_every: int, progress: bool, label: str) -> None:
        """Train all members to their ends; those that fail keep their error, and the others go on."""
        first = self.members[0]
        for member in self.members:
            member.history.stop_reason = member.stop_reason()
        total = len(self.members) * first.settings.max_epochs * first.steps_in_an_epoch()
        done = sum(member.steps_done() for member in self.members)
        try:
            with progress_bar(total, label, "batch", progress, done) as bar:
                while running := [member for member in self.members if member.runs]:
                    place = min(member.place for member in running)
                    self._turn_to([member for member in running if member.place == place])
                    self._epoch(interruption, bar, checkpoint_every)
        finally:
            unstack(self.group)
        for member in self.members:
            if member.failure is None:
                member.finish()

    def _turn_to(self, group: list[Member]) -> None:
        if group != self.group:
            unstack([member for member in self.group if member not in group])
            self.stack = Stack(group)

    def _epoch(self, interruption: Interruption, bar: Any, checkpoint_every: int) -> None:
        for member in self.group:
            member.begin_epoch()
        going = self.group
        while going and going[0].minibatches.peek() is not None:
            self._turn_to(going)
            rows = self.driver.run(going[0].steps_ahead())
            bar.update(len(rows) * len(going))
            for member, outcomes in zip(going, zip(*rows, strict=True), strict=True):
                _note_failure(member, member.count, outcomes)
            if interruption.requested:
                self._stop()
            going = [member for member in going if member.runs]
        for member in going:
            _note_failure(member, member.end_epoch)
            if member.runs:
                member.after_epoch(checkpoint_every)
        best = " ".join(f"{member.history.best_elbo:.2f}" for member in going)
        bar.set_postfix(epoch=self.group[0].history.epochs, best=best, refresh=False)

    def _stop(self) -> None:
        paths = [str(member.path) for member in self.group if member.path and member.runs]
        if not paths:
            raise TrainingInterrupted("training interrupted; there is no checkpoint to resume from")
        for member in self.group:
            if member.path and member.runs:
                member.save()
        raise TrainingInterrupted(
            f"training interrupted in epoch {self.group[0].history.epochs + 1}; the state is in {', '.join(paths)}: "
            "run the same again with resume to go on from there"
        )

    def require_done(self) -> None:
        """Raise the errors of those that failed."""
        failures = {place: member.failure for place, member in enumerate(self.members) if member.failure}
        if failures:
            seeds = [member.identity["seed"] for member in self.members]
            raise SeedsFailed([member.history for member in self.members], failures, seeds)

    # -- how steps are run ---------------------------------------------------------------------------

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained, stacked."""
        return self.stack.trained

    def eager_step(self) -> list[Outcome]:
        """One step of each of the group."""
        return self.stack.step()

    def compiled_steps(self, mode: str) -> SeedSteps:
        """The steps as graphs."""
        return SeedSteps(self, mode)

    def refusal(self) -> str | None:
        """Why that cannot be, as far as can be told without trying."""
        return self.members[0].refusal()

    def expected_steps(self) -> int:
        """How many steps are still to come, if in doubt rather too few."""
        return min(member.expected_steps() for member in self.group)


def _note_failure(member: Member, call: Any, *arguments: Any) -> None:
    try:
        call(*arguments)
    except ValueError as error:
        member.failure = error
