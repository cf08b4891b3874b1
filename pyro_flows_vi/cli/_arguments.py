"""From words of the command line to a model and its arguments: files imported, tables read, names matched."""

from __future__ import annotations

import csv
import hashlib
import importlib
import importlib.util
import inspect
import json
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["bind", "describe", "load_function", "read_data", "read_function"]

#: NAME=FILE:COLUMN,COLUMN, of which only FILE has to be there
TABLE = re.compile(r"^(?:(?P<name>[^\W\d]\w*)=)?(?P<file>.+?\.(?:npz|npy|csv|json))(?::(?P<columns>.+))?$")
MISSING = {"", "na", "nan"}


def load_function(spec: str) -> tuple[Callable[..., Any], ModuleType]:
    """The function that ``module:function`` or ``path/to/file.py:function`` names, and its module.

    Raises:
        ValueError: for a spec of another form, and a module or function that is not there or fails.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise ValueError(f"expected module:function or path/to/file.py:function, got {spec!r}")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        own = [k for k, v in vars(module).items() if inspect.isroutine(v) and v.__module__ == module.__name__]
        what = f"has no function {name!r}" if function is None else f"has a {name!r} that cannot be called"
        raise ValueError(f"{place} {what}; its functions are: {', '.join(own) or 'none'}")
    return function, module


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"expected the file of a model, found none at {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    _import_from(path.parent)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path} fails when it is run: {_told(error)}") from error
    return module


def _load_module(name: str) -> ModuleType:
    _import_from(Path())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise ValueError(f"module {name!r} fails when it is imported: {_told(error)}") from error
        raise ValueError(
            f"no module is called {error.name!r}: expected one that can be imported from here, or a path/to/file.py"
        ) from error
    except Exception as error:
        raise ValueError(f"module {name!r} fails when it is imported: {_told(error)}") from error


def _import_from(folder: Path) -> None:
    """Let a user's file import its neighbours, as ``python file.py`` would."""
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)


def _told(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"


def read_function(spec: str) -> Any:
    """What the function named by ``spec`` returns: the arguments of a model, by name or in order."""
    function, _ = load_function(spec)
    try:
        found = function()
    except Exception as error:
        raise ValueError(f"{spec} fails: {_told(error)}") from error
    if isinstance(found, Mapping):
        return {str(name): _tensor(value) for name, value in found.items()}
    return tuple(map(_tensor, found)) if isinstance(found, tuple | list) else (_tensor(found),)


def read_data(words: tuple[str, ...]) -> dict[str, Any]:
    """The named values in files, each ``[NAME=]FILE[:COLUMN,COLUMN]``.

    Raises:
        ValueError: for a file that is not there or cannot be read, a column that it lacks, a name given twice.
    """
    found: dict[str, Any] = {}
    for word in words:
        parts = TABLE.match(word)
        if parts is None:
            raise ValueError(
                f"expected [NAME=]FILE[:COLUMN,COLUMN] with a .csv, .npz, .npy or .json file, got {word!r}"
            )
        path, name, columns = Path(parts["file"]), parts["name"], parts["columns"]
        if not path.is_file():
            raise ValueError(f"expected a file of data, found none at {path}")
        try:
            table = _READERS[path.suffix](path)
        except (ValueError, OSError, KeyError, EOFError, csv.Error) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        if columns is not None:
            table = {column: _get(table, column.strip(), path) for column in columns.split(",")}
        fresh = table if name is None and path.suffix != ".npy" else {name or path.stem: _one(table, path, columns)}
        twice = sorted(found.keys() & fresh.keys())
        if twice:
            raise ValueError(f"{', '.join(map(repr, twice))} given twice, the second time by {word}")
        found |= fresh
    return found


def _get(table: Mapping[str, Any], column: str, path: Path) -> Any:
    if column not in table:
        raise ValueError(f"{path} has no column {column!r}: expected one of {', '.join(table)}")
    return table[column]


def _one(table: Mapping[str, Any], path: Path, columns: str | None) -> Any:
    """A table as one value: its only column, or the matrix of all."""
    values = list(table.values())
    if len(values) == 1:
        return values[0]
    if path.suffix != ".csv":
        raise ValueError(f"{path} holds {len(values)} values: expected NAME={path}:COLUMN to say which is meant")
    words = [column for column, value in table.items() if not isinstance(value, Tensor)]
    if words:
        raise ValueError(f"{path}: {', '.join(words)} hold words: expected numbers; say NAME={path}:COLUMN,COLUMN")
    return torch.stack([value.to(torch.get_default_dtype()) for value in values], -1)


def _read_csv(path: Path) -> dict[str, Any]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    if len(rows) < 2:
        raise ValueError("expected a first row with names, and rows of values")
    header = [name.strip() for name in rows[0]]
    if len(set(header)) < len(header) or not all(header):
        raise ValueError(f"expected names in the first row, each once, got {', '.join(map(repr, header))}")
    for line, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise ValueError(f"row {line} has {len(row)} values, and the first row {len(header)} names")
    return {name: _column([cell.strip() for cell in cells]) for name, *cells in zip(header, *rows[1:], strict=True)}


def _column(cells: list[str]) -> Any:
    """Integers where all are, floating numbers where all are, or else the words."""
    try:
        return torch.tensor([int(cell) for cell in cells])
    except ValueError:
        pass
    try:
        return torch.tensor([float("nan") if cell.lower() in MISSING else float(cell) for cell in cells])
    except ValueError:
        return cells


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: _tensor(file[name]) for name in file.files}


