"""What the commands share: errors as messages, the options of a data set, devices, ``name=value`` pairs."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

__all__ = [
    "FOLDER",
    "BadInput",
    "choices_told",
    "data_options",
    "device_option",
    "echo_kept",
    "settings",
    "shared",
    "told",
]

#: the type of an option that names a folder to write to
FOLDER = click.Path(file_okay=False, path_type=Path)
#: Python's names of JSON's true, false and null
CONSTANTS = {"True": True, "False": False, "None": None}


class BadInput(click.ClickException):
    """What the user has to change, as a message and exit code 2."""

    exit_code = 2


def told(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the library's errors into a message and exit code 2, and an interruption into 130.

    A command that processes of ``torchrun`` cannot share is refused to them.
    """

    @functools.wraps(command)
    def told(*args: Any, **kwargs: Any) -> Any:
        from pyro_flows_vi.infer.interruption import TrainingInterrupted
        from pyro_flows_vi.infer.parallel import launched
        from pyro_flows_vi.numerics.errors import NotConverged

        try:
            if launched() and not getattr(command, "shared", False):
                words = click.get_current_context().command_path.partition(" ")[2]
                raise ValueError(
                    f"{words!r} runs in one process: start it without torchrun, which is for 'vae train' and "
                    "'vae evaluate'"
                )
            return command(*args, **kwargs)
        except (ValueError, OSError, NotConverged) as error:
            raise BadInput(str(error)) from error
        except TrainingInterrupted as stop:
            click.echo(f"\n{stop}", err=True)
            raise SystemExit(130) from stop

    return told


def shared(command: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a command that processes of ``torchrun`` can share; to be told of below :func:`told`."""
    command.shared = True  # type: ignore[attr-defined]
    return command


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that name a data set and its folder."""
    data = click.option(
        "--data",
        default="mnist",
        show_default=True,
        help="Data set: mnist, static_mnist, freyfaces or digits (which needs no file).",
    )
    folder = click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        help="Folder with the data files; else PYRO_FLOWS_VI_DATA, else a download.",
    )
    return data(folder(command))


def _device(context: click.Context, option: click.Parameter, name: str | None) -> str | None:
    """The name of a device that torch has on this machine."""
    import torch

    if name is not None:
        try:
            torch.empty(0, device=name)
        except (AssertionError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise click.BadParameter(f"expected a device of this machine, got {name!r}: {reason}") from error
        if name.startswith("meta"):
            raise click.BadParameter(f"expected a device that holds values, got {name!r}")
    return name


def device_option(
    help: str = "cpu or cuda; the GPU where there is one by default.", **options: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option that names a device."""
    return click.option("--device", callback=_device, help=help, **options)


def settings(assignments: tuple[str, ...]) -> dict[str, Any]:
    """``name=value`` pairs, with values as JSON or Python's constants where they are that, and as text otherwise."""
    found: dict[str, Any] = {}
    for assignment in assignments:
        name, sign, value = assignment.partition("=")
        if not sign or not name:
            raise ValueError(f"expected name=value, got {assignment!r}")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = CONSTANTS.get(value, value)
        if isinstance(found[name], list):
            found[name] = tuple(found[name])
    return found


@contextlib.contextmanager
def choices_told() -> Iterator[None]:
    """Show what the library logs of its choices, such as the way that steps are run."""
    logger, handler = logging.getLogger("pyro_flows_vi"), _Echo()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Echo(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(record.getMessage(), err=True)


def echo_kept(row: str, record: Path) -> None:
    """Say that a row was finished before."""
    click.echo(f"{row}: finished before, kept ({record})")
