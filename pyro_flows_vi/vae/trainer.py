"""The training loop itself: steps, epochs, validation, and the state that a checkpoint keeps."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from pyro_flows_vi.infer._step_graph import refused_flows
from pyro_flows_vi.infer._update import refused_optimizer
from pyro_flows_vi.infer.checkpoint import load_checkpoint, save_checkpoint
from pyro_flows_vi.infer.compile_mode import Driver
from pyro_flows_vi.infer.interruption import Interruption, TrainingInterrupted
from pyro_flows_vi.infer.parallel import Ranks, digest
from pyro_flows_vi.infer.progress import progress_bar
from pyro_flows_vi.transforms.continuous import with_penalty
from pyro_flows_vi.vae.compiled import VAESteps
from pyro_flows_vi.vae.history import History
from pyro_flows_vi.vae.minibatches import Minibatches, TrainingData
from pyro_flows_vi.vae.model import VAE, ELBOTerms, copy_state, shapes
from pyro_flows_vi.vae.protocols import Protocol, make_optimiser

__all__ = ["KIND", "Trainer"]

KIND = "vae"
#: settings that a resumed run may change, where the learning rate does not depend on them
BUDGET = ("max_epochs", "early_stop_epochs")
VALIDATION_SEED = 20_240_229

#: of a step: loss, log-likelihood, KL, norm of the gradient, images
Outcome = tuple[float, float, float, float, int]


class Trainer:
    """Everything that a step needs, bound once."""

    work = "training"

    def __init__(
        self,
        vae: VAE,
        data: TrainingData,
        settings: Protocol,
        seed: int,
        device: torch.device,
        path: str | os.PathLike[str] | None,
        identity: dict[str, Any],
        compile: str | bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        vae.check_parameters()
        vae.check(data.validation)
        if data.train.is_floating_point() and not bool(data.train.isfinite().all()):
            raise ValueError(
                "expected finite training images, got "
                f"{int((~data.train.isfinite()).sum())} values that are NaN or infinite; clean the data first"
            )
        self.vae, self.data, self.settings, self.device, self.path = vae, data, settings, device, path
        self.identity = {
            **identity,
            "seed": seed,
            "protocol": settings.as_dict(),
            "parameters": shapes(vae),
        }
        if settings.schedule == "constant":
            for name in BUDGET:
                del self.identity["protocol"][name]
        self.parameters = [p for p in vae.parameters() if p.requires_grad]
        self.optimiser = make_optimiser(settings, self.parameters)
        self.minibatches, self.beta, self.rate, self.started = Minibatches([]), 1.0, settings.learning_rate, 0.0
        self.driver, self.kept_mode = Driver(self, compile), None
        self.history = History()
        if self.ranks.size > 1:
            images = digest(data.train, data.validation)
            self.ranks.require_same({"the settings": digest(self.identity), "the images": images})
            self.ranks.align(vae.state_dict().values())
        self.best = copy_state(vae)
        self.generator = torch.Generator(data.validation.device).manual_seed(seed)
        self.epoch_start = self.generator.get_state()
        self.validation = data.validation.to(device)

    # -- the loop ------------------------------------------------------------------------------------

    def run(self, interruption: Interruption, checkpoint_every: int, progress: bool, label: str) -> None:
        """Train until the budget is spent or patience ends, and put the best weights into the model."""
        self.history.stop_reason = self.stop_reason()
        steps = self.settings.max_epochs * self.steps_in_an_epoch()
        with progress_bar(steps, label, "batch", progress and self.ranks.first, self.steps_done()) as bar:
            while not self.history.stop_reason:
                self._epoch(interruption, bar)
                self.after_epoch(checkpoint_every)
        self.finish()

    def _epoch(self, interruption: Interruption, bar: Any) -> None:
        self.begin_epoch()
        while self.minibatches.peek() is not None:
            outcomes = self.driver.run(self.steps_ahead())
            bar.update(len(outcomes))
            self.count(outcomes)
            if interruption.requested:
                self._stop()
        self.end_epoch()
        bar.set_postfix(epoch=self.history.epochs, **self.history.latest(), refresh=False)

    def begin_epoch(self) -> None:
        """Set the schedules and draw the order of the images, or go on with what is left of it."""
        history, settings = self.history, self.settings
        self.beta, self.rate = settings.beta(history.epochs + 1), settings.rate(history.epochs + 1)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        self.vae.train()
        self.generator.set_state(self.epoch_start)
        self.started = time.perf_counter() - history.sums[4]
        left = islice(self.data.batches(settings.batch_size, self.generator), history.batches, None)
        self.minibatches = Minibatches(x.to(self.device, non_blocking=True) for x in left)

    def end_epoch(self) -> None:
        """Validate, and take note of the epoch."""
        history = self.history
        if history.sums[3] == 0:
            got = f"got none in {history.batches} minibatches"
            raise ValueError(f"expected at least one training step with a finite loss in an epoch, {got}")
        numbers = self._validate(), self.beta, self.rate, time.perf_counter() - self.started
        if history.add_epoch(*numbers, warmup_epochs=self.settings.warmup_epochs):
            self.best = copy_state(self.vae)
        self.epoch_start = self.generator.get_state()

    def after_epoch(self, checkpoint_every: int) -> None:
        """Decide whether to stop, and keep the state."""
        self.history.stop_reason = self.stop_reason()
        if self.path and (self.history.epochs % checkpoint_every == 0 or self.history.stop_reason):
            self.save()

    def finish(self) -> None:
        """Put the best weights into the model."""
        self.vae.load_state_dict(self.best)
        self.vae.eval()

    def loss(self, terms: ELBOTerms, beta: float | Tensor) -> tuple[Tensor, list[Tensor]]:
        """The loss, and what is reported of it."""
        log_likelihood, kl = terms.log_likelihood.mean(), (terms.log_q - terms.log_prior).mean()
        value = (beta.to(kl) if isinstance(beta, Tensor) else beta) * kl - log_likelihood
        return value, [value, log_likelihood, kl]

    def eager_step(self) -> Outcome:
        """One step on the next minibatch, unless its loss or the norm of the gradient is not finite."""
        settings, x = self.settings, self.minibatches.take()
        for p in self.parameters:
            p.grad = None
        with self.ranks.share(len(x)) as share:
            loss, report = self.loss(self.vae.elbo(x[share.rows]), self.beta)
            with_penalty(loss, self.vae).backward()
            means = share.average(self.parameters, *report)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        # the one point where the host waits for the device
        value, log_likelihood, kl, size = torch.stack([*means, norm]).tolist()
        if math.isfinite(value) and math.isfinite(size):
            if settings.clip_norm is not None and size > settings.clip_norm:
                torch._foreach_mul_(gradients, settings.clip_norm / size)
            self.optimiser.step()
        return value, log_likelihood, kl, size, x.shape[0]

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Take note of steps."""
        history = self.history
        history.batches += len(outcomes)
        for loss, log_likelihood, kl, norm, count in outcomes:
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._skip(loss, norm)
                continue
            history.skipped_in_a_row = 0
            for place, number in enumerate((log_likelihood - kl, log_likelihood, kl, 1)):
                history.sums[place] += number * count
        history.sums[4] = time.perf_counter() - self.started

    def _skip(self, loss: float, norm: float) -> None:
        history = self.history
        history.skipped_steps += 1
        history.skipped_in_a_row += 1
        if history.skipped_in_a_row >= self.settings.max_bad_steps:
            weights = self.vae.bad_parameters()
            gradients = [
                name
                for name, p in self.vae.named_parameters()
                if p.grad is not None and not bool(p.grad.isfinite().all())
            ]
            unknown = "none" if self.driver.mode is False else "only compile=False tells"
            raise ValueError(
                f"epoch {history.epochs + 1}: {history.skipped_in_a_row} steps in a row without a finite "
                f"loss and gradient (loss {loss}, norm {norm}); NaN or infinite parameters: "
                f"{', '.join(weights) or 'none'}; gradients: {', '.join(gradients) or unknown}; "
                "use a smaller learning_rate or set clip_norm"
            )

    @torch.no_grad()
    def _validate(self) -> float:
        """The validation ELBO from the same draws in every epoch."""
        self.vae.eval()
        self.ranks.align(self.vae.buffers())
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(VALIDATION_SEED)
            for x in self.validation.split(500):
                with self.ranks.share(len(x)) as share:
                    values = self.vae.elbo(x[share.rows]).elbo().double()
                total += values.sum() if share.weight else 0.0
        return float(self.ranks.sum(total)) / len(self.validation)

    def steps_in_an_epoch(self) -> int:
        """Minibatches of an epoch."""
        return math.ceil(len(self.data.train) / self.settings.batch_size)

    def steps_done(self) -> int:
        """Minibatches so far."""
        return self.history.epochs * self.steps_in_an_epoch() + self.history.batches

    def steps_ahead(self) -> int:
        """Minibatches that are left of the epoch, at least one."""
        return max(1, self.steps_in_an_epoch() - self.history.batches)

    def stop_reason(self) -> str:
        """Why there is no further epoch, if there is none."""
        history, settings = self.history, self.settings
        if history.epochs >= settings.max_epochs:
            return "max_epochs"
        return "early stopping" if history.waited > settings.early_stop_epochs else ""

    def _stop(self) -> None:
        if not self.path:
            raise TrainingInterrupted("training interrupted; there is no checkpoint to resume from")
        self.save()
        self.ranks.wait()  # or a launcher would end the one that writes when another one is done
        raise TrainingInterrupted(
            f"training interrupted in epoch {self.history.epochs + 1}; the state is in {self.path}: "
            "run the same again with resume to go on from there"
        )

    # -- how steps are run ---------------------------------------------------------------------------

    def compiled_steps(self, mode: str) -> VAESteps:
        """The steps as graphs."""
        return VAESteps(self, mode)

    def refusal(self) -> str | None:
        """Why that cannot be, as far as can be told without trying."""
        return refused_flows(self.vae) or refused_optimizer(self.optimiser, self.parameters)

    def expected_steps(self) -> int:
        """How many steps are still to come, if in doubt rather too few."""
        history, settings = self.history, self.settings
        left = settings.max_epochs - history.epochs
        least = settings.warmup_epochs + settings.early_stop_epochs - history.epochs
        epochs = left if settings.schedule == "cosine" else min(left, max(least, left // 2))
        return epochs * self.steps_in_an_epoch() - history.batches

    # -- checkpoints ---------------------------------------------------------------------------------

    def save(self) -> None:
        """Write all that decides the rest of the run, in the first process."""
        if not (self.path and self.ranks.first):
            return
        state = {
            "history": dataclasses.asdict(self.history),
            "model": self.vae.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
            "mode": self.driver.state(),
            "epoch_start": self.epoch_start,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        save_checkpoint(self.path, state, kind=KIND, settings=self.identity)

    def load(self) -> None:
        """Go back to what :meth:`save` wrote, if it is of this run."""
        _, state = self.ranks.from_first(lambda: load_checkpoint(str(self.path), kind=KIND, settings=self.identity))
        self.vae.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.best = {name: value.to(self.device) for name, value in state["best"].items()}
        self.history = History(**state["history"])
        if self.history.epochs > self.settings.max_epochs:
            raise ValueError(
                f"{self.path}: expected a checkpoint of at most max_epochs = {self.settings.max_epochs} epochs, "
                f"got one of {self.history.epochs}; ask for as many, or begin again"
            )
        self.kept_mode = state.get("mode")
        self.driver.resume(self.kept_mode)
        self.epoch_start = state["epoch_start"]
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)
