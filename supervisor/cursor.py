"""Cursors: readers of an output log, each with a place of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from .chunk import STREAMS, Chunk, Stream
from .spill import Place

if TYPE_CHECKING:
    from .output import OutputLog

_READ_BYTES = 256 * 1024


class Cursor:
    """One reader's place in a log: an async iterator of chunks, live until the log is complete.

    Cancelling a read loses nothing: the position moves only past what was
    returned.

    Args:
      log: what to read.
      position: where to begin; what is kept no more is passed over.
      stream: the one to read, or None for both.
      stop: where to end, at most the log's end; None to go on as the process
        does, until the log is complete.
      is_held: whether what is returned is not all handed on at once; whoever
        holds it tells the log what has been read.
    """

    __slots__ = (
        "_begin",
        "_begins",
        "_is_held",
        "_log",
        "_place",
        "_position",
        "_stop",
        "_stream",
        "_taken",
    )

    def __init__(
        self,
        log: OutputLog,
        position: int,
        stream: Stream | None,
        stop: int | None,
        is_held: bool = False,
    ) -> None:
        assert stop is None or stop <= log.end
        self._log = log
        self._position = position
        # The same as offsets, known with the first chunk.
        self._begin = position
        self._begins: dict[Stream, int] | None = None
        self._stream = stream
        self._is_held = is_held
        self._stop = stop
        self._place: Place | None = None
        self._taken: list[Chunk] = []

    @property
    def position(self) -> int:
        """The position after what has been read; a new cursor from here goes on exactly there."""
        return self._taken[-1].position if self._taken else self._position

    async def read(self, max_bytes: int = _READ_BYTES) -> list[Chunk]:
        """Wait for output, and return about `max_bytes` of what there is; nothing at the end."""
        chunks = await self._read(max_bytes)
        if chunks:
            self._note_read(chunks[-1])
        return chunks

    async def _read(self, max_bytes: int) -> list[Chunk]:
        log = self._log
        await trio.lowlevel.checkpoint()
        if self._taken:  # By an iteration.
            taken = self._taken[::-1]
            self._taken.clear()
            return taken
        while self._stop is None or self._position < self._stop:
            if self._position < log.end:
                if taken := await self._take(max_bytes):
                    return taken
            elif log.closed:
                break
            else:
                await log.wait_for_more()
        return []

    async def _take(self, max_bytes: int) -> list[Chunk]:
        """The next chunks that are kept, of those the ones that are wanted."""
        log = self._log
        end = log.end
        chunks, self._place = await log.read_from(self._position, max_bytes, self._place)
        read_before = self._position
        self._position = chunks[-1].end if chunks else end
        if chunks and chunks[0].position < read_before:
            chunks[0] = chunks[0].without(read_before - chunks[0].position)
        if self._stop is not None and self._position > self._stop:
            chunks = [chunk for chunk in chunks if chunk.position < self._stop]
            if chunks and chunks[-1].end > self._stop:
                chunks[-1] = chunks[-1].up_to(self._stop)
            self._position = self._stop
        if self._begins is None and chunks:
            # What is missing before may be of either stream.
            missing = chunks[0].position - self._begin
            self._begins = {name: chunks[0].offsets.of(name) - missing for name in STREAMS}
        if self._stream is not None:
            chunks = [chunk for chunk in chunks if chunk.stream == self._stream]
        return chunks

    def _note_read(self, chunk: Chunk) -> None:
        """Tell the log that all up to the end of this chunk is handed on."""
        readership = self._log.readership
        if readership is not None and not self._is_held:
            assert self._begins is not None
            streams = STREAMS if self._stream is None else (self._stream,)
            readership.note_read(
                self._begins, {name: chunk.end_offsets.of(name) for name in streams}
            )

    def __aiter__(self) -> Cursor:
        return self

    async def __anext__(self) -> Chunk:
        if not self._taken:
            self._taken = (await self._read(_READ_BYTES))[::-1]
            if not self._taken:
                raise StopAsyncIteration
        else:
            await trio.lowlevel.checkpoint()
        chunk = self._taken.pop()
        self._note_read(chunk)
        return chunk
