"""A small HTTP client on a plain socket, for thousands of requests and for looking at frames as sent."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

import h11
import trio

from .conftest import PATIENCE_SECONDS


class Event(NamedTuple):
    """One server-sent event."""

    name: str | None
    data: dict[str, Any]


class Connection:
    """One keep-alive connection. Not for concurrent use."""

    def __init__(self, stream: trio.SocketStream, host: str) -> None:
        self.stream = stream
        self._host = host
        self._protocol = h11.Connection(h11.CLIENT)
        self.status = 0
        self.headers: dict[str, str] = {}

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stream.aclose()

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        headers: Mapping[str, str] = {},
    ) -> bytes:
        """Send a request and gather the response's body; `status` and `headers` then tell of it.

        Its own body is JSON, or raw bytes.
        """
        async with aclosing(self._body(method, path, body, raw, headers)) as stream:
            return b"".join([data async for data in stream])

    def stream_body(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] = {}
    ) -> aclosing[AsyncGenerator[bytes, None]]:
        """Send a request and iterate over the response's body as it comes, within a block."""
        return aclosing(self._body(method, path, body, None, headers))

    async def _body(
        self,
        method: str,
        path: str,
        body: Any,
        raw: bytes | None = None,
        more_headers: Mapping[str, str] = {},
    ) -> AsyncGenerator[bytes, None]:
        data = raw or b"" if body is None else json.dumps(body).encode()
        headers = [("host", self._host), ("content-length", str(len(data)))]
        headers += more_headers.items()
        if body is not None:
            headers.append(("content-type", "application/json"))
        sent = self._protocol.send(
            h11.Request(method=method, target="/api/v1" + path, headers=headers)
        )
        assert sent is not None
        await self.stream.send_all(sent + (self._protocol.send(h11.Data(data=data)) or b""))
        self._protocol.send(h11.EndOfMessage())
        while True:
            event = self._protocol.next_event()
            if event is h11.NEED_DATA:
                self._protocol.receive_data(await self.stream.receive_some(65536))
            elif isinstance(event, h11.Response):
                self.status = event.status_code
                self.headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                if self._protocol.our_state is h11.DONE:  # Else it closes.
                    self._protocol.start_next_cycle()
                return
            else:
                raise AssertionError(f"unexpected {event!r}")

    async def json(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] = {}
    ) -> Any:
        """Send a request and read the answer's JSON."""
        return json.loads(await self.request(method, path, body, headers=headers))

    async def events(self, method: str, path: str, body: Any = None) -> list[Event]:
        """Send a request and read the answer's events to the end."""
        return parse_events(await self.request(method, path, body))


def parse_events(text: bytes) -> list[Event]:
    """The events of a whole body; comments are left out."""
    assert text.endswith(b"\n\n") or not text
    events = []
    for frame in text.split(b"\n\n")[:-1]:
        fields = [line.partition(b": ") for line in frame.split(b"\n")]
        data = [value for name, _, value in fields if name == b"data"]
        names = [value.decode() for name, _, value in fields if name == b"event"]
        if data:
            events.append(Event(names[0] if names else None, json.loads(b"\n".join(data))))
    return events


async def connect(url: str) -> Connection:
    """Open a connection to a daemon."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    with trio.fail_after(PATIENCE_SECONDS):
        return Connection(await trio.open_tcp_stream(host, int(port)), f"{host}:{port}")
