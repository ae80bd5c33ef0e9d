"""The server and the `creche serve` command: clients that misbehave, signals, sockets and logs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import stat
import struct
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from trio.testing import MockClock, wait_all_tasks_blocked

from api import Server, create_app
from api.connection import Connection as HttpConnection
from supervisor import OutputLimits, Process, Supervisor, SupervisorConfig

from .afterlife import end_what_outlives
from .conftest import PATIENCE_SECONDS, Daemon
from .kernel import (
    descriptors,
    end_cgroups_of_the_dead,
    processes,
    running_with,
    supervisors_cgroups,
    trio_tasks,
)
from .wire import Connection, connect, parse_events

_ROOT = Path(__file__).parent.parent

# More than the kernel's buffers of one connection can take.
_FLOOD_BYTES = 32 * 1024 * 1024
_GRACEFUL_SECONDS = 0.2
# What an end may take beyond the times that are configured.
_A_LITTLE = 2.0


@pytest.fixture
def config() -> SupervisorConfig:
    return SupervisorConfig(
        output=OutputLimits(unspilled_bytes=_FLOOD_BYTES // 2), grace_seconds=0.2
    )


class Command:
    """A `creche serve` of its own, whose log is read all the time.

    Attributes:
      process: the daemon.
      log: its log entries so far.
    """

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []
        self._news = trio.lowlevel.ParkingLot()

    async def logged(self, message: str) -> dict[str, Any]:
        """Wait until a message is in the log; fail if the log ends without it."""
        return (await self.logged_times(message, 1))[0]

    async def logged_times(self, message: str, count: int) -> list[dict[str, Any]]:
        """Wait until it is there so many times; all of them."""
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                found = [entry for entry in self.log if entry["message"].startswith(message)]
                if len(found) >= count:
                    return found
                await self._news.park()

    async def has_parked(self, count: int) -> None:
        """Wait until so many launchers are parked, which is soon after a start."""
        with trio.fail_after(PATIENCE_SECONDS):
            while count > len(
                [
                    entry
                    for entry in processes()
                    if entry.parent == self.process.pid and entry.arguments[1:3] == ("0", "0")
                ]
            ):
                await trio.lowlevel.checkpoint()

    async def exited(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait until it has exited by itself; the exit status."""
        with trio.fail_after(seconds):
            return await self.process.wait()

    @property
    def complaints(self) -> list[dict[str, Any]]:
        """What it has logged of warnings, errors and tracebacks."""
        return [
            entry
            for entry in self.log
            if entry["level"] not in ("debug", "info") or "traceback" in entry
        ]

    async def read_log(self) -> None:
        """Read the log to its end. Every line of it must be JSON."""
        assert self.process.stderr is not None
        rest = b""
        async for data in self.process.stderr:
            *lines, rest = (rest + data).split(b"\n")
            self.log += [json.loads(line) for line in lines]
            self._news.unpark_all()
        assert rest == b""


@asynccontextmanager
async def command(
    *options: str, environment: Mapping[str, str] | None = None, under: Sequence[str] = ()
) -> AsyncIterator[Command]:
    """The daemon as a process, which is killed at the end of the block if it is still there.

    `under` is a command that starts it.
    """
    cgroups = supervisors_cgroups()
    with tempfile.TemporaryDirectory() as state_dir:
        process = await trio.lowlevel.open_process(
            [*under, sys.executable, "-m", "api", "serve", "--state-dir", state_dir, *options],
            stderr=-1,
            cwd=_ROOT,
            env=None if environment is None else dict(environment),
        )
        assert process.stderr is not None
        async with process.stderr, trio.open_nursery() as nursery:
            daemon = Command(process)
            nursery.start_soon(daemon.read_log)
            try:
                yield daemon
            finally:
                with trio.CancelScope(shield=True):
                    process.kill()
                    await process.wait()
                    for directory in _state_dirs(state_dir, options):
                        await end_what_outlives(directory)
                    end_cgroups_of_the_dead(supervisors_cgroups() - cgroups)


def _state_dirs(default: str, options: Sequence[str]) -> list[Path]:
    given = [value for name, value in pairwise(options) if name == "--state-dir" and value]
    return [Path(directory) for directory in (default, *given)]


