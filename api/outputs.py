"""The outputs so far: lines as one JSON object, which is written while the log is read."""

from __future__ import annotations

import msgspec
from quart import Request, Response
from quart.wrappers.response import DataBody, ResponseBody

from supervisor import Gap, Line, LineReader, Stream, Supervisor
from supervisor.chunk import Offsets
from supervisor.readership import Readership

from .bodies import LivingBody
from .requests import find, format_resume, read_number, read_resume

_encoder = msgspec.json.Encoder()

_BATCH_BYTES = 256 * 1024
_MAX_LINE_BYTES = 128 * 1024


async def stdout(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """GET /processes/{pid_or_name}/stdout"""
    return await _lines(supervisor, request, pid_or_name, "stdout")


async def stderr(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """GET /processes/{pid_or_name}/stderr"""
    return await _lines(supervisor, request, pid_or_name, "stderr")


async def output(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """GET /processes/{pid_or_name}/output"""
    return await _lines(supervisor, request, pid_or_name, None)


async def _lines(
    supervisor: Supervisor, request: Request, pid_or_name: str, stream: Stream | None
) -> Response:
    process = find(supervisor, request, pid_or_name)
    limit = read_number(request, "limit", largest=10**9)
    resume = await read_resume(request, process.log, stream)
    # An unterminated line is part of what comes next while the process runs.
    is_complete = process.log.closed
    reader = LineReader(
        process.log,
        stream=stream,
        resume=resume,
        max_line_bytes=_MAX_LINE_BYTES,
        follow=False,
        is_held=True,
    )
    # A HEAD hands nothing on.
    readership = None if request.method == "HEAD" else process.log.readership
    lines = LinesBody(process.pid, reader, limit, readership, is_complete=is_complete)
    begin = await lines.begin()
    whole: ResponseBody = DataBody(begin)
    if not lines.is_over:
        whole = DataBody(b"") if request.method == "HEAD" else lines
    response = Response(whole, content_type="application/json")
    if lines.is_over:
        response.content_length = len(begin)
    response.timeout = None
    return response


class LinesBody(LivingBody):
    """`OutputLines`, a batch at a time.

    A long line is written in the parts in which it is read, so nobody needs it
    whole. In the merged output it is cut where a line of the other stream
    comes in between.
    """

    def __init__(
        self,
        pid: int,
        reader: LineReader,
        limit: int | None,
        readership: Readership | None,
        *,
        is_complete: bool,
    ) -> None:
        self._pid = pid
        self._reader = reader
        self._limit = limit
        self._readership = readership
        self._is_complete = is_complete
        self._count = 0
        # The stream of the line that has been begun but not ended.
        self._open: Stream | None = None
        # Of each stream: where this begins, behind the last line that is whole, and behind all.
        self._begins = reader.resume.by_stream()
        self._next = dict(self._begins)
        self._sent = dict(self._begins)
        self._missing_bytes = 0
        self._missing_lines: int | None = 0
        self._text = b""
        self.is_over = False

    async def begin(self) -> bytes:
        """The first part, before any is sent; the whole if `is_over` then."""
        self._text = b'{"pid":%d,"lines":[' % self._pid
        await self._read_part()
        return self._text

    async def __anext__(self) -> bytes:
        if not self._text:
            if self.is_over:
                raise StopAsyncIteration
            await self._read_part()
        text, self._text = self._text, b""
        return text

    async def _read_part(self) -> None:
        """Add a batch to the text, or all that is left."""
        parts = [self._text]
        size = 0
        while not self._is_full and (items := await self._reader.read(_BATCH_BYTES)):
            for item in items:
                if self._is_full:
                    break
                parts.append(self._add(item))
                size += len(parts[-1])
                self._go_on_behind(item)
            if size >= _BATCH_BYTES:
                self._text = b"".join(parts)
                self._note_read()
                return
        if not self._is_full:
            for item in self._reader.rest():
                parts.append(self._add(item))
                if self._is_complete or isinstance(item, Gap):
                    self._go_on_behind(item)
        self._text = b"".join((*parts, self._close(), self._end()))
        self._note_read()
        self.is_over = True

    @property
    def _is_full(self) -> bool:
        return self._limit is not None and self._count >= self._limit and self._open is None

    def _add(self, item: Line | Gap) -> bytes:
        if isinstance(item, Gap):
            self._missing_bytes += item.missing_bytes
            if self._missing_lines is not None:
                known = item.missing_lines
                self._missing_lines = None if known is None else self._missing_lines + known
            return b""
        text = b""
        self._sent[item.stream] = item.resume.of(item.stream)
        if self._open != item.stream:
            text = self._close() + (b',"' if self._count else b'"')
            self._count += 1
            self._open = item.stream
        text += _encoder.encode(item.text)[1:-1]
        return text + self._close() if item.is_whole else text

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return b'"'

    def _go_on_behind(self, item: Line | Gap) -> None:
        if isinstance(item, Gap) or item.is_whole:
            self._next[item.stream] = item.resume.of(item.stream)

    def _note_read(self) -> None:
        """Tell what is needed no more: a client that comes back begins at `next`."""
        if self._readership is not None:
            self._readership.note_taken(self._begins, self._sent)
            self._readership.note_read(self._begins, self._next)

    def _end(self) -> bytes:
        place = format_resume(Offsets(self._next["stdout"], self._next["stderr"]))
        rest = {
            "line_count": self._count,
            "next": place,
            "missing_bytes": self._missing_bytes,
            "missing_lines": self._missing_lines,
        }
        return b"]," + _encoder.encode(rest)[1:] + b"\n"
