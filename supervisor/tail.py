"""The tail of an output: where its last lines begin."""

from __future__ import annotations

from .chunk import STREAMS, Chunk, Counts, Stream


class Tail:
    """Finds where the last lines begin, given the output backwards.

    Attributes:
      begins: of each stream, the offset, as far as it is known.
      is_all: whether there are not even that many lines.
    """

    def __init__(self, count: int, streams: tuple[Stream, ...], counts: Counts) -> None:
        self.begins: dict[Stream, int] = {}
        self._left = count
        self._streams = streams
        numbers = [STREAMS.index(stream) for stream in streams]
        since = {number: counts.open_since[number] for number in numbers}
        unterminated = [(place, number) for number, place in since.items() if place is not None]
        for _, number in sorted(unterminated, reverse=True):
            self._end_line(STREAMS[number], counts.ends[number])
        self.is_all = self._left > sum(counts.newlines[number] for number in numbers)

    @property
    def is_found(self) -> bool:
        """Whether it is known of every stream."""
        return len(self.begins) == len(self._streams)

    def add(self, chunk: Chunk) -> None:
        """The chunk before the one that was added last."""
        stream, data = chunk.stream, chunk.data
        if stream not in self._streams or stream in self.begins:
            return
        newlines = data.count(b"\n")
        if newlines <= self._left:
            self._left -= newlines
            return
        newline = len(data)
        while stream not in self.begins and (newline := data.rfind(b"\n", 0, newline)) >= 0:
            self._end_line(stream, chunk.offset + newline + 1)

    def _end_line(self, stream: Stream, offset: int) -> None:
        if self._left > 0:
            self._left -= 1
        else:
            self.begins[stream] = offset
