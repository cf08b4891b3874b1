"""The numbers of a pickled pandas data frame, without pandas and without running what the pickle names."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["read_frame"]

#: what a pickle may call: the constructors of arrays, which run nothing of the file's
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("copyreg", "_reconstructor"),
    ("copy_reg", "_reconstructor"),
    ("builtins", "object"),
    ("__builtin__", "object"),
    ("builtins", "slice"),
    ("__builtin__", "slice"),
    ("_codecs", "encode"),
}
_NUMPY = {"_reconstruct", "_frombuffer", "scalar"}


class _Part:
    """Stands for any object of pandas: keeps what it was made from, and does nothing."""

    args: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> _Part:
        part = super().__new__(cls)
        part.args = args
        return part

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "pandas":
            return _Part
        if (module, name) in _ALLOWED or (module.startswith("numpy.") and name in _NUMPY):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a table of numbers does not need")


def read_frame(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    """Column names and values ``(rows, columns)`` of a data frame of numbers.

    Raises:
        ValueError: for a file that is no such pickle; it names the file.
    """
    try:
        with path.open("rb") as file:
            frame = _Reader(file, encoding="latin1").load()
        return _columns(frame)
    except Exception as error:  # foreign bytes make the reader raise almost anything
        raise ValueError(
            f"{path}: expected the pickle of a pandas data frame of numbers, got something else: {error}"
        ) from error


def _columns(frame: Any) -> tuple[list[str], NDArray[np.float64]]:
    if not isinstance(frame, _Part) or not isinstance(frame.state, dict):
        raise ValueError(f"found {type(frame).__name__}")
    manager = frame.state.get("_mgr", frame.state.get("_data"))
    if not isinstance(manager, _Part):
        raise ValueError("found a frame without blocks")
    axes, blocks = _new(manager) if manager.state is None or _is_empty(manager.state) else _old(manager)
    names = [str(name) for name in _labels(axes[0])]
    values = np.empty((len(_labels(axes[1])), len(names)))
    for content, places in blocks:
        values[:, places] = np.asarray(content, np.float64).T
    return names, values


def _is_empty(state: Any) -> bool:
    return isinstance(state, tuple) and len(state) == 2 and state[0] is None


def _new(manager: _Part) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """As pandas writes since 1.3: the manager is made from blocks and axes."""
    blocks, axes = manager.args[:2]
    return list(axes), [(block.args[0], _places(block.args[1])) for block in blocks]


def _old(manager: _Part) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """As pandas wrote before: both are in the manager's state, whose last part is a dictionary."""
    state = manager.state[-1]["0.14.1"]
    return list(state["axes"]), [(block["values"], _places(block["mgr_locs"])) for block in state["blocks"]]


def _places(places: Any) -> Any:
    """Which columns a block holds: an array, a slice, or an object made from one of them."""
    return _places(places.args[0]) if isinstance(places, _Part) else places


def _labels(index: Any) -> Any:
    """The entries of an index: an array, wherever it is wrapped, or a range."""
    found = _find(index)
    if found is None:
        raise ValueError("found an index of an unknown form")
    return found


def _find(part: Any) -> Any:
    if isinstance(part, np.ndarray):
        return part
    if isinstance(part, dict):
        if {"start", "stop", "step"} <= set(part):
            return range(part["start"], part["stop"], part["step"])
        return _find(list(part.values()))
    if isinstance(part, _Part):
        return _find([*part.args, part.state])
    if isinstance(part, list | tuple):
        return next((found for inner in part if (found := _find(inner)) is not None), None)
    return None
