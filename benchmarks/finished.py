"""Memory of processes that have ended and are remembered."""

from __future__ import annotations

from contextlib import ExitStack

from .daemons import open_all
from .setting import Setting
from .sleepers import fill
from .tables import Cell, Table

_FIRST = 1000
_SECOND = 9000  # Still less than ours remembers.
_COMMAND = ("/bin/echo", "a small output")


def finished(setting: Setting) -> list[Table]:
    """The growth from one number of finished processes to a larger one, so that fixed costs fall out."""
    first = setting.scaled(_FIRST, least=200)
    more = setting.scaled(_SECOND, least=1000) - first
    rows: list[tuple[Cell, ...]] = []
    with ExitStack() as stack:
        for daemon in open_all(stack, setting.daemons):
            if daemon.pid is None:
                continue
            fill(daemon, _COMMAND, first)
            before = daemon.resident_bytes()
            fill(daemon, _COMMAND, more)
            grown = daemon.resident_bytes() - before
            rows.append((daemon.name, round(grown / more / 1024, 2)))
    note = f"Resident memory of the daemon, from {first:,} to {first + more:,} of them."
    return [
        Table(
            title="memory per finished process",
            columns=("KiB",),
            rows=tuple(rows),
            notes=(note,),
            plotted=(0,),
        )
    ]
