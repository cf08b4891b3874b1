"""Where files are: in a directory that the user names, or downloaded into the user's cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

__all__ = ["DATA_VARIABLE", "download", "find"]

T = TypeVar("T")

#: the environment variable that names the data directory
DATA_VARIABLE = "PYRO_FLOWS_VI_DATA"

_CACHE = "pyro-flows-vi"


def find(
    dataset: str,
    files: Sequence[Sequence[str]],
    folders: Sequence[str],
    data_dir: str | os.PathLike[str] | None,
    elsewhere: str = "",
) -> list[Path] | None:
    """The paths of ``files`` in the user's data directory, or ``None`` if the user has not named one.

    Args:
        dataset: its name, for the message.
        files: for each file the names that it may have.
        folders: where in the data directory to look, in this order.
        data_dir: the data directory; ``None`` for that of the environment variable ``PYRO_FLOWS_VI_DATA``.
        elsewhere: one more way to get the files, for the message.

    Raises:
        ValueError: where a directory is named and a file is in none of its ``folders``; it lists both.
    """
    if data_dir is None:
        named, root = f"the environment variable {DATA_VARIABLE}", os.environ.get(DATA_VARIABLE, "")
        if not root:
            return None
    else:
        named, root = "data_dir", os.fspath(data_dir)
    base = Path(root).expanduser()
    places = [base / folder for folder in folders]
    found: list[Path] = []
    missing: list[str] = []
    for options in files:
        candidates = (place / name for place in places for name in options)
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            missing.append(" or ".join(options))
        else:
            found.append(path)
    if missing:
        gone = "" if base.is_dir() else f" ({base} is not a directory)"
        raise ValueError(
            f"{dataset}: missing {', '.join(missing)}; "
            f"searched {', '.join(map(str, places))}{gone}, from {named}. "
            f"Put the files into one of these, pass another data_dir, or set {DATA_VARIABLE}{elsewhere}."
        )
    return found


def download(name: str, mirrors: Sequence[str], read: Callable[[Path], T]) -> T:
    """``read`` the file ``name``, fetched through pooch from the first of ``mirrors`` that serves it whole.

    The file stays in the user's cache directory, where the next call finds it. What ``read`` refuses is
    removed from there, and the next mirror is tried.

    Args:
        name: the file's name, at the mirrors and in the cache.
        mirrors: URLs that end in a slash.
        read: gives the content, or raises ``ValueError`` where that is damaged.

    Raises:
        ValueError: where no mirror gave a file that could be read; it says what happened with each.
    """
    import pooch
    from tqdm.auto import tqdm

    cache = Path(pooch.os_cache(_CACHE))
    logger = pooch.get_logger()
    failures = []
    for mirror in mirrors:
        level = logger.level
        # pooch would advise to pin the hash of the compressed file, but ``read`` checks the content itself
        logger.setLevel(logging.WARNING)
        try:
            # pooch puts the true total in; it must not be None or zero before, or pooch sees no bar at all
            with tqdm(desc=name, total=1, unit="B", unit_scale=True, disable=(cache / name).exists()) as bar:
                fetched = pooch.retrieve(mirror + name, None, fname=name, path=cache, progressbar=bar)
        except (OSError, ValueError) as error:
            failures.append(f"{mirror}{name}: {error}")
            continue
        finally:
            logger.setLevel(level)
        path = Path(fetched)
        try:
            return read(path)
        except ValueError as error:
            path.unlink(missing_ok=True)
            failures.append(f"{mirror}{name}: {error}")
    raise ValueError(
        f"{name} could not be downloaded to {cache}:\n  " + "\n  ".join(failures) + "\n"
        "Check the network, or get the file in another way and pass its directory as data_dir or in "
        f"{DATA_VARIABLE}."
    )
