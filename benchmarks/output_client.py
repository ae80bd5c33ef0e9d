"""A cheap HTTP client on plain sockets: bodies as they arrive, down to the bytes of a broken chunk."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

_RECEIVE_BYTES = 256 * 1024


class Refused(Exception):
    """An answer that is not a success; its status and body."""


class Truncated(Exception):
    """The connection closed before the body's end."""


Call = Callable[..., Awaitable[bytes]]


class Client:
    """Talks to one daemon, with a connection for every request.

    Attributes:
      port: on the loopback.
      pid: of the daemon.
    """

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid

    @property
    def url(self) -> str:
        """Where the SDK finds the daemon."""
        return f"http://127.0.0.1:{self.port}"

    async def json(self, method: str, path: str, body: object = None) -> Any:
        """Make a call and read its answer.

        Raises:
          Refused.
        """
        data = b"" if body is None else json.dumps(body).encode()
        async with self._exchange(method, path, {}, data) as answer:
            return json.loads(await answer.rest() or b"null")

    @asynccontextmanager
    async def body(
        self, path: str, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Body]:
        """The body of a GET, within a block that closes the connection.

        Raises:
          Refused.
        """
        async with self._exchange("GET", path, headers or {}, b"") as answer:
            yield answer

    async def start(self, command: Sequence[str]) -> int:
        """Start a process and return its pid."""
        wanted = {"command": command[0], "args": list(command[1:])}
        return int((await self.json("POST", "/processes", wanted))["pid"])

    async def ended(self, pid: int) -> Any:
        """Wait for the end of a process, without a reader of its output; its record.

        The kernel tells when the leader has exited; only after that the daemon
        is asked, until it agrees.
        """
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            pass
        else:
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)
        while (record := await self.json("GET", f"/processes/{pid}"))["status"] == "running":
            pass
        return record

    async def kill(self, pid: int) -> None:
        """End a process and everything that descends from it."""
        await self.json("DELETE", f"/processes/{pid}")

    @asynccontextmanager
    async def stuck(self, path: str) -> AsyncIterator[None]:
        """A client that asks and never reads, for as long as the block lasts."""
        with trio.socket.socket() as sock:
            # So that little is under way before the daemon's write blocks.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await sock.connect(("127.0.0.1", self.port))
            await trio.SocketStream(sock).send_all(self._head("GET", path, {}))
            yield

    @asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[Call]:
        """A function for one call after the other, on a connection of their own.

        Its arguments are those of `json`; it returns the body, and raises Refused.
        """
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:

            async def call(method: str, path: str, body: object = None) -> bytes:
                data = b"" if body is None else json.dumps(body).encode()
                await stream.send_all(self._head(method, path, {}, len(data)) + data)
                answer = Body(stream)
                status = await answer.begin()
                whole = await answer.rest()
                if status >= 300:
                    raise Refused(f"{method} {path}: {status} {whole!r}")
                return whole

            yield call

    @asynccontextmanager
    async def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], data: bytes
    ) -> AsyncIterator[Body]:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        try:
            await stream.send_all(self._head(method, path, headers, len(data)) + data)
            answer = Body(stream)
            status = await answer.begin()
            if status >= 300:
                raise Refused(f"{method} {path}: {status} {(await answer.rest())!r}")
            yield answer
        finally:
            # At once, as if the client had died: its unread bytes are lost.
            await trio.aclose_forcefully(stream)

    def _head(self, method: str, path: str, headers: Mapping[str, str], size: int = 0) -> bytes:
        lines = [f"{method} /api/v1{path} HTTP/1.1", f"host: 127.0.0.1:{self.port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if method == "POST":
            lines += ["content-type: application/json", f"content-length: {size}"]
        return "\r\n".join([*lines, "", ""]).encode()


class Body:
    """One response: its head, then its body as it arrives."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""
        self._chunked = False
        # What is left of the current chunk, or of a body that says its length.
        self._left = 0
        self._is_over = False

    async def begin(self) -> int:
        """Read the head and return the status."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            await self._receive()
        head = self._buffer[:end].lower()
        self._buffer = self._buffer[end + 4 :]
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        self._chunked = fields.get(b"transfer-encoding") == b"chunked"
        if not self._chunked:
            self._left = int(fields.get(b"content-length", b"0"))
            self._is_over = self._left == 0
        return int(head.split()[1])

    async def receive_some(self) -> bytes:
        """What has arrived, at least one byte; empty at the end of the body.

        Cancelling it loses nothing.

        Raises:
          Truncated.
        """
        while not self._is_over:
            if data := self._dechunked() if self._chunked else self._counted():
                return data
            if not self._is_over:
                await self._receive()
        return b""

    async def rest(self) -> bytes:
        """All that is still to come."""
        return b"".join([data async for data in self])

    def __aiter__(self) -> Body:
        return self

    async def __anext__(self) -> bytes:
        if data := await self.receive_some():
            return data
        raise StopAsyncIteration

    async def _receive(self) -> None:
        data = await self._stream.receive_some(_RECEIVE_BYTES)
        if not data:
            raise Truncated(f"{self._left} bytes of a chunk are missing")
        self._buffer += data

    def _counted(self) -> bytes:
        data, self._buffer = self._buffer[: self._left], b""
        self._left -= len(data)
        self._is_over = self._left == 0
        return data

    def _dechunked(self) -> bytes:
        """All bytes of chunks that are there, also of those that are not there as a whole."""
        data, at, pieces = self._buffer, 0, []
        while True:
            if self._left == 0:
                end = data.find(b"\r\n", at)
                if end < 0:
                    break
                if end == at:  # The end of the chunk before.
                    at += 2
                    continue
                self._left = int(data[at:end], 16)
                at = end + 2
                if self._left == 0:
                    self._is_over = True
                    break
            piece = data[at : at + self._left]
            if not piece:
                break
            at += len(piece)
            self._left -= len(piece)
            pieces.append(piece)
        self._buffer = data[at:]
        return b"".join(pieces)
