"""Whether a client that has stopped reading delays the others that follow the same process.

A process floods, some clients follow it, and in every second part of the run
one more has asked to and never reads. The process writes the time into each
line; a client looks at the first whole line of everything that it receives,
which has waited longest.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from statistics import median, quantiles
from tempfile import TemporaryDirectory

import trio

from .output_client import Client
from .output_daemon import as_shipped, open_daemon
from .output_memory import PeakMemory
from .output_writer import TIME_DIGITS, lines
from .tables import Cell, Table

_WRITES_PER_SECOND = 50
_STAMP = re.compile(rb'"line":"(\d{%d}) ' % TIME_DIGITS)


class Part:
    """What was seen in the parts of the run of one kind."""

    def __init__(self) -> None:
        self.delays_ms: list[float] = []
        self.p99s_ms: list[float] = []
        self.seconds = 0.0
        self.events = 0
        self.gaps = 0

    def row(self, name: str, base: Part) -> tuple[Cell, ...]:
        """The row of this kind of part, with its ratio to another kind's."""
        p99 = median(self.p99s_ms)
        return (
            name,
            self.events / self.seconds,
            _percentiles(self.delays_ms)[0],
            p99,
            f"{min(self.p99s_ms):.1f}-{max(self.p99s_ms):.1f}",
            p99 / median(base.p99s_ms),
            self.gaps,
        )


def measure(
    *, readers: int = 50, lines_per_second: int = 2000, seconds: float = 5.0, rounds: int = 3
) -> Table:
    """Let `readers` follow a process for `seconds`, without and with a stuck one, by turns."""
    return trio.run(_measure, readers, lines_per_second, seconds, rounds)


async def _measure(readers: int, lines_per_second: int, seconds: float, rounds: int) -> Table:
    without, with_one = Part(), Part()
    with TemporaryDirectory(prefix="creche-benchmark-") as place:
        async with open_daemon(as_shipped(place)) as client:
            command = lines(
                interval=1 / _WRITES_PER_SECOND,
                lines_per_write=max(1, lines_per_second // _WRITES_PER_SECOND),
                seconds=seconds,
            )
            await _part(client, command, readers, Part())  # Warms up.
            memory = PeakMemory(client.pid)
            for _ in range(rounds):
                turns = [(_part, without), (_stuck_part, with_one)]
                random.shuffle(turns)
                for turn, part in turns:
                    await turn(client, command, readers, part)
            growth = memory.growth_mib
    return Table(
        title=f"{readers} live readers of {lines_per_second:,} lines/s",
        columns=("events/s", "p50 ms", "p99 ms", "spread", "ratio", "gaps"),
        rows=(
            without.row("none is stuck", without),
            with_one.row("one more is stuck", without),
        ),
        notes=(
            f"{rounds} parts of {seconds:g} s each; p99 is the median of theirs. The daemon's peak "
            f"memory grew by {growth:.0f} MiB over all; all readers share one program.",
        ),
    )


async def _part(client: Client, command: list[str], readers: int, part: Part) -> None:
    pid = await client.start(command)
    await _follow_by_all(client, pid, readers, part)


async def _stuck_part(client: Client, command: list[str], readers: int, part: Part) -> None:
    pid = await client.start(command)
    async with client.stuck(f"/processes/{pid}/stdout/follow"):
        await _follow_by_all(client, pid, readers, part)


async def _follow_by_all(client: Client, pid: int, readers: int, part: Part) -> None:
    delays_ms: list[float] = []
    began = time.monotonic()
    async with trio.open_nursery() as nursery:
        for _ in range(readers):
            nursery.start_soon(_follow, client, pid, part, delays_ms)
    assert delays_ms
    part.delays_ms += delays_ms
    part.seconds += time.monotonic() - began
    part.p99s_ms.append(_percentiles(delays_ms)[1])


async def _follow(client: Client, pid: int, part: Part, delays_ms: list[float]) -> None:
    # From the present on: what was there before has waited for the reader.
    async with client.body(f"/processes/{pid}/stdout/follow?tail=0") as body:
        async for data in body:
            now = time.monotonic_ns()
            if (stamp := _STAMP.search(data)) is not None:
                delays_ms.append((now - int(stamp[1])) / 1e6)
            part.events += data.count(b"\n\n")
            part.gaps += data.count(b"event: gap\n")


def _percentiles(values: list[float]) -> tuple[float, float]:
    cuts = quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readers", type=int, default=50)
    parser.add_argument("--rate", type=int, default=2000, help="lines per second (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each part (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    table = measure(
        readers=options.readers,
        lines_per_second=options.rate,
        seconds=options.seconds,
        rounds=options.rounds,
    )
    print(table.markdown())


if __name__ == "__main__":
    main()
