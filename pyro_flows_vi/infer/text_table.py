"""Tables of text: for a page, or for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["NONE", "STYLES", "check_style", "minutes", "plus_minus", "render", "where_run"]

#: an empty cell
NONE = "–"
STYLES = ("markdown", "text")


def check_style(style: str) -> None:
    """Raise ``ValueError`` for an unknown style."""
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}: expected one of {', '.join(STYLES)}")


def render(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str], style: str = "markdown"
) -> str:
    """A table with a title and notes; first and last column to the left, the others to the right.

    Args:
        title: above it.
        header: names of the columns.
        rows: cells, as many a row as the header has.
        notes: below it.
        style: ``"markdown"``, or ``"text"`` for a terminal.
    """
    check_style(style)
    if style == "markdown":
        return "\n".join([f"**{title}**", "", *_markdown(header, rows), "", *(f"- {note}" for note in notes)]) + "\n"
    return "\n".join([title, "", *_text(header, rows), "", *notes]) + "\n"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ("---", *("--:" for _ in header[2:]), "---"), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    table = [header, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    last = len(header) - 1

    def line(row: Sequence[str]) -> str:
        cells = (c.ljust(w) if i in (0, last) else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        return "  ".join(cells).rstrip()

    return [line(header), "  ".join("-" * w for w in widths), *(line(row) for row in rows)]


def plus_minus(value: float, error: float) -> str:
    """A value with its error, to two digits after the point."""
    return f"{value:.2f} ± {error:.2f}"


def minutes(seconds: float) -> str:
    """Seconds as minutes."""
    number = seconds / 60
    return f"{number:.1f}" if number < 10 else f"{number:.0f}"


def where_run(machine: dict[str, object]) -> str:
    """A machine, as records have it, in words."""
    threads = machine["threads"]
    where = machine["name"] if machine["device"] == "cuda" else f"CPU ({machine['name']})"
    return f"{where}, {threads} thread{'s' if threads != 1 else ''}"
