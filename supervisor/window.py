"""What of one log is in memory: its newest chunks, those that are not on disk and as many others as there is room for."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

import msgspec

from .chunk import Chunk, Stream
from .store import OutputStore

# What a chunk takes in memory besides its bytes, in CPython 3.11.
_CHUNK_OVERHEAD_BYTES = 256
# Chunks of the same millisecond are merged up to here: a process that writes
# single bytes must not cost 256 times as much.
_MERGED_BYTES = 4096


class Window:
    """A row of chunks, in the order of their capture; it may have holes.

    A *cost* is what chunks take in memory, in bytes. All of it is charged to the
    store, for as long as the window is there.

    Args:
      store: of whose memory it takes.

    Attributes:
      cost: of all chunks.
      unspilled_cost: of those that are not on disk.
      unspilled_bytes: how many bytes of output those are.
      disk_end: the position up to which all that is kept is on disk.
    """

    __slots__ = ("_chunks", "_store", "cost", "disk_end", "unspilled_bytes", "unspilled_cost")

    def __init__(self, store: OutputStore) -> None:
        self._store = store
        self._chunks: list[Chunk] = []
        self.cost = 0
        self.unspilled_cost = 0
        self.unspilled_bytes = 0
        self.disk_end = 0

    def __del__(self) -> None:
        self._store.memory_bytes -= self.cost

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def oldest(self) -> Chunk | None:
        """The first chunk."""
        return self._chunks[0] if self._chunks else None

    @property
    def unspilled(self) -> list[Chunk]:
        """The chunks that are not on disk."""
        return self._chunks[self._first_from(self.disk_end) :]

    # --- more ---

    def append(self, chunk: Chunk, *, merges: bool) -> None:
        """Add the next chunk; with `merges`, to the last one, if there is no use in two."""
        cost = len(chunk.data)
        last = self._chunks[-1] if self._chunks else None
        if (
            merges
            and last is not None
            and last.stream == chunk.stream
            and last.timestamp_ms == chunk.timestamp_ms
            and len(last.data) < _MERGED_BYTES
            and last.end == chunk.position
            and last.position >= self.disk_end
        ):
            self._chunks[-1] = msgspec.structs.replace(last, data=last.data + chunk.data)
        else:
            self._chunks.append(chunk)
            cost += _CHUNK_OVERHEAD_BYTES
        self.unspilled_bytes += len(chunk.data)
        self.unspilled_cost += cost
        self._charge(cost)

    def extend(self, chunks: Iterable[Chunk]) -> None:
        """Add the next chunks, as they are."""
        for chunk in chunks:
            self.append(chunk, merges=False)

    def note_spilled(self, chunks: Iterable[Chunk], end: int) -> None:
        """These are on disk now, as is all that is kept up to this position."""
        self.disk_end = end
        for chunk in chunks:
            self.unspilled_cost -= _cost(chunk)
            self.unspilled_bytes -= len(chunk.data)

    # --- less ---

    def drop(self, count: int) -> None:
        """Drop the first chunks."""
        dropped = self._chunks[:count]
        del self._chunks[:count]
        freed = 0
        for chunk in dropped:
            freed += _cost(chunk)
            if chunk.position >= self.disk_end:
                self.unspilled_cost -= _cost(chunk)
                self.unspilled_bytes -= len(chunk.data)
        self._charge(-freed)

    def drop_before(self, position: int) -> None:
        """Drop what begins before a position."""
        self.drop(bisect_left(self._chunks, position, key=_position))

    def drop_spilled(self, cost: float = float("inf")) -> None:
        """Drop the first of those that are on disk: so much of them, or a little more."""
        count = 0
        while cost > 0 and count < len(self._chunks) and self._chunks[count].end <= self.disk_end:
            cost -= _cost(self._chunks[count])
            count += 1
        self.drop(count)

    def drop_cost(self, cost: int) -> None:
        """Drop so much or a little more, but never the newest chunk."""
        count = 0
        while cost > 0 and count < len(self._chunks) - 1:
            cost -= _cost(self._chunks[count])
            count += 1
        self.drop(count)

    # --- reading ---

    def read_from(self, position: int, max_bytes: int, *, is_first: bool) -> list[Chunk]:
        """About `max_bytes` of the chunks that end behind `position`.

        Args:
          is_first: whether nothing before the first of them can be on disk; else
            it must begin at `position` or before, or there are none.
        """
        first = last = self._first_from(position)
        if first == len(self._chunks) or not (
            is_first or self._chunks[first].position <= position or position >= self.disk_end
        ):
            return []
        size = 0
        while last < len(self._chunks) and size < max_bytes:
            chunk = self._chunks[last]
            if last > first and self._chunks[last - 1].end < min(chunk.position, self.disk_end):
                break  # In between there may be some on disk.
            size += len(chunk.data)
            last += 1
        return self._chunks[first:last]

    def before_offset(self, stream: Stream, offset: int) -> Chunk | None:
        """The last chunk that begins at this offset of the stream, or before."""
        index = bisect_right(self._chunks, offset, key=lambda chunk: chunk.offsets.of(stream)) - 1
        return self._chunks[index] if index >= 0 else None

    def _first_from(self, position: int) -> int:
        """The index of the first chunk that ends behind `position`."""
        index = bisect_right(self._chunks, position, key=_position)
        return index - (index > 0 and self._chunks[index - 1].end > position)

    def _charge(self, cost: int) -> None:
        self.cost += cost
        self._store.charge(cost)


def _position(chunk: Chunk) -> int:
    return chunk.position


def _cost(chunk: Chunk) -> int:
    return len(chunk.data) + _CHUNK_OVERHEAD_BYTES
