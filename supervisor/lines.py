"""Lines: a view of chunks, made at reading time.

A `\\n` ends a line and a `\\r` right before it is dropped; nothing else splits.
An unterminated last line counts. A line is decoded when it is whole, so a
character that was split across reads is whole too; what is not UTF-8 becomes
U+FFFD, in this view only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from .output import Chunk, Cursor, Stream


class Line(NamedTuple):
    """One line of output.

    Attributes:
      text: without its line ending.
      timestamp_ms: when its last byte was captured, in ms since the epoch.
      stream: where the process wrote it.
    """

    text: str
    timestamp_ms: int
    stream: Stream


class Gap(NamedTuple):
    """A hole in what a reader saw: bytes that the log's limit has cost.

    Attributes:
      missing_bytes: how many bytes of both streams are missing here.
    """

    missing_bytes: int


class LineReader:
    """Reads a cursor as lines, in the order in which they end.

    Iterate it for lines and gaps until the output is complete (with a
    checkpoint for every chunk, not for every line), or `wait` and `take`
    batches.
    """

    __slots__ = ("_cursor", "_missed_bytes", "_partial", "_taken")

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._missed_bytes = 0
        self._partial: dict[Stream, _Partial] = {}
        self._taken: deque[Line | Gap] = deque()

    async def wait(self) -> bool:
        """Wait until there may be more to take; False once the output is complete and taken.

        After False only `rest` is left.
        """
        return await self._cursor.wait()

    def take(self, max_bytes: int) -> list[Line | Gap]:
        """The lines that end in the next chunks, of about `max_bytes`, without waiting."""
        chunks = self._cursor.take(max_bytes)
        taken: list[Line | Gap] = []
        if (missed := self._cursor.missed_bytes - self._missed_bytes) > 0:
            self._missed_bytes += missed
            taken.extend(self.rest())
            taken.append(Gap(missed))
        for chunk in chunks:
            taken.extend(self._split(chunk))
        return taken

    def rest(self) -> list[Line]:
        """The unterminated last line of each stream, as far as it has come."""
        lines = [
            Line(b"".join(partial.parts).decode("utf-8", "replace"), partial.timestamp_ms, stream)
            for stream, partial in self._partial.items()
        ]
        self._partial.clear()
        return lines

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

    def _split(self, chunk: Chunk) -> Iterator[Line]:
        _, timestamp_ms, stream, data = chunk
        head, *rest = data.split(b"\n")
        if not rest:
            self._keep(stream, head, timestamp_ms)
            return
        if (partial := self._partial.pop(stream, None)) is not None:
            head = b"".join((*partial.parts, head))
        last = rest.pop()
        yield Line(_text(head), timestamp_ms, stream)
        for raw in rest:
            yield Line(_text(raw), timestamp_ms, stream)
        if last:
            self._keep(stream, last, timestamp_ms)

    def _keep(self, stream: Stream, data: bytes, timestamp_ms: int) -> None:
        # Popped and put back: the streams stay in the order of their last bytes.
        partial = self._partial.pop(stream, None)
        parts = [] if partial is None else partial.parts
        parts.append(data)
        self._partial[stream] = _Partial(parts, timestamp_ms)


class _Partial(NamedTuple):
    parts: list[bytes]
    timestamp_ms: int


def _text(raw: bytes) -> str:
    return raw.removesuffix(b"\r").decode("utf-8", "replace")
