"""Data sets: files of the true formats, whole and damaged, the splits, and what is drawn from where."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import json
import math
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_flows_vi import datasets
from pyro_flows_vi.datasets import Dataset, catalogue
from pyro_flows_vi.datasets._readers import Published, read_amat, read_idx, read_npy

TRAIN, TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
IMAGES = np.random.RandomState(0).randint(0, 256, (30, 4, 3), dtype=np.uint8)
AMAT = {"train": 5, "valid": 3, "test": 2}


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def write_mnist(folder: Path, train: np.ndarray = IMAGES, test: np.ndarray = IMAGES[:7], zipped: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in ((TRAIN, train), (TEST, test)):
        content = idx_bytes(array)
        (folder / f"{name}.gz").write_bytes(gzip.compress(content)) if zipped else (folder / name).write_bytes(content)
    return folder


def amat_rows(lines: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 2, (lines, 784)).astype(np.uint8)


def amat_text(rows: np.ndarray, end: str = " \n") -> str:
    return "".join(" ".join(map(str, row)) + end for row in rows)


def write_amat(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (part, lines) in enumerate(AMAT.items()):
        (folder / f"binarized_mnist_{part}.amat").write_text(amat_text(amat_rows(lines, seed)))
    return folder


@pytest.fixture(autouse=True)
def no_data_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYRO_FLOWS_VI_DATA", raising=False)


@pytest.fixture
def grey(tmp_path: Path) -> Dataset:
    """A small MNIST: 25 rows to train on, 5 for validation, 7 to test."""
    return datasets.load("mnist", write_mnist(tmp_path / "grey"), verify=False)


# IDX files


@pytest.mark.parametrize("array", [IMAGES, IMAGES[0, 0], IMAGES[:1, :1, :1]], ids=["images", "labels", "one pixel"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gz"])
def test_idx_round_trip(tmp_path: Path, array: np.ndarray, compress: Any) -> None:
    path = tmp_path / "misleading.name"
    path.write_bytes(compress(idx_bytes(array)))
    assert np.array_equal(read_idx(path, array.ndim), array)


GOOD = idx_bytes(IMAGES)
ZIPPED = gzip.compress(GOOD)
DAMAGED = {
    "empty": (b"", "expected it to start with 00 00 08 03, got an empty file"),
    "short magic": (GOOD[:3], "expected it to start with 00 00 08 03, got 00 00 08"),
    "foreign magic": (b"\x89PNG" + GOOD, "expected it to start with 00 00 08 03, got 89 50 4e 47"),
    "no dimensions": (b"\0\0\x08\0" + GOOD, "expected it to start with 00 00 08 03, got 00 00 08 00"),
    "another type": (b"\0\0\x0d\x03" + GOOD[4:], "expected IDX data of uint8, got float32"),
    "labels": (idx_bytes(IMAGES[0, 0]), "with 3 dimensions, as image files have, got 1, as label files have"),
    "short header": (GOOD[:13], "header is cut off: expected 16 bytes, got 13"),
    "no images": (idx_bytes(IMAGES[:0]), "expected dimensions above zero, got 0 x 4 x 3"),
    "cut off": (GOOD[:-1], "cut off: expected 30 x 4 x 3 = 360 bytes after the header, got 359"),
    "absurd header": (
        GOOD[:4] + b"\xff" * 12 + GOOD[16:],
        "cut off: expected 4294967295 x 4294967295 x 4294967295",
    ),
    "trailing": (GOOD + b"\n", "trailing bytes: expected 30 x 4 x 3 = 360 bytes after the header, got 361"),
    "gzip cut off": (ZIPPED[:-20], "gzip stream is damaged or cut off"),
    "gzip header only": (ZIPPED[:5], "gzip stream is damaged or cut off"),
    "gzip checksum": (ZIPPED[:-8] + b"\0" * 8, "gzip stream is damaged or cut off"),
    "gzip body": (ZIPPED[:20] + b"\xff" * 9 + ZIPPED[29:], "gzip stream is damaged or cut off"),
    "gzip trailing": (ZIPPED + b"!", "gzip stream is damaged or cut off"),
    "gzip of a cut file": (gzip.compress(GOOD[:-1]), "got 359"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_idx_is_named(tmp_path: Path, case: str) -> None:
    content, message = DAMAGED[case]
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="images: ") as error:
        read_idx(path, 3)
    assert message in str(error.value) and str(path) in str(error.value)


def test_unreadable_idx_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone: cannot be read: No such file"):
        read_idx(tmp_path / "gone", 3)


def test_published_content_is_compared(tmp_path: Path) -> None:
    published = Published(IMAGES.shape, hashlib.sha256(GOOD).hexdigest())
    path = tmp_path / "images"
    for content in (GOOD, ZIPPED, gzip.compress(GOOD, compresslevel=1)):
        path.write_bytes(content)
        assert np.array_equal(read_idx(path, 3, published), IMAGES)
    path.write_bytes(idx_bytes(IMAGES[:29]))
    with pytest.raises(ValueError, match=r"expected the published data, 30 x 4 x 3, got 29 x 4 x 3; pass verify=False"):
        read_idx(path, 3, published)
    path.write_bytes(GOOD[:-1] + bytes([GOOD[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"expected SHA-256 {published.sha256}, got [0-9a-f]{{64}}; download or copy"):
        read_idx(path, 3, published)


@given(st.data())
def test_corrupted_idx_is_never_misread(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever is done to a file, the array that comes back spells the file's bytes, or there is an error."""
    shape = data.draw(st.tuples(*[st.integers(1, 4)] * 3), "shape")
    pixels = data.draw(st.binary(min_size=math.prod(shape), max_size=math.prod(shape)), "pixels")
    whole = idx_bytes(np.frombuffer(pixels, np.uint8).reshape(shape))
    zipped = data.draw(st.booleans(), "gzip")
    content = bytearray(gzip.compress(whole, mtime=0) if zipped else whole)
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
    ):
        content[place] = value
    content = content[: data.draw(st.integers(0, len(content)), "length")] + data.draw(st.binary(max_size=3), "tail")

    path = tmp_path_factory.mktemp("idx") / "images"
    path.write_bytes(content)
    try:
        array = read_idx(path, 3)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        plain = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else bytes(content)
        assert array.ndim == 3 and array.dtype == np.uint8 and idx_bytes(array) == plain


