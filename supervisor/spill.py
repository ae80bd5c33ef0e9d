"""Spilled output: what one log has on disk.

A log's output is a row of files (`spill_file`), the newest of which grows; dropping
the oldest output is the removal of the oldest file.

In memory there is a mark for about every 256 KiB, from which frames can be
read in sequence. Reading and writing are done in threads, since a disk may
take its time; the numbers change only in Trio's thread, after the fact.

The files go when nobody can read them any more: with the last reference to
their `Spill`. If outputs are to outlive the supervisor, its end is no such
time, and a later one finds them again (`Spill.take_back`).
"""

from __future__ import annotations

import errno
import logging
import os
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import trio

from . import spill_file
from .chunk import Chunk, Counts, Stream
from .frames import Mark, decode_frames, size_of
from .shortages import SHORTAGES
from .spill_file import Poured, Source, SpillFile
from .threads import in_thread

_logger = logging.getLogger(__name__)

# Less is not worth the way to a thread.
_READ_AT_LEAST = 64 * 1024


class Segment(NamedTuple):
    """A part of a file from one mark to the next."""

    file: SpillFile
    begin: int
    end: int


class Place(NamedTuple):
    """Where a sequence of reads goes on, so that it need not be looked for."""

    position: int
    file: SpillFile
    place: int


class Disk:
    """What all spills share.

    Attributes:
      used_bytes: how many they hold.
      limiter: of the threads that they may occupy.
      outlives: whether what is written must survive a kill at any instant.
      is_left: whether files stay from now on, whoever lets go of them.
    """

    def __init__(self, threads: int) -> None:
        self.used_bytes = 0
        self.limiter = trio.CapacityLimiter(threads)
        self.outlives = False
        self.is_left = False


