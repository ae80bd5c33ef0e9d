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

from .output import BEGINNING, STREAMS, Chunk, Offsets, OutputLog, Stream


class Line(NamedTuple):
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


class Gap(NamedTuple):
    """A hole in what a reader saw: what the log's limit has cost.

    Attributes:
      stream: where it is.
      missing_bytes: how many bytes of the stream are missing.
      missing_lines: how many line ends were among them.
      resume: where a reader that knows of this goes on.
    """

    stream: Stream
    missing_bytes: int
    missing_lines: int
    resume: Offsets


class LineReader:
    """Reads a log as lines.

    Iterate it for lines and gaps until the output is complete (with a
    checkpoint for every chunk, not for every line), or `wait` and `take`
    batches.

    Args:
      log: what to read.
      stream: the one stream to read, or None for both.
      resume: where to begin; what another reader's last line said.
      max_line_bytes: a longer line comes in parts of about this size, cut
        between characters; None for whole lines of any length.
    """

    __slots__ = (
        "_cursor",
        "_log",
        "_max_line_bytes",
        "_newlines",
        "_partial",
        "_read",
        "_resume",
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
    ) -> None:
        self._log = log
        self._streams = STREAMS if stream is None else (stream,)
        self._max_line_bytes = max_line_bytes
        position = min(log.position_of(name, resume.of(name)) for name in self._streams)
        self._cursor = log.cursor(position, stream=stream)
        # Of each stream: what has been read, and what has been handed out.
        self._read = dict(zip(STREAMS, resume, strict=True))
        self._resume = dict(self._read)
        self._newlines: dict[Stream, int | None] = dict.fromkeys(STREAMS)
        if resume == BEGINNING:
            self._newlines = dict.fromkeys(STREAMS, 0)
        self._partial: dict[Stream, _Partial] = {}
        self._taken: deque[Line | Gap] = deque()

    @property
    def resume(self) -> Offsets:
        """Where to go on after what has been taken."""
        return Offsets(self._resume["stdout"], self._resume["stderr"])

    async def wait(self) -> bool:
        """Wait until there may be more to take; False once the output is complete and taken.

        After False only `rest` is left.
        """
        return await self._cursor.wait()

    def take(self, max_bytes: int) -> list[Line | Gap]:
        """The lines that end in the next chunks, of about `max_bytes`, without waiting."""
        taken: list[Line | Gap] = []
        for chunk in self._cursor.take(max_bytes):
            stream = chunk.stream
            ahead = chunk.offset - self._read[stream]
            if ahead > 0:
                taken.extend(self._jump(chunk))
            elif ahead < 0:
                # From before the place to resume at, which lies further on.
                if -ahead >= len(chunk.data):
                    continue
                chunk = chunk.without(-ahead)
            self._read[stream] = chunk.offset + len(chunk.data)
            taken.extend(self._split(chunk))
            self._newlines[stream] = chunk.newlines + chunk.data.count(b"\n")
        return taken

    def rest(self) -> list[Line]:
        """The unterminated last line of each stream, as far as it has come."""
        return [line for stream in list(self._partial) for line in self._flush(stream)]

    def __aiter__(self) -> LineReader:
        return self

    async def __anext__(self) -> Line | Gap:
        while not self._taken:
            if await self.wait():
                self._taken.extend(self.take(1))
            else:
                self._taken.extend(self.rest())
                if not self._taken:
                    raise StopAsyncIteration
        return self._taken.popleft()

    def _jump(self, chunk: Chunk) -> Iterator[Line | Gap]:
        """What a hole before this chunk means: the end of the open line, and the gap."""
        stream = chunk.stream
        yield from self._flush(stream)
        newlines = self._newlines[stream]
        self._resume[stream] = chunk.offset
        yield Gap(
            stream,
            chunk.offset - self._read[stream],
            0 if newlines is None else chunk.newlines - newlines,
            self.resume,
        )

    def _split(self, chunk: Chunk) -> Iterator[Line]:
        _, timestamp_ms, stream, data, offset, _ = chunk
        head, *rest = data.split(b"\n")
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
        """Add to the open line of a stream; hand out the parts for which it has become too long."""
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
