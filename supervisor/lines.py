"""Lines: a view of chunks, made at reading time.

A `\\n` ends a line and a `\\r` right before it is dropped; nothing else splits.
An unterminated last line counts. A line is decoded when it is whole, so a
character that was split across reads is whole too; what is not UTF-8 becomes
U+FFFD, in this view only.

Lines of both streams come in the order of their ends. After any line the reader
can say where to go on: of its own stream behind it, and of the other stream at
the beginning of the line that is still open there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from msgspec import Struct

from .chunk import BEGINNING, STREAMS, Chunk, Offsets, Stream
from .output import OutputLog


class Line(Struct, frozen=True, gc=False):
    """One line of output, or a part of a long one.

    Attributes:
      text: without its line ending.
      timestamp_ms: when its last byte was captured, in ms since the epoch.
      stream: where the process wrote it.
      resume: where a reader that has got this goes on.
      is_whole: False for a part that is not the last one of its line.
    """

    text: str
    timestamp_ms: int
    stream: Stream
    resume: Offsets
    is_whole: bool = True


class Gap(Struct, frozen=True, gc=False):
    """A hole in what a reader saw: what the log's bounds have cost.

    Attributes:
      stream: where it is.
      missing_bytes: how many bytes of the stream are missing.
      missing_lines: how many line ends were among them; None if it begins
        before everything that is kept, at a place that another reader has
        named, since nobody knows that place any more.
      resume: where a reader that knows of this goes on.
    """

    stream: Stream
    missing_bytes: int
    missing_lines: int | None
    resume: Offsets


class LineReader:
    """Reads a log as lines.

    Iterate it for lines and gaps until the output is complete (with a
    checkpoint for every chunk, not for every line), or `read` batches.

    Args:
      log: what to read.
      stream: the one stream to read, or None for both.
      resume: where to begin; what another reader's last line said.
      max_line_bytes: a longer line comes in parts of about this size, cut
        between characters; None for whole lines of any length.
      follow: whether to go on until the output is complete; else up to what
        there is now.
      is_held: whether what is returned is not all handed on at once; whoever
        holds it tells the log what has been read.
    """

    __slots__ = (
        "_begins",
        "_cursor",
        "_log",
        "_max_line_bytes",
        "_newlines",
        "_partial",
        "_read",
        "_readership",
        "_resume",
        "_stop",
        "_streams",
        "_taken",
    )

    def __init__(
        self,
        log: OutputLog,
        *,
        stream: Stream | None = None,
        resume: Offsets = BEGINNING,
        max_line_bytes: int | None = None,
        follow: bool = True,
        is_held: bool = False,
    ) -> None:
        self._log = log
        # To be told what has been read.
        self._readership = None if is_held else log.readership
        self._streams = STREAMS if stream is None else (stream,)
        self._max_line_bytes = max_line_bytes
        position = min(log.position_of(name, resume.of(name)) for name in self._streams)
        self._cursor = log.cursor(
            position, stream=stream, stop=None if follow else log.end, is_held=True
        )
        # Of each stream: where it ends, with how many newlines; known once the output is complete.
        self._stop = None if follow else self._ends()
        # Of each stream: what has been read, what has been handed out, and where that begins.
        self._read = resume.by_stream()
        self._resume = dict(self._read)
        self._begins = dict(self._read)
        self._newlines: dict[Stream, int | None] = dict.fromkeys(STREAMS)
        if resume == BEGINNING:
            self._newlines = dict.fromkeys(STREAMS, 0)
        self._partial: dict[Stream, _Partial] = {}
        self._taken: deque[Line | Gap] = deque()

    def _ends(self) -> dict[Stream, tuple[int, int]]:
        log = self._log
        return {name: (log.end_offsets.of(name), log.newlines(name)) for name in self._streams}

    @property
    def resume(self) -> Offsets:
        """Where to go on after what has been taken."""
        return Offsets(self._resume["stdout"], self._resume["stderr"])

    async def read(self, max_bytes: int) -> list[Line | Gap]:
        """Wait for lines, and return those that end in about `max_bytes`; nothing at the end.

        Then only `rest` is left. If cancelled, nothing is lost.
        """
        while chunks := await self._cursor.read(max_bytes):
            items = self._digest(chunks)
            self._note_read()
            if items:
                return items
        return []

    def rest(self) -> list[Line | Gap]:
        """After the end: the unterminated last line of each stream, and what is missing behind it."""
        items: list[Line | Gap] = []
        # An open line is needed by whoever comes back for the whole of it.
        self._readership = None
        for stream in list(self._partial):
            items += self._flush(stream)
        for stream, (offset, newlines) in (self._stop or self._ends()).items():
            if self._read[stream] < offset:
                items += self._jump(stream, offset, newlines)
                self._read[stream] = offset
        return items

    def __aiter__(self) -> LineReader:
        return self

    async def __anext__(self) -> Line | Gap:
        while not self._taken:
            if chunks := await self._cursor.read(1):
                self._taken.extend(self._digest(chunks))
                if not self._taken:
                    self._note_read()
            else:
                self._taken.extend(self.rest())
                if not self._taken:
                    raise StopAsyncIteration
        item = self._taken.popleft()
        if not self._taken:
            self._note_read()
        elif self._readership is not None:
            self._readership.note_read(self._begins, {item.stream: item.resume.of(item.stream)})
        return item

    def _digest(self, chunks: list[Chunk]) -> list[Line | Gap]:
        items: list[Line | Gap] = []
        for chunk in chunks:
            stream = chunk.stream
            ahead = chunk.offset - self._read[stream]
            if ahead > 0:
                items += self._jump(stream, chunk.offset, chunk.newlines)
            elif ahead < 0:
                # From before the place to resume at, which lies further on.
                if -ahead >= len(chunk.data):
                    continue
                chunk = chunk.without(-ahead)
            self._read[stream] = chunk.offset + len(chunk.data)
            items += self._split(chunk)
            self._newlines[stream] = chunk.newlines + chunk.data.count(b"\n")
        return items

    def _note_read(self) -> None:
        """Tell what is needed no more: whoever comes back begins with the line that is open."""
        if (readership := self._readership) is not None:
            readership.note_taken(self._begins, self._read)
            readership.note_read(self._begins, self._resume)

    def _jump(self, stream: Stream, offset: int, newlines: int) -> Iterator[Line | Gap]:
        """What a hole up to here means: the end of the open line, and the gap."""
        yield from self._flush(stream)
        known = self._newlines[stream]
        self._resume[stream] = offset
        yield Gap(
            stream,
            offset - self._read[stream],
            None if known is None else newlines - known,
            self.resume,
        )

    def _split(self, chunk: Chunk) -> Iterator[Line]:
        timestamp_ms, stream, offset = chunk.timestamp_ms, chunk.stream, chunk.offset
        head, *rest = chunk.data.split(b"\n")
        if not rest:
            yield from self._keep(stream, head, timestamp_ms)
            return
        other = self._resume["stderr" if stream == "stdout" else "stdout"]
        is_stdout = stream == "stdout"
        last = rest.pop()
        offset += len(head) + 1
        if (partial := self._partial.pop(stream, None)) is not None:
            head = b"".join((*partial.parts, head))
        resume = Offsets(offset, other) if is_stdout else Offsets(other, offset)
        yield Line(_text(head), timestamp_ms, stream, resume)
        for raw in rest:
            offset += len(raw) + 1
            resume = Offsets(offset, other) if is_stdout else Offsets(other, offset)
            yield Line(_text(raw), timestamp_ms, stream, resume)
        self._resume[stream] = offset
        if last:
            yield from self._keep(stream, last, timestamp_ms)

    def _keep(self, stream: Stream, data: bytes, timestamp_ms: int) -> Iterator[Line]:
        """Add data to the open line of a stream; hand out the parts for which it has become too long."""
        # Popped and put back: the streams stay in the order of their last bytes.
        partial = self._partial.pop(stream, None)
        parts, size = ([], 0) if partial is None else (partial.parts, partial.size)
        parts.append(data)
        size += len(data)
        if self._max_line_bytes is not None and size > self._max_line_bytes:
            raw = b"".join(parts)
            while len(raw) > self._max_line_bytes:
                cut = _cut(raw, self._max_line_bytes)
                self._resume[stream] += cut
                text = raw[:cut].decode("utf-8", "replace")
                yield Line(text, timestamp_ms, stream, self.resume, is_whole=False)
                raw = raw[cut:]
            parts, size = [raw], len(raw)
        self._partial[stream] = _Partial(parts, size, timestamp_ms)

    def _flush(self, stream: Stream) -> Iterator[Line]:
        if (partial := self._partial.pop(stream, None)) is not None:
            raw = b"".join(partial.parts)
            self._resume[stream] += len(raw)
            text = raw.decode("utf-8", "replace")
            yield Line(text, partial.timestamp_ms, stream, self.resume)


class _Partial(NamedTuple):
    parts: list[bytes]
    size: int
    timestamp_ms: int


def _text(raw: bytes) -> str:
    return raw.removesuffix(b"\r").decode("utf-8", "replace")


def _cut(raw: bytes, size: int) -> int:
    """Where to cut at `size` or up to three bytes before, so that no character is cut in two."""
    for cut in range(size, size - 4, -1):
        if raw[cut] & 0b1100_0000 != 0b1000_0000:  # Not a continuation byte.
            return cut
    return size
