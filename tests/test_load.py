"""Thousands of short processes: no exit missing, no output lost, nothing left over."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable

import trio

from .conftest import Daemon
from .kernel import children, descriptors
from .test_streams import _tasks
from .wire import Connection, connect

_CLIENTS = 16


async def _in_parallel(
    daemon: Daemon, count: int, work: Callable[[Connection], Awaitable[None]]
) -> None:
    """Do `work` `count` times, through a few connections at once."""
    left = iter(range(count))

    async def client() -> None:
        async with await connect(daemon.url) as connection:
            for _ in left:
                await work(connection)

    async with trio.open_nursery() as nursery:
        for _ in range(_CLIENTS):
            nursery.start_soon(client)


def _descriptors() -> int:
    """How many descriptors are open, but for the fresh cgroups in stock."""
    return sum("/sys/fs/cgroup" not in target for target in descriptors().values())


async def test_ten_thousand_processes_leave_nothing_behind(daemon: Daemon) -> None:
    before, tasks, threads = _descriptors(), _tasks(), threading.active_count()
    codes: list[int] = []

    async def run(connection: Connection) -> None:
        started, exited = await connection.events(
            "POST", "/processes/run", {"command": "/bin/true"}
        )
        assert started.data["handle"] > 0
        codes.append(exited.data["exit_code"])

    await _in_parallel(daemon, 10_000, run)
    assert codes == [0] * 10_000
    assert (daemon.supervisor.total, daemon.supervisor.running) == (10_000, 0)
    # Connections end a moment after their clients do.
    with trio.fail_after(10):
        while _tasks() > tasks or _descriptors() != before:
            await trio.lowlevel.checkpoint()
    assert _tasks() == tasks
    assert threading.active_count() <= threads + _CLIENTS
    assert children() == set()


_SCRIPT = {"command": "sh", "args": ["-c", "echo a; echo b >&2; exit 7"]}


async def test_a_thousand_runs_lose_no_tail(daemon: Daemon) -> None:
    async def run(connection: Connection) -> None:
        events = await connection.events("POST", "/processes/run", _SCRIPT)
        assert [event.data.get("line") for event in events] == [None, "a", "b", None]
        assert [event.data.get("stream") for event in events[1:3]] == ["stdout", "stderr"]
        assert events[-1].data == {"reason": "exited", "exit_code": 7}

    await _in_parallel(daemon, 1000, run)


async def test_a_thousand_starts_and_follows_lose_no_tail(daemon: Daemon) -> None:
    async def start_and_follow(connection: Connection) -> None:
        pid = (await connection.json("POST", "/processes", _SCRIPT))["pid"]
        events = await connection.events("GET", f"/processes/{pid}/output/follow")
        assert [event.data.get("line") for event in events] == ["a", "b", None]
        assert [event.data.get("stream") for event in events[:2]] == ["stdout", "stderr"]
        assert (await connection.json("GET", f"/processes/{pid}"))["exit_code"] == 7

    await _in_parallel(daemon, 1000, start_and_follow)
