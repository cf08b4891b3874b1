"""Training a VAE: warm-up, early stopping, checkpoints, and resuming bit by bit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pyro_flows_vi.infer._as_one import Stream
from pyro_flows_vi.infer.checkpoint import load_checkpoint
from pyro_flows_vi.infer.compile_mode import require_mode
from pyro_flows_vi.infer.interruption import Interruption, TrainingInterrupted
from pyro_flows_vi.infer.parallel import Ranks, join
from pyro_flows_vi.infer.records import default_device
from pyro_flows_vi.vae._stack import Member
from pyro_flows_vi.vae.history import History
from pyro_flows_vi.vae.minibatches import TrainingData
from pyro_flows_vi.vae.model import VAE, shapes
from pyro_flows_vi.vae.protocols import Protocol, number
from pyro_flows_vi.vae.seeds import Seeds, SeedsFailed
from pyro_flows_vi.vae.trainer import KIND, Trainer

__all__ = ["SeedsFailed", "TrainingData", "TrainingInterrupted", "load_weights", "train", "train_seeds"]


def train(
    vae: VAE,
    data: TrainingData,
    settings: Protocol,
    *,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every: int = 1,
    identity: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    compile: str | bool = False,
    progress: bool = True,
    label: str = "training",
    parallel: bool = True,
) -> History:
    r"""Maximise the ELBO on minibatches and leave the best weights, by validation ELBO, in ``vae``.

    A run that was interrupted and resumed ends with the same bits as one that was not (on the same device
    with as many threads). Torch's global random state is the same before and after.

    Args:
        vae: trained in place.
        data: training minibatches and validation images.
        settings: the protocol.
        seed: decides the order of the data, their binarisation and the draws of z.
        checkpoint: a file to keep the state in; written atomically after every ``checkpoint_every`` epochs,
            and on Ctrl-C at the step that was reached.
        resume: go on from ``checkpoint`` where it exists.
        checkpoint_every: in epochs.
        identity: more settings that a checkpoint must agree with to be resumed; JSON values.
        device: the GPU, where there is one, unless given.
        compile: whether a step is one graph, and which: ``"trace"``, ``"inductor"`` (compiled in a minute or so),
            ``"cudagraph"`` (on a GPU), or ``"auto"`` for what measurements say will pay, see
            :mod:`~pyro_flows_vi.infer.compile_mode`; of one seed, the modes give the same numbers up to rounding.
        progress: whether to show a progress bar.
        label: its text.
        parallel: whether processes that ``torchrun`` started share the rows of every minibatch, see
            :mod:`~pyro_flows_vi.infer.parallel`; their number changes the result by rounding only. A process that was
            started alone trains alone.

    Returns:
        the history, with one curve per quantity.

    Raises:
        ValueError: for data with NaN, infinite or impossible values, for images of another width than the
            model's, for a checkpoint of other settings, and when ``settings.max_bad_steps`` steps in a row had a
            loss or gradient that is not finite, for a ``compile`` that this machine or model cannot have, and where
            several processes were not called alike.
        TrainingInterrupted: after Ctrl-C, when the state has been saved.
    """
    number("checkpoint_every", checkpoint_every, int, 1)
    require_mode(compile)
    ranks = join(parallel)
    where = default_device(device)
    with _session(settings, where, ranks) as interruption:
        torch.manual_seed(seed)
        trainer = Trainer(vae.to(where), data, settings, seed, where, checkpoint, dict(identity or {}), compile, ranks)
        if ranks.from_first(lambda: resume and checkpoint is not None and Path(checkpoint).exists()):
            trainer.load()
        trainer.run(interruption, checkpoint_every, progress, label)
    return trainer.history


def train_seeds(
    vaes: Sequence[VAE],
    data: TrainingData,
    settings: Protocol,
    *,
    seeds: Sequence[int],
    checkpoints: Sequence[str | os.PathLike[str]] | None = None,
    resume: bool = False,
    checkpoint_every: int = 1,
    identity: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    compile: str | bool = False,
    progress: bool = True,
    label: str = "training",
) -> list[History]:
    r"""Train several VAEs of one architecture as one program, each as :func:`train` would with its seed.

    Their parameters are stacked, :math:`\theta = (\theta_1, \dots, \theta_S)`, and a step is

    .. math::
        \nabla_\theta \sum_{s=1}^S L(\theta_s; x_s, \epsilon_s)

    with the losses under one ``torch.func.vmap``. Each keeps the minibatches, the noise, the clipping, the steps that
    are left out, the early stopping, the history and the checkpoint that it would have alone, with the same numbers up
    to rounding; so a checkpoint of either way can be resumed in the other, and one that has stopped, or failed, leaves
    the others as they are. Those behind, after they were resumed, go first until all are level.

    A step makes the calls of kernels of one step, and their arithmetic S times. That pays where calls are what costs,
    as in small networks and on a GPU, and does not where products of large matrices on a CPU take the time. The memory
    is that of S trainings: weights, gradients, the optimiser's moments, best weights and activations; and of the
    weights once more, for a moment, when one of them stops. Validation and checkpoints are one after the other.

    Args:
        vaes: of one architecture, trained in place.
        data: training minibatches and validation images.
        settings: the protocol, for all.
        seeds: one for each VAE.
        checkpoints: a file for each VAE.
        resume: go on from those checkpoints that exist.
        checkpoint_every: in epochs.
        identity: see :func:`train`.
        device: the GPU, where there is one, unless given.
        compile: see :func:`train`; a graph is one step of all.
        progress: whether to show a progress bar.
        label: its text.

    Returns:
        the histories, whose seconds are those of the clock, and not a share of them.

    Raises:
        ValueError: as :func:`train`; for models of several architectures, or that share parameters; for models that
            cannot be one program, since their forward direction looks at values or changes a state; in several
            processes of ``torchrun``.
        SeedsFailed: where a training failed, when the others are done.
        TrainingInterrupted: after Ctrl-C, when the states have been saved.
    """
    number("checkpoint_every", checkpoint_every, int, 1)
    require_mode(compile)
    where, paths = default_device(device), [None] * len(seeds) if checkpoints is None else list(checkpoints)
    if not len(vaes) == len(seeds) == len(paths) or not vaes:
        raise ValueError(
            f"expected a seed and a checkpoint for each of one or more VAEs, got {len(vaes)} VAEs, {len(seeds)} seeds "
            f"and {len(paths)} checkpoints"
        )
    files = [Path(path).resolve() for path in paths if path is not None]
    if len(set(files)) < len(files):
        raise ValueError("expected a checkpoint of its own for each seed, got one file for several")
    if join().size > 1:
        raise ValueError(
            "several seeds are one program of one process: start it without torchrun, or give its processes one seed"
        )
    with _session(settings, where, Ranks()) as interruption:
        members = [
            Member(Stream(seed, where), vae.to(where), data, settings, seed, where, path, dict(identity or {}))
            for vae, seed, path in zip(vaes, seeds, paths, strict=True)
        ]
        for member in members:
            if resume and member.path is not None and Path(member.path).exists():
                member.load()
        together = Seeds(members, compile)
        together.run(interruption, checkpoint_every, progress, label)
    together.require_done()
    return [member.history for member in members]


@contextlib.contextmanager
def _session(settings: Protocol, where: torch.device, ranks: Ranks) -> Iterator[Interruption]:
    """Torch's global state as a training wants it, and as it was before afterwards."""
    with (
        torch.random.fork_rng([where] if where.type == "cuda" else []),
        _matmul_precision(settings.matmul_precision),
        ranks.interruption() as interruption,
    ):
        yield interruption


@contextlib.contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def load_weights(vae: VAE, path: str | os.PathLike[str], identity: Mapping[str, Any] | None = None) -> History:
    """Put the best weights of a checkpoint of :func:`train` into ``vae``; returns the history so far.

    Raises:
        ValueError: as :func:`load_checkpoint`, and where the parameters have other names or shapes.
    """
    expected = {**(identity or {}), "parameters": shapes(vae)}
    _, state = load_checkpoint(path, kind=KIND, settings=expected)
    vae.load_state_dict(state["best"])
    return History(**state["history"])
