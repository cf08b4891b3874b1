"""A row of the table brought to its end: whatever of its training and evaluation is missing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from pyro_flows_vi.datasets import Dataset
from pyro_flows_vi.infer.checkpoint import differences
from pyro_flows_vi.infer.records import rounded
from pyro_flows_vi.vae.protocols import protocol
from pyro_flows_vi.vae.records import load_record
from pyro_flows_vi.vae.row_run import record_path
from pyro_flows_vi.vae.rows import row
from pyro_flows_vi.vae.runs import evaluate_row, train_row

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
    """Train and evaluate a row, as far as its record does not yet show what is asked.

    A record with the same settings, flow and data is kept. Its result is kept too, if it is of as many samples,
    of the same seed and of all test images; otherwise only the evaluation is done again.

    Args:
        data: the data set.
        protocol_name: one of :data:`PROTOCOLS`.
        row_name: one of :data:`ROWS`.
        folder: for the record and the checkpoint.
        num_samples: importance samples per image.
        seed: of the run, and of the draws of its evaluation.
        overrides: fields of the protocol to change.
        device: the GPU, where there is one, unless given.
        progress: whether to show progress bars.

    Returns:
        whether there was anything to do.

    Raises:
        ValueError: as :func:`train_row` and :func:`evaluate_row`; and for a record of other settings, flow or
            data, unless its checkpoint can be trained on to those that are asked.
        TrainingInterrupted: after Ctrl-C, when the state has been saved.
    """
    path = record_path(folder, protocol_name, row_name, data.name, seed)
    asked = {
        "settings": rounded(protocol(protocol_name, **(overrides or {})).as_dict()),
        "flow": rounded(row(row_name).as_dict()),
        "data": data.describe(),
    }
    result = {"num_samples": num_samples, "seed": seed, "num_images": len(data.test)}
    changed = ["no record"]
    if path.exists():
        record = load_record(path)
        changed = differences(asked, {key: record[key] for key in asked})
        found = record["results"]
        if not changed and found is not None and all(found[key] == value for key, value in result.items()):
            return False
        if changed and not path.with_suffix(".ckpt").exists():
            raise ValueError(
                f"{path}: the record is of other settings, and has no checkpoint to go on from: {'; '.join(changed)}; "
                "ask for the same settings, or choose another folder"
            )
    common: dict[str, Any] = {"seed": seed, "device": device, "progress": progress}
    if changed:
        train_row(data, protocol_name, row_name, folder, overrides=overrides, resume=True, **common)
    evaluate_row(path, data, num_samples, **common)
    return True