# the other formats


@pytest.mark.parametrize("end", ["\n", " \n", "\r\n", " \r\n"])
def test_amat_round_trip(tmp_path: Path, end: str) -> None:
    rows, path = amat_rows(4), tmp_path / "a.amat"
    path.write_bytes(amat_text(rows, end).encode())
    assert np.array_equal(read_amat(path, 784, 4), rows)
    path.write_bytes(amat_text(rows, end).encode().rstrip() + b"\n\n")
    assert np.array_equal(read_amat(path, 784), rows)


@given(st.lists(st.sampled_from([" ", "  ", "\t"]), min_size=5, max_size=5), st.sampled_from(["", " ", "\t"]))
def test_amat_spacing_does_not_matter(tmp_path_factory: pytest.TempPathFactory, gaps: list[str], lead: str) -> None:
    path = tmp_path_factory.mktemp("amat") / "a.amat"
    path.write_text(lead + "".join(f"{bit}{gap}" for bit, gap in zip("01101", gaps, strict=True)) + "\n0 0 0 0 1\n")
    assert read_amat(path, 5).tolist() == [[0, 1, 1, 0, 1], [0, 0, 0, 0, 1]]


AMAT_DAMAGE = {
    "short line": ("0 1 1\n0 1\n1 1 1\n", "a.amat, line 2: expected 3 numbers, got 2"),
    "long line": ("0 1 1 1\n", "a.amat, line 1: expected 3 numbers, got 4"),
    "cut off": ("0 1 1\n0 1 1\n0 ", "a.amat, line 3: expected 3 numbers, got 1"),
    "grey": ("0 1 1\n0 7 1\n0 1 1\n", "a.amat, line 2, number 2: expected 0 or 1, got '7'"),
    "glued": ("0 1 1\n0 1 1\n0 01 1\n", "a.amat, line 3, number 2: expected 0 or 1, got '01'"),
    "fraction": ("0.5 1 1\n", "a.amat, line 1, number 1: expected 0 or 1, got '0.5'"),
    "commas": ("0,1,1\n", "a.amat, line 1: expected 3 numbers, got 1"),
    "not text": ("\x00\u00ff\n", "a.amat, line 1: expected 3 numbers, got 1"),
    "blank line": ("0 1 1\n\n\n0 1 1\n", "a.amat, line 2: expected 3 numbers, got none"),
    "missing lines": ("0 1 1\n0 1 1\n", "a.amat: expected 3 lines, got 2"),
    "too many lines": ("0 1 1\n" * 4, "a.amat: expected 3 lines, got 4"),
    "empty": ("", "a.amat: expected lines of 3 numbers, got an empty file"),
}


