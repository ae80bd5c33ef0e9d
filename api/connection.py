"""One connection: bytes between a socket and hypercorn's protocol.

hypercorn's own class for this starts two tasks for every request, for a timer
of idle connections, and sends the head and the body of an answer by themselves.
For requests that take a millisecond that is much of it. Here the timer is the
deadline of the reading, the head of an answer of known length waits for its
body, and what the kernel takes at once is sent without a detour through the
scheduler.
"""

from __future__ import annotations

import os
from contextlib import suppress

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import parse_socket_addr

_READ_BYTES = 64 * 1024


class Connection:
    """Serves the requests of one connection, until it ends.

    Args:
      app: the app.
      config: how long an idle connection is kept, and hypercorn's other settings.
      context: of the server; it says whether that is about to end.
      stream: the connection itself, which this closes.
    """

    def __init__(
        self, app: AppWrapper, config: Config, context: WorkerContext, stream: trio.SocketStream
    ) -> None:
        self._app = app
        self._config = config
        self._context = context
        self._stream = stream
        self._reading = trio.CancelScope()
        self._is_idle = True
        self._sending = trio.Lock()
        # The head of an answer, until its body comes.
        self._held = b""
        self._is_head_due = False

    async def serve(self) -> None:
        """Serve; returns when it has ended. Cancellation ends it, too."""
        sock = self._stream.socket
        async with TaskGroup() as task_group:
            self._protocol = ProtocolWrapper(
                self._app,
                self._config,
                self._context,
                task_group,
                ConnectionState({}),
                False,
                parse_socket_addr(sock.family, sock.getpeername()),
                parse_socket_addr(sock.family, sock.getsockname()),
                self._handle,
                "http/1.1",
            )
            await self._protocol.initiate()
            self._be_idle(True)
            await self._read()
            # Whoever is still writing an answer learns it from the closed socket.
            await self._protocol.handle(Closed())
            await self._stream.aclose()

    def end_if_idle(self) -> None:
        """End unless a request is being answered; then it ends after the answer."""
        if self._is_idle:
            self._reading.cancel()

    async def _read(self) -> None:
        with self._reading, suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            while data := await self._stream.receive_some(_READ_BYTES):
                await self._protocol.handle(RawData(bytes(data)))

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
                if _has_body(event.data):
                    self._held = data
                    return
            if data:
                await self._send(data)
        elif isinstance(event, Updated):
            self._is_head_due = not event.idle
            self._be_idle(event.idle)
        elif isinstance(event, Closed):
            if self._held:  # A body that broke off before its first byte.
                held, self._held = self._held, b""
                await self._send(held)
            await self._close()
            await self._protocol.handle(Closed())

    async def _send(self, data: bytes) -> None:
        # Not interrupted: half an event would spoil the rest of the answer.
        # Only the closing of the socket ends it, as the server does it at last.
        with trio.CancelScope(shield=True):
            try:
                self._sending.acquire_nowait()
            except trio.WouldBlock:
                await self._sending.acquire()
            try:
                sent = self._send_now(data)
                if sent < len(data):
                    await self._stream.send_all(memoryview(data)[sent:])
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                await self._protocol.handle(Closed())
            finally:
                self._sending.release()

    def _send_now(self, data: bytes) -> int:
        try:
            return os.write(self._stream.socket.fileno(), data)
        except OSError:
            return 0  # Full, or broken, or closed: Trio tells.

    async def _close(self) -> None:
        with suppress(trio.BrokenResourceError, trio.BusyResourceError, trio.ClosedResourceError):
            await self._stream.send_eof()
        await self._stream.aclose()


def _has_body(head: bytes) -> bool:
    """Whether a head says how long the body is that follows."""
    _, name, rest = head.partition(b"\r\ncontent-length: ")
    return bool(name) and not rest.startswith(b"0\r")
