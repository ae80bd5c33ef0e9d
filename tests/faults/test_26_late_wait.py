"""Processes that have ended before anybody looks: no exit is missing, whoever asks, however late.

`test_load` has ten thousand runs, whose exit is streamed. Here it is asked for
afterwards, by wait, by pid, and by a follow from the beginning.
"""

from __future__ import annotations

import pytest
import trio

from supervisor import Process, ProcessSpec, Retention, SupervisorConfig

from ..conftest import PATIENCE_SECONDS, Daemon
from ..heavy import amount
from ..wire import connect

_PROCESSES = amount(1000, heavy=10_000)


@pytest.fixture
def config() -> SupervisorConfig:
    return SupervisorConfig(retention=Retention(count=_PROCESSES), parked_launchers=8)


async def test_no_exit_is_missing_for_who_comes_late(daemon: Daemon) -> None:
    supervisor = daemon.supervisor
    spec = ProcessSpec(command="/bin/true", stdout_mode="discard", stderr_mode="discard")
    started: list[Process] = []
    left = iter(range(_PROCESSES))

    async def start() -> None:
        for _ in left:
            started.append(await supervisor.start(spec))

    with trio.fail_after(PATIENCE_SECONDS * amount(1, heavy=3)):
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(start)
        while supervisor.running:
            await trio.lowlevel.checkpoint()
    # All are over, and only now somebody waits.
    records = [await process.wait() for process in started]
    assert [record.exit_code for record in records] == [0] * _PROCESSES
    async with await connect(daemon.url) as connection:
        listed = (await connection.json("GET", "/processes"))["processes"]
        assert {entry["handle"] for entry in listed} == {record.handle for record in records}
        for process in started[:: _PROCESSES // 100]:
            path = f"/processes/{process.pid}"
            record = await connection.json("GET", path)
            assert (record["status"], record["exit_code"]) == ("exited", 0)
            events = await connection.events("GET", f"{path}/output/follow")
            assert [event.name for event in events] == ["eof"]
