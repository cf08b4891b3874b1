"""What a fit trains: a flow guide on a log density, or any Pyro guide."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from pyro_flows_vi.infer._particles import particle_elbo
from pyro_flows_vi.infer._step_graph import Untraceable
from pyro_flows_vi.infer.gaussian import GaussianFit
from pyro_flows_vi.infer.log_density import LogDensity
from pyro_flows_vi.infer.modes import missed_shares
from pyro_flows_vi.infer.objectives import ELBO, IWELBO, DReG, Estimate, Objective, PathELBO, Tempering
from pyro_flows_vi.infer.parallel import Ranks, Share
from pyro_flows_vi.infer.verdict import RESTARTS
from pyro_flows_vi.transforms.continuous import with_penalty

__all__ = ["FlowProblem", "Problem", "PyroProblem"]

#: draws on which the candidates of the end are compared, and how many at once where a step has too few
FINAL_DRAWS, CHUNK = 8192, 256
#: which are means over particles, or over groups of them, so that the mean of several processes is their value
MEANS = (ELBO, PathELBO, IWELBO, DReG)


class Problem(Protocol):
    """What is trained: parameters and estimates of an objective."""

    signature: dict[str, Any]
    learning_rate: float
    num_particles: int

    @property
    def share(self) -> Share:
        """What of the particles is this process's to draw."""

    def estimate(self, fraction: float) -> Estimate:
        """One estimate with gradients, when ``fraction`` of the run is over."""

    def parameters(self) -> list[Tensor]:
        """The leaves that are trained."""

    def log_weights(self) -> Tensor:
        """Log weights of many draws of the guide as it is, without gradients."""

    def gap(self) -> float:
        """Nats from the ELBO to the importance-weighted bound of many draws; 0 where it is not the ELBO that counts."""

    def missed(self, restarts: Sequence[GaussianFit]) -> list[float]:
        """The part of the posterior about each that the guide does not have; empty where they agree."""


