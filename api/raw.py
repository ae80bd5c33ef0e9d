"""Bodies of exact bytes: raw streams with ranges, and frames that say when and where."""

from __future__ import annotations

import re
from abc import abstractmethod
from types import TracebackType

import msgspec
from quart import Request, Response
from quart.wrappers.response import DataBody, ResponseBody

from supervisor import Chunk, Cursor, OutputLog, Stream, Supervisor

from .problems import InvalidQuery, RangeNotSatisfiable
from .requests import find, read_flag, read_number

RAW = "application/octet-stream"
FRAMES = "application/vnd.creche.frames"

_BATCH_BYTES = 256 * 1024
_LARGEST = 10**18 - 1
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
    end = None if read_flag(request, "follow") else log.end
    return _response(request, FramesBody(log.cursor(position), end), 200, FRAMES)


def _raw(log: OutputLog, request: Request, stream: Stream | None) -> Response:
    """Exact bytes. Ranges count from the first byte that was ever written, kept or not."""
    end = log.end if stream is None else log.end_offsets.of(stream)
    kept_from = log.start if stream is None else log.start_offsets.of(stream)
    follow = read_flag(request, "follow")
    wanted = _range(request, end)
    first, after = (0, None) if wanted is None else wanted
    if wanted is not None and first >= end and not follow:
        raise RangeNotSatisfiable(f"there are {end} bytes so far")
    begin = max(first, kept_from)
    stop = None if follow and after is None else min(end, end if after is None else after)
    position = begin if stream is None else log.position_of(stream, begin)
    body = RawBody(log.cursor(position, stream=stream), begin, stop, by_position=stream is None)
    response = _response(request, body, 200 if wanted is None else 206, RAW)
    response.headers["accept-ranges"] = "bytes"
    if begin > first:
        response.headers["creche-missing-bytes"] = str(begin - first)
    if stop is not None:
        response.headers["content-length"] = str(max(0, stop - begin))
        if wanted is not None:
            total = str(end) if log.closed else "*"
            response.headers["content-range"] = f"bytes {begin}-{stop - 1}/{total}"
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


class Broken(Exception):
    """The log has dropped what a body had promised; only breaking it off can tell."""


class _ChunkBody(ResponseBody):
    """A body that reads a cursor to an end, or live to the output's."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor

    @property
    @abstractmethod
    def is_complete(self) -> bool:
        """Whether everything that was wanted has been read."""

    @abstractmethod
    def encode(self, chunk: Chunk) -> bytes:
        """A chunk's part of the body."""

    async def __aenter__(self) -> _ChunkBody:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def __aiter__(self) -> _ChunkBody:
        return self

    async def __anext__(self) -> bytes:
        while not self.is_complete and await self._cursor.wait():
            data = b"".join([self.encode(chunk) for chunk in self._cursor.take(_BATCH_BYTES)])
            if data:
                return data
        raise StopAsyncIteration


class RawBody(_ChunkBody):
    """The bytes from `begin` up to `stop`, or without it to the output's end.

    Both count positions of the log, or offsets of one stream.
    """

    def __init__(self, cursor: Cursor, begin: int, stop: int | None, *, by_position: bool) -> None:
        super().__init__(cursor)
        self._next = begin
        self._stop = stop
        self._by_position = by_position

    @property
    def is_complete(self) -> bool:
        """Whether `stop` is reached."""
        return self._stop is not None and self._next >= self._stop

    def encode(self, chunk: Chunk) -> bytes:
        """The chunk's bytes between `begin` and `stop`."""
        if self.is_complete:
            return b""  # Taken in one go with what was wanted.
        place = chunk.position if self._by_position else chunk.offset
        if place > self._next:
            raise Broken(f"{place - self._next} bytes were dropped before they could be sent")
        left = len(chunk.data) if self._stop is None else self._stop - place
        data = chunk.data[self._next - place : left]
        self._next = place + min(len(chunk.data), left)
        return data


class FramesBody(_ChunkBody):
    """Frames of MessagePack: arrays of position, timestamp in ms, stream, and bytes.

    A hole is a frame of its own: position, null, "gap", and the number of
    missing bytes.
    """

    def __init__(self, cursor: Cursor, stop: int | None) -> None:
        super().__init__(cursor)
        self._next = cursor.position
        self._stop = stop

    @property
    def is_complete(self) -> bool:
        """Whether `stop` is reached."""
        return self._stop is not None and self._next >= self._stop

    def encode(self, chunk: Chunk) -> bytes:
        """One frame, and one for the hole before it if there is one."""
        if self.is_complete:
            return b""
        gap = chunk.position - self._next
        frame = _encoder.encode((chunk.position, chunk.timestamp_ms, chunk.stream, chunk.data))
        if gap > 0:
            frame = _encoder.encode((self._next, None, "gap", gap)) + frame
        self._next = chunk.end
        return frame