@pytest.mark.parametrize("case", AMAT_DAMAGE)
def test_damaged_amat_is_named(tmp_path: Path, case: str) -> None:
    text, message = AMAT_DAMAGE[case]
    path = tmp_path / "a.amat"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        read_amat(path, 3, 3)
    assert message in str(error.value)


def test_npy_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "faces.npy"
    cases: list[tuple[Any, str]] = [
        (
            np.zeros((2, 3)),
            "expected a uint8 array of shape .images, height, width., got float64 of shape .2, 3.",
        ),
        (np.zeros((0, 3, 3), np.uint8), "expected a uint8 array .* got uint8 of shape .0, 3, 3."),
        (
            np.array([[["pickled"]]], dtype=object),
            "not a NumPy array file, or a damaged one .*allow_pickle=False",
        ),
    ]
    for array, message in cases:
        np.save(path, array, allow_pickle=True)
        with pytest.raises(ValueError, match=f"faces.npy: {message}"):
            read_npy(path)
    np.save(path, IMAGES)
    whole = path.read_bytes()
    assert np.array_equal(read_npy(path), IMAGES)
    absurd = whole.replace(b"(30, 4, 3), }         ", b"(9999999, 9999, 99), }")
    for content in (b"", whole[:-1], whole[:20], b"garbage", whole.replace(b"'descr'", b"'dexcr'"), absurd):
        assert content != whole
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"faces\.npy: "):
            read_npy(path)
    with path.open("wb") as archive:
        np.savez(archive, a=IMAGES)
    with pytest.raises(ValueError, match=r"faces.npy: expected one NumPy array, got an archive"):
        read_npy(path)


# finding files


@pytest.mark.parametrize("below", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("zipped", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("by_variable", [True, False], ids=["variable", "argument"])
def test_mnist_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str, zipped: bool, by_variable: bool
) -> None:
    write_mnist(tmp_path / below, zipped=zipped)
    if by_variable:
        monkeypatch.setenv("PYRO_FLOWS_VI_DATA", str(tmp_path))
    data = datasets.load("mnist", None if by_variable else tmp_path, verify=False, values="levels")
    assert data.image_shape == (4, 3)
    parts = (data.train, data.validation, data.test)
    assert [len(part) for part in parts] == [25, 5, 7]
    for part, images in zip(parts, (IMAGES[:25], IMAGES[25:], IMAGES[:7]), strict=True):
        assert np.array_equal(part.numpy(), images.reshape(-1, 12))


def test_the_argument_goes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "variable", IMAGES[:12])
    write_mnist(tmp_path / "argument", IMAGES)
    monkeypatch.setenv("PYRO_FLOWS_VI_DATA", str(tmp_path / "variable"))
    assert len(datasets.load("mnist", tmp_path / "argument", verify=False).train) == 25
    assert len(datasets.load("mnist", verify=False).train) == 10


