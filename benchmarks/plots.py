"""Plots: the bars of a table, as a small PNG."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .tables import Table

_OURS = "#2a6f97"
_THEIRS = "#b8b8b8"


def is_possible() -> bool:
    """Whether matplotlib is installed (`pip install '.[bench]'`)."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw(results: Mapping[str, Sequence[Table]], directory: Path) -> list[Path]:
    """One picture for each benchmark: of every table that is to be plotted, the columns that it names."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, tables in results.items():
        if plotted := [table for table in tables if table.plotted]:
            path = directory / f"{re.sub('[^a-z0-9]+', '-', name)}.png"
            _draw(plotted, path)
            paths.append(path)
    return paths


def _draw(tables: Sequence[Table], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    panels = [(table, column) for table in tables for column in table.plotted]
    heights = [0.75 + 0.26 * len(table.rows) for table, _ in panels]
    figure = Figure(figsize=(7.0, sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)
    for (axis,), (table, column) in zip(axes, panels, strict=True):
        rows = [
            (str(row[0]), float(row[1 + column]))  # type: ignore[arg-type]
            for row in table.rows
            if isinstance(row[1 + column], int | float)
        ]
        names = [name for name, _ in rows]
        values = [value for _, value in rows]
        colours = [_OURS if name.startswith("creche") else _THEIRS for name in names]
        bars = axis.barh(names, values, color=colours, height=0.7)
        axis.bar_label(bars, [_number(value) for value in values], padding=3, fontsize=8)
        axis.invert_yaxis()
        axis.set_title(f"{table.title}: {table.columns[column]}", fontsize=9, loc="left")
        axis.tick_params(labelsize=8, length=0)
        axis.set_xticks([])
        axis.margins(x=0.12)
        for side in ("top", "right", "bottom", "left"):
            axis.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)


def _number(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 10 else f"{value:,.0f}"
