"""HTTP/1.1 alone; and what is no HTTP gets an error with a code, as everything else.

hypercorn's own protocol lets every client change over to HTTP/2, with attacks
of its own (RFC 9113, section 10.5) and for nobody's gain: the clients of plain
sockets speak 1.1. It would open WebSockets, of which there are none here, and never
end the connection of one whose handshake is wrong. And it answers what is no HTTP
without a body.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import chain

import h11
from hypercorn.events import Closed, Event
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response
from hypercorn.protocol.h11 import H11Protocol

from .problems import HeadTooLarge, MalformedHttp, RequestError, answer

_ORIGIN = re.compile(rb"https?://[^/?#]+", re.IGNORECASE)


class Protocol(H11Protocol):
    """The requests of one connection."""

    @property
    def is_amid_head(self) -> bool:
        """Between two requests: whether the next one has begun."""
        return self.connection.trailing_data[0] != b""

    async def handle(self, event: Event) -> None:
        """What has come from the client."""
        try:
            await super().handle(event)
        except _Refused:
            await self._send_error_response(400)
            await self.send(Closed())

    async def stream_send(self, event: StreamEvent) -> None:
        """A part of the answer."""
        if isinstance(event, Response) and self.context.terminated.is_set():
            # The last one says so, where that is known in time (RFC 9112, section 9.6).
            event = replace(event, headers=[*event.headers, (b"connection", b"close")])
        await super().stream_send(event)

    async def _create_stream(self, request: h11.Request) -> None:
        # An `Upgrade` may be ignored (RFC 9110, section 7.8).
        await super()._create_stream(
            h11.Request(
                method=request.method,
                target=_without_origin(request.target),
                headers=[header for header in request.headers if header[0] != b"upgrade"],
                http_version=request.http_version,
            )
        )

    async def _check_protocol(self, event: h11.Request) -> None:
        if event.http_version not in (b"1.0", b"1.1") or not _is_target(event.target):
            raise _Refused
        # hypercorn would take `get` for GET, which it is not (RFC 9110, section 9.1).
        if event.method != event.method.upper():
            raise _Refused

    async def _send_error_response(self, status_code: int) -> None:
        error: RequestError = MalformedHttp("this is no HTTP/1.1 request that the daemon takes")
        if status_code == 431:
            error = HeadTooLarge("the head of the request, or of a chunk, is too large")
        status, headers, body = answer(error)
        encoded = [(name.encode(), value.encode()) for name, value in headers]
        encoded += [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        for part in (
            h11.Response(
                status_code=status,
                headers=list(chain(encoded, self.config.response_headers("h11"))),
            ),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            await self._send_h11_event(part)


class _Refused(Exception):
    """The request is of another version, such as the preface of HTTP/2, by no method, or for no path."""


def _is_target(target: bytes) -> bool:
    """Whether it is of one of the forms that servers get (RFC 9112, section 3.2)."""
    return target.startswith(b"/") or target == b"*" or _ORIGIN.match(target) is not None


def _without_origin(target: bytes) -> bytes:
    """The path and the query. Whatever the origin is called, it is this one."""
    match = _ORIGIN.match(target)
    if match is None:
        return target
    rest = target[match.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest
