"""Thousands of short processes: no exit missing, no output lost, nothing left over."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable

import trio

from .conftest import Daemon
from .faults.callers import closed_down_to, open_now
from .heavy import amount
from .kernel import children
from .wire import Connection, connect

_CLIENTS = 16
_RUNS = amount(3000, heavy=10_000)


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


async def test_thousands_of_processes_leave_nothing_behind(daemon: Daemon) -> None:
    before, threads = await open_now(), threading.active_count()
    codes: list[int] = []

    async def run(connection: Connection) -> None:
        started, exited = await connection.events(
            "POST", "/processes/run", {"command": "/bin/true"}
        )
        assert started.data["handle"] > 0
        codes.append(exited.data["exit_code"])

    await _in_parallel(daemon, _RUNS, run)
    assert codes == [0] * _RUNS
    assert (daemon.supervisor.total, daemon.supervisor.running) == (_RUNS, 0)
    # Connections end a moment after their clients do.
    await closed_down_to(before)
    # At most one for each start that was under way at once, and as many for the cgroups
    # that were removed meanwhile.
    assert threading.active_count() <= threads + 2 * _CLIENTS
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