def test_missing_files_say_where_was_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path)
    (tmp_path / f"{TEST}.gz").unlink()
    with pytest.raises(ValueError) as error:
        datasets.load("mnist", tmp_path)
    message = str(error.value)
    assert f"missing {TEST} or {TEST}.gz;" in message and TRAIN not in message
    for expected in (tmp_path, tmp_path / "mnist", tmp_path / "MNIST/raw", "data_dir", "PYRO_FLOWS_VI_DATA"):
        assert str(expected) in message
    assert "not a directory" not in message

    monkeypatch.setenv("PYRO_FLOWS_VI_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"freyfaces: missing freyfaces.npy; .*nowhere is not a directory.*variable"):
        datasets.load("freyfaces")
    monkeypatch.setenv("PYRO_FLOWS_VI_DATA", "")
    for name, file in (("freyfaces", "freyfaces.npy"), ("static_mnist", "binarized_mnist_valid.amat")):
        with pytest.raises(
            ValueError, match=f"{name}: expected a directory with .*{file}.* not downloaded; pass data_dir"
        ):
            datasets.load(name)


def test_other_data_pass_only_unverified(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    np.save(tmp_path / "freyfaces.npy", IMAGES)
    write_amat(tmp_path)
    for name, message in (
        ("mnist", f"{TRAIN}.gz: expected the published data, 60000 x 28 x 28, got 30 x 4 x 3"),
        ("freyfaces", "freyfaces.npy: expected the published data, 1965 x 28 x 20, got 30 x 4 x 3"),
        ("static_mnist", "binarized_mnist_train.amat: expected 50000 lines, got 5"),
    ):
        with pytest.raises(ValueError, match=rf"{message}; (.*, or )?pass verify=False"):
            datasets.load(name, tmp_path)
        assert datasets.load(name, tmp_path, verify=False).name == name


def test_mnist_parts_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images of one size, got \(4, 3\) and \(3, 4\)"):
        datasets.load("mnist", write_mnist(tmp_path / "a", test=IMAGES.reshape(-1, 3, 4)), verify=False)
    with pytest.raises(ValueError, match="at least 3 images to split, got 2"):
        datasets.load("mnist", write_mnist(tmp_path / "b", train=IMAGES[:2]), verify=False)


# downloads


@pytest.fixture
def small_mnist_is_published(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Make the small files the published ones; gives what a mirror would serve."""
    contents = {TRAIN: idx_bytes(IMAGES), TEST: idx_bytes(IMAGES[:7])}
    published = {
        TRAIN: Published(IMAGES.shape, hashlib.sha256(contents[TRAIN]).hexdigest()),
        TEST: Published((7, 4, 3), hashlib.sha256(contents[TEST]).hexdigest()),
    }
    monkeypatch.setattr(catalogue, "_MNIST_FILES", published)
    return {f"{name}.gz": gzip.compress(content) for name, content in contents.items()}


class Mirrors:
    """Stands in for ``pooch.retrieve``: serves a table of URLs into the cache, and keeps what is there."""

    def __init__(self, served: dict[str, bytes]) -> None:
        self.served, self.asked = served, list[str]()

    def __call__(self, url: str, known_hash: str | None, *, fname: str, path: Path, progressbar: Any) -> str:
        target = Path(path) / fname
        if not target.exists():
            self.asked.append(url)
            if url not in self.served:
                raise OSError("no route to host")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.served[url])
        return str(target)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    return tmp_path / "cache" / "pyro-flows-vi"


FIRST, SECOND = catalogue._MNIST_MIRRORS


def test_download_once(
    cache: Path, small_mnist_is_published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrors = Mirrors({FIRST + name: content for name, content in small_mnist_is_published.items()})
    monkeypatch.setattr("pooch.retrieve", mirrors)
    first, second = datasets.load("mnist"), datasets.load("mnist")
    assert mirrors.asked == [f"{FIRST}{TRAIN}.gz", f"{FIRST}{TEST}.gz"]
    assert sorted(path.name for path in cache.iterdir()) == sorted(small_mnist_is_published)
    assert first.describe() == second.describe() and len(first.train) == 25


@pytest.mark.parametrize("damage", ["unreachable", "cut off", "other data"])
def test_download_tries_the_next_mirror(
    cache: Path, small_mnist_is_published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    good = small_mnist_is_published
    bad = {
        "unreachable": {},
        "cut off": {name: content[:-9] for name, content in good.items()},
        "other data": {name: gzip.compress(idx_bytes(IMAGES[::-1])) for name in good},
    }[damage]
    served = {FIRST + name: content for name, content in bad.items()}
    mirrors = Mirrors(served | {SECOND + name: content for name, content in good.items()})
    monkeypatch.setattr("pooch.retrieve", mirrors)
    data = datasets.load("mnist", values="levels")
    assert mirrors.asked == [f"{mirror}{name}.gz" for name in (TRAIN, TEST) for mirror in (FIRST, SECOND)]
    assert np.array_equal(data.train.numpy(), IMAGES[:25].reshape(-1, 12))


def test_failed_download_leaves_nothing_behind(
    cache: Path, small_mnist_is_published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrors = Mirrors({f"{SECOND}{TRAIN}.gz": b"<html>moved</html>"})
    monkeypatch.setattr("pooch.retrieve", mirrors)
    with pytest.raises(ValueError) as error:
        datasets.load("mnist", verify=False)
    message = str(error.value)
    assert f"{FIRST}{TRAIN}.gz: no route to host" in message
    assert f"{SECOND}{TRAIN}.gz: " in message and "got 3c 68 74 6d" in message
    assert "data_dir" in message and "PYRO_FLOWS_VI_DATA" in message and str(cache) in message
    assert list(cache.iterdir()) == []


@pytest.fixture
def served_folder(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL under which a server on this machine gives out its files."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_download_over_http(
    cache: Path,
    served_folder: tuple[Path, str],
    small_mnist_is_published: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The real pooch: a 404 from the first mirror, then the files, a bar, and no advice to pin a hash."""
    folder, url = served_folder
    for name, content in small_mnist_is_published.items():
        (folder / name).write_bytes(content)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr(catalogue, "_MNIST_MIRRORS", (f"{url}gone/", url))
    logger = pooch.get_logger()  # which hands nothing on to the root logger
    level = logger.level
    logger.addHandler(caplog.handler)
    try:
        data = datasets.load("mnist", values="levels")
    finally:
        logger.removeHandler(caplog.handler)
    assert np.array_equal(data.train.numpy(), IMAGES[:25].reshape(-1, 12))
    assert sorted(path.name for path in cache.iterdir()) == sorted(small_mnist_is_published)
    printed = capfd.readouterr()
    assert f"{TRAIN}.gz: 100%" in printed.err
    assert "known_hash" not in printed.err + printed.out + caplog.text and logger.level == level
    datasets.load("mnist")
    assert capfd.readouterr().err == ""


# randomness


def test_redraws_average_to_the_grey_level(grey: Dataset) -> None:
    source, redraws = generator(1), 2000
    total = sum(grey.train_epoch(source).double() for _ in range(redraws))
    p = grey.train.double() / 255
    standard_error = (p * (1 - p) / redraws).sqrt()
    z = (total / redraws - p) / standard_error.clamp(min=1e-12)
    assert z.abs().max() < 4.5  # 300 pixels: exceeded once in 500 seeds
    assert 0.8 < z[standard_error > 0].std() < 1.2


@pytest.mark.parametrize("white", [16, 255])
@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24], ids=["smallest", "largest"])
def test_black_and_white_are_certain(monkeypatch: pytest.MonkeyPatch, white: int, uniform: float) -> None:
    """Even for the outermost numbers that ``torch.rand`` gives, which no sample of draws would meet."""
    ends = torch.tensor([[0, white]], dtype=torch.uint8)
    data = Dataset("ends", ends, torch.zeros(1, 2), torch.zeros(1, 2), (1, 2), white=white)
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.full(shape, uniform))
    assert data.train_epoch(generator()).tolist() == [[0.0, 1.0]]


