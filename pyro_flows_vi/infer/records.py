"""What every record of a run shares: JSON written whole or not at all, fields that are checked, versions, machine."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

from pyro_flows_vi import __version__
from pyro_flows_vi.infer.checkpoint import write_atomically

__all__ = [
    "NUMBER",
    "Fields",
    "check_fields",
    "check_folder",
    "default_device",
    "load_checked",
    "load_folder",
    "machine",
    "read_record",
    "rounded",
    "versions",
    "write_record",
]

NUMBER = (int, float)
#: the fields that a record must have, by their path ``a.b``, with their types
Fields = Mapping[str, type | tuple[type, ...]]
#: raises ``ValueError`` for a record that is not as it should be: ``check(path, record)``
Check = Callable[[Path, Any], None]


def write_record(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Write a record, whole or not at all, one field a line."""
    write_atomically(path, (_render(record) + "\n").encode())


def read_record(path: str | os.PathLike[str]) -> Any:
    """The JSON of a record.

    Raises:
        ValueError: for a file that is missing or not JSON, by name.
    """
    path = Path(path)
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: expected a record, but it cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: expected a JSON record, got something else: {error}") from error


def load_checked(path: str | os.PathLike[str], check: Check) -> dict[str, Any]:
    """The record in a file, after ``check(path, record)``."""
    path = Path(path)
    record: dict[str, Any] = read_record(path)
    check(path, record)
    return record


def load_folder(folder: str | os.PathLike[str], check: Check, advice: str) -> list[dict[str, Any]]:
    """All records ``*.json`` of a folder, in the order of their names.

    Raises:
        ValueError: for a folder without records, with ``advice``, or a bad one.
    """
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise ValueError(f"{folder}: expected a folder with records (*.json), found none; {advice}")
    return [load_checked(path, check) for path in paths]


def check_fields(path: Path, record: Any, fields: Fields, schema: int) -> None:
    """Raise ``ValueError`` unless ``record`` is of this ``schema`` and has the ``fields``, its lists finite."""
    if not isinstance(record, dict):
        raise ValueError(f"{path}: expected a record (a JSON object), got {type(record).__name__}")
    if record.get("schema") != schema:
        raise ValueError(f"{path}: field 'schema': expected {schema}, got {record.get('schema')!r}")
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


def check_folder(folder: Path) -> None:
    """Raise unless ``folder`` is one or can be made, so that no run is lost when its first file is written."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        reason = "cannot be written to" if there.is_dir() else "is a file"
        raise ValueError(f"expected a folder for the record and the checkpoint, got {folder}: {there} {reason}")


def default_device(device: torch.device | str | None = None) -> torch.device:
    """``device``, or else the GPU where there is one."""
    return torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")


def versions() -> dict[str, str]:
    """Versions of everything that decides the numbers."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "numpy": np.__version__,
        "pyro_flows_vi": __version__,
    }


def machine(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """The device that computed, in words, and the number of threads, and of processes where there were several."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    several = {"processes": processes} if processes > 1 else {}
    return {"device": device.type, "name": name, "threads": torch.get_num_threads(), **several}


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
