"""Spilled output: what one log has on disk.

A log's output is a row of files, the newest of which grows. A file is a row of
frames, and a frame is a chunk: a header of fixed size, which says everything
about it, and its bytes. Frames never change; dropping the oldest output is the
removal of the oldest file.

In memory there is a mark for about every 256 KiB, from which frames can be
read in sequence. Reading and writing are done in threads, since a disk may
take its time; the numbers change only in Trio's thread, after the fact.

The files go when nobody can read them any more: with the last reference to
their `Spill`. If outputs are to outlive the supervisor, its end is no such
time, and a later one finds them again (`find`).

Then too, output must not be lost by a kill between the reading of a pipe and
the writing of the file. So it goes from one into the other by splice(2), behind
a header that leaves its size open, and is read back from there. What was not
completed is the last frame of its file, and reaches to the file's end.
"""

from __future__ import annotations

import errno
import logging
import os
import time
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import trio

from .chunk import Chunk, Counts, Offsets, Stream
from .frames import (
    HEADER,
    OPEN,
    SIZE,
    SIZE_AT,
    Extent,
    Mark,
    decode_frame,
    decode_frames,
    frame_header,
    next_header,
    size_of,
)
from .threads import in_thread

_logger = logging.getLogger(__name__)

# That pass, so they cost no output.
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# After so long and so much, readers are told of what has been poured.
_POURING_SECONDS = 0.005
_POURED_BYTES = 1024 * 1024
# Less is not worth the way to a thread.
_READ_AT_LEAST = 64 * 1024
_BUFFERS_PER_CALL = os.sysconf("SC_IOV_MAX")


Take = Callable[[Stream, int, int], int]
"""Reads from a stream's pipe, a descriptor, so many bytes at most; returns how many, 0 at the end."""

Source = Callable[[Take], int]
"""Takes what can be read now, which need not be anything; returns how many bytes."""


