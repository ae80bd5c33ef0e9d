"""How far one log has been read by anybody: what makes room under `block`, where the process waits for readers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from .chunk import STREAMS, Offsets, Stream


class Readership:
    """How far each stream has been read, and how far it has been taken.

    Taken is further than read while whoever reads lines has the beginning of one
    that goes on: what it has may yet be lost with its client, and is then wanted
    again. What a reader found beside what it wanted, and handed to nobody, is neither.

    Attributes:
      noted: is called when somebody has read further, if that matters.
    """

    __slots__ = ("_advanced", "_read", "_taken", "noted")

    def __init__(self) -> None:
        # Offsets of stdout and stderr.
        self._read = [0, 0]
        self._taken = [0, 0]
        self._advanced = trio.lowlevel.ParkingLot()
        self.noted: Callable[[], None] | None = None

    @property
    def read_to(self) -> tuple[int, int]:
        """The offsets up to which stdout and stderr have been read."""
        stdout, stderr = self._read
        return stdout, stderr

    def take_back(self, read_to: tuple[int, int]) -> None:
        """Go on from where an earlier supervisor's readers were."""
        self._read = list(read_to)
        self._taken = list(read_to)

    def note_read(self, begins: Mapping[Stream, int], ends: Mapping[Stream, int]) -> None:
        """Somebody has got everything of streams from where they began.

        Args:
          begins: of each stream, the offset where the reader began.
          ends: of each stream, the offset after what has been handed on.
        """
        self.note_taken(begins, ends)
        if _advance(self._read, begins, ends):
            self._advanced.unpark_all()
            if self.noted is not None:
                self.noted()

    def note_taken(self, begins: Mapping[Stream, int], ends: Mapping[Stream, int]) -> None:
        """The same, but not all of it has been handed on yet."""
        if _advance(self._taken, begins, ends):
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
        return sum(max(0, taken - read) for taken, read in both)

    async def wait(self) -> None:
        """Wait until somebody takes or reads more."""
        await self._advanced.park()


def _advance(offsets: list[int], begins: Mapping[Stream, int], ends: Mapping[Stream, int]) -> bool:
    """Go on to the ends of what a reader has, where that adds to what is behind; whether it does."""
    has_advanced = False
    for which, name in enumerate(STREAMS):
        # Not what somebody has read further on, and left out before.
        if name in ends and begins[name] <= offsets[which] < ends[name]:
            offsets[which] = ends[name]
            has_advanced = True
    return has_advanced


def _is_before(offsets: Offsets, places: list[int]) -> bool:
    stdout, stderr = places
    return stdout >= offsets.stdout and stderr >= offsets.stderr
