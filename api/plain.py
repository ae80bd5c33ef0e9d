"""Requests in the plainest form of HTTP/1.1, and their answers, without a protocol machine.

Nearly all requests of nearly all clients arrive in one piece and say nothing
unusual. For these, h11 and hypercorn's tasks and channels take longer than a
process takes to start. So a request is answered from here if it came whole in
one read and everything about it is beyond doubt: known method, an absolute
path, ordinary header lines, at most one Content-Length, which is that of the
bytes behind the head, and no header that changes how a connection is used.
Whatever else comes, the slightly odd and the malicious alike, is left to
hypercorn, whose business it is (RFC 9112).

A client sends the same head over and over, so what a short one means is remembered.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote

from hypercorn.config import Config
from hypercorn.typing import (
    ASGIReceiveEvent,
    ASGISendEvent,
    ConnectionState,
    HTTPResponseStartEvent,
    HTTPScope,
)

from .asgi import send_whole
from .problems import answer

# A field's name is a token (RFC 9110, section 5.6.2). Values with other bytes
# than printable ASCII, and lines that go on in the next, are left to hypercorn.
# There is one way to match at most, and nothing to try again: whoever sends
# something odd must not buy time with it.
_HEAD: Final = re.compile(
    rb"(GET|POST|PUT|DELETE) (/[!-~]*+) HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t -~]*+\r\n){1,64}+)\r\n"
)
_HEAD_BYTES: Final = 32 * 1024
_REMEMBERED_HEADS: Final = 256
_REMEMBERED_HEAD_BYTES: Final = 2 * 1024
_LENGTH: Final = re.compile(rb"[0-9]{1,7}")

# They say how the message or the connection is to be treated.
_UNUSUAL: Final = frozenset(
    [
        b"connection",
        b"expect",
        b"http2-settings",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    ]
)
# An extension of ASGI: the first message has all of the body, without any waiting.
WHOLE_BODY: Final = "creche.whole_body"
_NO_CONTENT: Final = (204, 304)


class ResponseStart(HTTPResponseStartEvent, total=False):
    """The beginning of a response, whose head may wait for its body.

    Attributes:
      body_follows: another extension of ASGI: whether the first piece comes at once.
    """

    body_follows: bool


class PlainHead(NamedTuple):
    """The head of a plain request, as ASGI wants it."""

    method: str
    path: str
    raw_path: bytes
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body_bytes: int


class PlainRequest(NamedTuple):
    """A request that came whole."""

    head: PlainHead
    body: bytes


def understand(data: bytes) -> PlainRequest | None:
    """The request that `data` is, if it is exactly one, whole and plain."""
    end = data.find(b"\r\n\r\n") + 4
    if not 4 <= end <= _HEAD_BYTES:
        return None
    understand_head = _remembered if end <= _REMEMBERED_HEAD_BYTES else _understand_head
    head = understand_head(data[:end])
    if head is None or len(data) != end + head.body_bytes:
        return None
    return PlainRequest(head, data[end:])


def _understand_head(data: bytes) -> PlainHead | None:
    match = _HEAD.fullmatch(data)
    if match is None:
        return None
    method, target, lines = match.groups()
    headers = []
    length = hosts = 0
    has_length = False
    for line in lines.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name == b"content-length":
            if has_length or not _LENGTH.fullmatch(value):
                return None
            has_length, length = True, int(value)
        elif name == b"host":
            hosts += 1
        elif name in _UNUSUAL and not (name == b"connection" and value.lower() == b"keep-alive"):
            return None
        headers.append((name, value))
    if hosts != 1:
        return None
    raw_path, _, query = target.partition(b"?")
    path = raw_path.decode("ascii")
    if "%" in path:
        path = unquote(path)
    return PlainHead(method.decode(), path, raw_path, query, tuple(headers), length)


_remembered = lru_cache(_REMEMBERED_HEADS)(_understand_head)


def is_part(data: bytes, body_bytes: int | None) -> bool:
    """Whether a body comes in pieces, of which this is one.

    Args:
      data: the piece.
      body_bytes: the length of the whole body, if that is known.
    """
    return body_bytes is None or 0 < len(data) < body_bytes


class PlainExchange:
    """One plain request and its answer, as ASGI has them.

    Args:
      request: the request.
      config: hypercorn's; for the headers that every answer has.
      is_last: whether the connection is to end with the answer.
      send: sends bytes, and whether they are of a stream; does nothing once the
        client has left.
      wait_until_left: returns when the client has left.

    Attributes:
      is_complete: whether the whole answer has been given.
      has_begun: whether some of it has.
    """

    __slots__ = (
        "_body_bytes",
        "_config",
        "_has_received",
        "_head",
        "_is_last",
        "_request",
        "_send_bytes",
        "_wait_until_left",
        "has_begun",
        "is_complete",
    )

    def __init__(
        self,
        request: PlainRequest,
        config: Config,
        is_last: Callable[[], bool],
        send: Callable[[bytes, bool], Awaitable[None]],
        wait_until_left: Callable[[], Awaitable[None]],
    ) -> None:
        self._request = request
        self._config = config
        self._is_last = is_last
        self._send_bytes = send
        self._wait_until_left = wait_until_left
        self._has_received = False
        # None for an answer in chunks.
        self._body_bytes: int | None = 0
        # Of an answer of known length, until the first piece of the body comes.
        self._head = b""
        self.has_begun = False
        self.is_complete = False

    def scope(
        self, client: tuple[str, int] | None, server: tuple[str, int | None] | None
    ) -> HTTPScope:
        """The request's head."""
        head = self._request.head
        return {
            "type": "http",
            "http_version": "1.1",
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": head.method,
            "scheme": "http",
            "path": head.path,
            "raw_path": head.raw_path,
            "query_string": head.query,
            "root_path": "",
            "headers": head.headers,
            "client": client,
            "server": server,
            "state": ConnectionState({}),
            "extensions": {WHOLE_BODY: {}},
        }

    async def receive(self) -> ASGIReceiveEvent:
        """The body, and from then on only that the client has left."""
        if not self._has_received:
            self._has_received = True
            return {"type": "http.request", "body": self._request.body, "more_body": False}
        if not self.is_complete:
            await self._wait_until_left()
        return {"type": "http.disconnect"}

    async def send(self, message: ASGISendEvent) -> None:
        """A part of the answer, its head first."""
        if message["type"] == "http.response.start":
            self._begin(message)
            if self._body_bytes is None and not message.get("body_follows", False):
                # Whoever follows a silent process wants to know that it does.
                head, self._head = self._head, b""
                await self._send_bytes(head, True)
        elif message["type"] == "http.response.body" and not self.is_complete:
            data = message.get("body", b"")
            more = message.get("more_body", False)
            is_of_stream = is_part(data, self._body_bytes)
            if self._body_bytes is None:
                data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
                if not more:
                    data += b"0\r\n\r\n"
            self.is_complete = not more
            if data or (self._head and not more):
                data, self._head = self._head + data, b""
                await self._send_bytes(data, is_of_stream)

    async def break_off(self) -> None:
        """Send what is left of an answer that will never be whole."""
        if self._head:
            head, self._head = self._head, b""
            await self._send_bytes(head, False)

    async def fail(self, error: Exception) -> None:
        """Answer for an app that has raised an error instead."""
        status, headers, body = answer(error)
        await send_whole(self.send, status, headers, body)

    def _begin(self, message: HTTPResponseStartEvent) -> None:
        status = message["status"]
        lines = [b"HTTP/1.1 %d \r\n" % status]
        self._body_bytes = 0 if status in _NO_CONTENT else None
        for name, value in (*message.get("headers", ()), *self._config.response_headers("h11")):
            if name.lower() == b"content-length":
                self._body_bytes = int(value)
            lines.append(b"%b: %b\r\n" % (name, value))
        if self._body_bytes is None:
            lines.append(b"transfer-encoding: chunked\r\n")
        if self._is_last():
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self._head = b"".join(lines)
        self.has_begun = True