class Spill:
    """The files of one log.

    Args:
      disk: where they count.
      path: of the files, but for a number behind it.
      file_bytes: the size after which a new one is begun.

    Attributes:
      file_bytes: as given.
      size: of all files, in bytes.
      kept_bytes: of output in them.
    """

    __slots__ = (
        "__weakref__",
        "_count",
        "_disk",
        "_files",
        "_growing",
        "_path",
        "file_bytes",
        "kept_bytes",
        "size",
    )

    def __init__(self, disk: Disk, path: Path, file_bytes: int) -> None:
        self._disk = disk
        self._path = path
        self.file_bytes = file_bytes
        self._growing: SpillFile | None = None
        self._files: deque[SpillFile] = deque()
        self._count = 0
        self.size = 0
        self.kept_bytes = 0
        weakref.finalize(self, _remove_all, self._files, disk)

    def take_back(self, numbers: Sequence[int], counts: Counts, *, is_same_boot: bool) -> None:
        """Take back what an earlier supervisor left in files of these numbers. Blocks for a while.

        A file that cannot be read is removed, as it would be by a reader.

        Args:
          numbers: ascending, at least one.
          counts: of the output up to the last of them; filled in here.
          is_same_boot: whether what was not completed can be trusted.

        Raises:
          OSError: for want of something, for now. No output is lost.
        """
        # None of these is used again, whatever becomes of its file.
        self._count = numbers[-1]
        for number in numbers:
            path = self._path.with_name(f"{self._path.name}.{number}")
            file: SpillFile | None = None
            try:
                file = spill_file.find(path, counts, is_same_boot=is_same_boot)
            except OSError as error:
                if error.errno in SHORTAGES:
                    raise
                _logger.error("%s cannot be read, and its output is lost: %s", path, error.strerror)
            if file is None:
                with suppress(OSError):
                    path.unlink()
                continue
            self._files.append(file)
            self._count_in(file.extent.size, file.extent.kept_bytes)

    @property
    def is_growing(self) -> bool:
        """Whether a thread writes to the newest file."""
        return self._growing is not None

    @property
    def oldest(self) -> SpillFile | None:
        """The file with the oldest output."""
        return self._files[0] if self._files else None

    async def pour(
        self, chunks: list[Chunk], counts: Counts, source: Source | None = None
    ) -> Poured:
        """Append chunks, and then what `source` has, from a thread.

        Args:
          chunks: what comes next, at least one.
          counts: of the output up to their end; to stamp what the source gives.
          source: gives what has been written since, when it is called in the
            thread: reading and writing the same bytes in one place is what
            makes floods quick. A file's worth is taken at most.

        What it may come to counts as used meanwhile, so that all together keep
        to their bound.
        """
        file = self._files[-1] if self._files else None
        if file is None or file.descriptor is None or file.extent.size >= self.file_bytes:
            self._count += 1
            path = self._path.with_name(f"{self._path.name}.{self._count}")
            file = SpillFile(path, Mark(chunks[0].position, chunks[0].offsets, 0))
        reserved = size_of(chunks) + (0 if source is None else self.file_bytes)
        self._disk.used_bytes += reserved
        self._growing = file
        try:
            poured = await in_thread(
                partial(file.pour, chunks, counts, source, self.file_bytes, self._disk.outlives),
                limiter=self._disk.limiter,
            )
        finally:
            self._growing = None
            self._disk.used_bytes -= reserved
        if file.is_dropped:
            # By a reader that could not read it. What was poured has gone with it.
            file.finish()
            return poured._replace(is_kept=False)
        before = file.extent
        file.extent = poured.extent
        self._count_in(
            poured.extent.size - before.size, poured.extent.kept_bytes - before.kept_bytes
        )
        if not poured.extent.size:
            if file.descriptor is not None:  # Else it is not there, or was before.
                file.unlink()
        elif not before.size:
            self.finish()
            self._files.append(file)
        if poured.error is not None:
            # What the error has left of the file is uncertain: the next try takes a new one.
            file.finish()
        return poured

    def drop(self, file: SpillFile) -> None:
        """Remove a file and the output in it."""
        self._files.remove(file)
        self._count_in(-file.extent.size, -file.extent.kept_bytes)
        file.unlink()
        if file is not self._growing:
            file.finish()  # Else that would take it away from a thread.

    def finish(self) -> None:
        """Nothing more is appended, or not to the newest file."""
        if self._files:
            self._files[-1].finish()

    def mark_before(self, offset: int, stream: Stream) -> Mark | None:
        """The last mark at or before an offset of a stream; None if there is none."""
        found: Mark | None = None
        for file in self._files:
            if file.start.offsets.of(stream) > offset:
                break
            marks = file.extent.marks
            index = bisect_right(marks, offset, key=lambda mark: mark.offsets.of(stream))
            found = marks[index - 1]
        return found

    def place_of(self, position: int) -> Place | None:
        """Where to read what is kept from `position` on; None if that is nothing."""
        for file in self._files:
            if position < file.extent.end:
                marks = file.extent.marks
                index = bisect_right(marks, position, key=lambda mark: mark.position) - 1
                return Place(position, file, marks[max(0, index)].place)
        return None

    async def read(self, place: Place, max_bytes: int) -> tuple[list[Chunk], Place]:
        """The chunks from a place on, at least one and else about `max_bytes`, and where to go on.

        No chunks if the file ends there.

        Raises:
          OSError: the file cannot be read, or has been dropped meanwhile.
        """
        position, file, begin = place
        max_bytes = max(max_bytes, _READ_AT_LEAST)
        while begin < file.extent.size:
            chunks = await self._read(file, begin, begin + max_bytes)
            if not chunks:
                max_bytes *= 2  # Not even one.
                continue
            begin += size_of(chunks)
            if wanted := [chunk for chunk in chunks if chunk.end > position]:
                return wanted, Place(wanted[-1].end, file, begin)
        return [], Place(position, file, begin)

    def segments(self) -> list[Segment]:
        """Everything that is there now, in parts that can be read at once, oldest first."""
        return [
            Segment(file, begin, end)
            for file in self._files
            for begin, end in pairwise(
                [*(mark.place for mark in file.extent.marks), file.extent.size]
            )
        ]

    async def read_segment(self, segment: Segment) -> list[Chunk]:
        """All its chunks.

        Raises: as `read`.
        """
        return await self._read(*segment)

    async def _read(self, file: SpillFile, begin: int, end: int) -> list[Chunk]:
        size = file.extent.size
        end = min(end, size)
        data = await in_thread(
            partial(spill_file.read, file.path, begin, end - begin), limiter=self._disk.limiter
        )
        if isinstance(data, int):
            raise OSError(data, os.strerror(data))
        chunks = decode_frames(data)
        if not chunks and end == size:
            raise OSError(errno.EIO, "what has been written is not there")
        return chunks

    def _count_in(self, size: int, kept_bytes: int) -> None:
        self.size += size
        self.kept_bytes += kept_bytes
        self._disk.used_bytes += size


def _remove_all(files: deque[SpillFile], disk: Disk) -> None:
    while files and not disk.is_left:
        file = files.popleft()
        disk.used_bytes -= file.extent.size
        file.unlink()
        file.finish()