@asynccontextmanager
async def serving(
    *options: str, environment: Mapping[str, str] | None = None, under: Sequence[str] = ()
) -> AsyncIterator[tuple[Command, str]]:
    """The daemon as a process that serves on a port of its own; with its url."""
    bind = ("--bind", "127.0.0.1:0")
    async with command(*bind, *options, environment=environment, under=under) as daemon:
        entry = await daemon.logged("serving")
        yield daemon, f"http://{entry['addresses'][0]}"


def _unique() -> str:
    """A number of seconds that no other process of this machine sleeps."""
    return f"1000.{uuid4().int % 10**12}"


async def _reset(stream: trio.SocketStream) -> None:
    """Close a connection by a reset, as a client that has crashed."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def _dial(url: str, receive_buffer: int | None = None) -> trio.SocketStream:
    host, _, port = url.removeprefix("http://").rpartition(":")
    sock = trio.socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await sock.connect((host, int(port)))
    return trio.SocketStream(sock)


async def _open_follow(url: str, pid: int, *, receive_buffer: int | None = None) -> Connection:
    """Ask for a process's output, read no more than the head of the answer."""
    stream = await _dial(url, receive_buffer)
    await stream.send_all(
        b"GET /api/v1/processes/%d/output/follow HTTP/1.1\r\nHost: localhost\r\n\r\n" % pid
    )
    head = b""
    with trio.fail_after(PATIENCE_SECONDS):
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some(1)
    assert head.startswith(b"HTTP/1.1 200 ")
    return Connection(stream, "localhost")


async def _start(daemon: Daemon, script: str, *arguments: str, stdin: str = "closed") -> Process:
    body = {"command": "sh", "args": ["-c", script, *arguments], "stdin_mode": stdin}
    answer = await daemon.client.post("/processes", json=body)
    assert answer.status_code == 201, answer.text
    return daemon.supervisor.by_pid(answer.json()["pid"])


async def _settled(tasks: int, open_descriptors: int) -> None:
    """Wait until there are only so many tasks and descriptors."""
    with trio.fail_after(7):
        while trio_tasks() > tasks or len(descriptors()) > open_descriptors:
            await wait_all_tasks_blocked()


# --- clients that vanish or do not read -----------------------------------------


async def test_connections_that_clients_close_are_gone_at_once(daemon: Daemon) -> None:
    await wait_all_tasks_blocked()
    tasks, open_descriptors = trio_tasks(), len(descriptors())
    for close in (trio.SocketStream.aclose, _reset):
        used, fresh = await connect(daemon.url), await connect(daemon.url)
        await used.request("GET", "/health")
        await close(used.stream)
        await close(fresh.stream)
    await _settled(tasks, open_descriptors)


async def test_followers_that_vanish_leave_no_task_and_no_descriptor(daemon: Daemon) -> None:
    process = await _start(daemon, "echo first; read go; echo last", stdin="pipe")
    await wait_all_tasks_blocked()
    tasks, open_descriptors = trio_tasks(), len(descriptors())
    for _ in range(10):
        followers = [await _open_follow(daemon.url, process.pid) for _ in range(20)]
        assert trio_tasks() >= tasks + len(followers)
        for follower in followers:
            await _reset(follower.stream)
    await _settled(tasks, open_descriptors)
    # And the process has not noticed any of it.
    assert process.status == "running"
    await process.write_stdin(b"\n")
    async with await connect(daemon.url) as connection:
        events = await connection.events("GET", f"/processes/{process.pid}/stdout/follow")
    assert [event.data.get("line") for event in events] == ["first", "last", None]


async def test_a_follower_that_vanishes_in_a_flood_leaves_nothing(daemon: Daemon) -> None:
    await wait_all_tasks_blocked()
    tasks = trio_tasks()
    process = await _start(daemon, "exec yes")
    for _ in range(5):
        follower = await _open_follow(daemon.url, process.pid)
        await follower.stream.receive_some(65536)
        await _reset(follower.stream)
    await process.kill()
    await daemon.client.aclose()
    await _settled(tasks, len(descriptors()))


