"""Refusing connections: each is told why, and none is left to wait.

Without a descriptor a connection cannot even be accepted. It would stay in the
kernel's queue, its client none the wiser, and accept(2) would fail again at once.
So it is accepted out of the reserve (`supervisor.descriptors`), answered with 503
and closed. Its request is read but never looked at, so a retry is safe.

So are those refused that are too many, or of somebody who may not call.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from supervisor import OutOfDescriptors
from supervisor.descriptors import reserve

from .problems import RequestError, answer

_logger = logging.getLogger(__name__)

_SECONDS = 1.0
_SENDING_SECONDS = 0.1
_WARNING_SECONDS = 10.0
_HEAD_BYTES = 64 * 1024
_MOST = 100


class Refusals:
    """Those that are being refused at the moment."""

    def __init__(self) -> None:
        self._patiences: dict[trio.CancelScope, None] = {}
        self._silent_until = float("-inf")
        # Made in time, since nothing can be relied on any more when it is needed.
        self._shortage = _answer(OutOfDescriptors("the daemon has no descriptor left"))

    def warn(self, error: OSError) -> None:
        """Log the shortage, once in a while."""
        if trio.current_time() >= self._silent_until:
            self._silent_until = trio.current_time() + _WARNING_SECONDS
            _logger.warning("connections are refused: %s", error.strerror)

    def make_room(self) -> bool:
        """Whether one more can be refused now; if not, the oldest is hurried up.

        Half of the reserve is for what must not fail.
        """
        if len(self._patiences) < reserve() // 2:
            return True
        if self._patiences:
            next(iter(self._patiences)).cancel()
        return False

    async def refuse(self, stream: trio.SocketStream, error: RequestError | None = None) -> None:
        """Answer whatever will be asked, and close; where very many are refused, only close.

        Args:
          error: why; None for want of descriptors.
        """
        try:
            if error is not None and len(self._patiences) >= _MOST:
                return
            data = self._shortage if error is None else _answer(error)
            with self._patience() as reading:
                await self._read_head(stream)
            with trio.move_on_after(_SENDING_SECONDS):
                await stream.send_all(data)
                await stream.send_eof()
            if not reading.cancelled_caught:
                with self._patience():
                    async for _ in stream:
                        pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    @contextmanager
    def _patience(self) -> Iterator[trio.CancelScope]:
        """A block for what depends on the client."""
        scope = trio.CancelScope(deadline=trio.current_time() + _SECONDS)
        self._patiences[scope] = None
        try:
            with scope:
                yield scope
        finally:
            del self._patiences[scope]

    async def _read_head(self, stream: trio.SocketStream) -> None:
        # An answer on a connection that is closed with something unread may be
        # lost on its way (RFC 9112, section 9.6).
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _HEAD_BYTES:
            data = await stream.receive_some()
            if not data:
                return
            head += data


def _answer(error: Exception) -> bytes:
    status, headers, body = answer(error)
    headers += [("content-length", str(len(body))), ("connection", "close")]
    head = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status} \r\n{head}\r\n".encode() + body
