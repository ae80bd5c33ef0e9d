"""One line without an end, read live as events and as raw bytes: what the daemon and a client need for it.

The line consists of NUL, the worst case for events: each is six bytes there.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Awaitable, Callable
from tempfile import TemporaryDirectory

import trio

from .output_client import Client
from .output_daemon import MIB, kept_whole, open_daemon
from .output_events import EventSplitter
from .output_memory import PeakMemory
from .tables import Cell, Table

_LARGEST_FRAME = MIB
_ESCAPED = rb"\u0000"
_LINE = _ESCAPED * (_LARGEST_FRAME // len(_ESCAPED))

# Reads the output of a pid to its end; how many bytes of it came, and the size
# of the largest event.
Reader = Callable[[Client, int], Awaitable[tuple[int, int | None]]]


def measure(*, size_bytes: int = 1_000_000_000, directory: str | None = None) -> Table:
    """Follow one line of `size_bytes` while it is written.

    Args:
      directory: on the file system where outputs go; takes `size_bytes`.
    """
    return trio.run(_measure, size_bytes, directory)


async def _measure(size_bytes: int, directory: str | None) -> Table:
    readers: dict[str, Reader] = {"raw?follow=true": _read_raw, "follow": _read_events}
    rows = [
        await _row(name, reader, size_bytes, directory, late=late)
        for name, reader in readers.items()
        for late in (False, True)
    ]
    return Table(
        title=f"one line of {size_bytes / 1e9:g} GB",
        columns=(
            "seconds",
            "MB/s of output",
            "missing bytes",
            "largest event, KiB",
            "daemon's peak growth, MiB",
            "client's, MiB",
        ),
        rows=tuple(rows),
        notes=("The client counts what it gets and keeps nothing.",),
    )


async def _row(
    name: str, reader: Reader, size_bytes: int, directory: str | None, *, late: bool
) -> tuple[Cell, ...]:
    with TemporaryDirectory(dir=directory, prefix="creche-benchmark-") as place:
        async with open_daemon(kept_whole(size_bytes, place)) as client:
            await client.ended(await client.start(["true"]))
            daemon, own = PeakMemory(client.pid), PeakMemory(os.getpid())
            pid = await client.start(["head", "-c", str(size_bytes), "/dev/zero"])
            if late:
                await client.ended(pid)
            began = time.perf_counter()
            received, largest = await reader(client, pid)
            seconds = time.perf_counter() - began
            assert largest is None or largest < _LARGEST_FRAME, largest
            return (
                f"{name}, {'after its end' if late else 'while it is written'}",
                seconds,
                size_bytes / seconds / 1e6,
                size_bytes - received,
                None if largest is None else largest / 1024,
                daemon.growth_mib,
                own.growth_mib,
            )


async def _read_raw(client: Client, pid: int) -> tuple[int, None]:
    received = 0
    async with client.body(f"/processes/{pid}/stdout/raw?follow=true") as body:
        async for data in body:
            received += data.count(0)
    return received, None


async def _read_events(client: Client, pid: int) -> tuple[int, int]:
    received = 0
    splitter = EventSplitter()
    async with client.body(f"/processes/{pid}/stdout/follow") as body:
        async for data in body:
            for frame in splitter.feed(data):
                received += _nuls(frame)
    return received, splitter.largest_bytes


def _nuls(frame: bytes) -> int:
    """How many NULs an event holds; 0 if it holds anything else."""
    _, _, rest = frame.partition(b'"line":"')
    line, _, _ = rest.partition(b'"')
    return len(line) // len(_ESCAPED) if _LINE.startswith(line) else 0


def main() -> None:
    """Measure what the command line says; fail if anything is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=1000, help="millions of bytes (%(default)s)")
    parser.add_argument("--directory", help="on the file system where outputs go")
    options = parser.parse_args()
    table = measure(size_bytes=options.mb * 1_000_000, directory=options.directory)
    print(table.markdown())
    if any(row[3] for row in table.rows):
        sys.exit("bytes are missing")


if __name__ == "__main__":
    main()
