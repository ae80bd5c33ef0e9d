"""Bodies that last as long as a process: follow and run, as server-sent events.

Lines are encoded in batches, never one write for each. A comment keeps an idle
connection alive, since proxies and clients end silent ones. Whoever does not
read only holds up itself: a body is a cursor into the process's log.
"""

from __future__ import annotations

from types import TracebackType

import msgspec
import trio
from msgspec import UNSET
from quart import Request, Response
from quart.wrappers.response import DataBody

from supervisor import Gap, Line, LineReader, Offsets, Process, Stream, Supervisor

from .bodies import LivingBody
from .requests import find, read_resume
from .schemas import GapEvent, OutputEvent, RunExited, RunStarted

_encoder = msgspec.json.Encoder()

_BATCH_BYTES = 64 * 1024
# Frames for one write. The official client's parser takes time that grows with
# the square of what it gets at once; with less than this, everybody is slower.
_FRAMES_PER_PIECE = 200
# As JSON at most six times as long: below the 1 MiB that some clients take in one line.
_MAX_LINE_BYTES = 128 * 1024
_KEEP_ALIVE_SECONDS = 15.0
_KEEP_ALIVE = b":\n\n"

# The npm client 0.5.89 loses the tail of a burst of more than about 1000
# events when the connection closes right behind it; 150 ms heal that.
_BURST_EVENTS = 500
_BURST_WINDOW_SECONDS = 1.0
_LINGER_SECONDS = 0.15


async def follow_stdout(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """GET /processes/{pid_or_name}/stdout/follow"""
    return await _follow(supervisor, request, pid_or_name, "stdout")


async def follow_stderr(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """GET /processes/{pid_or_name}/stderr/follow"""
    return await _follow(supervisor, request, pid_or_name, "stderr")


async def follow_output(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """GET /processes/{pid_or_name}/output/follow"""
    return await _follow(supervisor, request, pid_or_name, None)


async def _follow(
    supervisor: Supervisor, request: Request, pid_or_name: str, stream: Stream | None
) -> Response:
    process = find(supervisor, request, pid_or_name)
    # A HEAD would otherwise last as long as the process, for a body that nobody gets.
    resume = await read_resume(request, process.log, stream)
    body = DataBody(b"") if request.method == "HEAD" else FollowBody(process, stream, resume)
    response = Response(body, content_type="text/event-stream")
    response.timeout = None
    return response


class EventStream(LivingBody):
    """A body of server-sent events: the lines of one reader between a first and a last frame."""

    def __init__(self, reader: LineReader) -> None:
        self._reader = reader
        # What is to be sent next, in reverse.
        self._pieces: list[bytes] = []
        self._over = False
        self._burst_began = 0.0
        self._burst_events = 0

    @property
    def has_more(self) -> bool:
        """Whether there is, or will be, a piece that has not been handed out."""
        return not self._over or bool(self._pieces)

    @property
    def is_over(self) -> bool:
        """Whether everything has been handed out, and need not be waited for."""
        return not self.has_more and not self._is_burst

    def first_frame(self) -> bytes:
        """What is sent before any output; may be empty."""
        return b""

    def last_frame(self) -> bytes:
        """What is sent after all output."""
        raise NotImplementedError

    def frame(self, item: Line | Gap) -> bytes:
        """One item of the output as a frame."""
        raise NotImplementedError

    async def __aenter__(self) -> EventStream:
        if first := self.first_frame():
            self._pieces = [first]
        return self

    async def __anext__(self) -> bytes:
        if not self.has_more:
            await self._linger()
            raise StopAsyncIteration
        piece = await self.next_within(_KEEP_ALIVE_SECONDS)
        return _KEEP_ALIVE if piece is None else piece

    async def next_within(self, seconds: float) -> bytes | None:
        """The next piece, while it `has_more`; None if it does not come in that time."""
        if not self._pieces:
            with trio.move_on_after(seconds) as patience:
                items = await self._reader.read(_BATCH_BYTES)
            if patience.cancelled_caught:
                return None
            if items:
                self._encode(items)
            else:
                self._encode(self._reader.rest())
                self._pieces.insert(0, self.last_frame())
                self._over = True
        return self._pieces.pop()

    def _encode(self, items: list[Line | Gap]) -> None:
        self._count(len(items))
        for begin in range(0, len(items), _FRAMES_PER_PIECE):
            piece = items[begin : begin + _FRAMES_PER_PIECE]
            self._pieces.append(b"".join([self.frame(item) for item in piece]))
        self._pieces.reverse()

    def _count(self, events: int) -> None:
        now = trio.current_time()
        if now - self._burst_began > _BURST_WINDOW_SECONDS:
            self._burst_began = now
            self._burst_events = 0
        self._burst_events += events

    @property
    def _is_burst(self) -> bool:
        return self._burst_events > _BURST_EVENTS

    async def _linger(self) -> None:
        if self._is_burst:
            await trio.sleep(_LINGER_SECONDS)


class FollowBody(EventStream):
    """The output of one process to its end; named events, with ids to resume by."""

    def __init__(self, process: Process, stream: Stream | None, resume: Offsets) -> None:
        reader = process.lines(stream=stream, resume=resume, max_line_bytes=_MAX_LINE_BYTES)
        super().__init__(reader)
        self._tagged = stream is None

    def last_frame(self) -> bytes:
        """The end of the output; the process's final status can be seen by now."""
        return b"event: eof\ndata: {}\n\n"

    def frame(self, item: Line | Gap) -> bytes:
        """A line, or a gap as an event of a name that clients ignore."""
        if isinstance(item, Gap):
            return b"id: %d-%d\n%b" % (item.resume.stdout, item.resume.stderr, _gap(item))
        resume = item.resume
        return b"id: %d-%d\nevent: output\ndata: %b\n\n" % (
            resume.stdout,
            resume.stderr,
            _line(item, tagged=self._tagged),
        )


class RunBody(EventStream):
    """A run from its start to its exit; unnamed events. A client that leaves ends the process."""

    def __init__(self, process: Process) -> None:
        super().__init__(process.lines(max_line_bytes=_MAX_LINE_BYTES))
        self._process = process

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process = self._process
        if process.status == "running" or process.spec.descendants == "keep":
            with trio.CancelScope(shield=True):
                await process.kill()

    def first_frame(self) -> bytes:
        """What has been started."""
        process = self._process
        return _data(RunStarted(process.handle, process.pid, process.started_at))

    def last_frame(self) -> bytes:
        """How it ended."""
        process = self._process
        assert process.reason is not None
        return _data(
            RunExited(
                process.reason,
                process.exit_code,
                process.signal,
                process.status == "oom_killed",
            )
        )

    def frame(self, item: Line | Gap) -> bytes:
        """A line, or a gap as an event of a name that clients ignore."""
        if isinstance(item, Gap):
            return _gap(item)
        return b"data: %b\n\n" % _line(item, tagged=True)


def _line(line: Line, *, tagged: bool) -> bytes:
    return _encoder.encode(
        OutputEvent(
            line.text,
            line.timestamp_ms,
            line.stream if tagged else UNSET,
            UNSET if line.is_whole else True,
        )
    )


def _gap(gap: Gap) -> bytes:
    event = GapEvent(gap.stream, gap.missing_bytes, gap.missing_lines)
    return b"event: gap\ndata: %b\n\n" % _encoder.encode(event)


def _data(event: msgspec.Struct) -> bytes:
    return b"data: %b\n\n" % _encoder.encode(event)
