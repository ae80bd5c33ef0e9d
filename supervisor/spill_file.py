"""One file of spilled output: a row of frames, which threads append and read.

A frame is a chunk: a header of fixed size, which says everything about it, and its
bytes. Frames never change. What is here blocks, and is for threads.

If outputs are to outlive the supervisor, they must not be lost by a kill between
the reading of a pipe and the writing of the file. So they go from one into the other
by splice(2), behind a header that leaves the size open, and are read back from there.
What was not completed is the last frame of its file, and reaches to the file's end.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .chunk import Chunk, Counts, Offsets, Stream
from .frames import (
    HEADER,
    OPEN,
    SIZE,
    SIZE_AT,
    Extent,
    Mark,
    decode_frame,
    frame_header,
    next_header,
)

# After so long and so much, readers are told of what has been poured.
_POURING_SECONDS = 0.005
_POURED_BYTES = 1024 * 1024
_BUFFERS_PER_CALL = os.sysconf("SC_IOV_MAX")


Take = Callable[[Stream, int, int], int]
"""Reads from a stream's pipe, a descriptor, so many bytes at most; returns how many, 0 at the end."""

Source = Callable[[Take], int]
"""Takes what can be read now, which need not be anything; returns how many bytes."""


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

    def pour(
        self,
        chunks: list[Chunk],
        counts: Counts,
        source: Source | None,
        most_bytes: int,
        outlives: bool,
    ) -> Poured:
        """Append chunks, and then what a source has, from a thread; which must tell of it.

        Args:
          chunks: what comes next.
          counts: of the output up to their end; to stamp what the source gives.
          source: gives what has been written since; a file's worth is taken at most.
          most_bytes: that.
          outlives: whether what is taken must survive a kill at any instant.
        """
        extent = self.extent
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
                data = self._splice(header, pipe, max_bytes, extent.size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS):
                    raise
                return read(stream, pipe, max_bytes)  # The file system cannot do it (splice(2)).
            if data:
                chunk = counts.stamp(stream, data, timestamp_ms)
                try:
                    self._complete(len(data), extent.size)
                except OSError:
                    taken.append(chunk)
                    raise
                extent = extent.with_more([chunk])
            return len(data)

        while True:
            try:
                if chunks:
                    self._write(chunks, extent.size)
                    extent = extent.with_more(chunks)
                    chunks = []
                poured = extent.size - self.extent.size
                is_due = poured >= _POURED_BYTES and time.monotonic() >= until
                if source is None or extent.size >= most_size or is_due:
                    break
                if not source(splice if outlives else read):
                    break
                chunks, taken = taken, []
            except OSError as error:
                return Poured(extent, counts, chunks + taken, error)
        return Poured(extent, counts, [], None)

    def _write(self, chunks: Sequence[Chunk], size: int) -> None:
        """Append frames to a file that has `size` bytes.

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

    def _splice(self, header: bytes, pipe: int, max_bytes: int, size: int) -> bytes:
        """Move what is in a pipe into a frame with this header, behind the `size` bytes there are.

        Returns what was moved, whose frame is still to be
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

    def _complete(self, count: int, size: int) -> None:
        """Write the size, `count`, of the frame that was spliced behind `size` bytes.

        Raises:
          OSError: as `_write`. Who has the frame's bytes has the only ones.
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


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def find(path: Path, counts: Counts, *, is_same_boot: bool) -> SpillFile | None:
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


def read(path: Path, begin: int, size: int) -> bytes | int:
    """The bytes, or the number of an error.

    Raised out of a thread, it would hold frames, and with them the log and its
    files, until the garbage collector comes by.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), size, begin)
    except OSError as error:
        return error.errno or errno.EIO
