"""One JSON file per run of the command line: what was fitted to what, with what, and what came out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pyro_flows_vi.density.reverse import ReverseSettings
from pyro_flows_vi.density.settings import FitSettings
from pyro_flows_vi.infer.records import NUMBER, Fields, check_fields, load_checked, load_folder, write_record

__all__ = ["OBJECTIVES", "SCHEMA", "load_record", "load_records", "objective_of", "save_record"]

#: raised whenever a field changes its meaning
SCHEMA = 1
MAYBE = (*NUMBER, type(None))
#: what a density can be fitted by, with the settings of such a fit
OBJECTIVES: dict[str, type[FitSettings] | type[ReverseSettings]] = {
    "likelihood": FitSettings,
    "reverse-kl": ReverseSettings,
}
FIELDS: Fields = {
    "schema": int,
    "task": str,
    "row": str,
    "seed": int,
    "flow": dict,
    "flow.flow": str,
    "flow.num_transforms": int,
    "flow.options": dict,
    "images": (dict, type(None)),
    "settings": dict,
    "overrides": dict,
    "data": dict,
    "data.kind": str,
    "data.name": str,
    "data.dim": int,
    "data.sha256": str,
    "versions": dict,
    "machine": dict,
    "machine.device": str,
    "machine.name": str,
    "machine.threads": int,
    "parameters": int,
    "training": dict,
    "training.stop_reason": str,
    "training.skipped_steps": int,
    "training.seconds": NUMBER,
    "training.curves": dict,
    "results": (dict, type(None)),
}
TRAINING: dict[str, Fields] = {
    "likelihood": {
        "training.epochs": int,
        "training.best_epoch": int,
        "training.best_validation": NUMBER,
        "training.curves.train": list,
        "training.curves.validation": list,
    },
    "reverse-kl": {
        "training.steps": int,
        "training.elbo": NUMBER,
        "training.elbo_se": NUMBER,
        "training.kept": str,
    },
}
IMAGE_FIELDS: Fields = {
    "images.levels": int,
    "images.logit_level": NUMBER,
    "images.dequantisation": str,
    "images.noise": (dict, type(None)),
}
RESULTS: Fields = {
    "results.nats": NUMBER,
    "results.nats_se": NUMBER,
    "results.num_rows": int,
    "results.seconds": NUMBER,
}
MORE_RESULTS: dict[str, Fields] = {
    "target": {f"results.{name}{tail}": MAYBE for name in ("kl_forward", "kl_reverse") for tail in ("", "_se")},
    "table": {},
    "images": {
        "results.bits_per_dim": NUMBER,
        "results.bits_per_dim_se": NUMBER,
        "results.nats_of_logits": MAYBE,
        "results.nats_of_logits_se": MAYBE,
        "results.num_samples": int,
        "results.seed": int,
    },
}


def objective_of(record: dict[str, Any]) -> str:
    """What a record's density was fitted by; the first records have no such field, and are all of likelihoods."""
    return str(record.get("objective", "likelihood"))


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
    return load_folder(folder, _check, "train a density first")


def _check(path: Path, record: Any) -> None:
    check_fields(path, record, FIELDS, SCHEMA)
    if record["task"] != "density":
        raise ValueError(f"{path}: field 'task': expected 'density', got {record['task']!r}")
    kind = record["data"]["kind"]
    if kind not in MORE_RESULTS:
        raise ValueError(f"{path}: field 'data.kind': expected one of {', '.join(MORE_RESULTS)}, got {kind!r}")
    objective = objective_of(record)
    if objective not in TRAINING:
        raise ValueError(f"{path}: field 'objective': expected one of {', '.join(TRAINING)}, got {objective!r}")
    check_fields(path, record, TRAINING[objective], SCHEMA)
    if kind == "images":
        check_fields(path, record, IMAGE_FIELDS, SCHEMA)
    if record["results"] is not None:
        check_fields(path, record, {**RESULTS, **MORE_RESULTS[kind]}, SCHEMA)
    try:
        OBJECTIVES[objective].make(**record["settings"])
    except ValueError as error:
        raise ValueError(f"{path}: field 'settings': {error}") from error