class SpillFile:
    """One file.

    Attributes:
      path: where it is.
      extent: what is in it.
      descriptor: to append with; None if it does not grow any more.
      is_dropped: whether it has been removed.
    """

    __slots__ = ("descriptor", "extent", "is_dropped", "path")

    def __init__(self, path: Path, start: Mark) -> None:
        self.path = path
        self.extent = Extent((start,), 0, 0, start.position, start.offsets)
        self.descriptor: int | None = None
        self.is_dropped = False

    @property
    def start(self) -> Mark:
        """Where it begins."""
        return self.extent.marks[0]

    def write(self, chunks: Sequence[Chunk], size: int) -> None:
        """Append frames to a file that has `size` bytes. For a thread, which must tell of it.

        Raises:
          OSError: the file is as long as before, or uncertain.
        """
        descriptor = self._open()
        buffers: list[bytes] = []
        for chunk in chunks:
            buffers += (frame_header(chunk), chunk.data)
        try:
            at = size
            for begin in range(0, len(buffers), _BUFFERS_PER_CALL):
                at = _write_all(descriptor, buffers[begin : begin + _BUFFERS_PER_CALL], at)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise

    def splice(self, header: bytes, pipe: int, max_bytes: int, size: int) -> bytes:
        """Move what is in a pipe into a frame with this header, behind the `size` bytes there are.

        For a thread, as `write`. Returns what was moved, whose frame is still to be
        completed; nothing at the pipe's end.

        Raises:
          BlockingIOError: the pipe is empty.
          OSError: it is still in the pipe, or has been lost to a file that can
            be written and not read.
        """
        descriptor = self._open()
        begin = size + len(header)
        try:
            os.pwrite(descriptor, header, size)
            flags = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
            count = os.splice(pipe, descriptor, max_bytes, offset_dst=begin, flags=flags)
            if count:
                data = os.pread(descriptor, count, begin)
                if len(data) < count:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return data
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
        os.ftruncate(descriptor, size)
        return b""

    def complete(self, count: int, size: int) -> None:
        """Write the size, `count`, of the frame that was spliced behind `size` bytes.

        Raises:
          OSError: as `write`. Who has the frame's bytes has the only ones.
        """
        assert self.descriptor is not None
        try:
            os.pwrite(self.descriptor, SIZE.pack(count), size + SIZE_AT)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self.descriptor, size)
            raise

    def _open(self) -> int:
        if self.descriptor is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self.descriptor = os.open(self.path, flags, 0o600)
        return self.descriptor

    def finish(self) -> None:
        """Let it grow no more."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def unlink(self) -> None:
        """Remove it from the directory."""
        self.is_dropped = True
        with suppress(OSError):
            self.path.unlink()


class Poured(NamedTuple):
    """What came of pouring into a file.

    Attributes:
      extent: what is in the file now.
      counts: of the output, what the source gave included.
      rest: chunks that are not in the file, because of `error`.
      error: what went wrong, if anything did.
      is_kept: whether it can be read; else the file was dropped meanwhile.
    """

    extent: Extent
    counts: Counts
    rest: list[Chunk]
    error: OSError | None
    is_kept: bool = True


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
                file = _scan(path, counts, is_same_boot=is_same_boot)
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
                partial(_pour, file, chunks, counts, source, self.file_bytes, self._disk.outlives),
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
            partial(_read, file.path, begin, end - begin), limiter=self._disk.limiter
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


def _pour(
    file: SpillFile,
    chunks: list[Chunk],
    counts: Counts,
    source: Source | None,
    most_bytes: int,
    outlives: bool,
) -> Poured:
    extent = file.extent
    most_size = extent.size + most_bytes
    until = time.monotonic() + _POURING_SECONDS
    counts = counts.copy()
    taken: list[Chunk] = []

    def read(stream: Stream, pipe: int, max_bytes: int) -> int:
        if data := os.read(pipe, max_bytes):
            taken.append(counts.stamp(stream, data, _now_ms()))
        return len(data)

    def splice(stream: Stream, pipe: int, max_bytes: int) -> int:
        nonlocal extent
        timestamp_ms = _now_ms()
        header = next_header(counts, stream, timestamp_ms)
        try:
            data = file.splice(header, pipe, max_bytes, extent.size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            return read(stream, pipe, max_bytes)  # The file system cannot do it (splice(2)).
        if data:
            chunk = counts.stamp(stream, data, timestamp_ms)
            try:
                file.complete(len(data), extent.size)
            except OSError:
                taken.append(chunk)
                raise
            extent = extent.with_more([chunk])
        return len(data)

    while True:
        try:
            if chunks:
                file.write(chunks, extent.size)
                extent = extent.with_more(chunks)
                chunks = []
            poured = extent.size - file.extent.size
            is_due = poured >= _POURED_BYTES and time.monotonic() >= until
            if source is None or extent.size >= most_size or is_due:
                break
            if not source(splice if outlives else read):
                break
            chunks, taken = taken, []
        except OSError as error:
            return Poured(extent, counts, chunks + taken, error)
    return Poured(extent, counts, [], None)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _scan(path: Path, counts: Counts, *, is_same_boot: bool) -> SpillFile | None:
    """The file that is there, cut to its whole frames, and the counts after it; None if it has none.

    What was not completed is.
    """
    # It is read, not mapped: an error of the disk would come as SIGBUS.
    with open(path, "r+b") as opened:
        size = os.fstat(opened.fileno()).st_size
        file: SpillFile | None = None
        # Of each stream, where the last frame and its data begin and end.
        last: dict[int, tuple[int, int]] = {}
        at = 0
        while (begin := at + HEADER.size) < size:
            opened.seek(at)
            position, offset, _, _, count, which = HEADER.unpack(opened.read(HEADER.size))
            end = size if count == OPEN else begin + count
            if end > size or which > 1 or (count == OPEN and not is_same_boot):
                break
            place = (offset, position - offset)
            offsets = Offsets(*(place if not which else reversed(place)))
            if file is None:
                file = SpillFile(path, Mark(position, offsets, 0))
            file.extent = file.extent.with_frame(position, offsets, which, end - begin)
            last[which] = (at, end)
            if count == OPEN:
                os.pwrite(opened.fileno(), SIZE.pack(end - begin), at + SIZE_AT)
            at = end
        for begin, end in sorted(last.values()):
            opened.seek(begin)
            counts.note(decode_frame(opened.read(end - begin)))
        if at < size:
            opened.truncate(at)
    return file


def _remove_all(files: deque[SpillFile], disk: Disk) -> None:
    while files and not disk.is_left:
        file = files.popleft()
        disk.used_bytes -= file.extent.size
        file.unlink()
        file.finish()


def _write_all(descriptor: int, buffers: Sequence[bytes], at: int) -> int:
    """Write, and return where that ends."""
    written = os.pwritev(descriptor, buffers, at)
    at += written
    for index, buffer in enumerate(buffers):
        if written < len(buffer):
            # Cut short, as by a full disk, which the next call is told.
            return _write_all(descriptor, [buffer[written:], *buffers[index + 1 :]], at)
        written -= len(buffer)
    return at


def _read(path: Path, begin: int, size: int) -> bytes | int:
    """The bytes, or the number of an error.

    Raised out of a thread, it would hold frames, and with them the log and its
    files, until the garbage collector comes by.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), size, begin)
    except OSError as error:
        return error.errno or errno.EIO
