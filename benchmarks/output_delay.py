"""From a process's write to the client's event, on an idle daemon and between chatty processes.

The process writes the time, now and then, into a line of its own. A plain pipe
from the same process shows what the machine itself takes at that moment.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from statistics import quantiles
from tempfile import TemporaryDirectory

import trio

from .output_client import Client
from .output_daemon import as_shipped, open_daemon
from .output_followers import open_followers
from .output_writer import TIME_DIGITS, lines
from .tables import Cell, Table

_INTERVAL_SECONDS = 0.007  # No multiple of what the chatty ones do.
_CHATTY_INTERVAL_SECONDS = 0.01
_STAMP = re.compile(rb"(?<!\d)(\d{%d}) x" % TIME_DIGITS)
_FOREVER = 10**6

# Reads the output of the writing process and adds delays in µs.
Reader = Callable[[Client, list[str], list[float]], Awaitable[None]]


def measure(*, chatty: int = 100, seconds: float = 5.0, rounds: int = 3) -> Table:
    """Measure each reader for `seconds` in each setting, once a round."""
    return trio.run(_measure, chatty, seconds, rounds)


async def _measure(chatty: int, seconds: float, rounds: int) -> Table:
    settings = {
        "idle": (0, False),
        f"{chatty} chatty processes": (chatty, False),
        f"{chatty} chatty processes, all followed": (chatty, True),
    }
    readers: dict[str, Reader] = {
        "plain pipe, no daemon": _read_pipe,
        "stdout/follow": partial(_read_body, "stdout/follow?tail=0"),
        "output/frames": partial(_read_body, "output/frames?follow=true"),
    }
    command = lines(interval=_INTERVAL_SECONDS, lines_per_write=1, seconds=seconds)
    delays_us: dict[tuple[str, str], list[float]] = {
        (setting, reader): [] for setting in settings for reader in readers
    }
    with TemporaryDirectory(prefix="creche-benchmark-") as place:
        async with open_daemon(as_shipped(place)) as client:
            for _ in range(rounds):
                for setting, (count, are_followed) in settings.items():
                    async with _chatter(client, count, are_followed=are_followed):
                        for name, reader in readers.items():
                            await reader(client, command, delays_us[setting, name])
    return Table(
        title="from a write to the client",
        columns=("events", "p50 µs", "p90", "p99", "ratio of p50", "of p99"),
        rows=tuple(
            _row(f"{name}, {setting}", each, delays_us[setting, next(iter(readers))])
            for (setting, name), each in delays_us.items()
        ),
        notes=(
            "Ratios to the plain pipe in the same setting. A chatty process writes a line every "
            f"{_CHATTY_INTERVAL_SECONDS * 1000:g} ms; followers of all of them share one program.",
        ),
    )


def _row(name: str, delays_us: list[float], base: list[float]) -> tuple[Cell, ...]:
    p50, p90, p99 = _percentiles(delays_us)
    base_p50, _, base_p99 = _percentiles(base)
    return name, len(delays_us), p50, p90, p99, p50 / base_p50, p99 / base_p99


def _percentiles(values: list[float]) -> tuple[float, float, float]:
    cuts = quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[89], cuts[98]


@asynccontextmanager
async def _chatter(client: Client, count: int, *, are_followed: bool) -> AsyncIterator[None]:
    """Chatty processes, from when each has written until the end of the block."""
    command = lines(interval=_CHATTY_INTERVAL_SECONDS, lines_per_write=1, seconds=_FOREVER)
    pids = [await client.start(command) for _ in range(count)]
    for pid in pids:
        async with client.body(f"/processes/{pid}/stdout/raw?follow=true") as body:
            await body.receive_some()
    paths = [f"/processes/{pid}/stdout/follow?tail=0" for pid in pids]
    async with open_followers(client, paths) if are_followed else nullcontext():
        yield
    for pid in pids:
        await client.kill(pid)


async def _read_body(view: str, client: Client, command: list[str], delays_us: list[float]) -> None:
    pid = await client.start(command)
    async with client.body(f"/processes/{pid}/{view}") as body:
        async for data in body:
            _note(data, delays_us)


async def _read_pipe(client: Client, command: list[str], delays_us: list[float]) -> None:
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(trio.run_process, command, stdout=subprocess.PIPE, check=True)
        )
        async for data in process.stdout:
            _note(data, delays_us)


def _note(data: bytes, delays_us: list[float]) -> None:
    now = time.monotonic_ns()
    delays_us.extend((now - int(stamp)) / 1000 for stamp in _STAMP.findall(data))


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chatty", type=int, default=100, help="processes (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each part (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    table = measure(chatty=options.chatty, seconds=options.seconds, rounds=options.rounds)
    print(table.markdown())


if __name__ == "__main__":
    main()
