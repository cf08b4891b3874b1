"""One JSON file per run: what was run, with what, and what came out."""

from __future__ import annotations

import json
import math
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

from pyro_flows_vi import __version__
from pyro_flows_vi.infer.checkpoint import write_atomically
from pyro_flows_vi.vae.history import CURVES
from pyro_flows_vi.vae.protocols import protocol

__all__ = ["SCHEMA", "load_record", "load_records", "machine", "save_record", "versions"]

#: raised whenever a field changes its meaning
SCHEMA = 1

NUMBER = (int, float)
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
    write_atomically(path, (_render(record) + "\n").encode())


def load_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a record.

    Raises:
        ValueError: for a file that is missing or no record, and a field that is missing or wrong; by name.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: expected a record, but it cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: expected a JSON record, got something else: {error}") from error
    _check(path, record)
    return record


def load_records(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All records ``*.json`` of a folder, in the order of their names.

    Raises:
        ValueError: for a folder without records, or a bad one.
    """
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise ValueError(f"{folder}: expected a folder with records (*.json), found none; train a row first")
    return [load_record(path) for path in paths]


def versions() -> dict[str, str]:
    """Versions of everything that decides the numbers."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "numpy": np.__version__,
        "pyro_flows_vi": __version__,
    }


def machine(device: torch.device) -> dict[str, Any]:
    """The device that computed, in words, and the number of threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": device.type, "name": name, "threads": torch.get_num_threads()}


def _check(path: Path, record: Any) -> None:
    if not isinstance(record, dict):
        raise ValueError(f"{path}: expected a record (a JSON object), got {type(record).__name__}")
    if record.get("schema") != SCHEMA:
        raise ValueError(f"{path}: field 'schema': expected {SCHEMA}, got {record.get('schema')!r}")
    fields = FIELDS if record.get("results") is None else {**FIELDS, **RESULTS}
    for field, kind in fields.items():
        value: Any = record
        for key in field.split("."):
            if not isinstance(value, dict) or key not in value:
                raise ValueError(f"{path}: field {field!r} is missing")
            value = value[key]
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind in (int, NUMBER))
        if wrong or (isinstance(value, float) and not math.isfinite(value)):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
            raise ValueError(f"{path}: field {field!r}: expected {wanted}, got {value!r}")
        if kind is list:
            numbers = (isinstance(v, NUMBER) and not isinstance(v, bool) and math.isfinite(v) for v in value)
            if not value or not all(numbers):
                raise ValueError(f"{path}: field {field!r}: expected one or more finite numbers, got {_short(value)}")
    try:
        protocol(**record["settings"])
    except ValueError as error:
        raise ValueError(f"{path}: field 'settings': {error}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _render(record: dict[str, Any]) -> str:
    """JSON with one line per field, and long lists of numbers on one line."""
    text = json.dumps(rounded(record), indent=2, allow_nan=False)
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        stripped = line.strip()
        if inside:
            lines[-1] += stripped + (" " if stripped.endswith(",") and not stripped.startswith("]") else "")
            inside = not stripped.startswith("]")
        else:
            lines.append(line)
            inside = line.endswith("[")
    return "\n".join(lines)


def rounded(value: Any) -> Any:
    """Floats to eight digits: more than float32 knows."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value
