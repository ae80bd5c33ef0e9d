"""Endpoints as bare ASGI, in front of Quart: start, get, run and stdin.

Start and get are here because they are what users wait for, and Quart takes
half as long again as everything else. Run and stdin cannot be otherwise: Quart
gathers a request's body without telling the sender to wait, and enters a
response's body only after the response has begun. A body of any size that flows
into a pipe needs the first to be otherwise, and a process that must end with
its client needs the second.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
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

from supervisor import ProcessSpec, StdinNotWritable, Supervisor

from .asgi import send_whole
from .plain import WHOLE_BODY, ResponseStart
from .problems import BodyIncomplete, BodyTimeout, BodyTooLarge, InvalidHeader, answer
from .requests import BODY_SECONDS, MAX_JSON_BYTES, Body, check_content_type, decode_json, find_by
from .schemas import RunRequest
from .streams import RunBody

_start_decoder = msgspec.json.Decoder(ProcessSpec)
_run_decoder = msgspec.json.Decoder(RunRequest)
_encoder = msgspec.json.Encoder()

Default = TypeVar("Default")

# A run that is over before needs nobody who looks whether its client has left.
_UNWATCHED_SECONDS = 0.05

_KEY = re.compile(r"[!-~]{1,255}")
_JSON = (("content-type", "application/json"),)


class Call:
    """One request: its headers, its body as it comes, and its response.

    Attributes:
      responded: whether a response has begun.
    """

    def __init__(
        self, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self.responded = False

    def header(self, name: bytes, default: Default) -> str | Default:
        """The value of a header, or the default where there is none."""
        return next(
            (value.decode("latin-1") for key, value in self._scope["headers"] if key == name),
            default,
        )

    def query(self, name: str) -> str | None:
        """The first value of a query parameter."""
        if not self._scope["query_string"]:
            return None
        values = parse_qs(
            self._scope["query_string"].decode("latin-1"), keep_blank_values=True
        ).get(name)
        return None if values is None else values[0]

    async def read_json(self, decoder: msgspec.json.Decoder[Body]) -> Body:
        """What the body's JSON stands for.

        Raises: as `requests.read_json`.
        """
        check_content_type(self.header(b"content-type", "").partition(";")[0].strip())
        if WHOLE_BODY in self._scope["extensions"]:
            return decode_json(await self._read_body(), decoder)
        with trio.move_on_after(BODY_SECONDS):
            return decode_json(await self._read_body(), decoder)
        raise BodyTimeout("the body did not come in time")

    async def _read_body(self) -> bytes:
        body = b""
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                # What came may be JSON by chance, and is not what was meant.
                raise BodyIncomplete("the connection ended before the body did")
            body += message.get("body", b"")
            if len(body) > MAX_JSON_BYTES:
                raise BodyTooLarge(f"the body is larger than {MAX_JSON_BYTES} bytes")
            if not message.get("more_body", False):
                return body

    @asynccontextmanager
    async def pieces(self) -> AsyncIterator[trio.MemoryReceiveChannel[bytes]]:
        """The body, piece by piece as it is asked for; if the client leaves, the block is cancelled."""
        async with trio.open_nursery() as nursery:
            pieces, body = trio.open_memory_channel[bytes](0)
            nursery.start_soon(self._hand_on, pieces, nursery.cancel_scope)
            failure: Exception | None = None
            async with body:
                try:
                    yield body
                except Exception as error:
                    failure = error  # Raised below: the nursery would wrap it in a group.
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    @asynccontextmanager
    async def while_there(self) -> AsyncIterator[None]:
        """Cancel the block when the client leaves; for when the body has been read."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_for_leave, nursery.cancel_scope)
            failure: Exception | None = None
            try:
                yield
            except Exception as error:
                failure = error  # As above.
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _hand_on(
        self, pieces: trio.MemorySendChannel[bytes], handler: trio.CancelScope
    ) -> None:
        async with pieces:
            more = True
            while more:
                message = await self._receive()
                if message["type"] != "http.request":
                    handler.cancel()
                    return
                if data := message.get("body", b""):
                    try:
                        await pieces.send(data)
                    except trio.BrokenResourceError:
                        return  # The handler has answered already.
                more = message.get("more_body", False)
        await self._wait_for_leave(handler)

    async def _wait_for_leave(self, handler: trio.CancelScope) -> None:
        await self._receive()  # Nothing else comes but the disconnect.
        handler.cancel()

    async def respond(
        self, status: int, headers: Sequence[tuple[str, str]], body: bytes = b""
    ) -> None:
        """Send a whole response."""
        self.responded = True
        await send_whole(self._send, status, headers, body)

    async def begin(
        self, status: int, headers: list[tuple[str, str]], *, body_follows: bool = False
    ) -> None:
        """Begin a response, whose body's first piece may follow at once."""
        self.responded = True
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        message: ResponseStart = {
            "type": "http.response.start",
            "status": status,
            "headers": encoded,
            "trailers": False,
            "body_follows": body_follows,
        }
        await self._send(message)

    async def send_body(self, data: bytes, *, more: bool) -> None:
        """Send a piece of the response's body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


Handler = Callable[..., Awaitable[None]]


async def start(supervisor: Supervisor, call: Call) -> None:
    """POST /processes"""
    key = call.header(b"idempotency-key", None)
    if key is not None and not _KEY.fullmatch(key):
        raise InvalidHeader("an Idempotency-Key is 1 to 255 visible ASCII characters")
    process = await supervisor.start(await call.read_json(_start_decoder), key=key)
    await call.respond(201, _JSON, _encoder.encode(process.record) + b"\n")


async def get(supervisor: Supervisor, call: Call, pid_or_name: str) -> None:
    """GET /processes/{pid_or_name}"""
    process = find_by(supervisor, pid_or_name, call.query("handle"))
    await call.respond(200, _JSON, _encoder.encode(process.record) + b"\n")


async def run(supervisor: Supervisor, call: Call) -> None:
    """POST /processes/run"""
    wanted = await call.read_json(_run_decoder)
    spec = msgspec.structs.replace(
        wanted, stdin_mode="closed", stdout_mode="capture", stderr_mode="capture"
    )
    process = await supervisor.start(spec, timeout=wanted.timeout)
    # No checkpoint may come in between: the process ends with this block.
    async with RunBody(process) as frames:
        await call.begin(200, [("content-type", "text/event-stream")], body_follows=True)
        unwatched_until = trio.current_time() + _UNWATCHED_SECONDS
        while frames.has_more and (seconds := unwatched_until - trio.current_time()) > 0:
            if (data := await frames.next_within(seconds)) is None:
                break
            await call.send_body(data, more=not frames.is_over)
            if frames.is_over:
                return
        async with call.while_there():
            async for data in frames:
                await call.send_body(data, more=not frames.is_over)
        if not frames.is_over:
            await call.send_body(b"", more=False)


async def write_stdin(supervisor: Supervisor, call: Call, pid_or_name: str) -> None:
    """POST /processes/{pid_or_name}/stdin"""
    process = find_by(supervisor, pid_or_name, call.query("handle"))
    if not process.stdin_writable:
        raise StdinNotWritable(f"stdin of pid {process.pid} is not an open pipe")
    accepted_bytes = 0
    async with call.pieces() as body:
        try:
            async for data in body:
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
        self._by_path = {
            (method, path + slash): handler
            for method, path, handler in routes
            if "{" not in path
            for slash in ("", "/")
        }
        self._by_pattern = [
            (method, re.compile(re.sub(r"\{\w+\}", "([^/]+)", path) + "/?"), handler)
            for method, path, handler in routes
            if "{" in path
        ]

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] == "http":
            # The server leaves the body of an answer to HEAD away.
            wanted = "GET" if scope["method"] == "HEAD" else scope["method"]
            path = scope["path"]
            if path.startswith("//"):  # Of which Quart takes one.
                path = "/" + path.lstrip("/")
            if handler := self._by_path.get((wanted, path)):
                await self._serve(handler, (), Call(scope, receive, send))
                return
            for method, pattern, handler in self._by_pattern:
                if wanted == method and (match := pattern.fullmatch(path)):
                    await self._serve(handler, match.groups(), Call(scope, receive, send))
                    return
        await self._app(scope, receive, send)

    async def _serve(self, handler: Handler, arguments: tuple[str | Any, ...], call: Call) -> None:
        try:
            await handler(self._supervisor, call, *arguments)
        except Exception as error:
            # A response that has begun can only be broken off, which the
            # server does when the app returns.
            failure = answer(error)
            if not call.responded:
                await call.respond(*failure)
