"""A table of figures: printed as Markdown, written as JSON, drawn as bars."""

from __future__ import annotations

from msgspec import Struct

Cell = str | int | float | None


class Table(Struct, frozen=True, kw_only=True):
    """What one benchmark has measured.

    Attributes:
      title: what it was; the head of the first column.
      columns: the heads of the others, with units.
      rows: a name and one cell for each of `columns`.
      notes: what a reader must know, such as what the load generator can do.
      plotted: which of `columns` are drawn, by their index; none for no plot.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    plotted: tuple[int, ...] = ()

    def markdown(self) -> str:
        """The table and its notes."""
        head = [self.title, *self.columns]
        lines = [head, ["---"] * len(head), *([_text(cell) for cell in row] for row in self.rows)]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return "\n\n".join([table, *self.notes])


def _text(cell: Cell) -> str:
    match cell:
        case None:
            return ""
        case float():
            return f"{cell:.2f}" if abs(cell) < 10 else f"{cell:,.0f}"
        case int():
            return f"{cell:,}"
    return cell
