"""Server-sent events and frames of MessagePack, taken apart as they arrive."""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class Event(msgspec.Struct, frozen=True):
    """The data of an output event."""

    line: str
    partial: bool = False


_decoder = msgspec.json.Decoder(Event)


def output_of(frame: bytes) -> Event | None:
    """What an event says of the output; None for other events and comments."""
    _, is_output, data = frame.partition(b"event: output\ndata: ")
    return _decoder.decode(data) if is_output else None


class EventSplitter:
    """Splits a stream into the frames of its events, without the empty line behind them.

    Attributes:
      largest_bytes: the size of the largest frame so far.
    """

    def __init__(self) -> None:
        self._pieces = [b""]
        self.largest_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are complete by now."""
        # Looked for in what is new, and joined only then: a long frame comes in many pieces.
        is_end = b"\n\n" in data or (self._pieces[-1].endswith(b"\n") and data.startswith(b"\n"))
        self._pieces.append(data)
        if not is_end:
            return []
        *frames, rest = b"".join(self._pieces).split(b"\n\n")
        self._pieces = [rest]
        self.largest_bytes = max(self.largest_bytes, *map(len, frames))
        return frames


class Frame(NamedTuple):
    """One frame of `output/frames`.

    Attributes:
      position: of its first byte.
      end: the position after its last one.
      stream: where the process wrote it, or `gap` for bytes that are not there.
      data: the bytes; empty for a gap.
    """

    position: int
    end: int
    stream: str
    data: bytes


class FrameSplitter:
    """Decodes frames of MessagePack as they arrive."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete by now."""
        self._rest += data
        frames = []
        at = 0
        while (end := self._end(at)) is not None:
            position, _, stream, content = msgspec.msgpack.decode(self._rest[at:end])
            if stream == "gap":
                frames.append(Frame(position, position + content, stream, b""))
            else:
                frames.append(Frame(position, position + len(content), stream, content))
            at = end
        self._rest = self._rest[at:]
        return frames

    def _end(self, at: int) -> int | None:
        """Where the array that begins at `at` ends; None if it is not all there."""
        assert self._rest[at : at + 1] in (b"\x94", b"")
        at += 1
        for _ in range(4):
            if at >= len(self._rest):
                return None
            at = self._skip(at)
        return at if at <= len(self._rest) else None

    def _skip(self, at: int) -> int:
        """The end of the value at `at`, which may lie beyond what is there."""
        kind = self._rest[at]
        if kind < 0x80 or kind == 0xC0:  # A small number, null.
            return at + 1
        if 0xA0 <= kind < 0xC0:  # A short text.
            return at + 1 + (kind & 0x1F)
        if 0xCC <= kind <= 0xCF:  # A number of 1, 2, 4 or 8 bytes.
            return at + 1 + (1 << (kind - 0xCC))
        assert 0xC4 <= kind <= 0xC6, hex(kind)  # Bytes, after a size of 1, 2 or 4 bytes.
        begin = at + 1 + (1 << (kind - 0xC4))
        if begin > len(self._rest):
            return begin
        return begin + int.from_bytes(self._rest[at + 1 : begin])