async def test_a_follower_that_does_not_read_disturbs_no_other(daemon: Daemon) -> None:
    script = f'read go; yes "$0" | head -c {_FLOOD_BYTES}; echo; echo last'
    process = await _start(daemon, script, "y" * 1000, stdin="pipe")
    stuck = await _open_follow(daemon.url, process.pid, receive_buffer=4096)
    async with stuck, await connect(daemon.url) as reader:
        async with reader.stream_body("GET", f"/processes/{process.pid}/output/follow") as body:
            await process.write_stdin(b"\n")
            tail = b""
            with trio.fail_after(PATIENCE_SECONDS):
                async for data in body:
                    tail = (tail + data)[-5000:]
        assert reader.status == 200
        assert [event.data.get("line") for event in parse_events(tail[tail.index(b"event") :])][
            -2:
        ] == ["last", None]
        # What nobody reads is not kept for him either.
        assert process.log.kept_bytes <= _FLOOD_BYTES // 2
        with trio.fail_after(3):
            assert (await daemon.client.get("/health")).status_code == 200


async def test_a_stream_does_not_wait_for_the_body_of_its_request(daemon: Daemon) -> None:
    process = await _start(daemon, "read go; echo last", stdin="pipe")
    async with await connect(daemon.url) as connection:
        path = f"/api/v1/processes/{process.pid}/output/follow"
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n"
        await connection.stream.send_all(head.encode())
        answer = b""
        with trio.fail_after(PATIENCE_SECONDS):
            while b"\r\n\r\n" not in answer:
                answer += await connection.stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 200 ")
        await process.write_stdin(b"\n")
        with trio.fail_after(PATIENCE_SECONDS):
            while b'"last"' not in answer:
                answer += await connection.stream.receive_some()
            await connection.stream.send_all(b"{}")
            while not answer.endswith(b"\r\n0\r\n\r\n"):
                answer += await connection.stream.receive_some()
        # And the connection is in order.
        await connection.stream.send_all(b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await connection.stream.receive_some()).startswith(b"HTTP/1.1 200 ")


async def test_a_stream_is_not_gathered_while_the_body_of_its_request_is_due(
    daemon: Daemon,
) -> None:
    body = {
        "command": "sh",
        "args": ["-c", 'read go; head -c "$0" /dev/zero', str(2 * _FLOOD_BYTES)],
        "stdin_mode": "pipe",
        "output_policy": "block",
    }
    pid = (await daemon.client.post("/processes", json=body)).json()["pid"]
    process = daemon.supervisor.by_pid(pid)
    async with await connect(daemon.url) as connection:
        path = f"/api/v1/processes/{pid}/stdout/raw?follow=true"
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n"
        await connection.stream.send_all(head.encode())
        await process.write_stdin(b"\n")
        await wait_all_tasks_blocked(0.1)
        assert process.status == "running"
        received = 0
        with trio.fail_after(PATIENCE_SECONDS):
            while received < 2 * _FLOOD_BYTES:
                received += (await connection.stream.receive_some(1024 * 1024)).count(0)
            await process.wait()


async def test_a_follower_that_does_not_read_cannot_hold_up_the_end(
    supervisor: Supervisor,
) -> None:
    server = Server(create_app(supervisor), "127.0.0.1:0", graceful_seconds=_GRACEFUL_SECONDS)
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(server.serve)
        url = f"http://{addresses[0]}"
        async with await connect(url) as connection:
            body = {"command": "head", "args": ["-c", str(_FLOOD_BYTES), "/dev/zero"]}
            pid = (await connection.json("POST", "/processes", body))["pid"]
        async with await _open_follow(url, pid, receive_buffer=4096):
            await supervisor.by_pid(pid).wait()
            await wait_all_tasks_blocked(0.1)
            server.stop()
            with trio.fail_after(_GRACEFUL_SECONDS + _A_LITTLE):
                while nursery.child_tasks:
                    await wait_all_tasks_blocked()


async def test_a_follower_that_does_not_read_cannot_hold_up_the_daemon() -> None:
    async with serving("--grace-seconds", "0.2") as (daemon, url):
        async with await connect(url) as connection:
            pid = (await connection.json("POST", "/processes", {"command": "yes"}))["pid"]
        async with await _open_follow(url, pid, receive_buffer=4096):
            daemon.process.send_signal(signal.SIGTERM)
            assert await daemon.exited(0.2 + 3.0 + _A_LITTLE) == 0
        assert daemon.complaints == []


