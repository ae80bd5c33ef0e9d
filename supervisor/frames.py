"""Frames: chunks as bytes, in spill files and in the journal, and what of them is in a file.

A frame is a header of fixed size and the chunk's bytes. The size of a header
that was written before its bytes is left open; they reach to the end then.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from msgspec import Struct

from .chunk import STREAMS, Chunk, Counts, Offsets, Stream

# Position, offset, newlines, timestamp in ms, size of the data, number of the stream.
HEADER: Final = struct.Struct("<QQQQII")
OPEN: Final = 0xFFFFFFFF
# Where in a header the size is.
SIZE: Final = struct.Struct("<I")
SIZE_AT: Final = 32
_MARK_EVERY_BYTES = 256 * 1024


class Mark(Struct, frozen=True, gc=False):
    """Where in a file the frame begins that is the first one from a position on."""

    position: int
    offsets: Offsets
    place: int


class Extent(NamedTuple):
    """What is in a file.

    Attributes:
      marks: of its first frame and of later ones.
      size: of its frames, in bytes.
      kept_bytes: of output in them.
      end: the position after its last chunk.
      end_offsets: the same in both streams.
    """

    marks: tuple[Mark, ...]
    size: int
    kept_bytes: int
    end: int
    end_offsets: Offsets

    def with_more(self, chunks: Sequence[Chunk]) -> Extent:
        """The same after these have been appended."""
        marks = list(self.marks)
        size = self.size
        for chunk in chunks:
            if size - marks[-1].place >= _MARK_EVERY_BYTES:
                marks.append(Mark(chunk.position, chunk.offsets, size))
            size += HEADER.size + len(chunk.data)
        kept_bytes = self.kept_bytes + sum(len(chunk.data) for chunk in chunks)
        return Extent(tuple(marks), size, kept_bytes, chunks[-1].end, chunks[-1].end_offsets)

    def with_frame(self, position: int, offsets: Offsets, which: int, count: int) -> Extent:
        """The same after a frame of `count` bytes of one stream has been found behind it."""
        marks = self.marks
        if self.size - marks[-1].place >= _MARK_EVERY_BYTES:
            marks = (*marks, Mark(position, offsets, self.size))
        end_offsets = Offsets(
            offsets.stdout + (0 if which else count), offsets.stderr + (count if which else 0)
        )
        size = self.size + HEADER.size + count
        return Extent(marks, size, self.kept_bytes + count, position + count, end_offsets)


def next_header(counts: Counts, stream: Stream, timestamp_ms: int) -> bytes:
    """The header of a frame whose bytes come next, and are not known yet."""
    which = stream == "stderr"
    place = (counts.end, counts.ends[which], counts.newlines[which])
    return HEADER.pack(*place, timestamp_ms, OPEN, which)


def frame_header(chunk: Chunk) -> bytes:
    """The header of a chunk's frame."""
    return HEADER.pack(
        chunk.position,
        chunk.offset,
        chunk.newlines,
        chunk.timestamp_ms,
        len(chunk.data),
        STREAMS.index(chunk.stream),
    )


def decode_frame(frame: bytes) -> Chunk:
    """The chunk of one whole frame, also if its size was left open."""
    position, offset, newlines, timestamp_ms, _, stream = HEADER.unpack_from(frame)
    data = frame[HEADER.size :]
    return Chunk(position, timestamp_ms, STREAMS[stream], data, offset, newlines)


def size_of(chunks: Iterable[Chunk]) -> int:
    """How many bytes of a file these take."""
    return sum(HEADER.size + len(chunk.data) for chunk in chunks)


def decode_frames(data: bytes) -> list[Chunk]:
    """The whole frames at the beginning of this."""
    chunks = []
    begin = 0
    while (data_begin := begin + HEADER.size) <= len(data):
        position, offset, newlines, timestamp_ms, size, stream = HEADER.unpack_from(data, begin)
        begin = data_begin + size
        if begin > len(data):
            break
        chunks.append(
            Chunk(position, timestamp_ms, STREAMS[stream], data[data_begin:begin], offset, newlines)
        )
    return chunks
