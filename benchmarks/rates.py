"""Rates: how many requests a daemon answers per second, with several clients at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from .contest import ratio, spread_of
from .daemons import Daemon
from .load import Load, put_load
from .setting import Setting
from .tables import Cell, Table

_SECONDS = 2.0
_ROUNDS = 6

COLUMNS = ("per second", "spread", "p50 µs", "p99", "own CPU µs each", "to first", "spread ")


def measure_rates(
    setting: Setting,
    daemons: Sequence[Daemon],
    request: Callable[[Daemon], bytes],
    *,
    title: str,
    connections: int,
    canned: Daemon,
) -> Table:
    """Let each daemon in turn be asked the same by so many clients.

    What the load generator can do is told by `canned` answers.

    A turn begins when the daemon has done what it put off before. Its own
    processor time counts that too; a daemon cannot gain by being late.
    """
    loads: list[list[Load]] = [[] for _ in daemons]
    costs: list[list[float]] = [[] for _ in daemons]
    order = list(range(len(daemons)))
    for round_number in range(1 + setting.scaled(_ROUNDS)):
        random.shuffle(order)
        for index in order:
            daemon = daemons[index]
            before = None if daemon.pid is None else daemon.cpu_seconds()
            load = put_load(
                daemon, request(daemon), connections=connections, seconds=_SECONDS * setting.scale
            )
            daemon.settle()
            if round_number > 0:
                loads[index].append(load)
                if before is not None:
                    costs[index].append((daemon.cpu_seconds() - before) / load.requests * 1e6)
    rows: list[tuple[Cell, ...]] = []
    most = put_load(canned, request(canned), connections=connections, seconds=1.0)
    notes = [f"Of canned answers, without any process, the generator gets {most.rate:,.0f}/s."]
    base = [load.rate for load in loads[0]]
    for daemon, ones, cost in zip(daemons, loads, costs, strict=True):
        rates = [load.rate for load in ones]
        spread, against = spread_of(rates), ratio(rates, base)
        rows.append(
            (
                daemon.name,
                round(spread.middle),
                spread.text(),
                round(spread_of([load.p50 for load in ones]).middle),
                round(spread_of([load.p99 for load in ones]).middle),
                round(spread_of(cost).middle) if cost else None,
                round(against.middle, 2),
                against.text(".2f"),
            )
        )
        if errors := sum(load.errors for load in ones):
            total = sum(load.requests for load in ones)
            notes.append(f"{daemon.name} failed {errors:,} of {total:,} requests.")
    return Table(title=title, columns=COLUMNS, rows=tuple(rows), notes=tuple(notes), plotted=(0,))
