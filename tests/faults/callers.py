"""Callers that nobody trusts, on plain sockets, and what they have cost the daemon."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import h11
import trio
from trio.testing import wait_all_tasks_blocked

from api.problems import STATUS

from ..conftest import PATIENCE_SECONDS
from ..kernel import descriptors, trio_tasks
from ..wire import connect

STATUS_OF = {error.code: status for error, status in STATUS.items()}

# Nobody waits so long for an answer that comes at once, unless others hold it up.
_HELD_UP_SECONDS = 10.0


class Answer(NamedTuple):
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The code of an error answer; fails if that is not as documented."""
        content = json.loads(self.body)
        assert content.keys() <= {"error", "code", "field", "accepted_bytes"}
        assert content["error"]
        assert STATUS_OF[content["code"]] == self.status
        return str(content["code"])


async def dial(url: str) -> trio.SocketStream:
    """Connect to a daemon, and send nothing yet."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    with trio.fail_after(PATIENCE_SECONDS):
        return await trio.open_tcp_stream(host, int(port))


def reset(sock: socket.socket | trio.socket.SocketType) -> None:
    """Close a connection by a reset, as a client that has crashed."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def to_end(stream: trio.SocketStream) -> bytes:
    """What comes until the other side closes, or resets."""
    data = b""
    with trio.fail_after(PATIENCE_SECONDS), suppress(trio.BrokenResourceError):
        async for piece in stream:
            data += piece
    return data


def parse_answer(data: bytes, method: bytes = b"GET") -> Answer:
    """The first answer in what has come; fails if it is not whole."""
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(data)
    reader.receive_data(b"")
    head = reader.next_event()
    assert isinstance(head, h11.Response), (head, data[:200])
    body = b""
    while isinstance(event := reader.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    headers = {name.decode(): value.decode() for name, value in head.headers}
    return Answer(head.status_code, headers, body)


async def ask(url: str, data: bytes) -> Answer:
    """Send bytes on a connection of their own; the answer, which must be the last one on it."""
    async with await dial(url) as stream:
        with trio.fail_after(PATIENCE_SECONDS), suppress(trio.BrokenResourceError):
            await stream.send_all(data)  # It may be refused before its end.
        return parse_answer(await to_end(stream))


def request(
    method: str, path: str, *lines: str, body: bytes = b"", close: bool = True, declare: bool = True
) -> bytes:
    """The bytes of a request to the API, with these header lines, too."""
    head = [f"{method} /api/v1{path} HTTP/1.1", "Host: localhost", *lines]
    if declare:
        head.append(f"Content-Length: {len(body)}")
    if close:
        head.append("Connection: close")
    return "\r\n".join([*head, "\r\n"]).encode("latin-1") + body


JSON = "Content-Type: application/json"


@asynccontextmanager
async def others_are_served(url: str) -> AsyncIterator[Callable[[], int]]:
    """A block beside which a client of another kind is answered all the time.

    Yields how many answers it has got so far.
    """
    answers = 0

    async def live() -> None:
        nonlocal answers
        async with await connect(url) as connection:
            while True:
                with trio.fail_after(_HELD_UP_SECONDS):
                    assert await connection.json("GET", "/health") == {"healthy": True}
                answers += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(live)
        yield lambda: answers
        before = answers
        with trio.fail_after(_HELD_UP_SECONDS):
            while answers <= before:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def everyone_is_accepted(url: str) -> None:
    """Wait until the daemon has accepted all who have connected so far, since it takes them in turn."""
    async with await connect(url) as connection:
        await connection.request("GET", "/health")


async def start(url: str, *command: str, **fields: object) -> int:
    """Start a process; its pid."""
    async with await connect(url) as connection:
        body: dict[str, Any] = {"command": command[0], "args": command[1:], **fields}
        answer = await connection.json("POST", "/processes", body)
        assert connection.status == 201, answer
        return int(answer["pid"])


def memory_bytes(pid: int, name: str = "VmRSS") -> int:
    """Resident memory of a process, or its peak (`VmHWM`); proc_pid_status(5)."""
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    raise AssertionError(name)


def sockets_of(pid: int) -> int:
    """How many sockets a process has open."""
    count = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            count += os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
    return count


class Open(NamedTuple):
    """The tasks and descriptors of this process, in which the daemon of the fixture is, too."""

    tasks: int
    descriptors: int


async def open_now() -> Open:
    """What is open, when nothing is about to change it."""
    await wait_all_tasks_blocked()
    return _open()


async def closed_down_to(before: Open, *, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until no more is open than before; fail if that takes longer."""
    with trio.fail_after(seconds):
        while (now := _open()).tasks > before.tasks or now.descriptors > before.descriptors:
            await wait_all_tasks_blocked()


def _open() -> Open:
    return Open(trio_tasks(), len(descriptors()))
