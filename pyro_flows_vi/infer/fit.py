"""Fit a guide to a model: one call with sensible defaults."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from pyro_flows_vi.infer.compile_mode import require_mode
from pyro_flows_vi.infer.gaussian import GaussianFit
from pyro_flows_vi.infer.layout import require_same_layout
from pyro_flows_vi.infer.log_density import LogDensity
from pyro_flows_vi.infer.objectives import Objective, PathELBO, Tempering
from pyro_flows_vi.infer.parallel import Ranks, digest, join
from pyro_flows_vi.infer.plateau import Plateau
from pyro_flows_vi.infer.problems import FlowProblem, PyroProblem
from pyro_flows_vi.infer.progress import progress_bar
from pyro_flows_vi.infer.repeat import seeded
from pyro_flows_vi.infer.result import FitResult
from pyro_flows_vi.infer.start import CLIMBED, gaussian_start, laplace_start, require_finite_start
from pyro_flows_vi.infer.training import Training
from pyro_flows_vi.numerics.new_tensors import placement, precision
from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.continuous import penalised

__all__ = ["fit"]

STARTS = ("gaussian", "laplace", "guide")
#: draws in a step, halved while they times the numbers in the data are more than there is memory for everywhere
PARTICLES, LEAST_PARTICLES, LARGE = 256, 16, 1 << 25


def fit(
    model: Callable[..., Any],
    guide: Any,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    objective: Objective | None = None,
    num_particles: int | None = None,
    max_steps: int = 5000,
    learning_rate: float | None = None,
    optimizer: Any = None,
    schedule: Callable[[float], float] | None = None,
    clip_norm: float = 10.0,
    tempering: Tempering | None = None,
    start: str = "gaussian",
    restarts: int = 3,
    plateau: Plateau | None = None,
    max_skipped: int = 50,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
    resume: bool = False,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    compile: str | bool = True,
    progress: bool = True,
    parallel: bool = True,
) -> FitResult:
    r"""Fit a guide to a model's posterior; afterwards the guide holds the best parameters found.

    For a flow guide (:class:`~pyro_flows_vi.guides.AutoFlow`) two stages:

    1. A Gaussian is fitted by natural gradients from ``restarts`` starts
       (:func:`~pyro_flows_vi.infer.gaussian.fit_gaussian`), and the best becomes the frame of the
       guide's affine layer, so that the flow sees a whitened posterior.
    2. The flow is trained by Adam on the path gradient of the ELBO, with many particles at once on the traced
       :class:`~pyro_flows_vi.infer.LogDensity`. The step size falls, and the fit ends, by the rule of
       :class:`~pyro_flows_vi.infer.plateau.Plateau`. The last parameters, their average since the step size began to
       fall, the start, and the end of an earlier cooldown are compared on fresh draws, and the best are kept.

    Any other Pyro guide is trained by Pyro's ``Trace_ELBO`` with the same rules, and without the first stage.

    Args:
        model: the model.
        guide: the guide; a flow guide is set up with the arguments if that was not done.
        *args: the model's arguments, such as the data.
        kwargs: the model's keyword arguments.
        objective: one of :mod:`pyro_flows_vi.infer.objectives`; by default the path gradient, or the plain
            ELBO of flows whose log-determinant is an estimate.
        num_particles: draws in a step; by default 256 (fewer for data of over 131,072 numbers), 16 of other guides.
        max_steps: steps of the second stage at most; the step size falls in time to end small with them.
        learning_rate: the first step size of Adam; by default 0.2 for flow guides with networks, in whose units a step
            of an output is at most that large, 0.03 for other flow guides, and 0.01 for other guides.
        optimizer: a function from parameters to a torch optimiser, or one of ``pyro.optim``, in place of Adam.
        schedule: takes the fraction of ``max_steps`` done to a factor of the step size; all steps are then done.
        clip_norm: the gradient is scaled down to this norm where it is longer.
        tempering: takes the fraction of ``max_steps`` done to a power of the log density, see
            :func:`~pyro_flows_vi.infer.objectives.linear_tempering`.
        start: ``"gaussian"``; ``"laplace"`` for the mode and the Hessian there; ``"guide"`` to leave the guide be.
        restarts: starts of the Gaussian stage: the guide's own, and the highest summits that climbs from the prior and
            from random points find.
        plateau: the stopping rule.
        max_skipped: steps in a row, whose loss or gradient is not finite, after which the fit gives up.
        checkpoint: a file for the state, written every ``checkpoint_every`` steps and at an end without convergence.
        checkpoint_every: steps.
        resume: go on from the checkpoint if it exists, to the same result, bit for bit.
        seed: of all draws; the global generator is then left as it was.
        dtype: ``torch.float64`` runs guide and model in double precision.
        compile: whether a step is one graph, and which. By default, ``True``, the steps of a flow guide are traced into
            a graph that runs without Python, in about two seconds, where the run is long and the model and the guide
            allow it. ``"trace"`` demands it, also of other guides; ``"inductor"`` is compiled in a minute or so,
            ``"cudagraph"`` is for a GPU, ``"auto"`` is whatever pays for a run of this length, see
            :mod:`~pyro_flows_vi.infer.compile_mode`. Of one seed and one ``num_particles``, all give the same numbers
            up to rounding.
        progress: whether to show a progress bar with the ELBO.
        parallel: whether processes that ``torchrun`` started share the particles of every step, see
            :mod:`~pyro_flows_vi.infer.parallel`; of one seed, their number changes the result by rounding only. A
            process that was started alone fits alone.

    Returns:
        how it went. Ctrl-C ends a fit early with the best parameters so far; after a termination signal they are in the
        guide, and ``TrainingInterrupted`` is raised.

    Raises:
        ValueError: for a model that cannot be fitted (see :class:`~pyro_flows_vi.infer.LogDensity`), a log density that
            is not finite at the start (with the sites to blame), a guide set up for other shapes, too many
            skipped steps, a ``compile`` that this machine or this guide cannot have, and for several processes
            another objective than a mean over particles, or calls that are not the same.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_flows_vi.guides import AutoFlow
        >>> def model(x):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     pyro.sample("x", dist.Normal(0.0, scale).expand(x.shape).to_event(1), obs=x)
        >>> x = torch.tensor([0.5, -1.0, 0.2])
        >>> guide = AutoFlow(model, num_transforms=2)
        >>> result = fit(model, guide, x, seed=0, max_steps=200, progress=False)
        >>> -3.9 < result.elbo < -3.8  # the log evidence is -3.84
        True
    """
    if start not in STARTS:
        raise ValueError(f"expected start to be one of {', '.join(STARTS)}, got {start!r}")
    for name, count in (("max_steps", max_steps), ("checkpoint_every", checkpoint_every), ("restarts", restarts)):
        positive(name, count)
    require_mode(compile)
    settings = {k: v for k, v in locals().items() if isinstance(v, str | int | float | bool) or v is None}
    ranks = join(parallel)
    keywords = dict(kwargs or {})
    if dtype is not None:
        args, keywords = tree_map(lambda leaf: _cast(leaf, dtype), (args, keywords))
    _require_same(ranks, settings, (args, keywords))
    began = time.perf_counter()
    resuming = ranks.from_first(lambda: resume and checkpoint is not None and Path(checkpoint).exists())
    with ranks.interruption() as interruption, seeded(seed), precision(dtype), placement((args, keywords)):
        ranks.align_random()
        training, restarts_done = _prepare(
            model,
            guide,
            args,
            keywords,
            objective,
            num_particles,
            dtype,
            tempering,
            start,
            None if resuming else restarts,
            ranks,
        )
        if ranks.size > 1:
            restarts_done = _align(ranks, training, restarts_done)
        if compile is True and not hasattr(guide, "rsample_and_log_prob"):
            compile = False  # what a Pyro guide does in Python, a trace of one run may miss
        rules = (schedule, clip_norm, plateau or Plateau(), max_steps, max_skipped, compile)
        training.configure(optimizer, learning_rate, *rules)
        if resuming and checkpoint is not None:
            restarts_done = training.load(checkpoint)
        with progress_bar(max_steps, "fit", "step", progress and ranks.first, done=training.step) as bar:
            while training.step < max_steps and not (training.over or interruption.requested):
                before = training.step
                until = max_steps if checkpoint is None else before + checkpoint_every - before % checkpoint_every
                said = training.advance(min(until, max_steps))
                bar.update(training.step - before)
                if said != "go on":
                    bar.set_postfix_str(training.postfix(), refresh=False)
                if checkpoint is not None and training.step % checkpoint_every == 0:
                    training.save(checkpoint, restarts_done)
        reason = "interrupted" if interruption.requested else "max_steps reached"
        reason = "no more progress" if training.over else reason
        if checkpoint is not None and (interruption.requested or not training.over):
            training.save(checkpoint, restarts_done)
        kept, elbo, elbo_se = training.keep_the_best()
        missed = ranks.from_first(lambda: training.missed(restarts_done))
    done = schedule is not None and reason == "max_steps reached"
    return FitResult(
        elbo=elbo,
        elbo_se=elbo_se,
        converged=done or training.converged,
        stop_reason="the schedule is over" if done else reason,
        steps=training.step,
        skipped_steps=training.skipped,
        restart_elbos=[start.elbo for start in restarts_done],
        restart_missed=missed,
        kept=kept,
        seconds=time.perf_counter() - began,
        history=training.history,
        settings=settings,
    )


def _prepare(
    model: Callable[..., Any],
    guide: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    objective: Objective | None,
    num_particles: int | None,
    dtype: torch.dtype | None,
    tempering: Tempering | None,
    start: str,
    restarts: int | None,
    ranks: Ranks,
) -> tuple[Training, list[GaussianFit]]:
    """The problem, with the guide at its start, unless ``restarts`` is ``None``: a checkpoint will say where it is."""
    if not hasattr(guide, "rsample_and_log_prob"):
        if objective is not None or tempering is not None:
            raise ValueError("objectives and tempering are for flow guides: this one is trained by Pyro's Trace_ELBO")
        return Training(PyroProblem(model, guide, args, kwargs, num_particles or 16, ranks)), []
    log_density = LogDensity(model, *args, **kwargs)
    guide.setup(*args, **kwargs)
    if penalised(guide):
        guide.train()  # the mode in which a continuous flow has a penalty
    if dtype is not None:
        guide.to(dtype)
    require_same_layout(guide.layout, log_density.layout)
    restarts_done = [] if restarts is None else _start(guide, log_density, start, restarts)
    if objective is None and guide.transform.exact_log_det:
        objective = PathELBO()
    particles = num_particles or _default_particles(log_density)
    return Training(FlowProblem(guide, log_density, objective, particles, tempering, ranks)), restarts_done


def _default_particles(log_density: LogDensity) -> int:
    """As many as there is memory for, up to those that a step has use for."""
    numbers = sum(leaf.numel() for leaf in log_density.leaves if isinstance(leaf, Tensor))
    particles = PARTICLES
    while particles > LEAST_PARTICLES and particles * numbers > LARGE:
        particles //= 2
    return particles


def _require_same(ranks: Ranks, settings: dict[str, Any], arguments: Any) -> None:
    """Raise a ValueError unless all processes were called with the same."""
    own = ("checkpoint", "progress")  # which only the first one uses
    if ranks.size > 1:
        ranks.require_same(
            {
                "the settings": digest(*((name, value) for name, value in settings.items() if name not in own)),
                "the arguments": digest(*(leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor))),
            }
        )


def _align(ranks: Ranks, training: Training, restarts: list[GaussianFit]) -> list[GaussianFit]:
    """Let all processes begin as the first one does; its restarts."""
    ranks.require_same({"model and guide": digest(training.problem.signature)})
    guide = getattr(training.problem, "guide", None)
    buffers = list(guide.buffers()) if isinstance(guide, torch.nn.Module) else []
    ranks.align([*training.problem.parameters(), *buffers])
    ranks.align_random()
    return ranks.from_first(lambda: restarts)


def _start(guide: Any, log_density: LogDensity, start: str, restarts: int) -> list[GaussianFit]:
    affine = guide.affine
    loc, scale = affine.location().detach(), affine.scale_tril().detach()
    loc = require_finite_start(log_density, loc, CLIMBED if start == "gaussian" and restarts > 1 else 1)
    if start == "guide":
        return []
    if start == "laplace":
        mode, tril = laplace_start(log_density, loc)
        affine.reframe(mode, tril if affine.dense else tril.norm(dim=1))
        return []
    fits = gaussian_start(log_density, loc, scale, restarts)
    affine.reframe(fits[0].loc, fits[0].scale_tril)
    return fits


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
