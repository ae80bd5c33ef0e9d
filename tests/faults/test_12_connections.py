"""Case 12, too: connections without number, of which the idle give way."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from api import Server, create_app
from supervisor import Supervisor

from ..conftest import PATIENCE_SECONDS
from ..heavy import amount, figure
from ..test_server import serving
from ..wire import Connection, connect
from .callers import (
    JSON,
    ask,
    dial,
    everyone_is_accepted,
    memory_bytes,
    others_are_served,
    parse_answer,
    request,
    sockets_of,
    start,
    to_end,
)

BOUND = 20
# Here and in the daemon there are so many descriptors at least, and some for who else connects.
IDLE = min(amount(1000, heavy=9900), resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - 100)
IDLE_BYTES = 24 * 1024


@pytest.fixture
async def bounded(supervisor: Supervisor) -> AsyncIterator[str]:
    """The url of a server that takes few connections."""
    app = create_app(supervisor)
    server = Server(app, "127.0.0.1:0", max_connections=BOUND, graceful_seconds=0.2)
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(server.serve)
        yield f"http://{addresses[0]}"
        server.stop()


async def _accepted(url: str) -> Connection:
    connection = await connect(url)
    await wait_all_tasks_blocked()
    return connection


async def test_thousands_of_idle_connections_take_little_and_hold_up_nobody() -> None:
    async with serving("--parked-launchers", "0") as (daemon, url):
        pid = daemon.process.pid
        memory, sockets = memory_bytes(pid), sockets_of(pid)
        growths = []
        for _ in range(2):
            async with others_are_served(url) as answers:
                streams = [await dial(url) for _ in range(IDLE)]
                await everyone_is_accepted(url)
            assert answers() > 0
            assert sockets_of(pid) >= sockets + IDLE
            growths.append(memory_bytes(pid) - memory)
            for stream in streams:
                await stream.aclose()
            async with await connect(url) as connection:
                with trio.fail_after(PATIENCE_SECONDS):
                    while sockets_of(pid) > sockets + 1:
                        await connection.request("GET", "/health")
        figure(f"{IDLE} idle connections: {[round(each / IDLE) for each in growths]} bytes each")
        assert growths[0] < IDLE * IDLE_BYTES
        assert growths[1] < IDLE * IDLE_BYTES
        assert daemon.complaints == []


async def test_at_the_bound_the_longest_idle_gives_way(bounded: str) -> None:
    first = [await _accepted(bounded) for _ in range(BOUND)]
    # One is used again, so that another has been idle for longer.
    assert await first[0].json("GET", "/health") == {"healthy": True}
    late = [await _accepted(bounded) for _ in range(5)]
    for connection in first[1:6]:
        assert await to_end(connection.stream) == b""
    for connection in (first[0], *first[6:], *late):
        assert await connection.json("GET", "/health") == {"healthy": True}
    for connection in (*first, *late):
        await connection.stream.aclose()


async def test_who_has_asked_for_a_websocket_gives_way_too(bounded: str) -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket")
    for key in ((), ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13")):
        held = [await dial(bounded) for _ in range(BOUND)]
        for stream in held:
            await stream.send_all(request("GET", "/health", *upgrade, *key, close=False))
            with trio.fail_after(PATIENCE_SECONDS):
                assert await stream.receive_some(1) == b"H"
        await wait_all_tasks_blocked()
        assert (await ask(bounded, request("GET", "/health"))).status == 200
        for stream in held:
            await stream.aclose()


async def test_where_all_are_busy_one_more_is_refused_and_they_go_on(
    bounded: str, supervisor: Supervisor
) -> None:
    pid = await start(bounded, "sh", "-c", "read go; echo $go", stdin_mode="pipe")
    followers = [await dial(bounded) for _ in range(BOUND)]
    for follower in followers:
        await follower.send_all(request("GET", f"/processes/{pid}/stdout/follow"))
        assert await follower.receive_some(1) == b"H"
    for refused in (
        request("GET", "/health", close=False),
        request("POST", "/processes", JSON, body=b'{"command": "true"}' + b" " * 500_000),
    ):
        answer = await ask(bounded, refused)
        assert (answer.status, answer.code) == (503, "TOO_MANY_CONNECTIONS")
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["connection"] == "close"
    assert supervisor.total == 1
    # More at a time than are answered; none stays.
    crowd = [await dial(bounded) for _ in range(150)]
    outcomes = Counter([bool(await to_end(stream)) for stream in crowd])
    assert outcomes[True] >= 100
    for stream in crowd:
        await stream.aclose()
    # Who leaves makes room.
    await followers.pop().aclose()
    await wait_all_tasks_blocked()
    assert (await ask(bounded, request("GET", "/health"))).status == 200
    await supervisor.by_pid(pid).write_stdin(b"go\n")
    for follower in followers:
        assert b'"line":"go"' in parse_answer(b"H" + await to_end(follower)).body
        await follower.aclose()


async def test_connections_leave_descriptors_to_processes() -> None:
    async with serving("--parked-launchers", "0") as (daemon, url):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (320, hard))
        streams = [await dial(url) for _ in range(400)]
        for _ in range(20):
            await start(url, "cat", stdin_mode="pipe")
        for stream in streams:
            await stream.aclose()
        assert daemon.complaints == []