class FlowProblem:
    """A flow guide and a log density, under an objective.

    Args:
        guide: the guide.
        log_density: the log density.
        objective: the objective, or ``None`` for the plain ELBO.
        num_particles: draws in a step.
        tempering: the power of the log density over the run, or ``None``.
        ranks: the processes that share the particles.
    """

    def __init__(
        self,
        guide: Any,
        log_density: LogDensity,
        objective: Objective | None,
        num_particles: int,
        tempering: Tempering | None,
        ranks: Ranks | None = None,
    ) -> None:
        self.guide, self.log_density, self.num_particles, self.tempering = guide, log_density, num_particles, tempering
        self.objective: Objective = ELBO() if objective is None else objective
        self.ranks = ranks or Ranks()
        if self.ranks.size > 1 and type(self.objective) not in MEANS:
            raise ValueError(
                f"expected one of {', '.join(kind.__name__ for kind in MEANS)}, which are means, so that processes can "
                f"share them; got {type(self.objective).__name__}: fit in one process, or say parallel=False"
            )
        names = [name for step in list(guide.transform)[:-1] for name, _ in step.named_parameters()]
        # Networks in even units take long steps; a linear layer between them, or a flow of other parameters, does not.
        self.learning_rate = 0.2 if names and all(name.endswith("_units") for name in names) else 0.03
        self.signature = {
            "flow": guide.flow_name,
            "sites": [[site.name, list(site.unconstrained_shape)] for site in guide.layout],
            "objective": type(self.objective).__name__,
            "particles": num_particles,
        }

    @property
    def share(self) -> Share:
        """In the groups of the objective."""
        return self.ranks.share(self.num_particles, getattr(self.objective, "num_samples", 1))

    def estimate(self, fraction: float) -> Estimate:
        """As the objective has it, and the penalty of continuous flows that were asked for one."""
        temperature = 1.0 if self.tempering is None else self.tempering(fraction)
        estimate = self.objective(self.guide, self.log_density, self.share.count, temperature)
        return replace(estimate, loss=with_penalty(estimate.loss, self.guide))

    def parameters(self) -> list[Tensor]:
        """Those of the guide, and of the model where it has any."""
        own = list(self.guide.parameters())
        known = {id(p) for p in own}
        return own + [p for p in self.log_density.parameters() if id(p) not in known]

    @torch.no_grad()
    def log_weights(self) -> Tensor:
        """In chunks as large as a step, which need no more memory than it did."""
        chunk, parts = min(max(self.num_particles, CHUNK), FINAL_DRAWS), []
        for _ in range(FINAL_DRAWS // chunk):
            latent, log_q = self.guide.rsample_and_log_prob(chunk)
            parts.append(self.log_density(latent) - log_q)
        return torch.cat(parts)

    def gap(self) -> float:
        """Of 8192 draws; infinite or NaN where a draw has no density."""
        tempered = self.tempering is not None and self.tempering(1.0) != 1.0
        if tempered or not isinstance(self.objective, ELBO | PathELBO):
            return 0.0
        log_weights = self.log_weights().double()
        return float(log_weights.logsumexp(0) - math.log(len(log_weights)) - log_weights.mean())

    def missed(self, restarts: Sequence[GaussianFit]) -> list[float]:
        """By importance sampling from each; in an order in which the best comes first."""
        if len(restarts) < 2 or not restarts[0].elbo > restarts[1].elbo + RESTARTS:
            return []
        return [0.0, *missed_shares(self.log_density, self.guide, restarts[1:])]


class PyroProblem:
    """Any Pyro model and guide, under ``Trace_ELBO``."""

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        num_particles: int,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        self.num_particles, self.share = num_particles, (ranks or Ranks()).share(num_particles)
        self.elbo = particle_elbo(model, guide, args, kwargs, self.share.count)
        self.learning_rate = 0.01
        self.signature = {"flow": type(guide).__name__, "particles": num_particles}
        with poutine.trace(param_only=True) as capture:
            self.estimate(0.0)
        values: Any = [site["value"] for site in capture.trace.nodes.values()]
        self._parameters = list({id(leaf): leaf for leaf in map(_leaf, values)}.values())

    def estimate(self, fraction: float) -> Estimate:
        """The loss, and the ELBO in place of log weights."""
        loss: Tensor = self.elbo.differentiable_loss(self.model, self.guide, *self.args, **self.kwargs)
        return Estimate(with_penalty(loss, self.guide), -loss.detach()[None])

    def estimate_in_graph(self, pieces: list[Tensor]) -> Estimate:
        """:meth:`estimate` with these parameters, and without a look at any value, as a trace takes it.

        Raises:
            Untraceable: for draws of the guide that are not reparametrised, whose gradient takes Pyro's baselines.
        """
        value, surrogate = torch.zeros(()), torch.zeros(())
        with Substituted(self._parameters, pieces), pyro.validation_enabled(False):
            for model_run, guide_run in self.elbo._get_traces(self.model, self.guide, self.args, self.kwargs):
                score = model_run.log_prob_sum()
                value, surrogate = value + score - guide_run.log_prob_sum(), surrogate + score
                for name, site in guide_run.nodes.items():
                    if site["type"] != "sample" or site["is_observed"] or site_is_subsample(site):
                        continue
                    _, likelihood_ratio, entropy = site["score_parts"]
                    if not is_identically_zero(likelihood_ratio):
                        raise Untraceable(f"the guide's draws of {name!r} are not reparametrised")
                    surrogate = surrogate - (entropy.sum() if isinstance(entropy, Tensor) else entropy)
        count = self.elbo.num_particles
        return Estimate(-surrogate / count, (value / count).detach()[None])

    def parameters(self) -> list[Tensor]:
        """All that the guide and the model used."""
        return self._parameters

    @torch.no_grad()
    def log_weights(self) -> Tensor:
        """ELBO estimates, which have the mean of log weights."""
        return torch.cat([self.estimate(1.0).log_weights for _ in range(64)])

    def gap(self) -> float:
        """It has no weights."""
        return 0.0

    def missed(self, restarts: Sequence[GaussianFit]) -> list[float]:
        """It has no restarts."""
        return []


class Substituted(TorchFunctionMode):
    """Puts other tensors in the place of parameters, wherever a function of torch takes one."""

    def __init__(self, parameters: Sequence[Tensor], pieces: Sequence[Tensor]) -> None:
        super().__init__()
        self.pieces = {id(p): piece for p, piece in zip(parameters, pieces, strict=True)}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map(lambda leaf: self.pieces.get(id(leaf), leaf), (args, kwargs or {}))
        return func(*args, **kwargs)


def _leaf(value: Any) -> Tensor:
    return value.unconstrained() if hasattr(value, "unconstrained") else value
