"""A row of the table from beginning to end: train it, evaluate it, and keep the record."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pyro_flows_vi.datasets import Dataset
from pyro_flows_vi.infer.checkpoint import differences
from pyro_flows_vi.infer.records import check_folder, default_device, machine, versions
from pyro_flows_vi.vae.evaluation import nll
from pyro_flows_vi.vae.history import History
from pyro_flows_vi.vae.model import VAE
from pyro_flows_vi.vae.protocols import PROTOCOLS, Protocol, protocol, restored
from pyro_flows_vi.vae.records import SCHEMA, load_record, save_record
from pyro_flows_vi.vae.rows import Row, build_vae, row
from pyro_flows_vi.vae.training import load_weights, train

__all__ = ["evaluate_row", "load_row", "record_path", "train_row"]

PathLike = str | os.PathLike[str]


def record_path(folder: PathLike, protocol_name: str, row_name: str, data_name: str, seed: int = 0) -> Path:
    """Where the record of a run is kept; its checkpoint is beside it, with the suffix ``.ckpt``."""
    return Path(folder) / f"{protocol_name}-{data_name}-{row_name}-seed{seed}.json"


def train_row(
    data: Dataset,
    protocol_name: str,
    row_name: str,
    folder: PathLike,
    *,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    num_transforms: int | None = None,
    flow_options: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 1,
    device: torch.device | str | None = None,
    compile: str | bool = False,
    progress: bool = True,
) -> Path:
    """Train one row of the table and write its record.

    Args:
        data: the data set.
        protocol_name: one of :data:`PROTOCOLS`.
        row_name: one of :data:`ROWS`.
        folder: for the record and the checkpoint.
        seed: of the initial parameters and the training.
        overrides: fields of the protocol to change.
        num_transforms: number of flow steps, where it differs from the row's.
        flow_options: options of the flow, where they differ from the row's.
        resume: go on from the checkpoint, if there is one.
        overwrite: start again, and replace an older run.
        checkpoint_every: in epochs.
        device: the GPU, where there is one, unless given.
        compile: see :func:`train`.
        progress: whether to show a progress bar.

    Returns:
        the path of the record.

    Raises:
        ValueError: for unknown names or options, a ``folder`` that cannot be written to, or where an older run
            would be lost (see ``resume``).
        TrainingInterrupted: after Ctrl-C, when the state has been saved.
    """
    settings = protocol(protocol_name, **(overrides or {}))
    chosen = row(row_name, num_transforms, **(flow_options or {}))
    if settings.likelihood == "bernoulli" and data.values != "binary":
        raise ValueError(
            f"the Bernoulli likelihood is one of binary pixels, and those of {data.name!r} are {data.values!r}: "
            "choose likelihood=categorical or gaussian"
        )
    path = record_path(folder, protocol_name, row_name, data.name, seed)
    checkpoint = path.with_suffix(".ckpt")
    check_folder(path.parent)
    if not resume and not overwrite:
        for old in (path, checkpoint):
            if old.exists():
                raise ValueError(
                    f"{old} holds an older run: resume it (resume), replace it (overwrite) or choose another folder"
                )
    if resume and path.exists() and not checkpoint.exists():
        raise ValueError(
            f"{path} is the record of a run, and {checkpoint.name}, from which it could go on, is not beside it: train "
            "again (overwrite) or choose another folder"
        )
    where = default_device(device)
    vae = build_vae(settings, chosen, data.image_shape, seed=seed)
    description = data.describe()
    history = train(
        vae,
        data.to(where),
        settings,
        seed=seed,
        checkpoint=checkpoint,
        resume=resume,
        checkpoint_every=checkpoint_every,
        identity=_identity(chosen, description),
        device=where,
        compile=compile,
        progress=progress,
        label=row_name,
    )
    flow = vae.posterior.flow
    record = {
        "schema": SCHEMA,
        "protocol": protocol_name,
        "row": row_name,
        "seed": seed,
        "settings": settings.as_dict(),
        "overrides": _overrides(settings),
        "flow": chosen.as_dict(),
        "data": description,
        "versions": versions(),
        "machine": machine(where),
        "parameters": {
            "total": sum(p.numel() for p in vae.parameters()),
            "flow": 0 if flow is None else sum(p.numel() for p in flow.parameters()),
        },
        "training": _training(history),
        "results": None,
    }
    if resume and path.exists():
        old_record = load_record(path)
        if old_record["training"]["epochs"] == history.epochs:
            record["results"] = old_record["results"]
    save_record(path, record)
    return path


def load_row(path: PathLike, data: Dataset, checkpoint: PathLike | None = None) -> VAE:
    """The trained VAE of a record, with its best weights.

    Args:
        path: the record.
        data: the data set that it was trained on, which is compared with the record.
        checkpoint: the checkpoint, where it is not beside the record.

    Raises:
        ValueError: for other data, or a checkpoint that is missing, damaged or another run's.
    """
    path = Path(path)
    record = load_record(path)
    changed = differences(record["data"], data.describe())
    if changed:
        raise ValueError(f"{path}: the record is of other data: {'; '.join(changed)}; load the same data set and seeds")
    settings = restored(record["settings"])
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in record["flow"]["options"].items()}
    chosen = Row(record["row"], record["flow"]["flow"], record["flow"]["num_transforms"], options)
    try:
        vae = build_vae(settings, chosen, data.image_shape, seed=record["seed"])
    except ValueError as error:
        raise ValueError(f"{path}: field 'flow': {error}") from error
    identity = {**_identity(chosen, record["data"]), "seed": record["seed"]}
    history = load_weights(vae, checkpoint or path.with_suffix(".ckpt"), identity)
    if history.epochs != record["training"]["epochs"]:
        raise ValueError(
            f"{path}: the record is of {record['training']['epochs']} epochs, the checkpoint of "
            f"{history.epochs}; finish the training first (resume)"
        )
    return vae.eval()


def evaluate_row(
    path: PathLike,
    data: Dataset,
    num_samples: int = 5000,
    *,
    seed: int = 0,
    max_images: int | None = None,
    checkpoint: PathLike | None = None,
    memory: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Estimate the test NLL of a trained row and add it to its record.

    After an interruption the same call goes on with the images that are left: the others are kept beside the
    record, in a file with the suffix ``.nll`` that goes when the estimate is complete.

    Args:
        path: the record.
        data: the data set that it was trained on.
        num_samples: importance samples per image.
        seed: of the draws.
        max_images: only the first so many test images; all unless given. The record tells.
        checkpoint: the checkpoint, where it is not beside the record.
        memory: see :func:`nll`.
        device: the GPU, where there is one, unless given.
        progress: whether to show a progress bar.

    Returns:
        the record, with ``results``.

    Raises:
        ValueError: as :func:`load_row` and :func:`nll`.
    """
    where = default_device(device)
    vae = load_row(path, data, checkpoint).to(where)
    record = load_record(path)
    started = time.perf_counter()
    estimate = nll(
        vae,
        data.test[:max_images],
        num_samples,
        seed=seed,
        memory=memory,
        partial=Path(path).with_suffix(".nll"),
        progress=progress,
    )
    record["results"] = {
        **estimate.summary(),
        "log_evidence": [round(value, 2) for value in estimate.log_evidence.tolist()],
        "seconds": time.perf_counter() - started,
        "machine": machine(where),
        "versions": versions(),
    }
    save_record(path, record)
    return record


def _identity(chosen: Row, description: dict[str, Any]) -> dict[str, Any]:
    return {"row": chosen.as_dict(), "data": description}


def _overrides(settings: Protocol) -> dict[str, Any]:
    """The fields that differ from the preset."""
    preset = PROTOCOLS[settings.name].as_dict()
    return {name: value for name, value in settings.as_dict().items() if value != preset[name]}


def _training(history: History) -> dict[str, Any]:
    return {
        "epochs": history.epochs,
        "best_epoch": history.best_epoch,
        "best_validation_elbo": history.best_elbo,
        "stop_reason": history.stop_reason,
        "skipped_steps": history.skipped_steps,
        "seconds": history.seconds,
        "curves": history.curves,
    }
