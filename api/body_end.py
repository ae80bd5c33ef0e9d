"""The end of an exchange: of a body that nobody reads any more, and of the answer.

An answer may be complete while its request's body is still coming: it was too
large, or the process that it was meant for has ended. Then two things would
go wrong. The server would close a connection with unread data in it, which
resets it and can take the answer with it. And hypercorn's reading task waits
for room in its channel to the app, for ever if nobody receives. So the rest of
such a body is received and thrown away, within bounds, before the answer ends.
"""

from __future__ import annotations

import logging

import trio
from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    HTTPResponseBodyEvent,
    HTTPScope,
    Scope,
)

from supervisor import SupervisorError

from .asgi import send_whole
from .plain import WHOLE_BODY
from .problems import AmbiguousLength, Broken, answer

_logger = logging.getLogger(__name__)

_DISCARD_SECONDS = 5.0
_DISCARD_BYTES = 64 * 1024 * 1024


class BodyEnd:
    """An ASGI app that lets another app answer before it has received the whole body."""

    def __init__(self, app: ASGIFramework) -> None:
        self._app = app

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] == "http" and WHOLE_BODY not in scope["extensions"]:
            exchange = _Exchange(scope, receive, send)
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
                # What stands between us and the client may go by the other
                # one, and take the end of the body for another request.
                error = AmbiguousLength("give either Content-Length or Transfer-Encoding")
                status, headers, body = answer(error)
                # First to the end of the body: hypercorn closes at once when
                # anything follows an exchange that is to be the last.
                with trio.move_on_after(_DISCARD_SECONDS):
                    await exchange.discard_body()
                await send_whole(send, status, [*headers, ("connection", "close")], body)
                return
            receive, send = exchange.receive, exchange.send
        try:
            await self._app(scope, receive, send)
        except* (Broken, SupervisorError) as errors:
            # Of an answer that has begun: the server breaks it off.
            _logger.warning("an answer breaks off: %s", errors.exceptions[0])


class _Exchange:
    """One request and its answer."""

    def __init__(
        self, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        self._receive = receive
        self._send = send
        self._body_ended = trio.Event()
        self._over = trio.Event()
        if not any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in scope["headers"]
        ):
            self._body_ended.set()

    async def receive(self) -> ASGIReceiveEvent:
        message = await self._receive()
        if message["type"] != "http.request":
            self._body_ended.set()
            self._over.set()
        elif not message.get("more_body", False):
            self._body_ended.set()
        return message

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] != "http.response.body" or message.get("more_body", False):
            await self._send(message)
        elif self._body_ended.is_set():
            await self._send_last(message)
        else:
            await self._send_early(message)

    async def _send_early(self, message: HTTPResponseBodyEvent) -> None:
        """Send the last of the answer, discard the rest of the body, and only then end the answer."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._discard)
            await self._send({**message, "more_body": True})
            with trio.move_on_after(_DISCARD_SECONDS):
                await self._body_ended.wait()
            await self._send_last({"type": "http.response.body", "body": b"", "more_body": False})
            with trio.move_on_after(_DISCARD_SECONDS):
                await self._over.wait()
            nursery.cancel_scope.cancel()

    async def _send_last(self, message: ASGISendEvent) -> None:
        # With it hypercorn tells the app of a disconnect, upon which the app
        # cancels this very task, and then starts its timer for an idle
        # connection in this task. The cancellation would leave it without one.
        with trio.CancelScope(shield=True):
            await self._send(message)

    async def discard_body(self) -> None:
        """Receive and throw away to the end of the body, but not more than is decent."""
        discarded = 0
        while not self._body_ended.is_set():
            message = await self.receive()
            if message["type"] == "http.request":
                discarded += len(message.get("body", b""))
            if discarded > _DISCARD_BYTES:
                self._body_ended.set()

    async def _discard(self) -> None:
        """The same, and then to the very end of the exchange."""
        await self.discard_body()
        while not self._over.is_set():
            await self.receive()
