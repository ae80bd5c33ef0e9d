"""Bodies of exact bytes: raw streams with ranges, and frames that say when and where."""

from __future__ import annotations

import re
from abc import abstractmethod

import msgspec
from quart import Request, Response
from quart.wrappers.response import DataBody, ResponseBody

from supervisor import Chunk, Cursor, OutputLog, Stream, Supervisor

from .bodies import LivingBody
from .problems import Broken, InvalidQuery, RangeNotSatisfiable
from .requests import find, read_flag, read_number

RAW = "application/octet-stream"
FRAMES = "application/vnd.creche.frames"

_BATCH_BYTES = 256 * 1024
_LARGEST = 10**18 - 1
# Stands for a last byte that nobody knows yet (RFC 8673, section 2.2).
_VERY_LARGE = 2**53 - 1
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.ASCII)

_encoder = msgspec.msgpack.Encoder()


async def stdout_raw(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """GET /processes/{pid_or_name}/stdout/raw"""
    return _raw(find(supervisor, request, pid_or_name).log, request, "stdout")


async def stderr_raw(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """GET /processes/{pid_or_name}/stderr/raw"""
    return _raw(find(supervisor, request, pid_or_name).log, request, "stderr")


async def output_raw(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """GET /processes/{pid_or_name}/output/raw"""
    return _raw(find(supervisor, request, pid_or_name).log, request, None)


async def output_frames(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """GET /processes/{pid_or_name}/output/frames"""
    log = find(supervisor, request, pid_or_name).log
    position = read_number(request, "from", largest=_LARGEST) or 0
    if position > log.end:
        raise InvalidQuery("from lies beyond the end of the output", field="from")
    stop = None if read_flag(request, "follow") else log.end
    return _response(request, FramesBody(log, position, stop), 200, FRAMES)


def _raw(log: OutputLog, request: Request, stream: Stream | None) -> Response:
    """Exact bytes. Ranges count from the first byte that was ever written, kept or not."""
    end = log.end if stream is None else log.end_offsets.of(stream)
    kept_from = log.start if stream is None else log.start_offsets.of(stream)
    follow = read_flag(request, "follow")
    wanted = _range(request, end)
    first, after = (0, None) if wanted is None else wanted
    begin = max(first, kept_from)
    is_live = follow and after is None and not log.closed
    stop = None if is_live else min(end, end if after is None else after)
    if wanted is not None and stop is not None and begin >= stop:
        message = f"there are {end} bytes so far"
        if first < stop:
            message += f", and those before {kept_from} have been dropped"
        raise RangeNotSatisfiable(message, end)
    body = RawBody(log, stream, first, begin, stop)
    response = _response(request, body, 200 if wanted is None else 206, RAW)
    response.headers["accept-ranges"] = "bytes"
    if begin > first:
        response.headers["creche-missing-bytes"] = str(begin - first)
    if stop is not None:
        response.headers["content-length"] = str(stop - begin)
    if wanted is not None:
        last = _VERY_LARGE if stop is None else stop - 1
        total = str(end) if log.closed else "*"
        response.headers["content-range"] = f"bytes {begin}-{last}/{total}"
    return response


def _range(request: Request, end: int) -> tuple[int, int | None] | None:
    """The range that is asked for: its first byte and the one after its last, if that is given."""
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or match[0] == "bytes=-":
        return None  # None, or one that may be ignored (RFC 9110, section 14.2).
    if not match[1]:
        return max(0, end - int(match[2])), None
    if not match[2]:
        return int(match[1]), None
    if int(match[2]) < int(match[1]):
        return None
    return int(match[1]), int(match[2]) + 1


def _response(request: Request, body: ResponseBody, status: int, content_type: str) -> Response:
    if request.method == "HEAD":
        body = DataBody(b"")
    response = Response(body, status, content_type=content_type)
    response.timeout = None
    return response


class _ChunkBody(LivingBody):
    """A body that reads a cursor to its end, or to its own."""

    _cursor: Cursor

    @property
    @abstractmethod
    def is_complete(self) -> bool:
        """Whether everything that was wanted has been sent."""

    @abstractmethod
    def encode(self, chunk: Chunk) -> bytes:
        """A chunk's part of the body."""

    @abstractmethod
    def end(self) -> bytes:
        """What comes after the last chunk, once; may be empty."""

    async def __anext__(self) -> bytes:
        while not self.is_complete and (chunks := await self._cursor.read(_BATCH_BYTES)):
            if data := b"".join([self.encode(chunk) for chunk in chunks]):
                return data
        if not self.is_complete and (data := self.end()):
            return data
        raise StopAsyncIteration


class RawBody(_ChunkBody):
    """The bytes from `begin` up to `stop`, or without it to the end.

    All count positions of the log, or offsets of one stream. `first` is what was
    wanted first; what is not kept of it lies before `begin`.
    """

    def __init__(
        self, log: OutputLog, stream: Stream | None, first: int, begin: int, stop: int | None
    ) -> None:
        if stream is None:
            self._cursor = log.cursor(first, stop=stop)
        else:
            # It knows no offsets, so it reads more than is wanted.
            self._cursor = log.cursor(
                log.position_of(stream, begin),
                stream=stream,
                stop=None if stop is None else log.end,
                is_held=True,
            )
        self._log = log
        self._stream = stream
        self._first = first
        self._next = begin
        self._stop = stop

    @property
    def is_complete(self) -> bool:
        """Whether `stop` is reached."""
        return self._stop is not None and self._next >= self._stop

    def encode(self, chunk: Chunk) -> bytes:
        """The chunk's bytes between `begin` and `stop`."""
        place = chunk.position if self._stream is None else chunk.offset
        end = place + len(chunk.data)
        if self.is_complete or end <= self._next:
            return b""  # Read in one go with what is wanted.
        if place > self._next:
            raise Broken(f"{place - self._next} bytes were dropped before they could be sent")
        if self._stop is not None:
            end = min(end, self._stop)
        data = chunk.data[self._next - place : end - place]
        self._next = end
        if self._stream is not None and (readership := self._log.readership) is not None:
            readership.note_read({self._stream: self._first}, {self._stream: end})
        return data

    def end(self) -> bytes:
        """Nothing, if everything was there."""
        end = self._log.end if self._stream is None else self._log.end_offsets.of(self._stream)
        if self._next < (end if self._stop is None else self._stop):
            raise Broken("the newest bytes were dropped before they could be sent")
        return b""


class FramesBody(_ChunkBody):
    """Frames of MessagePack: arrays of position, timestamp in ms, stream, and bytes.

    A hole is a frame of its own: position, null, "gap", and the number of
    missing bytes.
    """

    def __init__(self, log: OutputLog, position: int, stop: int | None) -> None:
        self._cursor = log.cursor(position, stop=stop)
        self._log = log
        self._next = position
        self._stop = stop

    @property
    def is_complete(self) -> bool:
        """Whether `stop` is reached."""
        return self._stop is not None and self._next >= self._stop

    def encode(self, chunk: Chunk) -> bytes:
        """One frame, and one for the hole before it if there is one."""
        gap = self._gap(chunk.position)
        self._next = chunk.end
        return gap + _encoder.encode((chunk.position, chunk.timestamp_ms, chunk.stream, chunk.data))

    def end(self) -> bytes:
        """A frame for the hole at the end, if there is one."""
        end = self._log.end if self._stop is None else self._stop
        gap = self._gap(end)
        self._next = end
        return gap

    def _gap(self, position: int) -> bytes:
        missing = position - self._next
        return _encoder.encode((self._next, None, "gap", missing)) if missing > 0 else b""