async def test_idle_connections_do_not_hold_up_the_daemon() -> None:
    async with (
        serving() as (daemon, url),
        await connect(url) as fresh,
        await connect(url) as used,
    ):
        await used.request("GET", "/health")
        daemon.process.send_signal(signal.SIGTERM)
        assert await daemon.exited(_A_LITTLE) == 0
        assert await fresh.stream.receive_some(1) == b""
        assert await used.stream.receive_some(1) == b""


@pytest.mark.parametrize("headers", [{}, {"te": "trailers"}])  # Both ways.
async def test_the_last_answer_of_a_connection_says_so(
    supervisor: Supervisor, headers: dict[str, str]
) -> None:
    server = Server(create_app(supervisor), "127.0.0.1:0", graceful_seconds=PATIENCE_SECONDS)
    async with trio.open_nursery() as nursery:
        (address,) = await nursery.start(server.serve)
        async with await connect(f"http://{address}") as connection:
            body = {"command": "sh", "args": ["-c", _POLITE, _unique()], "stdin_mode": "pipe"}
            pid = (await connection.json("POST", "/processes", body, headers=headers))["pid"]
            assert "connection" not in connection.headers
            process = supervisor.by_pid(pid)
            lines = aiter(process.lines())
            await anext(lines)
            async with trio.open_nursery() as asking:
                path = f"/processes/{pid}?grace_ms=3600000"
                asking.start_soon(partial(connection.request, "DELETE", path, headers=headers))
                await anext(lines)  # It has been asked to end.
                server.stop()
                await wait_all_tasks_blocked()
                await process.write_stdin(b"\n")
            assert connection.status == 204
            assert connection.headers["connection"] == "close"


