"""One connection: bytes between a socket and the app, by the plain way or by hypercorn's protocol.

Plain requests (see `plain`) are answered by the reading task itself. From the
first other request on, everything goes through hypercorn's protocol, which then
may hold the beginning of a message whose rest looks like a request.

hypercorn's own class for a connection starts two tasks for every request, for a timer
of idle connections, and sends the head and the body of an answer by themselves.
For requests that take a millisecond that is much of it. Here the timer is the
deadline of the reading, the head of an answer of known length waits for its
body, and what the kernel takes at once is sent without a detour through the
scheduler.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from hypercorn.utils import parse_socket_addr

from .plain import PlainExchange, is_part, understand
from .protocol import Protocol

_logger = logging.getLogger(__name__)

_READ_BYTES = 64 * 1024

# For the rest of a head that has begun. Heads come in one piece, but for those
# of clients that want to occupy us.
_HEAD_SECONDS = 15.0

# How long a client may take in nothing of a whole answer, such as one of many that
# it has asked for and never reads. A stream is read as slowly as its reader likes.
_STUCK_SECONDS = 30.0
_PIECE_BYTES = 64 * 1024

_WITHOUT_BODY = (b"HTTP/1.1 1", b"HTTP/1.1 204 ", b"HTTP/1.1 304 ")


class Connection:
    """Serves the requests of one connection, until it ends.

    Args:
      app: the app.
      config: how long an idle connection is kept, and hypercorn's other settings.
      context: of the server; it says whether that is about to end.
      stream: the connection itself, which this closes.
    """

    def __init__(
        self, app: ASGIFramework, config: Config, context: WorkerContext, stream: trio.SocketStream
    ) -> None:
        self._app = app
        self._config = config
        self._context = context
        self._stream = stream
        self._reading = trio.CancelScope()
        self._is_idle = True
        self._sending = trio.Lock()
        self._protocol: Protocol | None = None
        # What has come while a plain request was being answered.
        self._ahead = b""
        # The head of an answer, until its body comes.
        self._held = b""
        self._is_head_due = False
        # Of the answer that is being given; None if nobody knows yet.
        self._body_bytes: int | None = 0

    async def serve(self) -> None:
        """Serve; returns when it has ended. Cancellation ends it, too."""
        sock = self._stream.socket
        try:
            self._client = parse_socket_addr(sock.family, sock.getpeername())
        except OSError:
            return  # The client has reset it already.
        self._server = parse_socket_addr(sock.family, sock.getsockname())
        self._be_idle(True)
        async with TaskGroup() as task_group:
            with self._reading, suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                unusual = await self._answer_plain_requests()
                if unusual:
                    await self._leave_to_hypercorn(unusual, task_group)
            # Whoever is still writing an answer learns it from the closed socket.
            if self._protocol is not None:
                await self._protocol.handle(Closed())
            await self._stream.aclose()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self._is_idle

    @property
    def ends_at(self) -> float:
        """When its time is up, on Trio's clock, unless a request comes; infinite during one."""
        return self._reading.deadline

    def end_if_idle(self) -> None:
        """End unless a request is being answered; then it ends after the answer."""
        if self._is_idle:
            self._reading.cancel()

    async def _answer_plain_requests(self) -> bytes:
        """Answer plain requests until others come, whose bytes are returned; none at the end."""
        while data := self._ahead or await self._receive():
            self._ahead = b""
            if (request := understand(data)) is None:
                return data
            self._be_idle(False)
            exchange = PlainExchange(
                request,
                self._config,
                self._context.terminated.is_set,
                self._send,
                self._wait_until_left,
            )
            try:
                scope = exchange.scope(self._client, self._server)
                await self._app(scope, exchange.receive, exchange.send)
            except Exception as error:
                if exchange.has_begun:
                    _logger.exception("an answer breaks off")
                else:
                    await exchange.fail(error)
            if not exchange.is_complete:
                await exchange.break_off()
            if not exchange.is_complete or self._context.terminated.is_set():
                return b""
            self._be_idle(True)
        return b""

    async def _wait_until_left(self) -> None:
        with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            while data := await self._stream.receive_some(_READ_BYTES):
                self._ahead += data
                if len(self._ahead) > _READ_BYTES:
                    await trio.sleep_forever()  # It may wait for its turn, like everybody.

    async def _leave_to_hypercorn(self, data: bytes, task_group: TaskGroup) -> None:
        protocol = self._protocol = Protocol(
            ASGIWrapper(self._app),
            self._config,
            self._context,
            task_group,
            ConnectionState({}),
            False,
            self._client,
            self._server,
            self._handle,
        )
        await protocol.initiate()
        while data:
            await protocol.handle(RawData(data))
            if self._is_idle and protocol.is_amid_head:
                head_ends_at = trio.current_time() + _HEAD_SECONDS
                self._reading.deadline = min(self._reading.deadline, head_ends_at)
            data = await self._receive()

    async def _receive(self) -> bytes:
        data = bytes(await self._stream.receive_some(_READ_BYTES))
        # They may have come just as this was told to end. A request that is not
        # begun can be sent again; one that is would find its reading cancelled.
        await trio.lowlevel.checkpoint_if_cancelled()
        return data

    def _be_idle(self, is_idle: bool) -> None:
        self._is_idle = is_idle
        timeout = self._config.keep_alive_timeout if is_idle else float("inf")
        self._reading.deadline = trio.current_time() + timeout

    async def _handle(self, event: Event) -> None:
        """What the protocol wants."""
        if isinstance(event, RawData):
            data = self._held + event.data if self._held else event.data
            self._held = b""
            if self._is_head_due:
                self._is_head_due = event.data.startswith(b"HTTP/1.1 1")
                self._body_bytes = _body_bytes(event.data)
                if self._body_bytes:
                    self._held = data
                    return
            if data:
                await self._send(data, is_part(event.data, self._body_bytes))
        elif isinstance(event, Updated):
            if not event.idle:
                # As in `_receive`, of a request that came behind another.
                await trio.lowlevel.checkpoint_if_cancelled()
            self._is_head_due = not event.idle
            self._body_bytes = 0
            self._be_idle(event.idle)
        elif isinstance(event, Closed):
            if self._held:  # A body that broke off before its first byte.
                held, self._held = self._held, b""
                await self._send(held)
            await self._close()
            await self._end()

    async def _send(self, data: bytes, is_of_stream: bool = False) -> None:
        sent = 0
        if not self._sending.locked():
            sent = self._send_now(data)
            if sent == len(data):
                return
        # Not interrupted: half an event would spoil the rest of the answer.
        # Only the closing of the socket ends it, as the server does it at last.
        with trio.CancelScope(shield=True):
            async with self._sending:
                try:
                    await self._send_slowly(
                        memoryview(data)[sent:], float("inf") if is_of_stream else _STUCK_SECONDS
                    )
                except trio.TooSlowError:
                    await trio.aclose_forcefully(self._stream)
                    await self._end()
                except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                    await self._end()

    async def _send_slowly(self, data: memoryview, stuck_seconds: float) -> None:
        for begin in range(0, len(data), _PIECE_BYTES):
            with trio.fail_after(stuck_seconds):
                await self._stream.send_all(data[begin : begin + _PIECE_BYTES])

    def _send_now(self, data: bytes) -> int:
        try:
            return os.write(self._stream.socket.fileno(), data)
        except OSError:
            return 0  # Full, or broken, or closed: Trio tells.

    async def _end(self) -> None:
        if self._protocol is not None:
            await self._protocol.handle(Closed())
        # Behind a request that has more bytes after it nobody reads until it
        # is answered, and so nobody would learn that the socket is closed.
        self._reading.cancel()

    async def _close(self) -> None:
        with suppress(trio.BrokenResourceError, trio.BusyResourceError, trio.ClosedResourceError):
            await self._stream.send_eof()
        await self._stream.aclose()


def _body_bytes(head: bytes) -> int | None:
    """How long the body is that follows a head; None if that does not say."""
    if head.startswith(_WITHOUT_BODY):
        return 0
    _, name, rest = head.partition(b"\r\ncontent-length: ")
    return int(rest.partition(b"\r\n")[0]) if name else None
