"""The output log of one process: append-only, written once, read by cursors.

Theory of operation
===================

Bytes are the truth. The log is a sequence of chunks in the order in which
they were captured, each with its stream and the time of its capture. A
*position* is the number of captured bytes (of both streams) before a point,
so it never changes, also when old chunks are dropped.

    position:  0        6        11            20
               | chunk  | chunk  | chunk       |
               ^ start                         ^ end

A cursor is a reader's own position. It shares nothing with other cursors but
the log, so a reader that lags only lags: it slows neither the capture nor
anyone else. When the log exceeds its limit the oldest chunks go and `start`
moves; a cursor that stood before `start` goes on from there and counts what it
has missed.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Literal, NamedTuple

import trio

Stream = Literal["stdout", "stderr"]


class Chunk(NamedTuple):
    """A run of bytes of one stream, as captured by one read.

    Attributes:
      position: the log's position of the first byte.
      timestamp_ms: when it was captured, in ms since the epoch.
      stream: where the process wrote it.
      data: the exact bytes, never empty.
    """

    position: int
    timestamp_ms: int
    stream: Stream
    data: bytes

    @property
    def end(self) -> int:
        """The position after the last byte."""
        return self.position + len(self.data)


class OutputLog:
    """What one process wrote.

    Args:
      limit_bytes: how many bytes are kept; past it the oldest chunks go. The
        newest chunk always stays.
    """

    __slots__ = ("_chunks", "_closed", "_end", "_limit_bytes", "_readers")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._chunks: list[Chunk] = []
        self._end = 0
        self._closed = False
        self._readers = trio.lowlevel.ParkingLot()

    @property
    def start(self) -> int:
        """The position of the oldest byte that is still kept."""
        return self._chunks[0].position if self._chunks else self._end

    @property
    def end(self) -> int:
        """The position after the newest byte."""
        return self._end

    @property
    def closed(self) -> bool:
        """Whether the output is complete."""
        return self._closed

    @property
    def kept_bytes(self) -> int:
        """How many bytes can be read."""
        return self._end - self.start

    @property
    def dropped_bytes(self) -> int:
        """How many bytes went because of the limit."""
        return self.start

    def append(self, stream: Stream, data: bytes, timestamp_ms: int) -> None:
        """Add captured bytes and wake the readers that wait for them."""
        assert data
        assert not self._closed
        self._chunks.append(Chunk(self._end, timestamp_ms, stream, data))
        self._end += len(data)
        if self.kept_bytes > self._limit_bytes:
            self._drop_oldest()
        self._readers.unpark_all()

    def _drop_oldest(self) -> None:
        # Down to 7/8 of the limit, so that the shift of a long list is paid
        # once for many chunks.
        wanted_start = self._end - self._limit_bytes * 7 // 8
        count = bisect_right(self._chunks, wanted_start, key=_position)
        del self._chunks[: min(count, len(self._chunks) - 1)]

    def close(self) -> None:
        """Declare the output complete; readers end after the last byte."""
        self._closed = True
        self._readers.unpark_all()

    def cursor(self, position: int = 0, *, stream: Stream | None = None) -> Cursor:
        """A new reader from `position` on, of both streams or of one."""
        return Cursor(self, position, stream)

    def read_bytes(self, stream: Stream) -> bytes:
        """All kept bytes of one stream."""
        return b"".join(chunk.data for chunk in self._chunks if chunk.stream == stream)


class Cursor:
    """One reader's place in a log: an async iterator of chunks, live until the log is complete.

    Cancelling a read loses nothing: the position moves only past what was
    returned.
    """

    __slots__ = ("_log", "_missed_bytes", "_position", "_stream")

    def __init__(self, log: OutputLog, position: int, stream: Stream | None) -> None:
        self._log = log
        self._position = position
        self._stream = stream
        self._missed_bytes = 0

    @property
    def position(self) -> int:
        """The position after what has been read; a new cursor from here goes on exactly there."""
        return self._position

    @property
    def missed_bytes(self) -> int:
        """How many bytes, of both streams, were dropped before this cursor came to them."""
        return self._missed_bytes

    def take(self, max_bytes: int) -> list[Chunk]:
        """What is there now, without waiting: whole chunks until `max_bytes` are reached.

        Never empty unless nothing of this cursor's stream is left to read now.
        The position also moves past chunks of the other stream.
        """
        chunks = self._log._chunks
        if (gap := self._log.start - self._position) > 0:
            self._missed_bytes += gap
            self._position += gap
        # The position may lie inside a chunk, which then is the one before.
        first = bisect_right(chunks, self._position, key=_position)
        if first and chunks[first - 1].end > self._position:
            first -= 1
        taken: list[Chunk] = []
        size = 0
        for index in range(first, len(chunks)):
            if size >= max_bytes:
                return taken
            chunk = chunks[index]
            skipped = self._position - chunk.position
            self._position = chunk.end
            if self._stream is not None and chunk.stream != self._stream:
                continue
            if skipped > 0:
                chunk = chunk._replace(position=chunk.position + skipped, data=chunk.data[skipped:])
            taken.append(chunk)
            size += len(chunk.data)
        return taken

    async def wait(self) -> bool:
        """Wait until there may be more to take; False once the log is complete and read."""
        await trio.lowlevel.checkpoint()
        while self._position >= self._log.end:
            if self._log.closed:
                return False
            await self._log._readers.park()
        return True

    def __aiter__(self) -> Cursor:
        return self

    async def __anext__(self) -> Chunk:
        while await self.wait():
            if taken := self.take(1):
                return taken[0]
        raise StopAsyncIteration


def _position(chunk: Chunk) -> int:
    return chunk.position
