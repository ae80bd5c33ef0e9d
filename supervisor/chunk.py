"""Chunks: runs of captured bytes, and the numbers that say where in the output they are.

The values here and in `lines` are structs that the garbage collector does not
track: they hold nothing that could refer back to them, there are many of them,
and each full collection would walk them all.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from msgspec import Struct

Stream = Literal["stdout", "stderr"]

STREAMS: Final[tuple[Stream, Stream]] = ("stdout", "stderr")


class Offsets(Struct, frozen=True, gc=False):
    """A place in both streams: of each, the offset of the next byte."""

    stdout: int
    stderr: int

    def of(self, stream: Stream) -> int:
        """The offset in one stream."""
        return self.stdout if stream == "stdout" else self.stderr

    def by_stream(self) -> dict[Stream, int]:
        """The offset in each stream."""
        return {"stdout": self.stdout, "stderr": self.stderr}


BEGINNING: Final = Offsets(0, 0)


class Chunk(Struct, frozen=True, gc=False):
    """A run of bytes of one stream that were captured at one time.

    Attributes:
      position: the log's position of the first byte.
      timestamp_ms: when it was captured, in ms since the epoch.
      stream: where the process wrote it.
      data: the exact bytes, never empty.
      offset: the stream's offset of the first byte.
      newlines: how many newlines its stream had before it.
    """

    position: int
    timestamp_ms: int
    stream: Stream
    data: bytes
    offset: int
    newlines: int

    @property
    def end(self) -> int:
        """The position after the last byte."""
        return self.position + len(self.data)

    @property
    def offsets(self) -> Offsets:
        """The place before the first byte, in both streams."""
        # What came before and is not of this stream is the other's.
        other = self.position - self.offset
        return (
            Offsets(self.offset, other) if self.stream == "stdout" else Offsets(other, self.offset)
        )

    @property
    def end_offsets(self) -> Offsets:
        """The place after the last byte, in both streams."""
        before, size = self.offsets, len(self.data)
        stdout, stderr = before.stdout, before.stderr
        return (
            Offsets(stdout + size, stderr)
            if self.stream == "stdout"
            else Offsets(stdout, stderr + size)
        )

    def without(self, count: int) -> Chunk:
        """The chunk without its first `count` bytes, of which there are more."""
        return Chunk(
            self.position + count,
            self.timestamp_ms,
            self.stream,
            self.data[count:],
            self.offset + count,
            self.newlines + self.data.count(b"\n", 0, count),
        )

    def up_to(self, position: int) -> Chunk:
        """The chunk without what lies at `position` and behind, which is not all of it."""
        return msgspec.structs.replace(self, data=self.data[: position - self.position])


class Counts:
    """What has been captured so far, in numbers: they give each chunk its place.

    Attributes:
      ends: of each stream, the offset after its newest byte.
      newlines: of each stream.
      open_since: of each stream, the position of the newest bytes if they do
        not end with a newline, else None.
    """

    __slots__ = ("ends", "newlines", "open_since")

    def __init__(self) -> None:
        self.ends = [0, 0]
        self.newlines = [0, 0]
        self.open_since: list[int | None] = [None, None]

    @property
    def end(self) -> int:
        """The position after the newest byte."""
        return self.ends[0] + self.ends[1]

    def stamp(self, stream: Stream, data: bytes, timestamp_ms: int) -> Chunk:
        """The chunk that these bytes are, which come next."""
        which = stream == "stderr"
        ends, newlines = self.ends, self.newlines
        chunk = Chunk(ends[0] + ends[1], timestamp_ms, stream, data, ends[which], newlines[which])
        ends[which] += len(data)
        if b"\n" in data:  # Much quicker than a count that finds none.
            newlines[which] += data.count(b"\n")
        self.open_since[which] = None if data.endswith(b"\n") else chunk.position
        return chunk

    def note(self, chunk: Chunk) -> None:
        """Note a chunk that was stamped before, and what was lost before it."""
        which = chunk.stream == "stderr"
        self.ends = [chunk.end_offsets.stdout, chunk.end_offsets.stderr]
        self.newlines[which] = chunk.newlines + chunk.data.count(b"\n")
        self.open_since[which] = None if chunk.data.endswith(b"\n") else chunk.position

    def copy(self) -> Counts:
        """The same, to go on from without these."""
        copy = Counts()
        copy.ends[:] = self.ends
        copy.newlines[:] = self.newlines
        copy.open_since[:] = self.open_since
        return copy
