"""The format of the journal, and what is found in one. The rest is in `journal`.

Format
------

Integers are little-endian. A segment begins with a record of 64 bytes: magic,
version, number of the segment, boot id, and a CRC-32 of these. What comes first
in later versions must be the same. Each entry begins at a multiple of 8:

    CRC-32 | size of the payload | key | kind | flags | size of the head | payload
      u32            u32           u64    u8     u8           u16

The checksum is of all that follows it, and starts from that of the segment's
record, so an entry of another segment, in a block that a power cut has brought
back, is none. A batch is an entry whose payload is a row of entries of its key,
each of them a size (u32), a kind (u8) and a payload: all of them or none.

An *open* entry has the size 0xFFFFFFFF. It is the last one of its segment, its
data reach to the end of the file, and its checksum covers only the payload's
head. So it can be written before its data, and then:

1. the header and the head, open;
2. splice(2) of the data, behind them, out of a pipe: these are in the pipe or
   in the file at every instant, since only a return to user space is an
   opportunity to be killed;
3. pread(2) of the data, which the writer needs as well;
4. size and checksum. These are 8 bytes at a multiple of 8, never torn by the
   border of a page, which is where a kill can interrupt a write.

Nothing vouches for an open entry's data but the kernel that wrote them, so they
count only during the same boot.

Reading a segment ends at the first entry that is not whole. At the end of a
segment that is what its writer's death has left of a write that had not
returned; elsewhere it is damage, which cannot be told apart, and the rest of
the segment is lost. A writer never appends to segments of others.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from zlib import crc32

from .errors import StateDirUnusable

_logger = logging.getLogger(__name__)

_NAME: Final = re.compile(r"journal\.([1-9][0-9]*)", re.ASCII)
_MAGIC: Final = b"creche.j"
_VERSION: Final = 1
# Magic, version, number, boot id, CRC-32.
SEGMENT: Final = struct.Struct("<8sIQ36s4xI")
CRC: Final = struct.Struct("<I")
# CRC-32, size of the payload, key, kind, flags, size of the head.
ENTRY: Final = struct.Struct("<IIQBBH")
FIELDS: Final = struct.Struct("<IQBBH")  # Without the first.
COMPLETION: Final = struct.Struct("<II")  # The first two.
_PART: Final = struct.Struct("<IB")
OPEN: Final = 0xFFFFFFFF
ALIGNMENT: Final = 8
# A CRC-32, and before it what is missing to where an entry begins; by the rest of the
# place that it is written to. A gap that is left to the file system takes it longer.
CRC_AT: Final = tuple(struct.Struct(f"<{-rest % ALIGNMENT}xI") for rest in range(ALIGNMENT))
BEGINS: Final = 1
ENDS: Final = 2
BATCH: Final = 4

State = Sequence[tuple[int, bytes]]
"""All that counts of a key: kinds and payloads, in order."""


class Segment:
    """One file.

    Attributes:
      number: its place in the row.
      size: in bytes.
      begun: the keys that begin in it, and with how many bytes.
    """

    __slots__ = ("begun", "number", "size")

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size
        self.begun: dict[int, int] = {}


class Recovered:
    """What a journal holds.

    Attributes:
      entries: of each key alive, all that counts, in order.
      ignored_bytes: of segments that could not be read to their end.
      segments: all there are, oldest first.
      homes: of each key alive, the segment in which it begins.
      boot_id: of this boot.
    """

    __slots__ = ("boot_id", "entries", "homes", "ignored_bytes", "segments")

    def __init__(self, boot_id: str) -> None:
        self.boot_id = boot_id
        self.entries: dict[int, list[tuple[int, bytes]]] = {}
        self.ignored_bytes = 0
        self.segments: deque[Segment] = deque()
        self.homes: dict[int, Segment] = {}

    def add(self, segment: Segment, data: bytes) -> None:
        """Apply what is in the next segment.

        Raises:
          StateDirUnusable: another version has written it.
        """
        self.segments.append(segment)
        at = self._apply(segment, data)
        if at < len(data):
            self.ignored_bytes += len(data) - at
            _logger.error(
                "journal.%d is torn or damaged at byte %d: its last %d bytes are ignored",
                segment.number,
                at,
                len(data) - at,
            )

    def _apply(self, segment: Segment, data: bytes) -> int:
        """Apply the entries that are whole; returns where they end."""
        if len(data) < SEGMENT.size:
            return 0
        magic, version, number, boot_id, seed = SEGMENT.unpack_from(data)
        if magic != _MAGIC or crc32(data[: SEGMENT.size - CRC.size]) != seed:
            return 0
        if version != _VERSION:
            raise StateDirUnusable(
                f"journal.{segment.number} has format {version}; this version knows {_VERSION}"
            )
        if number != segment.number:
            return 0
        is_same_boot = boot_id == _padded(self.boot_id)
        view = memoryview(data)
        at, size = SEGMENT.size, len(data)
        while (begin := at + ENTRY.size) <= size:
            crc, payload_size, key, kind, flags, head_size = ENTRY.unpack_from(data, at)
            is_open = payload_size == OPEN
            end = size if is_open else begin + payload_size
            vouched_end = begin + head_size if is_open else end
            if vouched_end > size or crc32(view[at + CRC.size : vouched_end], seed) != crc:
                return at
            if is_open and end == vouched_end:
                return end  # Nothing was there to be spliced.
            if is_open and not is_same_boot:
                return at
            self._apply_entry(segment, key, kind, flags, data[begin:end])
            at = aligned(end)
        return min(at, size)

    def _apply_entry(
        self, segment: Segment, key: int, kind: int, flags: int, payload: bytes
    ) -> None:
        entries = self.entries.get(key)
        if flags & (BEGINS | ENDS):
            if entries is not None:
                del self.entries[key]
                del self.homes.pop(key).begun[key]
            if flags & ENDS:
                return
            entries = self.entries[key] = []
            self.homes[key] = segment
            segment.begun[key] = ENTRY.size + len(payload)
        elif entries is None:
            return  # Its beginning is lost.
        if flags & BATCH:
            entries += _parts(payload)
        else:
            entries.append((kind, payload))


def read_journal(directory: Path, boot_id: str) -> Recovered:
    """Read the journal in a directory; there need not be one. Blocks for a while.

    Args:
      directory: of which the caller holds the lock.
      boot_id: what /proc/sys/kernel/random/boot_id says, at most 36 characters.

    Entries that are damaged, and what follows them in their segment, are
    ignored and logged. If those would end keys, these are alive; a key may lack
    entries in the middle and at the end, but none at its beginning.

    Raises:
      StateDirUnusable: another version has written it, or it cannot be read.
    """
    recovered = Recovered(boot_id)
    try:
        names = map(_NAME.fullmatch, os.listdir(directory))
        numbers = sorted(int(name[1]) for name in names if name is not None)
        for number in numbers:
            try:
                data = path_of(directory, number).read_bytes()
            except OSError as error:
                if error.errno != errno.EIO:
                    raise  # It may be there the next time.
                _logger.error("journal.%d cannot be read and is ignored", number, exc_info=error)
                data = b""
            recovered.add(Segment(number, len(data)), data)
    except OSError as error:
        raise _unusable(directory, error) from error
    return recovered


def path_of(directory: Path, number: int) -> Path:
    """Where a segment is."""
    return directory / f"journal.{number}"


def _parts(batch: bytes) -> Iterator[tuple[int, bytes]]:
    """The entries in the payload of a batch."""
    at = 0
    while at < len(batch):
        size, kind = _PART.unpack_from(batch, at)
        at += _PART.size + size
        yield kind, batch[at - size : at]


def batch_of(state: State) -> bytes:
    """The payload of a batch."""
    parts: list[bytes] = []
    for kind, payload in state:
        parts += (_PART.pack(len(payload), kind), payload)
    return b"".join(parts)


def record_of(number: int, boot_id: str) -> bytes:
    """What a segment begins with; ends with its CRC-32."""
    record = SEGMENT.pack(_MAGIC, _VERSION, number, _padded(boot_id), 0)[: -CRC.size]
    return record + CRC.pack(crc32(record))


def _padded(boot_id: str) -> bytes:
    return boot_id.encode()[:36].ljust(36, b"\0")


def aligned(place: int) -> int:
    """Where an entry begins, at or after a place."""
    return -(-place // ALIGNMENT) * ALIGNMENT


def _unusable(directory: Path, error: OSError) -> StateDirUnusable:
    return StateDirUnusable(f"the journal in {directory} cannot be used: {error.strerror}")