def _read_npy(path: Path) -> dict[str, Any]:
    return {path.stem: _tensor(np.load(path, allow_pickle=False))}


def _read_json(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"expected an object with names, got a {type(found).__name__}")
    return {name: _tensor(np.array(value)) if isinstance(value, list) else value for name, value in found.items()}


_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".csv": _read_csv,
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".json": _read_json,
}


def _tensor(value: Any) -> Any:
    """Arrays as tensors, and their floating numbers in torch's default precision; anything else as it is."""
    if not isinstance(value, np.ndarray | np.generic):
        return value
    if value.dtype.kind not in "fiub":
        raise ValueError(f"expected numbers, got an array of {value.dtype}")
    value = np.asarray(value)
    if value.dtype.kind == "u":
        value = value.astype(np.int64)
    tensor = torch.from_numpy(np.ascontiguousarray(value))
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


def bind(model: Callable[..., Any], given: Any) -> tuple[tuple[Any, ...], dict[str, Any], list[str]]:
    """The positional and keyword arguments of a model from named or ordered values, and the names left over.

    Raises:
        ValueError: for an argument that is missing.
    """
    signature = inspect.signature(model)
    left: list[str] = []
    if isinstance(given, Mapping):
        parameters = signature.parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            left = [name for name in given if name not in parameters]
        positional_only = {k for k, p in parameters.items() if p.kind is p.POSITIONAL_ONLY}
        args = tuple(given[name] for name in parameters if name in positional_only and name in given)
        kwargs = {k: v for k, v in given.items() if k not in left and k not in positional_only}
    else:
        args, kwargs = tuple(given), {}
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        names = ", ".join(given) if isinstance(given, Mapping) else f"{len(args)} values without names"
        raise ValueError(
            f"the arguments do not fit {model.__name__}{signature}: {error}; got {names or 'none'}. Give them by "
            "--data FILE, whose names are those of the arguments, or by --args module:function"
        ) from error
    return bound.args, bound.kwargs, left


def describe(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Dtype, shape and a fingerprint of each tensor among the arguments, and the others as they are, by name."""
    signature = inspect.signature(model)
    named = signature.bind(*args, **kwargs).arguments
    return {name: _described(value) for name, value in named.items()}


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        digest = hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "sha256": digest}
    if isinstance(value, tuple | list):
        return [_described(part) for part in value]
    if isinstance(value, Mapping):
        return {str(key): _described(part) for key, part in value.items()}
    return value if isinstance(value, str | int | float | bool) or value is None else type(value).__name__
