"""The output log of one process: append-only, written once, read by cursors.

Theory of operation
===================

Bytes are the truth. The log is a sequence of chunks in the order in which they
were captured, each with its stream and the time of its capture. Two numbers
say where a byte is, and neither ever changes, also when old chunks are dropped:

- its *position*: how many captured bytes, of both streams, came before it;
- its *offset*: how many bytes of its own stream came before it.

    chunk:      stdout      stderr    stdout
                abcdef      xyz       ghi
    position:   0           6         9         12
    offset:     0           0         6

A cursor is a reader's own position. It shares nothing with other cursors but
the log, so a reader that lags only lags: it slows neither the capture nor
anyone else. When the log exceeds its limit the oldest chunks go and `start`
moves; a cursor that stood before `start` goes on from there, and the jump in
the offsets that it sees is the size of the gap.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final, Literal, NamedTuple

import trio

Stream = Literal["stdout", "stderr"]

STREAMS: Final[tuple[Stream, Stream]] = ("stdout", "stderr")


class Offsets(NamedTuple):
    """A place in both streams: of each, the offset of the next byte."""

    stdout: int
    stderr: int

    def of(self, stream: Stream) -> int:
        """The offset in one stream."""
        return self.stdout if stream == "stdout" else self.stderr


BEGINNING: Final = Offsets(0, 0)


class Chunk(NamedTuple):
    """A run of bytes of one stream, as captured by one read.

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

    def offset_of(self, stream: Stream) -> int:
        """How many bytes of either stream came before this chunk."""
        # The rest of what came before is the other stream's.
        return self.offset if stream == self.stream else self.position - self.offset

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


class OutputLog:
    """What one process wrote.

    Args:
      limit_bytes: how many bytes are kept; past it the oldest chunks go. The
        newest chunk always stays.
    """

    __slots__ = ("_chunks", "_closed", "_ends", "_limit_bytes", "_newlines", "_readers")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._chunks: list[Chunk] = []
        self._ends = [0, 0]
        self._newlines = [0, 0]
        self._closed = False
        self._readers = trio.lowlevel.ParkingLot()

    @property
    def start(self) -> int:
        """The position of the oldest byte that is still kept."""
        return self._chunks[0].position if self._chunks else self.end

    @property
    def start_offsets(self) -> Offsets:
        """Of each stream, the offset of the oldest byte that is still kept."""
        if not self._chunks:
            return self.end_offsets
        first = self._chunks[0]
        return Offsets(first.offset_of("stdout"), first.offset_of("stderr"))

    @property
    def end(self) -> int:
        """The position after the newest byte."""
        return self._ends[0] + self._ends[1]

    @property
    def end_offsets(self) -> Offsets:
        """Of each stream, the offset after its newest byte."""
        return Offsets(*self._ends)

    @property
    def closed(self) -> bool:
        """Whether the output is complete."""
        return self._closed

    @property
    def kept_bytes(self) -> int:
        """How many bytes can be read."""
        return self.end - self.start

    @property
    def dropped_bytes(self) -> int:
        """How many bytes went because of the limit."""
        return self.start

    def newlines(self, stream: Stream) -> int:
        """How many newlines a stream has had."""
        return self._newlines[stream == "stderr"]

    def append(self, stream: Stream, data: bytes, timestamp_ms: int) -> None:
        """Add captured bytes and wake the readers that wait for them."""
        assert data
        assert not self._closed
        which = stream == "stderr"
        self._chunks.append(
            Chunk(self.end, timestamp_ms, stream, data, self._ends[which], self._newlines[which])
        )
        self._ends[which] += len(data)
        self._newlines[which] += data.count(b"\n")
        if self.kept_bytes > self._limit_bytes:
            self._drop_oldest()
        self._readers.unpark_all()

    def _drop_oldest(self) -> None:
        # Down to 7/8 of the limit, so that the shift of a long list is paid
        # once for many chunks.
        wanted_start = self.end - self._limit_bytes * 7 // 8
        count = bisect_right(self._chunks, wanted_start, key=_position)
        del self._chunks[: min(count, len(self._chunks) - 1)]

    def close(self) -> None:
        """Declare the output complete; readers end after the last byte."""
        self._closed = True
        self._readers.unpark_all()

    def cursor(self, position: int = 0, *, stream: Stream | None = None) -> Cursor:
        """A new reader from `position` on, of both streams or of one."""
        return Cursor(self, position, stream)

    def position_of(self, stream: Stream, offset: int) -> int:
        """A position from which everything of `stream` from `offset` on is still to come.

        And nothing of it that could be left out: at most a chunk's part.
        """
        index = bisect_right(self._chunks, offset, key=lambda chunk: chunk.offset_of(stream)) - 1
        if index < 0:
            return self.start
        chunk = self._chunks[index]
        if chunk.stream != stream:
            return chunk.position
        return chunk.position + min(offset - chunk.offset, len(chunk.data))

    def offsets_of_tail(self, count: int, stream: Stream | None = None) -> Offsets:
        """Where the last `count` lines begin, of one stream or of both in the order of their ends.

        An unterminated last line counts, and ends last.
        """
        streams = STREAMS if stream is None else (stream,)
        begins: dict[Stream, int] = {}
        seen: set[Stream] = set()
        left = count
        for chunk in reversed(self._chunks):
            if chunk.stream in streams and chunk.stream not in seen:
                seen.add(chunk.stream)
                if not chunk.data.endswith(b"\n"):
                    if left > 0:
                        left -= 1
                    else:
                        begins[chunk.stream] = self.end_offsets.of(chunk.stream)
            if len(seen) == len(streams):
                break
        for chunk in reversed(self._chunks):
            if len(begins) == len(streams):
                break
            if chunk.stream not in streams:
                continue
            newline = len(chunk.data)
            while chunk.stream not in begins and (
                (newline := chunk.data.rfind(b"\n", 0, newline)) >= 0
            ):
                if left > 0:
                    left -= 1
                else:
                    begins[chunk.stream] = chunk.offset + newline + 1
        start = self.start_offsets
        return Offsets(
            begins.get("stdout", start.stdout if "stdout" in streams else 0),
            begins.get("stderr", start.stderr if "stderr" in streams else 0),
        )

    def read_bytes(self, stream: Stream) -> bytes:
        """All kept bytes of one stream."""
        return b"".join(chunk.data for chunk in self._chunks if chunk.stream == stream)


class Cursor:
    """One reader's place in a log: an async iterator of chunks, live until the log is complete.

    Cancelling a read loses nothing: the position moves only past what was
    returned.
    """

    __slots__ = ("_log", "_position", "_stream")

    def __init__(self, log: OutputLog, position: int, stream: Stream | None) -> None:
        self._log = log
        self._position = position
        self._stream = stream

    @property
    def position(self) -> int:
        """The position after what has been read; a new cursor from here goes on exactly there."""
        return self._position

    def take(self, max_bytes: int) -> list[Chunk]:
        """What is there now, without waiting: whole chunks until `max_bytes` are reached.

        Never empty unless nothing of this cursor's stream is left to read now.
        The position also moves past chunks of the other stream.
        """
        chunks = self._log._chunks
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
            read_before = self._position - chunk.position
            self._position = chunk.end
            if self._stream is not None and chunk.stream != self._stream:
                continue
            taken.append(chunk.without(read_before) if read_before > 0 else chunk)
            size += len(taken[-1].data)
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
