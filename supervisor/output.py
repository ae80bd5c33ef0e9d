"""The output log of one process: append-only, written once, read by cursors.

Theory of operation
===================

Bytes are the truth. The log is a sequence of chunks in the order in which they
were captured, each with its stream and the time of its capture. Two numbers
say where a byte is, and neither ever changes, also when other chunks go:

- its *position*: how many captured bytes, of both streams, came before it;
- its *offset*: how many bytes of its own stream came before it.

    chunk:      stdout      stderr    stdout
                abcdef      xyz       ghi
    position:   0           6         9         12
    offset:     0           0         6

A cursor is a reader's own position. It shares nothing with other cursors but
the log, so a reader that lags only lags: it slows neither the capture nor
anyone else.

Chunks are appended in memory. Whoever appends must `settle` the log now and
then, which spills to disk what has become too much for memory; from the disk
it is read again. In memory stays the newest output, which live readers want.

    0          disk_end         end
    |  on disk  |  not on disk  |        (what is before disk_end may also be
             |    in memory     |         in memory, until it needs the room)

Past the bounds of `OutputLimits`, or while the disk fails, output goes. That
leaves a hole: at the front, in the middle or at the end. Positions and offsets
count what has gone, too, so a cursor sees a jump as wide as the hole.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable

import trio

from .chunk import STREAMS, Chunk, Counts, Offsets, Stream
from .cursor import Cursor
from .frames import size_of
from .readership import Readership
from .shortages import SHORTAGES, resource_error
from .spec import OutputPolicy
from .spill import Place, Spill
from .spill_file import Poured, Source, SpillFile
from .store import OutputStore
from .tail import Tail
from .window import Window

# After a failure the disk is tried again when so much more has come.
_RETRY_BYTES = 1024 * 1024
# Whoever reads lines, and hands on the parts of long ones, holds no more than this of both streams.
_MOST_HELD_BYTES = 256 * 1024
# Those who wait for more of a log that is complete. There are many such logs.
_NOBODY = trio.lowlevel.ParkingLot()


class OutputLog:
    """What one process wrote.

    Args:
      store: the bounds and the place to spill to.
      name: of its files, unique in the store.
      policy: what happens past a bound; None for the store's.

    Attributes:
      is_over: under `drop_newest`, whether nothing is kept any more.
      poured: is called when output has come that was never in memory, if that matters.
      readership: how far it has been read, if what has been read makes room for
        what comes next.
      spill_error: why the disk did not take or give something, the last time.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_counts",
        "_is_payer",
        "_is_writing",
        "_name",
        "_policy",
        "_readers",
        "_retry_at",
        "_spill",
        "_store",
        "_window",
        "is_over",
        "poured",
        "readership",
        "spill_error",
    )

    def __init__(
        self, store: OutputStore, name: str = "log", policy: OutputPolicy | None = None
    ) -> None:
        self._store = store
        self._name = name
        self._policy = policy or store.limits.policy
        self._window = Window(store)
        self._counts = Counts()
        self.readership = Readership() if self._policy == "block" else None
        self._spill: Spill | None = None
        self._is_writing = False
        self._is_payer = False
        # Past its own bound. What is written to disk takes less there; that room is not
        # for what comes later.
        self.is_over = False
        self.poured: Callable[[], None] | None = None
        self._retry_at = 0
        self._closed = False
        self._readers = trio.lowlevel.ParkingLot()
        self.spill_error: str | None = None

    @property
    def start(self) -> int:
        """The position of the oldest byte that is still kept."""
        oldest = self._spill.oldest if self._spill is not None else None
        if oldest is not None:
            return oldest.start.position
        chunk = self._window.oldest
        return self.end if chunk is None else chunk.position

    @property
    def start_offsets(self) -> Offsets:
        """Of each stream, an offset at or before its oldest byte that is still kept."""
        oldest = self._spill.oldest if self._spill is not None else None
        if oldest is not None:
            return oldest.start.offsets
        chunk = self._window.oldest
        return self.end_offsets if chunk is None else chunk.offsets

    @property
    def end(self) -> int:
        """The position after the newest byte."""
        return self._counts.end

    @property
    def end_offsets(self) -> Offsets:
        """Of each stream, the offset after its newest byte."""
        return Offsets(*self._counts.ends)

    @property
    def closed(self) -> bool:
        """Whether the output is complete."""
        return self._closed

    @property
    def kept_bytes(self) -> int:
        """How many bytes can be read."""
        return self._window.unspilled_bytes + (0 if self._spill is None else self._spill.kept_bytes)

    @property
    def dropped_bytes(self) -> int:
        """How many bytes have gone."""
        return self.end - self.kept_bytes

    @property
    def spilled_bytes(self) -> int:
        """How many bytes can be read from disk."""
        return 0 if self._spill is None else self._spill.kept_bytes

    def newlines(self, stream: Stream) -> int:
        """How many newlines a stream has had."""
        return self._counts.newlines[stream == "stderr"]

    # --- from one supervisor to the next ---

    @property
    def unspilled(self) -> list[Chunk]:
        """What is in memory and not on disk."""
        return self._window.unspilled

    @property
    def drops_newest(self) -> bool:
        """Whether what comes next is not kept."""
        return self._policy == "drop_newest" and (self.is_over or self._is_full)

    def becomes_over(self) -> bool:
        """Know that something is dropped that would be the newest; whether that is news to `is_over`."""
        was_over, self.is_over = self.is_over, self.is_over or self._is_at_its_bound
        return self.is_over and not was_over

    @property
    def counts(self) -> Counts:
        """What has been captured so far, in numbers; not to be changed."""
        return self._counts

    def take_back(
        self,
        spill: Spill | None,
        counts: Counts,
        chunks: Iterable[Chunk],
        read_to: tuple[int, int],
        *,
        is_over: bool,
    ) -> None:
        """Take back what an earlier supervisor had, into a log that is empty yet.

        Args:
          spill: what is on disk; None if there never was anything.
          counts: of all that was captured up to its end.
          chunks: what was captured since, and maybe again what is on disk.
          read_to: how far it has been read.
          is_over: whether nothing was kept any more.
        """
        self.is_over = is_over
        if self.readership is not None:
            self.readership.take_back(read_to)
        self._counts = counts
        if spill is not None:
            self._spill = spill
            self._window.disk_end = counts.end
            self._become_payer()
        for chunk in chunks:
            if chunk.position >= counts.end:
                counts.note(chunk)
                self._window.append(chunk, merges=False)

    # --- writing ---

    def append(self, stream: Stream, data: bytes, timestamp_ms: int) -> None:
        """Add captured bytes and wake the readers that wait for them."""
        assert data
        assert not self._closed
        is_full = self.drops_newest
        chunk = self._counts.stamp(stream, data, timestamp_ms)
        if is_full:
            self.becomes_over()
            return
        self._window.append(chunk, merges=not self._is_writing)
        if self._window.cost > self._store.trim_above_bytes:
            self._trim()
        self._readers.unpark_all()

    def close(self) -> None:
        """Declare the output complete; readers end after the last byte."""
        self._closed = True
        self._readers.unpark_all()
        self._readers = _NOBODY
        if self._spill is not None and self.is_settled:
            self._spill.finish()  # Else `settle` does.

    @property
    def is_settled(self) -> bool:
        """Whether `settle` has nothing to do."""
        has_too_much = (
            self._window.unspilled_cost > self._store.limits.memory_bytes and self._can_spill
        )
        return not has_too_much and (self.readership is None or self._closed or not self._is_full)

    async def settle(self, source: Source | None = None) -> None:
        """Spill what is too much for memory; under `block`, wait for readers to make room.

        One task at a time, and nothing may be appended meanwhile. If cancelled,
        nothing is lost.

        Args:
          source: gives what is to be appended next, and is called in a thread;
            what it has is spilled in the same go.
        """
        if self._window.unspilled_cost > self._store.limits.memory_bytes and self._can_spill:
            await self._spill_unspilled(source)
        if self._closed:
            if self._spill is not None:
                self._spill.finish()
        elif self.readership is not None:
            await self._wait_for_room(self.readership)

    async def _wait_for_room(self, readership: Readership) -> None:
        while self._is_full and self.kept_bytes:
            if self._drop_while(readership.has_read):
                continue
            if readership.has_taken(self.end_offsets):
                # All that is not read is the beginning of a line. It can only go on
                # beyond the bound; or it goes, if that is not worth while.
                if readership.held_bytes <= _MOST_HELD_BYTES:
                    break
                if self._drop_while(readership.has_taken):
                    continue
            await readership.wait()

    @property
    def _is_full(self) -> bool:
        """Whether a bound is reached."""
        limits = self._store.limits
        if self._store.memory_bytes > limits.total_memory_bytes:
            return True
        if self._stays_in_memory and self._window.unspilled_cost >= self._store.unspilled_bytes:
            return True
        if not self._store.can_spill:
            return False
        is_total = self._store.disk_bytes + self._window.unspilled_cost >= limits.total_bytes
        return is_total or self._is_at_its_bound

    @property
    def _is_at_its_bound(self) -> bool:
        """Whether this log is as large as one may be."""
        spilled = 0 if self._spill is None else self._spill.size
        return spilled + self._window.unspilled_cost >= self._store.limits.log_bytes

    @property
    def _stays_in_memory(self) -> bool:
        """Whether what is in memory has no other place, for now at least."""
        return not self._store.can_spill or self._retry_at > 0

    @property
    def _can_spill(self) -> bool:
        return self._store.can_spill and self.end >= self._retry_at

    async def _spill_unspilled(self, source: Source | None) -> None:
        """Write what is not on disk, unless that fails."""
        if self._spill is None:
            self._spill = self._store.spill(self._name)
            self._become_payer()
        spill = self._spill
        while waiting := self._window.unspilled:
            chunks = _first_of(waiting, spill.file_bytes)
            # What follows a hole would be kept, else, if there is one.
            takes_more = len(chunks) == len(waiting) and not self.drops_newest
            from_source = source if takes_more else None
            # From here on they stay in memory, whoever needs it.
            self._is_writing = True
            try:
                error = await self._write(spill, chunks, from_source)
            finally:
                self._is_writing = False
            if error is None:
                self._retry_at = 0
                if len(chunks) < len(waiting):
                    continue
                break
            self.spill_error = error.strerror
            is_space = error.errno in (errno.ENOSPC, errno.EDQUOT)
            if not (is_space and self._policy == "drop_oldest" and spill.oldest):
                self._retry_at = self.end + _RETRY_BYTES
                break
            self._drop_file(spill.oldest)
        self._trim()

    async def _write(
        self, spill: Spill, chunks: list[Chunk], source: Source | None
    ) -> OSError | None:
        """Write these, and what the source has; returns what went wrong, if anything did."""
        # A source may have about a file's worth.
        size = size_of(chunks) + (0 if source is None else spill.file_bytes)
        if self._policy == "drop_oldest":
            while spill.oldest and spill.size + size > self._store.limits.log_bytes:
                self._drop_file(spill.oldest)
        if not self._store.make_room(size):
            return OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        poured = await spill.pour(chunks, self._counts, source)
        self._take_in(chunks, poured)
        return poured.error

    def _drop_file(self, file: SpillFile) -> None:
        """Drop a file, and what is in memory of it."""
        assert self._spill is not None
        self._spill.drop(file)
        self._window.drop_before(file.extent.end)

    def _take_in(self, chunks: list[Chunk], poured: Poured) -> None:
        """Know what is on disk now, and what else has come from the source."""
        if not poured.rest or poured.rest[0] is not chunks[0]:
            self._window.note_spilled(chunks, poured.extent.end)
            self._window.extend(poured.rest)
        counts = self._counts
        if poured.counts.end > counts.end:
            self._counts = poured.counts
            self._readers.unpark_all()
            if self.poured is not None:
                self.poured()
        if poured.counts.end > counts.end or not poured.is_kept:
            # What follows the copies in memory is on disk alone, or their file has gone.
            self._window.drop_spilled()

    def _drop_while(self, is_done_with: Callable[[Offsets], bool]) -> bool:
        """Drop the oldest output that readers are done with, as far as it is in the way; whether any was.

        Args:
          is_done_with: whether they are with all that is before these offsets.
        """
        has_dropped = False
        while self._is_full:
            oldest = None if self._spill is None else self._spill.oldest
            if oldest is not None:
                if not is_done_with(oldest.extent.end_offsets):
                    break
                self._drop_file(oldest)
            elif (chunk := self._window.oldest) and is_done_with(chunk.end_offsets):
                self._window.drop(1)
            else:
                break
            has_dropped = True
        return has_dropped

    def _trim(self) -> None:
        """Let go of what is in memory beyond its bounds."""
        window, limits = self._window, self._store.limits
        if window.cost > limits.memory_bytes:
            self._become_payer()
            # What is on disk as well is no loss.
            window.drop_spilled(window.cost - limits.memory_bytes)
        bound = self._store.unspilled_bytes
        is_over = self._stays_in_memory and self._window.unspilled_cost > bound
        if is_over and self._policy == "drop_oldest":
            # Down to 7/8, so that the shift of a long list is paid once for many chunks.
            self._drop_memory(self._window.unspilled_cost - bound * 7 // 8)

    def _drop_memory(self, cost: int) -> None:
        """Drop the oldest in memory, but never the newest chunk."""
        if not self._is_writing:
            self._window.drop_cost(cost)

    # --- a payer for all logs together ---

    def _become_payer(self) -> None:
        if self._policy == "drop_oldest" and not self._is_payer:
            self._is_payer = True
            self._store.payers.add(self)

    @property
    def memory_to_drop(self) -> int:
        """How many bytes of memory it could give."""
        return 0 if self._is_writing or len(self._window) < 2 else self._window.cost

    @property
    def disk_to_drop(self) -> int:
        """How many bytes on disk it could give."""
        return 0 if self._spill is None or self._spill.is_growing else self._spill.size

    def drop_memory(self) -> None:
        """Give an eighth of its memory, so that others may have it."""
        self._drop_memory(self._window.cost // 8)

    def drop_disk(self) -> None:
        """Give its oldest file."""
        if self._spill is not None and self._spill.oldest is not None:
            self._drop_file(self._spill.oldest)

    # --- reading ---

    def cursor(
        self,
        position: int = 0,
        *,
        stream: Stream | None = None,
        stop: int | None = None,
        is_held: bool = False,
    ) -> Cursor:
        """A new reader from `position` on, of both streams or of one; see `Cursor`."""
        return Cursor(self, position, stream, stop, is_held)

    async def read_all(self, stream: Stream) -> bytes:
        """All bytes of one stream that are kept now."""
        cursor = self.cursor(stream=stream, stop=self.end)
        parts: list[bytes] = []
        while chunks := await cursor.read():
            parts += [chunk.data for chunk in chunks]
        return b"".join(parts)

    def position_of(self, stream: Stream, offset: int) -> int:
        """A position from which everything of `stream` from `offset` on is still to come.

        And not much else: what comes before it is of less than a megabyte.
        """
        if (chunk := self._window.before_offset(stream, offset)) is not None:
            return chunk.position
        mark = None if self._spill is None else self._spill.mark_before(offset, stream)
        return self.start if mark is None else mark.position

    async def offsets_of_tail(self, count: int, stream: Stream | None = None) -> Offsets:
        """Where the last `count` lines begin, of one stream or of both in the order of their ends.

        An unterminated last line counts, and ends last.

        Raises:
          OutOfResources: for now; nothing is lost.
        """
        streams = STREAMS if stream is None else (stream,)
        tail = Tail(count, streams, self._counts)
        if not tail.is_all:
            await self._feed(tail)
        start = self.start_offsets
        return Offsets(
            tail.begins.get("stdout", start.stdout if "stdout" in streams else 0),
            tail.begins.get("stderr", start.stderr if "stderr" in streams else 0),
        )

    async def _feed(self, tail: Tail) -> None:
        """Show a tail the output, from its end on backwards, until it has found its beginning."""
        await trio.lowlevel.checkpoint()
        segments = [] if self._spill is None else self._spill.segments()
        for chunk in reversed(self._window.unspilled):
            tail.add(chunk)
            if tail.is_found:
                return
        for segment in reversed(segments):
            assert self._spill is not None
            try:
                chunks = await self._spill.read_segment(segment)
            except OSError as error:
                if error.errno in SHORTAGES:
                    raise resource_error(error) from error
                return  # Dropped by now, or unreadable: what is kept begins behind it.
            for chunk in reversed(chunks):
                tail.add(chunk)
                if tail.is_found:
                    return

    async def read_from(
        self, position: int, max_bytes: int, place: Place | None
    ) -> tuple[list[Chunk], Place | None]:
        """The first chunks that end behind `position` and are kept, and where they end on disk.

        About `max_bytes` of them; none if none is kept from there on. For
        cursors, which keep the place for their next call.

        Raises:
          OutOfResources: for now; nothing is lost.
        """
        is_first = self._spill is None
        if chunks := self._window.read_from(position, max_bytes, is_first=is_first):
            return chunks, None
        while (spill := self._spill) is not None:
            if place is None or place.file.is_dropped or place.place >= place.file.extent.size:
                place = spill.place_of(position)
            if place is None:
                break
            try:
                chunks, place = await spill.read(place, max_bytes)
            except OSError as error:
                if error.errno in SHORTAGES:
                    raise resource_error(error) from error
                if not place.file.is_dropped:
                    self.spill_error = error.strerror
                    self._drop_file(place.file)
                place = None
                continue
            if chunks:
                return chunks, place
        # Nothing of it on disk: what there is begins in memory, behind a hole.
        if position < self._window.disk_end:
            return await self.read_from(self._window.disk_end, max_bytes, None)
        return [], None

    async def wait_for_more(self) -> None:
        """Wait until something is appended, or the log is closed. For cursors."""
        await self._readers.park()


def _first_of(chunks: list[Chunk], size: int) -> list[Chunk]:
    """The first chunks, of about so many bytes and at least one."""
    count = 0
    while count < len(chunks) and (size > 0 or not count):
        size -= len(chunks[count].data)
        count += 1
    return chunks[:count]
