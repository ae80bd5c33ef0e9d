"""What we mean to reach, and whether the tables of a run say that we have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from msgspec import Struct

from .tables import Cell, Table

_RATIO = "to first"


class Aim(Struct, frozen=True):
    """One figure, or the ratio of two, and its bound.

    Attributes:
      text: what it is.
      benchmark: whose tables it is in.
      title: what the title of the table begins with.
      row: a regular expression for the name of its row.
      bound: what it is to be.
      against: one for the row that it is divided by, if it is a ratio.
      column: where it stands.
      at_least: whether the bound is a lower one.
    """

    text: str
    benchmark: str
    title: str
    row: str
    bound: float
    against: str | None = None
    column: str = _RATIO
    at_least: bool = False

    def figure(self, results: Mapping[str, Sequence[Table]]) -> float | None:
        """What was measured; None if it was not."""
        value = self._cell(results, self.row)
        if self.against is None or value is None:
            return value
        other = self._cell(results, self.against)
        return None if not other else value / other

    def is_met_by(self, figure: float) -> bool:
        """Whether that is good enough."""
        return figure >= self.bound if self.at_least else figure <= self.bound

    def _cell(self, results: Mapping[str, Sequence[Table]], row: str) -> float | None:
        for table in results.get(self.benchmark, ()):
            if table.title.startswith(self.title) and self.column in table.columns:
                at = 1 + table.columns.index(self.column)
                for cells in table.rows:
                    value = cells[at]
                    if re.fullmatch(row, str(cells[0])) and isinstance(value, int | float):
                        return float(value)
        return None


_PARKED = "creche: user, cgroup, parked launchers"
_NEITHER = "creche: neither, parked.*"
_CROWDED = r"creche, [45],\d\d\d live"  # As many as the limit of descriptors allows.

AIMS = (
    Aim(
        "start, one client back to back, to sandbox-agent",
        "start",
        "start, one client, back",
        "creche",
        0.8,
        "sandbox-agent",
    ),
    Aim(
        "start, one client 20 ms apart, to sandbox-agent",
        "start",
        "start, one client, 20",
        "creche",
        0.55,
        "sandbox-agent",
    ),
    Aim(
        "starts per second of 16 clients, to sandbox-agent",
        "start",
        "start, 16",
        "creche",
        1.25,
        "sandbox-agent",
        at_least=True,
    ),
    Aim(
        "run, one client, to sandbox-agent",
        "run",
        "run, one client, back",
        "creche",
        1.0,
        "sandbox-agent",
    ),
    Aim(
        "runs per second of 16 clients, to sandbox-agent",
        "run",
        "run, 16",
        "creche",
        1.0,
        "sandbox-agent",
        at_least=True,
    ),
    Aim(
        "embedded start with user and cgroup, to Popen with neither",
        "embedded",
        "embedded start",
        _PARKED,
        1.0,
        "subprocess.Popen: neither",
    ),
    Aim(
        "embedded start with both after 5 s of quiet, to Popen with neither",
        "embedded-quiet",
        "embedded start",
        _PARKED,
        1.0,
        "subprocess.Popen: neither",
    ),
    Aim("own processor time, start to reaped, µs", "cpu", "own", _PARKED, 250, column="p50 µs"),
    Aim(
        "embedded start with user and cgroup, to one with neither",
        "embedded",
        "embedded start",
        _PARKED,
        1.15,
        _NEITHER,
    ),
    Aim(
        "embedded start with both at 300 MiB, to one with neither",
        "embedded-large",
        "embedded start",
        "creche: user, cgroup, parked, 300 MiB",
        1.15,
        _NEITHER,
    ),
    Aim(
        "start with a change of user over HTTP, to one without",
        "user",
        "start",
        "creche, as .*",
        1.15,
    ),
    Aim("start with 5,000 live, to none", "live", "start", _CROWDED, 1.2, "creche, 0 live"),
    Aim("get with 5,000 live, to none", "live", "get", _CROWDED, 1.2, "creche, 0 live"),
    Aim("list of 5,000, µs", "live", "list", _CROWDED, 25_000, column="p50 µs"),
    Aim(
        "processor while 5,000 idle, % of a core",
        "live",
        "processor",
        _CROWDED,
        1.0,
        column="% of a core",
    ),
    Aim("memory per live process, KiB", "live", "memory", _CROWDED, 30, column="KiB"),
    Aim("memory per finished process, KiB", "finished", "memory", "creche", 3, column="KiB"),
)


def judge(results: Mapping[str, Sequence[Table]]) -> Table | None:
    """The aims whose figures have been measured; None if there are none."""
    rows: list[tuple[Cell, ...]] = []
    for aim in AIMS:
        if (figure := aim.figure(results)) is not None:
            bound = f"{'at least' if aim.at_least else 'at most'} {aim.bound:,g}"
            rows.append((aim.text, bound, figure, "yes" if aim.is_met_by(figure) else "no"))
    if not rows:
        return None
    return Table(title="aim", columns=("bound", "measured", "reached"), rows=tuple(rows))
