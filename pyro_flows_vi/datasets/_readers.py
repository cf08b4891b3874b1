"""Readers of the files that image data come in: each gives back the whole array, or says what is wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Published", "read_amat", "read_idx", "read_npy"]

Bytes = NDArray[np.uint8]

_GZIP = b"\x1f\x8b"
_IDX_TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
_AGAIN = "download or copy it again"
_OTHER_DATA = "pass verify=False if other data are meant"


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


class Published(NamedTuple):
    """What a published file holds: the shape of its array and the SHA-256 of its uncompressed content."""

    shape: tuple[int, ...]
    sha256: str


def _check_published(path: Path, content: bytes, shape: tuple[int, ...], published: Published | None) -> None:
    if published is None:
        return
    if shape != published.shape:
        raise ValueError(
            f"{path}: expected the published data, {_by(published.shape)}, got {_by(shape)}; {_OTHER_DATA}"
        )
    got = hashlib.sha256(content).hexdigest()
    if got != published.sha256:
        raise ValueError(
            f"{path}: the content is not that of the published file: expected SHA-256 {published.sha256}, "
            f"got {got}; {_AGAIN}, or {_OTHER_DATA}"
        )


def read_idx(path: Path, ndim: int, published: Published | None = None) -> Bytes:
    """An IDX file of unsigned bytes, plain or gzip-compressed (told by content, not by name).

    The format: two zero bytes, the type (8), the number of dimensions, each dimension as a big-endian 32-bit
    number, then the bytes, last dimension fastest, and nothing after them.

    Args:
        path: the file.
        ndim: how many dimensions it has to have: 3 for images, 1 for labels.
        published: what the file has to hold; ``None`` to take any content.

    Returns:
        A read-only array.

    Raises:
        ValueError: for a damaged gzip stream, a foreign, truncated or overlong file, another type or number
            of dimensions, a dimension of zero, or content other than ``published``; it names the file.
    """
    content = _content(path)
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: the gzip stream is damaged or cut off ({error}); {_AGAIN}") from error

    magic = content[:4]
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES or magic[3] == 0:
        raise ValueError(
            f"{path}: not an IDX file: expected it to start with {_hex(bytes([0, 0, 8, ndim]))}, "
            f"got {_hex(magic) or 'an empty file'}; {_AGAIN}, from another place"
        )
    if magic[2] != 0x08:
        raise ValueError(f"{path}: expected IDX data of uint8, got {_IDX_TYPES[magic[2]]}; wrong file?")
    if magic[3] != ndim:
        kinds = {1: ", as label files have", 3: ", as image files have"}
        raise ValueError(
            f"{path}: expected an IDX file with {ndim} dimensions{kinds.get(ndim, '')}, "
            f"got {magic[3]}{kinds.get(magic[3], '')}; wrong file?"
        )

    start = 4 + 4 * ndim
    if len(content) < start:
        raise ValueError(f"{path}: its header is cut off: expected {start} bytes, got {len(content)}; {_AGAIN}")
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], dtype=">u4"))
    if 0 in shape:
        raise ValueError(f"{path}: expected dimensions above zero, got {_by(shape)}; {_AGAIN}")
    expected, got = math.prod(shape), len(content) - start
    if got != expected:
        problem = "cut off" if got < expected else "followed by trailing bytes"
        raise ValueError(
            f"{path}: the data are {problem}: expected {_by(shape)} = {expected} bytes after the header, "
            f"got {got}; {_AGAIN}"
        )
    _check_published(path, content, shape, published)
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def read_npy(path: Path, published: Published | None = None) -> Bytes:
    """Images ``(n, height, width)`` of unsigned bytes from a NumPy file; pickled objects are not loaded.

    Raises:
        ValueError: for a damaged or foreign file, another dtype or number of dimensions, an empty array, or
            content other than ``published`` (the whole file is hashed); it names the file.
    """
    content = _content(path)
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # damaged bytes make NumPy's reader raise almost anything
        raise ValueError(f"{path}: not a NumPy array file, or a damaged one ({error}); {_AGAIN}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: expected one NumPy array, got an archive of several; wrong file?")
    if array.dtype != np.uint8 or array.ndim != 3 or 0 in array.shape:
        raise ValueError(
            f"{path}: expected a uint8 array of shape (images, height, width), "
            f"got {array.dtype} of shape {array.shape}; wrong file?"
        )
    _check_published(path, content, array.shape, published)
    return array


def read_amat(path: Path, dim: int, num_lines: int | None = None) -> Bytes:
    """Rows of ``dim`` zeros and ones, one row a line, separated by spaces: the ``.amat`` text format.

    About a microsecond a line; holds one byte a number, and writes nothing beside the file.

    Args:
        path: the file.
        dim: numbers per line.
        num_lines: how many lines it has to have; ``None`` for any number but zero.

    Returns:
        An array ``(lines, dim)``.

    Raises:
        ValueError: for a line of another length, a value that is neither 0 nor 1, or another number of
            lines; it names the file and the line.
    """
    gaps = b" " * (dim - 1)
    rows: list[bytes] = []
    blank = 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                text = line.rstrip()
                if not text:
                    blank = blank or number  # harmless where only blank lines follow
                    continue
                if blank:
                    raise ValueError(f"{path}, line {blank}: expected {dim} numbers, got none; {_AGAIN}")
                # Almost every line is digits at even places and spaces at odd ones, which slices can check.
                row = text[::2]
                if len(text) != 2 * dim - 1 or text[1::2] != gaps or row.translate(None, b"01"):
                    row = _amat_row(path, number, text.split(), dim)
                rows.append(row)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if not rows:
        raise ValueError(f"{path}: expected lines of {dim} numbers, got an empty file; {_AGAIN}")
    if num_lines is not None and len(rows) != num_lines:
        raise ValueError(f"{path}: expected {num_lines} lines, got {len(rows)}; {_AGAIN}, or {_OTHER_DATA}")
    digits = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, dim)
    return digits - np.uint8(ord("0"))


def _amat_row(path: Path, number: int, words: list[bytes], dim: int) -> bytes:
    """The digits of a line with unusual spacing, or an error that says what is wrong with it."""
    if len(words) != dim:
        raise ValueError(f"{path}, line {number}: expected {dim} numbers, got {len(words)}; {_AGAIN}")
    for column, word in enumerate(words, 1):
        if word not in (b"0", b"1"):
            shown = word[:20].decode("ascii", "backslashreplace")
            raise ValueError(
                f"{path}, line {number}, number {column}: expected 0 or 1, got {shown!r}; "
                "this reader takes binarised images only"
            )
    return b"".join(words)


def _hex(content: bytes) -> str:
    return content.hex(" ")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)