def test_epochs_differ_and_follow_the_generator_alone(grey: Dataset) -> None:
    source = generator(3)
    first, state, second = grey.train_epoch(source), source.get_state(), grey.train_epoch(source)
    assert not torch.equal(first, second)
    torch.manual_seed(99)
    assert torch.equal(grey.train_epoch(generator(3)), first)
    source.set_state(state)
    assert torch.equal(grey.train_epoch(source), second)


def test_no_global_randomness_is_used(grey: Dataset, tmp_path: Path) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    np.save(tmp_path / "freyfaces.npy", IMAGES)
    datasets.load("freyfaces", tmp_path, verify=False)
    datasets.load("digits")
    list(grey.batches(4, generator()))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert str(np.random.get_state()) == str(numpy_state)


@pytest.mark.parametrize("values", ["binary", "unit", "levels"])
def test_an_interrupted_run_resumes_bit_by_bit(values: Any) -> None:
    data = datasets.load("digits", values=values)
    source = generator(5)
    epochs, states = [], []
    for _ in range(3):
        states.append(source.get_state())
        epochs.append(torch.cat(list(data.batches(100, source))))
    resumed = torch.Generator()
    resumed.set_state(states[1])
    again = [torch.cat(list(datasets.load("digits", values=values).batches(100, resumed))) for _ in range(2)]
    assert torch.equal(again[0], epochs[1]) and torch.equal(again[1], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("batch_size", [1, 7, 25, 100])
def test_batches_are_the_training_set_shuffled(grey: Dataset, tmp_path: Path, batch_size: int) -> None:
    data = datasets.load("mnist", write_mnist(tmp_path), values="levels", verify=False)
    batches = list(data.batches(batch_size, generator(2)))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (math.ceil(25 / batch_size) - 1)
    rows = torch.cat(batches)
    assert rows.dtype == torch.float32
    assert sorted(rows.tolist()) == sorted(data.train.float().tolist()) and rows.tolist() != data.train.float().tolist()
    for batch in grey.batches(batch_size, generator()):
        assert batch.dtype == torch.float32 and batch.shape[1:] == (12,) and ((batch == 0) | (batch == 1)).all()


def test_batches_are_binarised_with_their_own_grey_levels() -> None:
    """Rows that are all black or all white show that a batch is drawn from the rows that it holds."""
    train = (torch.arange(20) % 2 * 255).to(torch.uint8).unsqueeze(-1).expand(20, 3).contiguous()
    data = Dataset("stripes", train, torch.zeros(1, 3), torch.zeros(1, 3), (1, 3))
    rows = torch.cat(list(data.batches(3, generator())))
    assert (rows == rows[:, :1]).all() and rows.sum() == 30


def test_held_out_rows_are_fixed(grey: Dataset, tmp_path: Path) -> None:
    validation, test = grey.validation.clone(), grey.test.clone()
    list(grey.batches(4, generator(8)))
    torch.manual_seed(1)
    np.random.seed(1)
    again = datasets.load("mnist", tmp_path / "grey", verify=False)
    assert torch.equal(again.validation, validation) and torch.equal(again.test, test)
    assert not torch.equal(test, torch.from_numpy(IMAGES[:7] > 127).flatten(1).float())
    other = datasets.load("mnist", tmp_path / "grey", verify=False, seed=1)
    assert not torch.equal(other.test, test) and torch.equal(other.train, grey.train)
    assert grey.binarisation_seed == datasets.BINARISATION_SEED == 2016 and other.binarisation_seed == 1


def test_held_out_draws_average_to_the_grey_level(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    draws = torch.stack([datasets.load("mnist", folder, verify=False, seed=seed).test for seed in range(400)]).double()
    p = torch.from_numpy(IMAGES[:7]).flatten(1).double() / 255
    z = (draws.mean(0) - p) / (p * (1 - p) / 400).sqrt().clamp(min=1e-12)
    assert z.abs().max() < 4.5
    first = draws.flatten(1)
    neighbours = (first[:, 1:] - p.flatten()[1:]) * (first[:, :-1] - p.flatten()[:-1])
    assert neighbours.mean().abs() < 4 * neighbours.std() / math.sqrt(neighbours.numel())


def test_binarise(grey: Dataset) -> None:
    rows = grey.train[:4].reshape(2, 2, 12)
    drawn = grey.binarise(rows, generator())
    assert drawn.shape == rows.shape and torch.equal(drawn, grey.binarise(rows, generator()))
    digits = datasets.load("digits")
    for x, data in (
        (rows.float(), grey),
        (rows[..., :5], grey),
        (torch.full((1, 64), 17, dtype=torch.uint8), digits),
    ):
        with pytest.raises(ValueError, match=r"expected uint8 levels from 0 to \d+ of shape"):
            data.binarise(x, generator())


# the data sets


@pytest.mark.parametrize(("values", "levels", "largest"), [("binary", 2, 1), ("unit", 256, 1), ("levels", 256, 255)])
def test_values(tmp_path: Path, values: Any, levels: int, largest: int) -> None:
    data = datasets.load("mnist", write_mnist(tmp_path), values=values, verify=False)
    assert data.levels == levels and data.binarisation == ("dynamic" if levels == 2 else None)
    assert data.train.dtype == torch.uint8
    for rows in (next(data.batches(25, generator())), data.validation, data.test):
        assert rows.dtype == torch.float32 and rows.min() >= 0 and largest / 2 < rows.max() <= largest
    if values != "binary":
        scale = 1 if values == "levels" else 255
        assert torch.equal((data.test * scale).round().to(torch.uint8), torch.from_numpy(IMAGES[:7]).flatten(1))
        assert data.binarisation_seed is None


@pytest.mark.parametrize("below", ["", "static_mnist", "mnist"])
def test_static_mnist(tmp_path: Path, below: str) -> None:
    write_amat(tmp_path / below)
    before = sorted(tmp_path.rglob("*"))
    data = datasets.load("static_mnist", tmp_path, verify=False)
    assert (data.binarisation, data.levels, data.binarisation_seed, data.split_seed) == (
        "static",
        2,
        None,
        None,
    )
    assert data.image_shape == (28, 28) and data.dim == 784
    for seed, (rows, lines) in enumerate(zip((data.train, data.validation, data.test), AMAT.values(), strict=True)):
        assert np.array_equal(rows.numpy(), amat_rows(lines, seed))
    source = generator()
    before_epoch = source.get_state()
    assert torch.equal(data.train_epoch(source), data.train.float())
    assert torch.equal(source.get_state(), before_epoch)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="stored binary: expected values 'binary', got 'unit'"):
        datasets.load("static_mnist", tmp_path, verify=False, values="unit")


def test_freyfaces_split(tmp_path: Path) -> None:
    """The split of the published code, which seeds NumPy, shuffles the rows in place and cuts them."""
    faces = np.random.RandomState(1).randint(0, 256, (1965, 2, 2)).astype(np.uint8)
    (tmp_path / "freyfaces").mkdir()
    np.save(tmp_path / "freyfaces" / "freyfaces.npy", faces)
    for split_seed in (123, 321):
        shuffled = faces.reshape(1965, 4) / 255.0
        np.random.seed(split_seed)
        np.random.shuffle(shuffled)
        data = datasets.load("freyfaces", tmp_path, verify=False, split_seed=split_seed)
        assert np.allclose(data.train.numpy() / 255.0, shuffled[:1565])
        assert np.allclose(data.validation.numpy(), shuffled[1565:1765])
        assert np.allclose(data.test.numpy(), shuffled[1765:])
        assert (data.levels, data.binarisation, data.split_seed) == (256, None, split_seed)


def test_digits() -> None:
    from sklearn.datasets import load_digits

    data = datasets.load("digits", values="levels")
    assert (len(data.train), len(data.validation), len(data.test)) == (1297, 250, 250)
    assert data.image_shape == (8, 8) and data.levels == 17 and data.white == 16
    rows = torch.cat([data.train.float(), data.validation, data.test]).tolist()
    assert sorted(rows) == sorted(load_digits().data.tolist())
    binary = datasets.load("digits")
    assert binary.binarisation == "dynamic" and binary.levels == 2 and binary.split_seed == datasets.SPLIT_SEED
    assert torch.equal(binary.train, data.train) and not torch.equal(binary.test, data.test)
    assert not torch.equal(datasets.load("digits", split_seed=1).train, data.train)


def test_description_is_json_and_tells_data_apart(grey: Dataset, tmp_path: Path) -> None:
    record = grey.describe()
    assert json.loads(json.dumps(record)) == record
    assert record | {"sha256": ""} == {
        "name": "mnist",
        "train": 25,
        "validation": 5,
        "test": 7,
        "dim": 12,
        "image_shape": [4, 3],
        "values": "binary",
        "levels": 2,
        "binarisation": "dynamic",
        "binarisation_seed": 2016,
        "split_seed": None,
        "sha256": "",
    }
    changed = IMAGES.copy()
    changed[3, 0, 0] ^= 1
    others = [
        datasets.load("mnist", tmp_path / "grey", verify=False, seed=1),
        datasets.load("mnist", tmp_path / "grey", verify=False, values="unit"),
        datasets.load("mnist", write_mnist(tmp_path / "changed", changed), verify=False),
    ]
    prints = [data.describe()["sha256"] for data in (grey, *others)]
    assert len(set(prints)) == 4 and all(len(text) == 16 for text in prints)
    assert record["sha256"] == datasets.load("mnist", tmp_path / "grey", verify=False).describe()["sha256"]


def test_dataset_is_frozen_and_short_to_print(grey: Dataset) -> None:
    with pytest.raises(AttributeError):
        grey.name = "other"  # type: ignore[misc]
    assert len(repr(grey)) < 200
    moved = grey.to("cpu")
    assert moved.describe() == grey.describe()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu(grey: Dataset) -> None:
    source = torch.Generator("cuda").manual_seed(0)
    with pytest.raises(ValueError, match="expected a generator on cpu"):
        grey.batches(4, source)
    moved = grey.to("cuda")
    assert moved.describe() == grey.describe()
    rows = torch.cat(list(moved.batches(4, source)))
    assert rows.is_cuda and ((rows == 0) | (rows == 1)).all()
    assert torch.equal(rows, torch.cat(list(moved.batches(4, torch.Generator("cuda").manual_seed(0)))))


# bad input


def test_names() -> None:
    assert datasets.names() == ("mnist", "static_mnist", "freyfaces", "digits")
    with pytest.raises(
        ValueError, match="unknown data set 'minst': expected one of mnist, static_mnist, freyfaces, digits"
    ):
        datasets.load("minst")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": "grey"}, "digits: expected values to be one of binary, unit, levels, got 'grey'"),
        ({"seed": -1}, "expected seed to be a whole number from 0 to .*, got -1"),
        ({"seed": 2**32}, "expected seed to be a whole number"),
        ({"split_seed": 1.5}, "expected split_seed to be a whole number from 0 to .*, got 1.5"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        datasets.load("digits", **options)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "100"])
