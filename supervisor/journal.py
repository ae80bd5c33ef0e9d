"""The journal: what a supervisor must still know after it was killed.

Theory of operation
===================

The journal is a row of files, the *segments* `journal.1`, `journal.2` and so
on, to the newest of which entries are appended. An entry has a key, a kind and
a payload, none of which means anything here. Of a key counts what was appended
since an entry that *begins* it, and nothing after an entry that *ends* it.

What has been appended is in the page cache, so it survives the writer at any
instant, but not the machine: nothing is synced. After a power cut entries may
be missing, and with them ends, but none is wrong. What is in the files, and in
which order it gets there, is told in `replay`.

Compaction
----------

The oldest segment can go when no key begins in it. To get there, the state of
the keys that do is appended anew as a batch that begins them. It happens when
the journal is larger than twice what lives in it, as far as known, and a
segment; then each call pays with twice the bytes it has appended, and 4 KiB. A
state is written in one piece, so a large one puts the account into the red.

Segments go in their order, so an entry that voids others outlives them.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from zlib import crc32

from .replay import (
    ALIGNMENT,
    BATCH,
    BEGINS,
    COMPLETION,
    CRC,
    CRC_AT,
    ENDS,
    FIELDS,
    OPEN,
    Recovered,
    Segment,
    State,
    aligned,
    batch_of,
    path_of,
    read_journal,
    record_of,
)

__all__ = ["Journal", "Recovered", "State", "read_journal"]

_logger = logging.getLogger(__name__)

_SEGMENT_BYTES = 1024 * 1024
# A small segment counts as this part of a full one, so that they do not become many.
_SMALLEST_PART = 16
_CREDIT_BYTES = 4096
# It takes about 0.1 ms, and very many may be without a key at once.
_UNLINKED_PER_CALL = 4


class Journal:
    """The writer of a journal. A context manager that owns a descriptor.

    All calls in one thread, by the holder of the directory's lock.

    Args:
      directory: where the journal is.
      state_of: gives all that counts of a key, None if nothing does. It is
        called by the methods here, *before* they append: at each call, it must
        know of all that was appended before it, what `splice` returned
        included. It must not call this.
      recovered: what was read there, which is of no use any more when this is
        entered, except for its `entries`.
      segment_bytes: when a new segment is begun.

    Calls raise OSError, without effect, when the disk is full or fails, and
    work again when that has passed.
    """

    __slots__ = (
        "_begun_bytes",
        "_boot_id",
        "_can_splice",
        "_credit",
        "_current",
        "_descriptor",
        "_directory",
        "_due_at",
        "_end",
        "_homes",
        "_is_usable",
        "_number",
        "_old_bytes",
        "_seed",
        "_segment_bytes",
        "_segments",
        "_state_of",
    )

    def __init__(
        self,
        directory: Path,
        state_of: Callable[[int], State | None],
        recovered: Recovered,
        *,
        segment_bytes: int = _SEGMENT_BYTES,
    ) -> None:
        self._directory = directory
        self._state_of = state_of
        self._boot_id = recovered.boot_id
        self._segment_bytes = segment_bytes
        # The old ones.
        self._segments = recovered.segments
        self._homes = recovered.homes
        self._old_bytes = sum(map(self._cost, self._segments))
        self._begun_bytes = sum(sum(segment.begun.values()) for segment in self._segments)
        self._number = self._segments[-1].number if self._segments else 0
        self._current: Segment | None = None
        self._descriptor = -1
        self._seed = 0
        self._end = 0
        # From which end on a call has more to do than to append: most find by one
        # comparison that they have not. It may be too low, never too high, so nothing
        # has to raise it but `_prepare`.
        self._due_at = 0
        # None yet.
        self._is_usable = False
        self._can_splice = True
        # One call may be all there is before the next restart.
        self._credit = _CREDIT_BYTES

    def __enter__(self) -> Journal:
        """Ready to append; the first call begins a segment."""
        return self

    def __exit__(self, *_: object) -> None:
        if self._current is not None:
            os.close(self._descriptor)

    @property
    def size(self) -> int:
        """Of all segments, in bytes; a small one counts as a sixteenth of a full one."""
        return self._old_bytes + self._end

    def append(self, key: int, kind: int, payload: bytes, *, begins: bool = False) -> None:
        """Add an entry.

        Args:
          key: below 2**64.
          kind: below 256.
          payload: less than 4 GiB.
          begins: whether all earlier entries of the key are void.

        Raises:
          OSError: nothing was added.
        """
        if self._end >= self._due_at:
            self._prepare()
        self._append(key, kind, BEGINS if begins else 0, payload)

    def end(self, key: int) -> None:
        """Void all entries of a key, if there are any.

        Raises:
          OSError: they are still there.
        """
        if self._end >= self._due_at:
            self._prepare()
        if key in self._homes:
            self._append(key, 0, ENDS, b"")

    def rewrite(self, key: int) -> None:
        """Have all that counts of a key be what its `state_of` gives.

        Raises:
          OSError: all is as it was.
        """
        self._prepare()
        self._rewrite(key)

    def splice(self, key: int, kind: int, head: bytes, pipe: int, max_bytes: int) -> bytes:
        """Move what is in a pipe into an entry; at every instant it is in one of them.

        Args:
          key: as in `append`.
          kind: as in `append`.
          head: what the payload begins with, less than 64 KiB.
          pipe: the read end, which is not blocking.
          max_bytes: how many at most.

        Returns:
          what was moved; nothing at the end of the file.

        Raises:
          BlockingIOError: the pipe is empty.
          OSError: nothing was moved, and all is still in the pipe.

        Where the file system cannot do it, what was read is appended, and what
        then cannot be appended is returned all the same.
        """
        if self._end >= self._due_at:
            self._prepare()
        if not self._can_splice:
            return self._read_and_append(key, kind, head, pipe, max_bytes)
        flags = 0 if key in self._homes else BEGINS
        fields = FIELDS.pack(OPEN, key, kind, flags, len(head)) + head
        crc = crc32(fields, self._seed)
        at = aligned(self._end)
        begin = self._end + self._write(CRC_AT[self._end % ALIGNMENT].pack(crc) + fields)
        try:
            size = os.splice(pipe, self._descriptor, max_bytes, None, begin, os.SPLICE_F_NONBLOCK)
        except OSError as error:
            self._cut()
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            _logger.warning(
                "the journal is where splice(2) is refused: output may be lost if this is killed"
            )
            self._can_splice = False
            return self._read_and_append(key, kind, head, pipe, max_bytes)
        if not size:
            self._cut()
            return b""
        data = self._read_back(begin, size)
        fields = FIELDS.pack(len(head) + size, key, kind, flags, len(head)) + head
        crc = crc32(data, crc32(fields, self._seed))
        try:
            os.pwrite(self._descriptor, COMPLETION.pack(crc, len(head) + size), at)
        except OSError:
            self._give_up_segment()  # It stays open, so nothing may follow it.
        self._note(key, flags, begin + size - self._end)
        return data

    def _read_and_append(
        self, key: int, kind: int, head: bytes, pipe: int, max_bytes: int
    ) -> bytes:
        if data := os.read(pipe, max_bytes):
            try:
                self._make_room()
                self._append(key, kind, 0, head + data)
            except OSError as error:
                _logger.error("the journal lacks %d bytes of output", len(data), exc_info=error)
        return data

    def _read_back(self, begin: int, size: int) -> bytes:
        """What has been spliced.

        Raises:
          OSError: it has gone, since it must not turn up again later, between
            what its reader has seen.
        """
        try:
            data = os.pread(self._descriptor, size, begin)
            if len(data) < size:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        except OSError:
            _logger.error("%d bytes of output are lost: they cannot be read back", size)
            self._cut()
            raise
        return data

    # --- writing ---

    def _append(self, key: int, kind: int, flags: int, payload: bytes) -> int:
        if key not in self._homes:
            flags |= BEGINS
        fields = FIELDS.pack(len(payload), key, kind, flags, 0)
        crc = crc32(payload, crc32(fields, self._seed))
        size = self._write(CRC_AT[self._end % ALIGNMENT].pack(crc) + fields + payload)
        self._note(key, flags, size)
        return size

    def _write(self, data: bytes) -> int:
        """Write to the end, or nothing."""
        size = len(data)
        try:
            written = os.pwrite(self._descriptor, data, self._end)
            while written < size:
                # Cut short, as by a full disk, which the next call is told.
                written += os.pwrite(self._descriptor, data[written:], self._end + written)
        except OSError:
            self._cut()
            raise
        return size

    def _cut(self) -> None:
        """Remove what is behind the last entry."""
        try:
            os.ftruncate(self._descriptor, self._end)
        except OSError:
            # A shorter entry would not hide all of it, and what it is may be anybody's choice.
            self._give_up_segment()

    def _give_up_segment(self) -> None:
        """Append no more to this segment."""
        self._is_usable = False
        self._due_at = 0

    def _note(self, key: int, flags: int, size: int) -> None:
        """Note that so much was written, which is an entry of that key."""
        self._end += size
        if self._credit > 0:
            self._credit = 0  # Of the call before.
        self._credit += 2 * size + _CREDIT_BYTES
        if not flags:
            return
        home = self._homes.pop(key, None)
        if home is not None:
            gone = home.begun.pop(key)
            self._begun_bytes -= gone
            self._due_at = self._due_at - 2 * gone if home.begun else 0
        if not flags & ENDS:
            assert self._current is not None
            self._homes[key] = self._current
            self._current.begun[key] = size
            self._begun_bytes += size

    # --- segments ---

    def _prepare(self) -> None:
        """Compact, see that there is a segment to append to, and when to do so again.

        Raises:
          OSError: there is none.
        """
        self._compact()
        self._credit = min(self._credit, 0)  # What is not needed is not saved up.
        self._make_room()
        due_at = self._segment_bytes
        if self._segments:
            large_end = self._small_end + 1 if self._segments[0].begun else 0
            due_at = min(due_at, large_end)
        self._due_at = due_at

    def _make_room(self) -> None:
        if self._end >= self._segment_bytes or not self._is_usable:
            try:
                self._begin_segment()
            except OSError:
                if not self._is_usable:
                    raise
                # For want of descriptors, say. The old one will do.

    def _begin_segment(self) -> None:
        self._number += 1
        path = path_of(self._directory, self._number)
        record = record_of(self._number, self._boot_id)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, record, 0)
        except OSError:
            os.close(descriptor)
            with suppress(OSError):
                path.unlink()
            raise
        if self._current is not None:
            os.close(self._descriptor)
            self._current.size = self._end
            self._segments.append(self._current)
            self._old_bytes += self._cost(self._current)
        self._current = Segment(self._number, 0)
        self._descriptor = descriptor
        (self._seed,) = CRC.unpack(record[-CRC.size :])
        self._end = len(record)
        self._is_usable = True

    def _cost(self, segment: Segment) -> int:
        return max(segment.size, self._segment_bytes // _SMALLEST_PART)

    # --- compaction ---

    def _compact(self) -> None:
        """Go on with it, as far as the last call pays."""
        unlinked = 0
        while self._segments:
            oldest = self._segments[0]
            if not oldest.begun:
                if unlinked == _UNLINKED_PER_CALL:
                    return
                unlinked += 1
                try:
                    path_of(self._directory, oldest.number).unlink(missing_ok=True)
                except OSError:
                    return  # Those that come later may not go before it.
                self._segments.popleft()
                self._old_bytes -= self._cost(oldest)
                continue
            if self._end <= self._small_end or self._credit <= 0:
                return
            left = self._credit
            try:
                self._make_room()
                left -= self._rewrite(next(iter(oldest.begun)))
            except OSError:
                return  # Whoever wants to append will be told.
            self._credit = left

    @property
    def _small_end(self) -> int:
        """Up to which end the journal is not larger than it should be."""
        return 2 * self._begun_bytes + self._segment_bytes - self._old_bytes

    def _rewrite(self, key: int) -> int:
        """Append the state of a key as what it begins with; returns its size."""
        state = self._state_of(key)
        if state is None:
            return self._append(key, 0, ENDS, b"")
        return self._append(key, 0, BEGINS | BATCH, batch_of(state))
