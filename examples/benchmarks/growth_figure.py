"""The figure of the growth of cost, from its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

STYLES = {"inverse": "--", "step of a fit": ":"}


def draw_growth(record: dict[str, Any], path: Path) -> None:
    """Seconds against sizes, an axis in each panel, with a line of slope one; and the memory of a step."""
    panels = list(dict.fromkeys(row["axis"] for row in record["rows"]))
    names = list(dict.fromkeys(row["name"] for row in record["rows"]))
    figure = Figure(figsize=(11.0, 6.8), layout="constrained")
    places = dict(zip([*panels, "memory"], figure.subplots(2, 3).flat, strict=False))
    for row in record["rows"]:
        kind = row["pass"] if row["pass"] in STYLES else ""
        places[row["axis"]].plot(
            row["sizes"],
            row["seconds"],
            STYLES.get(kind, "-"),
            color=f"C{names.index(row['name'])}",
            marker=".",
            label=", ".join(filter(None, (row["name"], kind))),
        )
    for row in record["memory"]:
        places["memory"].plot(row["sizes"], row["mib"], marker=".", label=row["axis"])
    if record["memory"]:
        places["memory"].legend()
    places["memory"].set(xlabel="size", ylabel="MiB", title="peak memory of a step")
    for axis in panels:
        places[axis].set(xlabel=axis, ylabel="seconds")
    for axes in places.values():
        axes.set(xscale="log", yscale="log")
        low, high = axes.get_xlim()
        bottom, top = axes.get_ylim()
        axes.plot([low, high], [bottom, bottom * high / low], color="0.8", zorder=0, label="_slope one")
        axes.set(xlim=(low, high), ylim=(bottom, top))
    lines: dict[str, Any] = {}
    for axis in panels:
        lines |= {line.get_label(): line for line in places[axis].get_lines() if line.get_label()[0] != "_"}
    shown = dict(sorted(lines.items(), key=lambda pair: names.index(pair[0].partition(",")[0])))
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=110)
