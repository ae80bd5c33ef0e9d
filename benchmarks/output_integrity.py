"""Random bytes on both streams at once, read in every exact way, also by clients that hang up all the time.

A reader that reconnects is broken off wherever it is, in the middle of a
chunk or a frame, and asks for the rest from the first byte that it lacks.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from hashlib import sha256
from tempfile import TemporaryDirectory

import trio

from .output_client import Client
from .output_daemon import MIB, kept_whole, open_daemon
from .output_events import Frame, FrameSplitter
from .output_writer import random_bytes, random_content
from .tables import Cell, Table

_STREAMS = ("stdout", "stderr")


class Stream:
    """What one reader has got of one stream, compared with what was written as it comes."""

    def __init__(self, written: bytes) -> None:
        self._written = memoryview(written)
        self._hash = sha256()
        self.received = 0
        self.differing_pieces = 0

    def add(self, data: bytes) -> None:
        """Add the next bytes."""
        expected = self._written[self.received : self.received + len(data)]
        self.differing_pieces += expected != data
        self._hash.update(data)
        self.received += len(data)

    @property
    def lost(self) -> int:
        """How many bytes are missing."""
        return max(0, len(self._written) - self.received)

    @property
    def repeated(self) -> int:
        """How many there are too many."""
        return max(0, self.received - len(self._written))

    @property
    def is_equal(self) -> bool:
        """Whether the SHA-256 is that of what was written."""
        return self._hash.digest() == sha256(self._written).digest()


class Reader:
    """One reader: what it has got, and how often it has come back.

    Attributes:
      seconds: how long one connection lasts; infinite for one that stays.
    """

    def __init__(self, contents: dict[str, bytes], seconds: float) -> None:
        self.streams = {name: Stream(content) for name, content in contents.items()}
        self.seconds = seconds
        self.reconnects = 0
        self.gaps = 0

    async def read_raw(self, client: Client, pid: int, name: str) -> None:
        """Read one stream's raw bytes to the end."""
        stream = self.streams[name]
        path = f"/processes/{pid}/{name}/raw?follow=true"

        async def read() -> None:
            async with client.body(path, {"range": f"bytes={stream.received}-"}) as body:
                async for data in body:
                    stream.add(data)

        await self._until_end(read)

    async def read_frames(self, client: Client, pid: int) -> None:
        """Read the frames of both streams to the end."""
        position = 0

        async def read() -> None:
            nonlocal position
            splitter = FrameSplitter()
            path = f"/processes/{pid}/output/frames?follow=true&from={position}"
            async with client.body(path) as body:
                async for data in body:
                    for frame in splitter.feed(data):
                        self._add(frame, position)
                        position = frame.end

        await self._until_end(read)

    def _add(self, frame: Frame, expected_position: int) -> None:
        if frame.stream == "gap" or frame.position != expected_position:
            self.gaps += 1
        else:
            self.streams[frame.stream].add(frame.data)

    async def _until_end(self, read: Callable[[], Awaitable[None]]) -> None:
        """Let `read` connect and go on, and break it off, until it has seen the end."""
        while True:
            with trio.move_on_after(self.seconds) as patience:
                await read()
            if not patience.cancelled_caught:
                return
            self.reconnects += 1

    def row(self, name: str) -> tuple[Cell, ...]:
        """The reader's row."""
        streams = self.streams.values()
        return (
            name,
            self.reconnects,
            sum(stream.received for stream in streams),
            sum(stream.lost for stream in streams),
            sum(stream.repeated for stream in streams),
            self.gaps + sum(stream.differing_pieces for stream in streams),
            "yes" if all(stream.is_equal for stream in streams) else "NO",
        )


def measure(
    *,
    size_bytes: int = 64 * MIB,
    seconds: float = 26.0,
    reconnect_seconds: float = 0.1,
    directory: str | None = None,
) -> Table:
    """Read `size_bytes` on each stream, written over `seconds`, in all ways at the same time.

    Args:
      directory: on the file system where outputs go; takes twice `size_bytes`.
    """
    return trio.run(_measure, size_bytes, seconds, reconnect_seconds, directory)


async def _measure(
    size_bytes: int, seconds: float, reconnect_seconds: float, directory: str | None
) -> Table:
    seed = random.randrange(2**32)
    contents = {name: random_content(seed, name, size_bytes) for name in _STREAMS}
    staying = [Reader(contents, float("inf")) for _ in range(2)]
    returning = [Reader(contents, reconnect_seconds) for _ in range(2)]
    with TemporaryDirectory(dir=directory, prefix="creche-benchmark-") as place:
        async with open_daemon(kept_whole(2 * size_bytes, place)) as client:
            pid = await client.start(random_bytes(seed=seed, size=size_bytes, seconds=seconds))
            async with trio.open_nursery() as nursery:
                for raw, frames in (staying, returning):
                    for name in _STREAMS:
                        nursery.start_soon(partial(raw.read_raw, client, pid, name))
                    nursery.start_soon(frames.read_frames, client, pid)
            record = await client.ended(pid)
            assert record["exit_code"] == 0, record
            late = [Reader(contents, float("inf")) for _ in range(2)]
            for name in _STREAMS:
                await late[0].read_raw(client, pid, name)
            await late[1].read_frames(client, pid)
    readers = {"": staying, f", again every {reconnect_seconds * 1000:.0f} ms": returning}
    rows = [
        reader.row(f"{view}?follow=true{manner}")
        for manner, pair in (*readers.items(), (", after the end", late))
        for view, reader in zip(("raw", "frames"), pair, strict=True)
    ]
    return Table(
        title=f"{size_bytes // MIB} MiB of random bytes on each of stdout and stderr",
        columns=("reconnects", "bytes", "lost", "repeated", "differing pieces", "SHA-256 equal"),
        rows=tuple(rows),
        notes=(f"Written at the same time over {seconds:g} s, seed {seed}.",),
    )


def main() -> None:
    """Measure what the command line says; fail if anything is lost or repeated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=64, help="on each stream (%(default)s)")
    parser.add_argument("--seconds", type=float, default=26.0, help="of writing (%(default)s)")
    parser.add_argument("--reconnect-seconds", type=float, default=0.1)
    parser.add_argument("--directory", help="on the file system where outputs go")
    options = parser.parse_args()
    table = measure(
        size_bytes=options.mib * MIB,
        seconds=options.seconds,
        reconnect_seconds=options.reconnect_seconds,
        directory=options.directory,
    )
    print(table.markdown())
    if any(row[-1] != "yes" for row in table.rows):
        sys.exit("something is lost or repeated")


if __name__ == "__main__":
    main()
