"""A million short lines, from the start of their process to the last event, to a plain client and to the real SDK.

Both clients also get the same events from a server that has them ready, which
shows what the client itself allows.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import trio
from tensorlake.sandbox import Sandbox  # type: ignore[import-untyped]  # It ships no types.

from .output_client import Client
from .output_daemon import kept_whole, open_daemon
from .output_events import EventSplitter, output_of
from .output_replay import open_replay
from .tables import Cell, Table

_EVENT_BYTES = 128

# Reads a process's lines from a server to the end; the seconds, and how many
# of the expected lines are missing or wrong.
Reader = Callable[[Client, int, int], Awaitable[tuple[float, int]]]


def measure(*, lines: int = 1_000_000, rounds: int = 3, directory: str | None = None) -> Table:
    """Let both clients follow `seq` once a round, from the daemon and from memory.

    Args:
      directory: on the file system where outputs go; takes 128 bytes a line.
    """
    return trio.run(_measure, lines, rounds, directory)


async def _measure(lines: int, rounds: int, directory: str | None) -> Table:
    readers: dict[str, Reader] = {"plain client": _read_plainly, "SDK": _read_by_sdk}
    results: dict[str, list[tuple[float, int]]] = {}
    with TemporaryDirectory(dir=directory, prefix="creche-benchmark-") as place:
        async with _servers(lines, Path(place)) as (daemon, replay):
            for _ in range(rounds):
                for name, reader in readers.items():
                    pid = await daemon.start(["seq", str(lines)])
                    live = await reader(daemon, pid, lines)
                    late = await reader(daemon, pid, lines)
                    ceiling = await reader(replay, pid, lines)
                    results.setdefault(f"{name}, while it is written", []).append(live)
                    results.setdefault(f"{name}, after its end", []).append(late)
                    results.setdefault(f"{name}, the same from memory", []).append(ceiling)
    return Table(
        title=f"{lines:,} short lines, {rounds} rounds",
        columns=("lines/s", "spread", "of what the client can do", "missing or wrong"),
        rows=tuple(
            _row(name, lines, result, results[f"{name.partition(',')[0]}, the same from memory"])
            for name, result in results.items()
        ),
        notes=(
            "The SDK returns only when all lines are there, each as an object; the plain client "
            "counts events, and compares them afterwards.",
        ),
    )


def _row(
    name: str, lines: int, results: list[tuple[float, int]], ceiling: list[tuple[float, int]]
) -> tuple[Cell, ...]:
    speeds = [lines / seconds for seconds, _ in results]
    best = median(lines / seconds for seconds, _ in ceiling)
    return (
        name,
        median(speeds),
        f"{min(speeds):,.0f}-{max(speeds):,.0f}",
        median(speeds) / best,
        sum(wrong for _, wrong in results),
    )


@asynccontextmanager
async def _servers(lines: int, place: Path) -> AsyncIterator[tuple[Client, Client]]:
    """The daemon, and a server that replays its events."""
    state, events = place / "state", place / "events"
    state.mkdir()
    async with open_daemon(kept_whole(lines * _EVENT_BYTES, str(state))) as daemon:
        pid = await daemon.start(["seq", str(lines)])
        async with daemon.body(f"/processes/{pid}/stdout/follow") as body:
            events.write_bytes(await body.rest())
        async with open_replay(events) as replay:
            yield daemon, replay


async def _read_plainly(client: Client, pid: int, lines: int) -> tuple[float, int]:
    pieces = []
    events = 0
    began = time.perf_counter()
    async with client.body(f"/processes/{pid}/stdout/follow") as body:
        async for data in body:
            events += data.count(b"\n\n")
            pieces.append(data)
    seconds = time.perf_counter() - began
    frames = EventSplitter().feed(b"".join(pieces))
    outputs = [event for frame in frames if (event := output_of(frame)) is not None]
    return seconds, _wrong([event.line for event in outputs], lines)


async def _read_by_sdk(client: Client, pid: int, lines: int) -> tuple[float, int]:
    sandbox = Sandbox(identifier="any", proxy_url=client.url, api_key="any")
    began = time.perf_counter()
    events = await trio.to_thread.run_sync(partial(sandbox.follow_stdout, pid))
    seconds = time.perf_counter() - began
    return seconds, _wrong([event.line for event in events], lines)


def _wrong(received: list[str], lines: int) -> int:
    """How many lines are missing, too many or different."""
    expected = [str(number) for number in range(1, lines + 1)]
    if _digest(received) == _digest(expected):
        return 0
    differing = sum(one != other for one, other in zip(received, expected, strict=False))
    return differing + abs(len(received) - lines)


def _digest(lines: list[str]) -> bytes:
    return sha256("\n".join(lines).encode()).digest()


def main() -> None:
    """Measure what the command line says; fail if anything is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", help="on the file system where outputs go")
    options = parser.parse_args()
    table = measure(lines=options.lines, rounds=options.rounds, directory=options.directory)
    print(table.markdown())
    if any(row[-1] for row in table.rows):
        sys.exit("lines are missing or wrong")


if __name__ == "__main__":
    main()
