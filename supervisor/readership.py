"""How far one log has been read by anybody: what makes room under `block`, where the process waits for readers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import trio

from .chunk import STREAMS, Offsets, Stream


class Readership:
    """How far each stream has been read, and how far it has been taken.

    Taken is further than read while whoever reads lines has the beginning of one
    that goes on: what it has may yet be lost with its client, and is then wanted
    again.

    Attributes:
      noted: is called when somebody has read further, if that matters.
    """

    __slots__ = ("_advanced", "_read", "_taken", "noted")

    def __init__(self) -> None:
        self._read = [_Place(0, 0), _Place(0, 0)]
        self._taken = list(self._read)
        self._advanced = trio.lowlevel.ParkingLot()
        self.noted: Callable[[], None] | None = None

    @property
    def read_to(self) -> tuple[int, int, int, int]:
        """How far stdout and stderr have been read: position and offset of each."""
        return (*self._read[0], *self._read[1])

    def take_back(self, read_to: tuple[int, int, int, int]) -> None:
        """Go on from where an earlier supervisor's readers were."""
        self._read = [_Place(*read_to[:2]), _Place(*read_to[2:])]
        self._taken = list(self._read)

    def note_read(self, begin: int, places: Mapping[Stream, tuple[int, int]]) -> None:
        """Somebody has read streams from a position on.

        Args:
          begin: the position.
          places: up to where each stream was read: a position, and the stream's
            offset there.
        """
        self.note_taken(begin, places)
        _advance(self._read, begin, places)
        if self.noted is not None:
            self.noted()

    def note_taken(self, begin: int, places: Mapping[Stream, tuple[int, int]]) -> None:
        """The same, but not all of it has been handed on yet."""
        _advance(self._taken, begin, places)
        self._advanced.unpark_all()

    def has_read(self, offsets: Offsets) -> bool:
        """Whether both streams have been read up to there."""
        return _is_before(offsets, self._read)

    def has_taken(self, offsets: Offsets) -> bool:
        """Whether both streams have been taken up to there."""
        return _is_before(offsets, self._taken)

    @property
    def held_bytes(self) -> int:
        """What has been taken, and not read."""
        both = zip(self._taken, self._read, strict=True)
        return sum(max(0, taken.offset - read.offset) for taken, read in both)

    async def wait(self) -> None:
        """Wait until somebody takes more."""
        await self._advanced.park()


class _Place(NamedTuple):
    """A position in the log, and one stream's offset there."""

    position: int
    offset: int


def _advance(places: list[_Place], begin: int, ends: Mapping[Stream, tuple[int, int]]) -> None:
    for which, name in enumerate(STREAMS):
        # Not what somebody has read further on, and left out before.
        if name in ends and begin <= places[which].position < ends[name][0]:
            places[which] = _Place(*ends[name])


def _is_before(offsets: Offsets, places: list[_Place]) -> bool:
    stdout, stderr = places
    return stdout.offset >= offsets.stdout and stderr.offset >= offsets.stderr
