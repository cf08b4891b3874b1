"""Training a VAE: warm-up, early stopping, checkpoints, and resuming bit by bit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from pyro_flows_vi.infer.checkpoint import load_checkpoint
from pyro_flows_vi.infer.compile_mode import require_mode
from pyro_flows_vi.infer.interruption import Interruption, TrainingInterrupted
from pyro_flows_vi.infer.records import default_device
from pyro_flows_vi.vae.history import History
from pyro_flows_vi.vae.minibatches import TrainingData
from pyro_flows_vi.vae.model import VAE
from pyro_flows_vi.vae.protocols import Protocol, number
from pyro_flows_vi.vae.trainer import KIND, Trainer, shapes

__all__ = ["TrainingData", "TrainingInterrupted", "load_weights", "train"]


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

    Returns:
        the history, with one curve per quantity.

    Raises:
        ValueError: for data with NaN, infinite or impossible values, for images of another width than the
            model's, for a checkpoint of other settings, and when ``settings.max_bad_steps`` steps in a row had a
            loss or gradient that is not finite, and for a ``compile`` that this machine or model cannot have.
        TrainingInterrupted: after Ctrl-C, when the state has been saved.
    """
    number("checkpoint_every", checkpoint_every, int, 1)
    require_mode(compile)
    where = default_device(device)
    with (
        torch.random.fork_rng([where] if where.type == "cuda" else []),
        _matmul_precision(settings.matmul_precision),
        Interruption() as interruption,
    ):
        torch.manual_seed(seed)
        trainer = Trainer(vae.to(where), data, settings, seed, where, checkpoint, dict(identity or {}), compile)
        if resume and checkpoint is not None and Path(checkpoint).exists():
            trainer.load()
        trainer.run(interruption, checkpoint_every, progress, label)
    return trainer.history


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
