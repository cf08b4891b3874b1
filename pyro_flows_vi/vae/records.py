"""One JSON file per run: what was run, with what, and what came out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pyro_flows_vi.infer.records import NUMBER, check_fields, load_checked, load_folder, write_record
from pyro_flows_vi.vae.history import CURVES
from pyro_flows_vi.vae.protocols import restored

__all__ = ["SCHEMA", "load_record", "load_records", "save_record"]

#: raised whenever a field changes its meaning
SCHEMA = 1

#: the fields that a record must have, by their path, with their types
FIELDS: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "protocol": str,
    "row": str,
    "seed": int,
    "settings": dict,
    "settings.name": str,
    "overrides": dict,
    "flow": dict,
    "flow.flow": (str, type(None)),
    "flow.num_transforms": int,
    "flow.options": dict,
    "data": dict,
    "data.name": str,
    "data.binarisation": (str, type(None)),
    "data.sha256": str,
    "data.image_shape": list,
    "versions": dict,
    "machine": dict,
    "machine.device": str,
    "machine.name": str,
    "machine.threads": int,
    "parameters": dict,
    "parameters.total": int,
    "parameters.flow": int,
    "training": dict,
    "training.epochs": int,
    "training.best_epoch": int,
    "training.best_validation_elbo": NUMBER,
    "training.stop_reason": str,
    "training.skipped_steps": int,
    "training.seconds": NUMBER,
    "training.curves": dict,
    **{f"training.curves.{name}": list for name in CURVES},
    "results": (dict, type(None)),
}
RESULTS: dict[str, type | tuple[type, ...]] = {
    "results.nll": NUMBER,
    "results.nll_se": NUMBER,
    "results.nll_mc_se": NUMBER,
    "results.negative_elbo": NUMBER,
    "results.negative_elbo_se": NUMBER,
    "results.num_samples": int,
    "results.num_images": int,
    "results.seed": int,
    "results.ess_median": NUMBER,
    "results.log_evidence": list,
    "results.seconds": NUMBER,
}


def save_record(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Check a record and write it, whole or not at all.

    Raises:
        ValueError: for a record with a missing or wrong field.
    """
    _check(Path(path), record)
    write_record(path, record)


def load_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a record.

    Raises:
        ValueError: for a file that is missing or no record, and a field that is missing or wrong; by name.
    """
    return load_checked(path, _check)


def load_records(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All records ``*.json`` of a folder, in the order of their names.

    Raises:
        ValueError: for a folder without records, or a bad one.
    """
    return load_folder(folder, _check, "train a row first")


def _check(path: Path, record: Any) -> None:
    evaluated = isinstance(record, dict) and record.get("results") is not None
    check_fields(path, record, {**FIELDS, **RESULTS} if evaluated else FIELDS, SCHEMA)
    try:
        restored(record["settings"])
    except ValueError as error:
        raise ValueError(f"{path}: field 'settings': {error}") from error
