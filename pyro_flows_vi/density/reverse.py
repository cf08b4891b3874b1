"""Densities fitted to a known log density by KL(q‖p), which needs draws of q alone and no data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_flows_vi import flows
from pyro_flows_vi.density.flow_density import FlowDensity
from pyro_flows_vi.density.settings import Settings
from pyro_flows_vi.infer.fit import fit
from pyro_flows_vi.infer.interruption import TrainingInterrupted
from pyro_flows_vi.infer.log_density import LogDensity
from pyro_flows_vi.infer.repeat import seeded
from pyro_flows_vi.infer.result import FitResult

__all__ = ["ReverseSettings", "fit_reverse", "reverse_density"]

LogProb = Callable[[Tensor], Tensor]
#: draws at which log p is tried before a fit
TRIED = 1000


@dataclasses.dataclass(frozen=True)
class ReverseSettings(Settings):
    """How :func:`fit_reverse` trains."""

    #: draws in a step
    num_particles: int = 256
    max_steps: int = 2000
    #: of Adam; it falls where the divergence does no more
    learning_rate: float = 5e-3
    #: standard deviation of the density at the start
    init_scale: float = 2.0
    #: largest norm of the gradient
    clip_norm: float = 10.0

    def __post_init__(self) -> None:
        self.require_positive(self.as_dict())


def reverse_density(
    flow: str, input_dim: int, *, num_transforms: int = 5, init_scale: float = 2.0, **options: Any
) -> FlowDensity:
    """A density whose cheap direction is to draw, at the start near a normal of standard deviation ``init_scale``."""
    built = flows.build(flow, input_dim, None, 1, **options)
    density = FlowDensity(
        flow,
        input_dim,
        num_transforms=num_transforms,
        turn=built.fast_inverse and not built.fast_forward,
        standardise=False,
        **options,
    )
    density.scaling.measure(torch.zeros(input_dim), torch.full((input_dim,), init_scale))
    return density


def fit_reverse(
    density: FlowDensity,
    log_prob: LogProb,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    seed: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> FitResult:
    r"""Minimise :math:`\mathrm{KL}(q \| p) = E_q[\log q(z) - \log p(z)]` over the flow, by the path gradient.

    log p may lack its constant: minus the result's ``elbo`` is then the divergence minus :math:`\log Z`. It is
    :func:`pyro_flows_vi.infer.fit` on a model whose only factor is log p, with the density as its guide as it is:
    without the Gaussian stage, and without the affine layer of :class:`~pyro_flows_vi.guides.AutoFlow`. Use that guide
    for a posterior.

    Args:
        density: with its dimension, and drawing cheaply; see :func:`reverse_density`.
        log_prob: of points ``(*batch, D)``.
        checkpoint: a file for the state, at an interruption and every 500 steps.
        resume: go on from the checkpoint if it exists.
        seed: of all draws; the global generator is then left as it was.
        progress: whether to show a progress bar.
        **settings: fields of :class:`ReverseSettings`; ``init_scale`` is that of the density, and not used here.

    Raises:
        ValueError: for unknown settings, and a log density that is not finite where the density is.
        TrainingInterrupted: after Ctrl-C with a ``checkpoint``, where the state has been saved.

    Example:
        >>> density = reverse_density("planar", 2, num_transforms=2)
        >>> log_p = lambda z: -0.5 * (z - 1.0).square().sum(-1)
        >>> result = fit_reverse(density, log_p, max_steps=50, seed=0, progress=False)
        >>> result.elbo < 1.8379  # log Z
        True
    """
    asked = ReverseSettings.make(**settings).as_dict()
    del asked["init_scale"]
    guide = _Guide(density.train(), log_prob)
    _require_finite(density, log_prob)
    path = None if checkpoint is None else Path(checkpoint)
    options: dict[str, Any] = {"checkpoint": path, "resume": resume, "seed": seed, "progress": progress, **asked}
    result = fit(guide.model, guide, start="guide", **options)
    density.eval()
    if result.stop_reason == "interrupted" and checkpoint is not None:
        raise TrainingInterrupted(
            f"fit interrupted in step {result.steps}; the state is in {checkpoint}: "
            "run the same again with resume to go on from there"
        )
    return result


@torch.no_grad()
def _require_finite(density: FlowDensity, log_prob: LogProb) -> None:
    """Raise where KL(q || p) is infinite already: where p vanishes at draws of the density as it is."""
    with seeded(0):
        values = log_prob(density.rsample_and_log_prob(TRIED)[0])
    lost = int((~values.isfinite()).sum())
    if lost:
        raise ValueError(
            f"expected a log density that is finite where the flow draws, got {lost} of {TRIED} values that are not: "
            "KL(q||p) is infinite where p is 0; fit draws of p by maximum likelihood, or start with another init_scale"
        )


class _Guide(nn.Module):
    """A density as :func:`fit` sees a flow guide, and the model that it is a guide of."""

    def __init__(self, density: FlowDensity, log_prob: LogProb) -> None:
        super().__init__()
        self.density, self.log_prob = density, log_prob
        self.transform = density.chain
        self.flow_name = str(density.recipe["flow"])
        self.layout = LogDensity(self.model).layout
        self.rsample_and_log_prob, self.rsample_and_score = density.rsample_and_log_prob, density.rsample_and_score

    @property
    def affine(self) -> _Guide:
        """What has a location and a scale."""
        return self

    def model(self) -> None:
        """One site that counts for nothing, and the log density there."""
        like = self.density.scaling.loc
        with poutine.mask(mask=False):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(like), torch.ones_like(like)).to_event(1))
        pyro.factor("log_prob", self.log_prob(z))

    def setup(self, *args: Any, **kwargs: Any) -> _Guide:
        """Everything is there."""
        return self

    def location(self) -> Tensor:
        """Where the density starts."""
        return self.density.scaling.loc

    def scale_tril(self) -> Tensor:
        """Its scale there."""
        return self.density.scaling.scale
