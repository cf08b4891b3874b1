"""The loop of a maximum-likelihood fit, with a state that can be saved and gone on from bit by bit."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyro_flows_vi.density.data import Pairs, Rows
from pyro_flows_vi.density.settings import DensityFit, FitSettings
from pyro_flows_vi.infer.checkpoint import load_checkpoint, save_checkpoint
from pyro_flows_vi.infer.interruption import Interruption, TrainingInterrupted
from pyro_flows_vi.infer.progress import progress_bar
from pyro_flows_vi.transforms.continuous import with_penalty

if TYPE_CHECKING:
    from pyro_flows_vi.density.flow_density import FlowDensity

__all__ = ["KIND", "Fitting"]

KIND = "density"
#: settings that a resumed fit may change, where the learning rate does not depend on them
BUDGET = ("max_epochs", "patience")
VALIDATION_SEED = 20_240_229

Pair = tuple[Tensor, Tensor | None]


class Fitting:
    """Everything that a step needs, bound once."""

    def __init__(
        self,
        density: FlowDensity,
        data: Rows | Pairs,
        validation: Rows | Pairs | None,
        settings: FitSettings,
        path: str | os.PathLike[str] | None,
        identity: dict[str, Any],
    ) -> None:
        self.density, self.data, self.validation, self.settings, self.path = density, data, validation, settings, path
        self.identity = {
            **identity,
            "settings": settings.as_dict(),
            "parameters": {name: list(value.shape) for name, value in density.state_dict().items()},
        }
        if settings.schedule == "constant":
            for name in BUDGET:
                del self.identity["settings"][name]
        self.parameters = [p for p in density.parameters() if p.requires_grad]
        self.device = next(iter(density.state_dict().values())).device
        self.optimiser = _optimiser(self.parameters, settings)
        self.fit = DensityFit(settings=settings.as_dict())
        self.best = self._copy()
        self.epoch_start = self._random()

    # -- the loop ------------------------------------------------------------------------------------

    def run(self, interruption: Interruption, checkpoint_every: int, progress: bool) -> DensityFit:
        """Train until the budget is spent or patience ends, and put the best parameters into the density."""
        fit, steps = self.fit, self.data.steps
        fit.stop_reason = self._stop_reason()
        done = fit.epochs * steps + fit.batches
        with progress_bar(self.settings.max_epochs * steps, "density", "batch", progress, done) as bar:
            while not fit.stop_reason:
                if self._epoch(interruption, bar):
                    return self._interrupted()
                fit.stop_reason = self._stop_reason()
                if self.path and (fit.epochs % checkpoint_every == 0 or fit.stop_reason):
                    self.save()
        return self._end()

    def _epoch(self, interruption: Interruption, bar: Any) -> bool:
        """One epoch, or the rest of it; whether it was interrupted."""
        fit, density = self.fit, self.density
        rate = self.settings.rate(fit.epochs)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        density.train()
        resumed = self._random() if fit.batches else None
        self._set_random(self.epoch_start)
        started = time.perf_counter() - fit.sums[2]
        for index, pair in enumerate(self.data.epoch()):
            if index < fit.batches:
                continue
            if resumed is not None:  # the order of the epoch is known again: from here on with the noise that was due
                self._set_random({**resumed, "loader": None})
                resumed = None
            self._step(pair)
            fit.batches += 1
            bar.update()
            fit.sums[2] = time.perf_counter() - started
            if interruption.requested:
                return True
        if resumed is not None:  # interrupted after the last step of the epoch
            self._set_random({**resumed, "loader": None})
        if fit.sums[1] == 0:
            raise ValueError(
                f"expected at least one step with a finite loss in an epoch, got none in {fit.batches} minibatches; "
                "use a smaller learning_rate, or float64"
            )
        value = self._validate()
        seconds = time.perf_counter() - started
        curves = fit.curves
        curves["train"].append(fit.sums[0] / fit.sums[1])
        curves["learning_rate"].append(rate)
        curves["seconds"].append(seconds)
        fit.epochs += 1
        fit.batches, fit.sums = 0, [0.0] * 3
        self.epoch_start = self._random()
        shown = {"epoch": fit.epochs, "train": f"{curves['train'][-1]:.3f}"}
        if value is not None:
            curves["validation"].append(value)
            shown["validation"] = f"{value:.3f}"
            if value > fit.best:
                fit.best, fit.best_epoch = value, fit.epochs
                self.best = self._copy()
        bar.set_postfix(shown, refresh=False)
        return False

    def _step(self, pair: Pair) -> None:
        fit, settings = self.fit, self.settings
        x, context = self._placed(pair)
        loss = -self.density.log_likelihood(x, context).mean()
        for p in self.parameters:
            p.grad = None
        with_penalty(loss, self.density).backward()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        # the one point where the host waits for the device
        value, size = torch.stack([loss.detach(), norm.to(loss.dtype)]).tolist()
        if size == 0.0 and fit.sums[1] == 0.0 and fit.epochs == 0:
            raise ValueError(
                "expected a gradient in the first step, got exactly zero for every parameter: the flow does nothing "
                "where the data are, as a spline outside of its box; standardise the data, or use a larger bound"
            )
        if not (math.isfinite(value) and math.isfinite(size)):
            fit.skipped_steps += 1
            fit.skipped_in_a_row += 1
            if fit.skipped_in_a_row >= settings.max_skipped:
                raise ValueError(
                    f"epoch {fit.epochs + 1}: {fit.skipped_in_a_row} steps in a row without a finite loss and gradient "
                    f"(loss {value}, norm {size}); use a smaller learning_rate or clip_norm, or float64"
                )
            return
        if settings.clip_norm is not None and size > settings.clip_norm:
            torch._foreach_mul_(gradients, settings.clip_norm / size)
        self.optimiser.step()
        fit.skipped_in_a_row = 0
        fit.sums[0] -= value * len(x)
        fit.sums[1] += len(x)

    @torch.no_grad()
    def _validate(self) -> float | None:
        """The validation likelihood, from the same noise in every epoch."""
        if self.validation is None:
            return None
        self.density.eval()
        total, count = 0.0, 0
        before = self._random()
        torch.manual_seed(VALIDATION_SEED)
        for pair in self.validation.in_order():
            for x, context in _pieces(*pair, self.settings.batch_size):
                values = self.density.log_likelihood(*self._placed((x, context)))
                total += float(values.double().sum())
                count += len(values)
        self._set_random(before)
        return total / count

    def _stop_reason(self) -> str:
        fit = self.fit
        if fit.epochs >= self.settings.max_epochs:
            return "max_epochs"
        waited = fit.epochs - fit.best_epoch
        return "early stopping" if self.validation is not None and waited >= self.settings.patience else ""

    def _interrupted(self) -> DensityFit:
        if self.path is not None:
            self.save()
            raise TrainingInterrupted(
                f"fit interrupted in epoch {self.fit.epochs + 1}; the state is in {self.path}: "
                "run the same again with resume to go on from there"
            )
        self.fit.stop_reason = "interrupted"
        return self._end()

    def _end(self) -> DensityFit:
        if self.fit.curves["validation"] and not self.fit.best_epoch:
            raise ValueError(
                f"expected a finite validation likelihood in some epoch, got none in {self.fit.epochs}; look for "
                "validation rows that are far from the training rows, or use a smaller learning_rate"
            )
        if self.fit.best_epoch:
            self.density.load_state_dict(self.best)
        self.density.eval()
        return self.fit

    # -- state ---------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write all that decides the rest of the fit."""
        assert self.path is not None
        state = {
            "fit": dataclasses.asdict(self.fit),
            "density": self.density.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
            "epoch_start": self.epoch_start,
            "random": self._random(),
        }
        save_checkpoint(self.path, state, kind=KIND, settings=self.identity)

    def load(self) -> None:
        """Go back to what :meth:`save` wrote, if it is of this fit."""
        assert self.path is not None
        _, state = load_checkpoint(self.path, kind=KIND, settings=self.identity, map_location="cpu")
        self.density.load_state_dict(state["density"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.best = {name: value.to(self.device) for name, value in state["best"].items()}
        self.fit = DensityFit(**{**state["fit"], "settings": self.settings.as_dict()})
        self.epoch_start = state["epoch_start"]
        self._set_random(state["random"])

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.density.state_dict().items()}

    def _random(self) -> dict[str, Tensor | None]:
        """The states of all generators that a step may draw from."""
        own = self.data.loader.generator if isinstance(self.data, Pairs) else None
        return {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "loader": None if own is None else own.get_state(),
        }

    def _set_random(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["cpu"])
        if state["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)
        if state["loader"] is not None and isinstance(self.data, Pairs) and self.data.loader.generator is not None:
            self.data.loader.generator.set_state(state["loader"])

    def _placed(self, pair: Pair) -> Pair:
        x, context = pair
        moved = None if context is None else context.to(self.device, non_blocking=True)
        return x.to(self.device, non_blocking=True), moved


def _optimiser(parameters: list[nn.Parameter], settings: FitSettings) -> torch.optim.Optimizer:
    if not parameters:
        raise ValueError("expected a flow with parameters to train, got none that require a gradient")
    return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)


def _pieces(x: Tensor, context: Tensor | None, size: int) -> list[Pair]:
    parts = x.split(size)
    contexts = [None] * len(parts) if context is None else context.split(size)
    return list(zip(parts, contexts, strict=True))
