"""A row of the table brought to its end: whatever of its training and evaluation is missing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from pyro_flows_vi.datasets import Dataset
from pyro_flows_vi.vae.records import load_record
from pyro_flows_vi.vae.runs import evaluate_row, record_path, train_row

__all__ = ["finish_row"]


def finish_row(
    data: Dataset,
    protocol_name: str,
    row_name: str,
    folder: str | os.PathLike[str],
    num_samples: int = 5000,
    *,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> bool:
    """Train and evaluate a row, unless its record has a result already.

    Args:
        data: the data set.
        protocol_name: one of :data:`PROTOCOLS`.
        row_name: one of :data:`ROWS`.
        folder: for the record and the checkpoint.
        num_samples: importance samples per image.
        seed: of the run.
        overrides: fields of the protocol to change.
        device: the GPU, where there is one, unless given.
        progress: whether to show progress bars.

    Returns:
        whether there was anything to do.

    Raises:
        ValueError: as :func:`train_row` and :func:`evaluate_row`.
        TrainingInterrupted: after Ctrl-C, when the state has been saved.
    """
    path = record_path(folder, protocol_name, row_name, data.name, seed)
    if path.exists() and load_record(path)["results"] is not None:
        return False
    train_row(
        data, protocol_name, row_name, folder, seed=seed, overrides=overrides, resume=True, device=device,
        progress=progress,
    )  # fmt: skip
    evaluate_row(path, data, num_samples, device=device, progress=progress)
    return True
