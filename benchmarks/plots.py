"""Plots: the bars of tables, as a small PNG, with whiskers for the spread where a column of that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from .tables import Cell, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS = "#2a6f97"
_THEIRS = "#b8b8b8"
_SMALL = 7


class Bar(Struct, frozen=True):
    """One bar: its label, its value, and the spread of that."""

    name: str
    value: float
    low: float
    high: float


def is_possible() -> bool:
    """Whether matplotlib is installed (`pip install '.[bench]'`)."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw(results: Mapping[str, Sequence[Table]], directory: Path) -> list[Path]:
    """One picture for each benchmark, of the columns that its tables want plotted; the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, tables in results.items():
        panels = [
            (f"{table.title}: {table.columns[column]}", _bars(table, column))
            for table in tables
            for column in table.plotted
        ]
        if panels:
            path = directory / f"{name}.png"
            _draw(panels, path)
            paths.append(path)
    return paths


def _bars(table: Table, column: int) -> list[Bar]:
    has_spread = table.columns[column + 1 : column + 2] == ("spread",)
    bars = []
    for row in table.rows:
        value = row[1 + column]
        if isinstance(value, int | float):
            low, high = _range(row[2 + column]) if has_spread else (value, value)
            bars.append(Bar(str(row[0]), value, low, high))
    return bars


def _range(cell: Cell) -> tuple[float, float]:
    """Of a text such as `1,061-1,139`."""
    low, high = str(cell).replace(",", "").split("-")
    return float(low), float(high)


def _draw(panels: Sequence[tuple[str, Sequence[Bar]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    across = min(2, len(panels))
    lines = [panels[at : at + across] for at in range(0, len(panels), across)]
    heights = [0.45 + 0.2 * max(len(bars) for _, bars in line) for line in lines]
    figure = Figure(figsize=(4.2 * across, sum(heights)), layout="constrained")
    axes = figure.subplots(len(lines), across, height_ratios=heights, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, line_axes in zip(lines, axes, strict=True):
        most = max(len(bars) for _, bars in line)
        for (title, bars), axis in zip(line, line_axes, strict=False):
            axis.set_axis_on()
            _draw_panel(axis, title, bars, room_for=most)
    figure.savefig(path, dpi=100)


def _draw_panel(axis: Axes, title: str, bars: Sequence[Bar], *, room_for: int) -> None:
    drawn = axis.barh(
        [bar.name for bar in bars],
        [bar.value for bar in bars],
        # The quartiles of the rounds need not lie around the value.
        xerr=[
            [max(0.0, bar.value - bar.low) for bar in bars],
            [max(0.0, bar.high - bar.value) for bar in bars],
        ],
        color=[_OURS if bar.name.startswith("creche") else _THEIRS for bar in bars],
        ecolor="#555555",
        error_kw={"linewidth": 0.8},
        height=0.7,
    )
    labels = [_number(bar.value) for bar in bars]
    axis.bar_label(drawn, labels, padding=3, fontsize=_SMALL)
    axis.set_ylim(room_for - 0.5, -0.5)  # From the top, and equally thick everywhere.
    axis.set_title(title, fontsize=_SMALL + 1, loc="left")
    axis.tick_params(labelsize=_SMALL, length=0)
    axis.set_xticks([])
    axis.set_xlim(0, 1.2 * max(max(bar.value, bar.high) for bar in bars) or 1.0)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)


def _number(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 10 else f"{value:,.0f}"