def test_bad_batch_size_is_refused_at_the_call(grey: Dataset, batch_size: Any) -> None:
    with pytest.raises(ValueError, match="expected a batch_size of at least 1"):
        grey.batches(batch_size, generator())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": torch.zeros(2, 4)}, "expected train to be torch.uint8 of shape"),
        ({"train": torch.zeros(2, 5, dtype=torch.uint8)}, r"expected train .* \(n, 4\) .* got .* \(2, 5\)"),
        ({"train": torch.zeros(2, 2, 2, dtype=torch.uint8)}, r"flatten and convert the images first"),
        ({"validation": torch.zeros(0, 4)}, r"expected validation .* at least one row"),
        ({"test": torch.zeros(2, 4, dtype=torch.float64)}, "expected test to be torch.float32"),
        (
            {"test": torch.full((2, 4), 255.0)},
            "expected test to hold 'binary' values from 0 to 1, got values from 255",
        ),
        ({"validation": torch.full((2, 4), math.nan)}, "expected validation to hold 'binary' values"),
        ({"values": "grey"}, "expected values to be one of"),
        ({"white": 1}, "got levels up to 9 with white = 1"),
        ({"white": 256}, "a number from 1 to 255"),
    ],
)
def test_bad_datasets(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "name": "mine",
        "train": torch.full((3, 4), 9, dtype=torch.uint8),
        "validation": torch.zeros(2, 4),
        "test": torch.ones(2, 4),
        "image_shape": (2, 2),
    }
    assert Dataset(**good).dim == 4
    with pytest.raises(ValueError, match=f"mine: .*{message}"):
        Dataset(**good | change)