@pytest.mark.parametrize("content_length", ["0", "1"])
async def test_a_request_that_comes_as_its_connection_ends_is_not_begun(
    content_length: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = []

    async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        requests.append(scope)

    ours, theirs = trio.socket.socketpair()
    stream = trio.SocketStream(theirs)
    connection = HttpConnection(app, Config(), WorkerContext(None), stream)
    receive_some = stream.receive_some

    async def interrupted(max_bytes: int) -> bytes:
        data = await receive_some(max_bytes)
        connection.end_if_idle()
        return data

    monkeypatch.setattr(stream, "receive_some", interrupted)
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {content_length}\r\n\r\n"
    async with trio.SocketStream(ours) as client:
        await client.send_all(head.encode())
        with trio.fail_after(PATIENCE_SECONDS):
            await connection.serve()
            assert [data async for data in client] == []
    assert requests == []


async def test_a_client_of_run_that_resets_ends_the_whole_tree(daemon: Daemon) -> None:
    unique = _unique()
    tree = 'sleep "$0" & setsid sleep "$0" & echo ready; wait'
    connection = await connect(daemon.url)
    body = {"command": "sh", "args": ["-c", tree, unique]}
    async with connection.stream_body("POST", "/processes/run", body) as stream:
        async for data in stream:
            if b"ready" in data:
                break
    assert len(running_with(unique)) >= 2
    await _reset(connection.stream)
    with trio.fail_after(PATIENCE_SECONDS):
        record = await daemon.supervisor.processes()[0].wait()
    assert record.signal == signal.SIGKILL
    assert running_with(unique) == set()


class TestSlowClients:
    """Time runs 200 times as fast here."""

    @pytest.fixture
    def fast_clock(self) -> MockClock:
        return MockClock(rate=200)

    @pytest.mark.parametrize("path", ["/processes", "/processes/run", "/processes/1/signal"])
    async def test_a_body_that_does_not_come_is_given_up(
        self, fast_clock: MockClock, daemon: Daemon, path: str
    ) -> None:
        head = (
            f"POST /api/v1{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        )
        async with await connect(daemon.url) as connection:
            began = trio.current_time()
            await connection.stream.send_all(f"{head}Content-Length: 99\r\n\r\n".encode() + b"{")
            answer = b"".join([data async for data in connection.stream])
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"BODY_TIMEOUT"' in answer
        assert 60 <= trio.current_time() - began < 1000

    async def test_a_head_that_does_not_come_is_given_up(
        self, fast_clock: MockClock, daemon: Daemon
    ) -> None:
        async with await connect(daemon.url) as connection:
            await connection.request("GET", "/health")
            began = trio.current_time()
            await connection.stream.send_all(b"GET /api/v1/health HTTP/1.1\r\nHost: loc")
            # Not a part of an answer either.
            assert [data async for data in connection.stream] == []
        assert 14 <= trio.current_time() - began < 110

    async def test_an_idle_connection_is_closed_after_two_minutes(
        self, fast_clock: MockClock, daemon: Daemon
    ) -> None:
        for used in (False, True):
            async with await connect(daemon.url) as connection:
                if used:
                    await connection.request("GET", "/health")
                began = trio.current_time()
                assert [data async for data in connection.stream] == []
            assert 119 <= trio.current_time() - began < 1000

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.parametrize("count", [1, 1000])
    async def test_who_asks_again_and_again_and_never_reads_is_closed(
        self, fast_clock: MockClock, daemon: Daemon, method: str, count: int
    ) -> None:
        request = f"{method} /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        async with await _dial(daemon.url, receive_buffer=4096) as stream:
            with trio.fail_after(2000), suppress(trio.BrokenResourceError):
                while True:
                    await stream.send_all(request * count)

    @pytest.mark.parametrize("connection", ["keep-alive", "close"])
    @pytest.mark.parametrize("query", ["", "?follow=true"])
    async def test_a_stream_may_be_read_slowly(
        self, fast_clock: MockClock, daemon: Daemon, query: str, connection: str
    ) -> None:
        size = 8_000_000
        process = await _start(daemon, f"head -c {size} /dev/zero; echo >&2; read go", stdin="pipe")
        await anext(aiter(process.lines(stream="stderr")))
        async with await _dial(daemon.url, receive_buffer=4096) as stream:
            path = f"/api/v1/processes/{process.pid}/stdout/raw{query}"
            head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\n\r\n"
            await stream.send_all(head.encode())
            await trio.sleep(200)
            received = 0
            with trio.fail_after(2000):
                while received < size:
                    received += (await stream.receive_some(1024 * 1024)).count(0)


# --- stdin ----------------------------------------------------------------------


async def test_stdin_of_any_size_arrives_whole(daemon: Daemon) -> None:
    block = bytes(range(251)) * 4177  # About a MiB, and no power of two.
    digest = hashlib.sha256(block * 64).hexdigest()

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield block

    for content in (blocks(), block * 64):  # Chunked, and with its length declared.
        process = await _start(daemon, "exec sha256sum", stdin="pipe")
        answer = await daemon.client.post(f"/processes/{process.pid}/stdin", content=content)
        assert answer.status_code == 204
        await daemon.client.post(f"/processes/{process.pid}/stdin/close")
        with trio.fail_after(PATIENCE_SECONDS):
            await process.wait()
        assert (await process.log.read_all("stdout")).split() == [digest.encode(), b"-"]


async def test_stdin_that_is_not_read_holds_up_only_its_own_request(daemon: Daemon) -> None:
    await wait_all_tasks_blocked()
    tasks, open_descriptors = trio_tasks(), len(descriptors())
    process = await _start(daemon, f"exec sleep {_unique()}", stdin="pipe")
    echo = await _start(daemon, "exec cat", stdin="pipe")
    size = 8 * 1024 * 1024
    answers: list[bytes] = []
    async with await connect(daemon.url) as connection, trio.open_nursery() as nursery:
        head = f"POST /api/v1/processes/{process.pid}/stdin HTTP/1.1\r\nHost: localhost\r\n"
        await connection.stream.send_all(f"{head}Content-Length: {size}\r\n\r\n".encode())

        async def send() -> None:
            await connection.stream.send_all(bytes(size))

        async def receive() -> None:
            answer = b""
            while not answer.endswith(b"}\n"):
                answer += await connection.stream.receive_some(65536)
            answers.append(answer)

        nursery.start_soon(send)
        nursery.start_soon(receive)
        await wait_all_tasks_blocked(0.05)
        assert answers == []
        # Others go on, also on the same process.
        with trio.fail_after(3):
            answer = await daemon.client.post(f"/processes/{echo.pid}/stdin", content=b"hello\n")
            assert answer.status_code == 204
            assert (await daemon.client.get(f"/processes/{process.pid}")).status_code == 200
            assert (await daemon.client.delete(f"/processes/{process.pid}")).status_code == 204
    head_of_answer, _, body = answers[0].partition(b"\r\n\r\n")
    assert head_of_answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["code"] == "STDIN_NOT_WRITABLE"
    await echo.kill()
    await daemon.client.aclose()
    await _settled(tasks, open_descriptors)


async def test_a_writer_of_stdin_that_resets_is_forgotten_with_the_process(
    daemon: Daemon,
) -> None:
    await wait_all_tasks_blocked()
    tasks, open_descriptors = trio_tasks(), len(descriptors())
    process = await _start(daemon, f"exec sleep {_unique()}", stdin="pipe")
    connection = await connect(daemon.url)
    head = f"POST /api/v1/processes/{process.pid}/stdin HTTP/1.1\r\nHost: localhost\r\n"
    await connection.stream.send_all(f"{head}Content-Length: 8000000\r\n\r\n".encode())
    with trio.move_on_after(0.2):  # What the buffers take, which is not all.
        await connection.stream.send_all(bytes(8_000_000))
    await _reset(connection.stream)
    await process.kill()
    await daemon.client.aclose()
    await _settled(tasks, open_descriptors)


async def test_one_connection_serves_more_than_a_thousand_requests(daemon: Daemon) -> None:
    process = await _start(daemon, "exec cat", stdin="pipe")
    async with await connect(daemon.url) as connection:
        for number in range(1, 401):
            assert await connection.json("GET", "/health") == {"healthy": True}
            line = f"line {number}"
            await connection.request("POST", f"/processes/{process.pid}/stdin", line)
            assert connection.status == 204
            await connection.request("GET", "/processes/nobody")
            assert connection.status == 404
        await connection.request("POST", f"/processes/{process.pid}/stdin/close")
        assert connection.status == 204
        await process.wait()  # cat has echoed all that it was sent, and nobody killed it before.
        await connection.request("DELETE", f"/processes/{process.pid}")
        assert connection.status == 204
        await connection.request("GET", "/health")
    assert process.log.end == sum(len(f'"line {number}"') for number in range(1, 401))


# --- signals --------------------------------------------------------------------


_POLITE = """trap 'echo asked; read line; echo "$line"; exit 7' TERM; sleep "$0" & echo up; wait"""
_STUBBORN = 'trap "" TERM; setsid sleep "$0" & echo up; while :; do sleep "$0"; done'


async def _wait_for_line(url: str, pid: int, line: bytes) -> None:
    """Follow a process on a connection of its own until it has printed a line."""
    async with (
        await connect(url) as connection,
        connection.stream_body("GET", f"/processes/{pid}/output/follow") as stream,
    ):
        with trio.fail_after(PATIENCE_SECONDS):
            async for data in stream:
                if line in data:
                    return


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_the_daemon(signum: int) -> None:
    unique = _unique()
    async with serving("--grace-seconds", "1.5") as (daemon, url):
        async with await connect(url) as follower, await connect(url) as other:
            polite, stubborn = [
                (
                    await other.json(
                        "POST",
                        "/processes",
                        {"command": "sh", "args": ["-c", script, unique], "stdin_mode": "pipe"},
                    )
                )["pid"]
                for script in (_POLITE, _STUBBORN)
            ]
            await _wait_for_line(url, stubborn, b'"up"')
            async with follower.stream_body("GET", f"/processes/{polite}/output/follow") as stream:
                text = b""
                with trio.fail_after(PATIENCE_SECONDS):
                    async for data in stream:
                        text += data
                        if b'"up"' in data:
                            daemon.process.send_signal(signum)
                        if b'"asked"' in data:
                            # It drains now.
                            for path in ("/processes", "/processes/run"):
                                answer = await other.json("POST", path, {"command": "true"})
                                assert (other.status, answer["code"]) == (503, "SHUTTING_DOWN")
                            async with await connect(url) as newcomer:
                                listed = (await newcomer.json("GET", "/processes"))["processes"]
                            assert [entry["status"] for entry in listed] == ["running"] * 2
                            await other.request("POST", f"/processes/{polite}/stdin", "bye")
                            assert other.status == 204
                            await other.request("POST", f"/processes/{polite}/stdin/close")
            lines = [event.data.get("line") for event in parse_events(text)]
            assert lines == ["up", "asked", '"bye"', None]
            record = await other.json("GET", f"/processes/{polite}")
            assert (record["status"], record["exit_code"]) == ("exited", 7)
            # The stubborn one has the whole grace period, and when it is dead
            # the daemon closes the connections.
            events = await follower.events("GET", f"/processes/{stubborn}/output/follow")
            assert events[-1].name == "eof"
            assert running_with(unique) == set()
        assert await daemon.exited(_A_LITTLE) == 0
        assert [entry["message"] for entry in daemon.log] == ["serving", "stopping", "stopped"]
        assert daemon.log[1]["running"] == 2


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_kills_at_once(signum: int) -> None:
    unique = _unique()
    script = 'trap "" TERM INT; echo up; while :; do sleep "$0"; done'
    async with serving("--grace-seconds", "1000") as (daemon, url):
        async with await connect(url) as connection:
            body = {"command": "sh", "args": ["-c", script, unique]}
            pid = (await connection.json("POST", "/processes", body))["pid"]
            async with connection.stream_body("GET", f"/processes/{pid}/output/follow") as stream:
                with trio.fail_after(PATIENCE_SECONDS):
                    async for data in stream:
                        if b'"up"' in data:
                            daemon.process.send_signal(signum)
                            await daemon.logged("stopping")
                            assert running_with(unique) != set()
                            daemon.process.send_signal(signum)
            # The follower has seen the end of it.
            assert data.endswith(b"event: eof\ndata: {}\n\n")
        assert await daemon.exited(3.0 + _A_LITTLE) == 0
        assert running_with(unique) == set()
        (complaint,) = daemon.complaints
        assert complaint["message"] == "second signal: killing what is left"


async def test_a_restart_is_not_made_where_nothing_would_outlive_it() -> None:
    async with serving("--state-dir", "") as (daemon, url):
        async with await connect(url) as connection:
            body = {"command": "sleep", "args": [_unique()]}
            pid = (await connection.json("POST", "/processes", body))["pid"]
            daemon.process.send_signal(signal.SIGUSR2)
            await daemon.logged("not restarting")
            record = await connection.json("GET", f"/processes/{pid}")
            assert record["status"] == "running"
        daemon.process.send_signal(signal.SIGTERM)
        assert await daemon.exited() == 0


async def test_a_restart_that_comes_too_late_leaves_the_grace_period_as_it_is() -> None:
    async with serving("--grace-seconds", "1000") as (daemon, url):
        async with await connect(url) as follower, await connect(url) as other:
            spec = {"command": "sh", "args": ["-c", _POLITE, _unique()], "stdin_mode": "pipe"}
            pid = (await other.json("POST", "/processes", spec))["pid"]
            async with follower.stream_body("GET", f"/processes/{pid}/output/follow") as stream:
                text = b""
                with trio.fail_after(PATIENCE_SECONDS):
                    async for data in stream:
                        text += data
                        if b'"up"' in data:
                            daemon.process.send_signal(signal.SIGTERM)
                        if b'"asked"' in data:
                            daemon.process.send_signal(signal.SIGUSR2)
                            await daemon.logged("not restarting")
                            await other.request("POST", f"/processes/{pid}/stdin", raw=b"bye\n")
            assert b'"line":"bye"' in text
        assert await daemon.exited() == 0


async def test_a_running_run_gets_its_exit_event_when_the_daemon_ends() -> None:
    async with serving("--grace-seconds", "0.2") as (daemon, url):
        async with await connect(url) as connection:
            body = {"command": "sh", "args": ["-c", "echo up; exec sleep 1000"]}
            text = b""
            async with connection.stream_body("POST", "/processes/run", body) as stream:
                async for data in stream:
                    text += data
                    if b'"up"' in data:
                        daemon.process.send_signal(signal.SIGTERM)
            assert parse_events(text)[-1].data == {"reason": "signaled", "signal": 15}
        assert await daemon.exited(3.0 + _A_LITTLE) == 0


# --- addresses ------------------------------------------------------------------


async def test_a_port_in_use_is_one_log_line_and_status_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        async with command("--bind", bind) as daemon:
            assert await daemon.exited() == 1
    (entry,) = daemon.log
    assert entry["level"] == "error"
    assert bind in entry["message"]
    assert "in use" in entry["message"]


async def test_a_port_in_use_ends_nothing_that_has_been_taken_over(tmp_path: Path) -> None:
    state = ("--state-dir", str(tmp_path / "state"))
    async with serving(*state) as (first, url):
        async with await connect(url) as connection:
            body = {"command": "sleep", "args": [_unique()]}
            await connection.json("POST", "/processes", body)
        first.process.kill()
        await first.process.wait()
        with socket.create_server(("127.0.0.1", 0)) as other:
            bind = ("--bind", f"127.0.0.1:{other.getsockname()[1]}")
            async with command(*bind, *state) as refused:
                assert await refused.exited() == 1
                async with serving(*state) as (_, url), await connect(url) as connection:
                    (record,) = (await connection.json("GET", "/processes"))["processes"]
        assert record["status"] == "running"


async def test_an_address_that_does_not_exist_is_one_log_line_and_status_1() -> None:
    # TEST-NET-1 (RFC 5737) is nobody's address.
    async with command("--bind", "192.0.2.1:0", "--insecure") as daemon:
        assert await daemon.exited() == 1
    (entry,) = daemon.log
    assert entry["level"] == "error"
    assert "192.0.2.1:0" in entry["message"]


async def test_ipv6_loopback_is_served() -> None:
    async with command("--bind", "[::1]:0") as daemon:
        (address,) = (await daemon.logged("serving"))["addresses"]
        assert address.startswith("[::1]:")
        port = int(address.rpartition(":")[2])
        async with Connection(await trio.open_tcp_stream("::1", port), address) as connection:
            assert await connection.json("GET", "/health") == {"healthy": True}


async def test_a_unix_socket_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "creche.sock"
    async with command("--bind", f"unix:{path}") as daemon:
        assert (await daemon.logged("serving"))["addresses"] == [f"unix:{path}"]
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        stream = await trio.open_unix_socket(path)
        async with Connection(stream, "any.name.at.all") as connection:
            answer = await connection.json("POST", "/processes", {"command": "true"})
            assert connection.status == 201
            await connection.events("GET", f"/processes/{answer['pid']}/output/follow")
        daemon.process.send_signal(signal.SIGTERM)
        assert await daemon.exited() == 0
        assert daemon.complaints == []


async def test_a_unix_socket_in_use_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "creche.sock"
    async with command("--bind", f"unix:{path}") as first:
        await first.logged("serving")
        async with command("--bind", f"unix:{path}") as second:
            assert await second.exited(10) == 1
        (entry,) = second.log
        assert entry["level"] == "error"
        assert str(path) in entry["message"]
        assert "in use" in entry["message"]
        async with Connection(await trio.open_unix_socket(path), "localhost") as connection:
            assert await connection.json("GET", "/info") != {}
        first.process.send_signal(signal.SIGTERM)
        assert await first.exited() == 0


async def test_a_dead_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "creche.sock"
    async with command("--bind", f"unix:{path}") as first:
        await first.logged("serving")
        first.process.kill()
        await first.exited()
    assert path.is_socket()
    async with command("--bind", f"unix:{path}") as second:
        await second.logged("serving")
        async with Connection(await trio.open_unix_socket(path), "localhost") as connection:
            assert await connection.json("GET", "/health") == {"healthy": True}


async def test_processes_do_not_inherit_the_umask_of_the_socket(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    os.umask(umask)
    path = tmp_path / "creche.sock"
    async with command("--bind", f"unix:{path}") as daemon:
        await daemon.logged("serving")
        stream = await trio.open_unix_socket(path)
        async with Connection(stream, "localhost") as connection:
            body = {"command": "sh", "args": ["-c", "umask"]}
            events = await connection.events("POST", "/processes/run", body)
    assert int(events[1].data["line"], 8) == umask


# --- the log --------------------------------------------------------------------


async def test_every_log_line_is_json_with_time_level_logger_and_message() -> None:
    async with serving("--log-level", "debug") as (daemon, url):
        async with await connect(url) as connection:
            await connection.request("POST", "/processes", {"command": "true"})
            await connection.request("GET", "/nothing/here")
        daemon.process.send_signal(signal.SIGTERM)
        assert await daemon.exited() == 0
    assert {"serving", "stopping", "stopped"} <= {entry["message"] for entry in daemon.log}
    for entry in daemon.log:
        assert {"time", "level", "logger", "message"} <= entry.keys()
        assert entry["time"].endswith("+00:00")
    assert daemon.complaints == []
