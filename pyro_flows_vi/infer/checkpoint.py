"""Checkpoints that are written whole or not at all, and that load without executing code."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

__all__ = ["differences", "load_checkpoint", "save_checkpoint", "write_atomically"]

FORMAT = "pyro_flows_vi checkpoint"
VERSION = 1
#: a header is one line; a file without a line end in its first megabyte has none
MAX_HEADER = 1 << 20


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to ``path`` so that a crash leaves the old file or the new one, never a part.

    The bytes go to a temporary file in the same folder, which is flushed to the disk and then renamed.

    Args:
        path: where to; the folder is made if needed.
        content: the whole file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_checkpoint(path: str | os.PathLike[str], state: Any, *, kind: str, settings: Mapping[str, Any]) -> None:
    """Write ``state`` with a header that tells whose it is and a digest of both.

    Args:
        path: the file, written atomically.
        state: nested dicts and lists of tensors, numbers, strings and ``None``: what
            ``torch.load(weights_only=True)`` accepts.
        kind: what wrote it, e.g. ``"vae"``.
        settings: what has to be the same for a state to fit, e.g. the architecture; JSON values.
    """
    buffer = io.BytesIO()
    torch.save(tree_map_only(Tensor, _compact, state), buffer)
    payload = buffer.getbuffer()
    header = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "settings": json.loads(json.dumps(dict(settings))),
        "bytes": len(payload),
    }
    header["sha256"] = _digest(header, payload)
    line = json.dumps(header, sort_keys=True).encode() + b"\n"
    write_atomically(path, line + payload)


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    settings: Mapping[str, Any] | None = None,
    map_location: torch.device | str | None = "cpu",
) -> tuple[dict[str, Any], Any]:
    """Read a checkpoint that :func:`save_checkpoint` wrote; no code in the file is executed.

    Args:
        path: the file.
        kind: expected kind, or ``None`` for any.
        settings: expected settings; keys that are not named here are not compared.
        map_location: where to put the tensors.

    Returns:
        the header's settings, and the state.

    Raises:
        ValueError: for a missing, foreign, truncated or altered file, another kind or other settings, with
            the file's name, what was expected and what was found.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(f"{path}: expected a checkpoint, found no such file") from error
    header, payload = _split(path, content)
    if header["version"] != VERSION:
        raise ValueError(
            f"{path}: expected checkpoint version {VERSION}, got {header['version']!r}; "
            "read it with the release that wrote it"
        )
    if len(payload) != header["bytes"]:
        raise ValueError(
            f"{path}: truncated or overwritten: expected {header['bytes']} bytes of content, "
            f"got {len(payload)}; use another copy or train again"
        )
    digest = _digest(header, payload)
    if digest != header["sha256"]:
        raise ValueError(
            f"{path}: the content was altered: expected sha256 {header['sha256']}, got {digest}; "
            "use another copy or train again"
        )
    if kind is not None and header["kind"] != kind:
        raise ValueError(f"{path}: expected a checkpoint of kind {kind!r}, got {header['kind']!r}")
    if settings is not None:
        found = {key: header["settings"].get(key) for key in settings}
        changed = differences(dict(settings), found)
        if changed:
            raise ValueError(
                f"{path}: the checkpoint belongs to other settings: {'; '.join(changed)}; "
                "use the same settings or another file"
            )
    try:
        state = torch.load(io.BytesIO(payload), map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: expected tensors and plain containers, got something else: {error}") from error
    return header["settings"], state


def differences(expected: Any, got: Any, where: str = "") -> list[str]:
    """The places in which two nested JSON values differ, each as ``"key: expected ..., got ..."``."""
    expected, got = json.loads(json.dumps(expected)), json.loads(json.dumps(got))
    if isinstance(expected, dict) and isinstance(got, dict):
        return [
            line
            for key in sorted({*expected, *got})
            for line in differences(expected.get(key), got.get(key), f"{where}.{key}" if where else key)
        ]
    return [] if expected == got else [f"{where}: expected {expected!r}, got {got!r}"]


def _split(path: Path, content: bytes) -> tuple[dict[str, Any], memoryview]:
    end = content.find(b"\n", 0, MAX_HEADER)
    try:
        header = json.loads(content[: max(end, 0)])
        foreign = not isinstance(header, dict) or header.get("format") != FORMAT
    except ValueError:
        foreign, header = True, {}
    if foreign or not {"version", "kind", "settings", "bytes", "sha256"} <= set(header):
        raise ValueError(
            f"{path}: expected a file that starts with the header of a {FORMAT}, got {bytes(content[:24])!r}"
        )
    return header, memoryview(content)[end + 1 :]


def _compact(tensor: Tensor) -> Tensor:
    """The same values in a storage of their own, since all of a storage would be written."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _digest(header: Mapping[str, Any], payload: memoryview | bytes) -> str:
    signed = {key: value for key, value in header.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(signed, sort_keys=True).encode())
    digest.update(payload)
    return digest.hexdigest()
