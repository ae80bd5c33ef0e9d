"""Endpoints as bare ASGI, in front of Quart: run and stdin.

Quart gathers a request's body without telling the sender to wait, and enters
a response's body only after the response has begun. A body of any size that
flows into a pipe needs the first to be otherwise, and a process that must end
with its client needs the second.

Each request has a nursery: one task receives, and hands the body on piece by
piece, so that back-pressure reaches the client; when the client leaves, it
cancels the handler.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import parse_qs

import msgspec
import trio
from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGISendCallable,
    HTTPScope,
    Scope,
)

from supervisor import StdinNotWritable, Supervisor

from .asgi import send_whole
from .problems import BodyTimeout, BodyTooLarge, answer
from .requests import BODY_SECONDS, MAX_JSON_BYTES, check_content_type, decode_json, find_by
from .schemas import RunRequest
from .streams import RunBody

_run_decoder = msgspec.json.Decoder(RunRequest)


class Call:
    """One request: its headers, its body as it comes, and its response.

    Attributes:
      body: the pieces of the request's body; ends with it.
      responded: whether a response has begun.
    """

    def __init__(
        self, scope: HTTPScope, body: trio.MemoryReceiveChannel[bytes], send: ASGISendCallable
    ) -> None:
        self._scope = scope
        self._send = send
        self.body = body
        self.responded = False

    def header(self, name: bytes) -> str:
        """The value of a header, or an empty string."""
        return next(
            (value.decode("latin-1") for key, value in self._scope["headers"] if key == name), ""
        )

    def query(self, name: str) -> str | None:
        """The first value of a query parameter."""
        values = parse_qs(
            self._scope["query_string"].decode("latin-1"), keep_blank_values=True
        ).get(name)
        return None if values is None else values[0]

    async def read_body(self) -> bytes:
        """The whole body, which must be a small one.

        Raises:
          BodyTooLarge, BodyTimeout.
        """
        body = bytearray()
        with trio.move_on_after(BODY_SECONDS):
            async for data in self.body:
                body += data
                if len(body) > MAX_JSON_BYTES:
                    raise BodyTooLarge(f"the body is larger than {MAX_JSON_BYTES} bytes")
            return bytes(body)
        raise BodyTimeout("the body did not come in time")

    async def respond(self, status: int, headers: list[tuple[str, str]], body: bytes = b"") -> None:
        """Send a whole response."""
        self.responded = True
        await send_whole(self._send, status, headers, body)

    async def begin(self, status: int, headers: list[tuple[str, str]]) -> None:
        """Begin a response."""
        self.responded = True
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": encoded,
                "trailers": False,
            }
        )

    async def send_body(self, data: bytes, *, more: bool) -> None:
        """Send a piece of the response's body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


Handler = Callable[..., Awaitable[None]]


async def run(supervisor: Supervisor, call: Call) -> None:
    """POST /processes/run"""
    check_content_type(call.header(b"content-type").partition(";")[0].strip())
    wanted = decode_json(await call.read_body(), _run_decoder)
    spec = msgspec.structs.replace(
        wanted, stdin_mode="closed", stdout_mode="capture", stderr_mode="capture"
    )
    process = await supervisor.start(spec, timeout=wanted.timeout)
    # No checkpoint may come in between: the process ends with this block.
    async with RunBody(process) as frames:
        await call.begin(200, [("content-type", "text/event-stream")])
        async for data in frames:
            await call.send_body(data, more=True)
    await call.send_body(b"", more=False)


async def write_stdin(supervisor: Supervisor, call: Call, pid_or_name: str) -> None:
    """POST /processes/{pid_or_name}/stdin"""
    process = find_by(supervisor, pid_or_name, call.query("handle"))
    if not process.stdin_writable:
        raise StdinNotWritable(f"stdin of pid {process.pid} is not an open pipe")
    accepted_bytes = 0
    try:
        async for data in call.body:
            await process.write_stdin(data)
            accepted_bytes += len(data)
    except StdinNotWritable as error:
        error.accepted_bytes += accepted_bytes
        raise
    await call.respond(204, [("creche-accepted-bytes", str(accepted_bytes))])


class Direct:
    """An ASGI app: the direct endpoints, and another app for everything else.

    Args:
      app: the other app.
      routes: method, path with `{name}` for a segment, and handler.
    """

    def __init__(
        self, app: ASGIFramework, supervisor: Supervisor, routes: Sequence[tuple[str, str, Handler]]
    ) -> None:
        self._app = app
        self._supervisor = supervisor
        self._routes = [
            (method, re.compile(re.sub(r"\{\w+\}", "([^/]+)", path)), handler)
            for method, path, handler in routes
        ]

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] == "websocket":
            # Closing before accepting: the handshake is answered with 403.
            await send({"type": "websocket.close", "code": 1000, "reason": "no such WebSocket"})
            return
        if scope["type"] == "http":
            for method, path, handler in self._routes:
                if scope["method"] == method and (match := path.fullmatch(scope["path"])):
                    await self._serve(handler, match.groups(), scope, receive, send)
                    return
        await self._app(scope, receive, send)

    async def _serve(
        self,
        handler: Handler,
        arguments: tuple[str | Any, ...],
        scope: HTTPScope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
    ) -> None:
        async with trio.open_nursery() as nursery:
            pieces, body = trio.open_memory_channel[bytes](0)
            nursery.start_soon(_receive, receive, pieces, nursery.cancel_scope)
            call = Call(scope, body, send)
            try:
                async with body:
                    await handler(self._supervisor, call, *arguments)
            except Exception as error:
                # A response that has begun can only be broken off, which the
                # server does when the app returns.
                failure = answer(error)
                if not call.responded:
                    await call.respond(*failure)
            nursery.cancel_scope.cancel()


async def _receive(
    receive: ASGIReceiveCallable,
    pieces: trio.MemorySendChannel[bytes],
    handler: trio.CancelScope,
) -> None:
    """Hand on the body as it comes; cancel the handler when the client leaves."""
    async with pieces:
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                handler.cancel()
                return
            if data := message.get("body", b""):
                try:
                    await pieces.send(data)
                except trio.BrokenResourceError:
                    return  # The handler has answered already.
            more = message.get("more_body", False)
    await receive()  # Nothing else comes but the disconnect.
    handler.cancel()