# the real files


def real_file(data_dir: Path, file: str) -> Path:
    """Where ``file`` is, plain or compressed; the test is skipped if it is not there."""
    places = (data_dir / below for below in ("", "mnist", "MNIST/raw", "freyfaces"))
    path = next((path for place in places for path in place.glob(f"{file}*")), None)
    return path or pytest.skip(f"{data_dir} has no {file}")


def real(name: str, data_dir: Path, file: str) -> Dataset:
    real_file(data_dir, file)
    return datasets.load(name, data_dir)


@pytest.fixture(scope="module")
def real_mnist(data_dir: Path) -> Dataset:
    return real("mnist", data_dir, TRAIN)


def test_real_mnist(real_mnist: Dataset, data_dir: Path) -> None:
    parts = (real_mnist.train, real_mnist.validation, real_mnist.test)
    assert [tuple(part.shape) for part in parts] == [(50_000, 784), (10_000, 784), (10_000, 784)]
    path = real_file(data_dir, TRAIN)
    content = path.read_bytes()
    whole = np.frombuffer(gzip.decompress(content) if path.suffix == ".gz" else content, np.uint8)[16:]
    assert np.array_equal(real_mnist.train.numpy().ravel(), whole[: 50_000 * 784])
    grey = torch.from_numpy(whole[50_000 * 784 :].reshape(10_000, 784) / 255.0)
    difference = real_mnist.validation.double() - grey
    standard_error = (grey * (1 - grey)).sum().sqrt()
    assert difference.sum().abs() < 4 * standard_error  # a threshold at one half would be hundreds away
    assert real_mnist.validation[grey == 0].max() == 0 and real_mnist.validation[grey == 1].min() == 1


def test_real_mnist_batches(real_mnist: Dataset) -> None:
    batch = next(real_mnist.batches(1000, generator()))
    assert batch.shape == (1000, 784) and batch.unique().tolist() == [0.0, 1.0]
    assert abs(float(batch.mean()) - float(real_mnist.train.float().mean() / 255)) < 0.01


def test_real_freyfaces(data_dir: Path) -> None:
    data = real("freyfaces", data_dir, "freyfaces.npy")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1565, 200, 200]
    assert data.image_shape == (28, 20) and data.levels == 256 and data.test.max() <= 1
    whole = np.load(real_file(data_dir, "freyfaces.npy")).reshape(1965, 560)
    levels = torch.cat([data.train.float(), *((part * 255).round() for part in (data.validation, data.test))])
    assert sorted(levels.tolist()) == sorted(whole.astype(float).tolist())
    assert datasets.load("freyfaces", data_dir, split_seed=321).sha256() != data.sha256()
