"""A row of the table from beginning to end: train it, evaluate it, and keep the record."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pyro_flows_vi.datasets import Dataset
from pyro_flows_vi.infer.checkpoint import differences
from pyro_flows_vi.infer.parallel import join
from pyro_flows_vi.infer.records import default_device, machine, versions
from pyro_flows_vi.vae.evaluation import nll
from pyro_flows_vi.vae.model import VAE
from pyro_flows_vi.vae.protocols import restored
from pyro_flows_vi.vae.records import load_record, save_record
from pyro_flows_vi.vae.row_run import RowRun, row_identity
from pyro_flows_vi.vae.rows import Row, build_vae
from pyro_flows_vi.vae.training import SeedsFailed, load_weights, train, train_seeds

__all__ = ["evaluate_row", "load_row", "train_row", "train_row_seeds"]

PathLike = str | os.PathLike[str]


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
    """Train one row of the table and write its record; processes that ``torchrun`` started do so together.

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
    ranks = join()
    run = RowRun(data, protocol_name, row_name, folder, seed, overrides, num_transforms, flow_options)
    vae, where = run.begin(resume, overwrite), default_device(device)
    history = train(
        vae,
        data.to(where),
        run.settings,
        seed=seed,
        checkpoint=run.checkpoint,
        resume=resume,
        checkpoint_every=checkpoint_every,
        identity=run.identity,
        device=where,
        compile=compile,
        progress=progress,
        label=row_name,
    )
    if ranks.first:
        run.save(vae, history, machine(where, ranks.size), resume)
    ranks.wait()
    return run.path


def train_row_seeds(
    data: Dataset,
    protocol_name: str,
    row_name: str,
    folder: PathLike,
    *,
    seeds: Sequence[int],
    overrides: Mapping[str, Any] | None = None,
    num_transforms: int | None = None,
    flow_options: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 1,
    device: torch.device | str | None = None,
    compile: str | bool = False,
    progress: bool = True,
) -> list[Path]:
    """Train one row of the table from several seeds as one program, and write the records of :func:`train_row`.

    What that costs, and where it pays, says :func:`train_seeds`. With ``resume``, seeds that are done stay as they are,
    and those that have no checkpoint begin.

    Args:
        data: the data set.
        protocol_name: one of :data:`PROTOCOLS`.
        row_name: one of :data:`ROWS`.
        folder: for the records and the checkpoints.
        seeds: of the initial parameters and the trainings.
        overrides: fields of the protocol to change.
        num_transforms: number of flow steps, where it differs from the row's.
        flow_options: options of the flow, where they differ from the row's.
        resume: go on from the checkpoints that there are.
        overwrite: start again, and replace older runs.
        checkpoint_every: in epochs.
        device: the GPU, where there is one, unless given.
        compile: see :func:`train`.
        progress: whether to show a progress bar.

    Returns:
        the paths of the records, each of which names all ``seeds`` under ``training.together``.

    Raises:
        ValueError: as :func:`train_row` and :func:`train_seeds`, and for a seed that is given twice.
        SeedsFailed: where a training failed; the records of the others are written.
        TrainingInterrupted: after Ctrl-C, when the states have been saved.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"expected one or more different seeds, got {', '.join(map(str, seeds)) or 'none'}")
    common = overrides, num_transforms, flow_options
    runs = [RowRun(data, protocol_name, row_name, folder, seed, *common) for seed in seeds]
    vaes = [run.begin(resume, overwrite) for run in runs]
    where, failed = default_device(device), None
    try:
        histories = train_seeds(
            vaes,
            data.to(where),
            runs[0].settings,
            seeds=seeds,
            checkpoints=[run.checkpoint for run in runs],
            resume=resume,
            checkpoint_every=checkpoint_every,
            identity=runs[0].identity,
            device=where,
            compile=compile,
            progress=progress,
            label=f"{row_name}, {len(seeds)} seeds",
        )
    except SeedsFailed as error:
        histories, failed = error.histories, error
    for place, (run, vae, history) in enumerate(zip(runs, vaes, histories, strict=True)):
        if failed is None or place not in failed.failures:
            run.save(vae, history, machine(where), resume, seeds)
    if failed is not None:
        raise failed
    return [run.path for run in runs]


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
    identity = {**row_identity(chosen, record["data"]), "seed": record["seed"]}
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
    """Estimate the test NLL of a trained row and add it to its record; also shared, as in :func:`train_row`.

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
    ranks = join()
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
        parallel=True,
    )
    record["results"] = {
        **estimate.summary(),
        "log_evidence": [round(value, 2) for value in estimate.log_evidence.tolist()],
        "seconds": time.perf_counter() - started,
        "machine": machine(where, ranks.size),
        "versions": versions(),
    }
    if ranks.first:
        save_record(path, record)
    ranks.wait()
    return record
