"""Checkpoints: whole or not at all, whose they are, and no code inside."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_flows_vi.infer.checkpoint import load_checkpoint, save_checkpoint, write_atomically

SETTINGS = {"flow": "planar", "hidden_dims": [3, 4]}
STATE = {"weights": {"a": torch.arange(6.0).reshape(2, 3)}, "epoch": 3, "curve": [1.5, -2.0], "reason": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "run.ckpt"
    save_checkpoint(file, STATE, kind="vae", settings=SETTINGS)
    return file


def test_round_trip(path: Path) -> None:
    settings, state = load_checkpoint(path, kind="vae", settings=SETTINGS)
    assert settings == SETTINGS
    assert torch.equal(state["weights"]["a"], STATE["weights"]["a"])  # type: ignore[index]
    assert {k: v for k, v in state.items() if k != "weights"} == {k: v for k, v in STATE.items() if k != "weights"}


def test_tuples_and_lists_are_the_same_settings(path: Path) -> None:
    load_checkpoint(path, settings={"hidden_dims": (3, 4)})


def test_other_settings_are_named(path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.ckpt.*flow: expected 'iaf', got 'planar'") as error:
        load_checkpoint(path, settings={**SETTINGS, "flow": "iaf"})
    assert "hidden_dims" not in str(error.value)


def test_other_kind(path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a checkpoint of kind 'density', got 'vae'"):
        load_checkpoint(path, kind="density")


@pytest.mark.parametrize("kept", [0, 10, 200, -1])
def test_truncated(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"run\.ckpt.*expected"):
        load_checkpoint(path)


def test_every_altered_byte_is_noticed(path: Path) -> None:
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(content), (200,), generator=generator).tolist():
        altered = bytearray(content)
        altered[place] ^= 1
        path.write_bytes(altered)
        with pytest.raises(ValueError, match=r"run\.ckpt"):
            load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x02.", b"{}\n", b'{"format": "other"}\nabc', b"x" * 100])
def test_foreign_files(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "other.ckpt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.ckpt: expected a file that starts with the header"):
        load_checkpoint(file)


def test_a_plain_torch_file_is_foreign(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt.*header"):
        load_checkpoint(tmp_path / "weights.pt")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        load_checkpoint(tmp_path / "none.ckpt")


class _Touch:
    """An object whose unpickling would make a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


def _forged(state: Any, version: int = 1) -> bytes:
    """A file with a matching digest, as somebody with this source could write it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    header: dict[str, Any] = {
        "format": "pyro_flows_vi checkpoint",
        "version": version,
        "kind": "vae",
        "settings": {},
        "bytes": len(payload),
    }
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode() + payload).hexdigest()
    return json.dumps({**header, "sha256": digest}).encode() + b"\n" + payload


def test_no_code_is_executed(tmp_path: Path) -> None:
    file, proof = tmp_path / "evil.ckpt", tmp_path / "executed"
    file.write_bytes(_forged({"a": _Touch(proof)}))
    with pytest.raises(ValueError, match=r"evil\.ckpt: expected tensors and plain containers"):
        load_checkpoint(file)
    assert not proof.exists()


def test_the_forgery_would_load_if_it_were_plain(tmp_path: Path) -> None:
    file = tmp_path / "plain.ckpt"
    file.write_bytes(_forged({"a": 1}))
    assert load_checkpoint(file)[1] == {"a": 1}


def test_another_version(tmp_path: Path) -> None:
    file = tmp_path / "future.ckpt"
    file.write_bytes(_forged({"a": 1}, version=99))
    with pytest.raises(ValueError, match="expected checkpoint version 1, got 99"):
        load_checkpoint(file)


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(source: object, target: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_folder_is_made(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "c.txt", b"text")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == b"text"
