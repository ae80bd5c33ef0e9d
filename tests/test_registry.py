"""Finished processes are forgotten by number, age and bytes; running ones never."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from supervisor import ProcessNotFound, ProcessSpec, Retention, SupervisorConfig, open_supervisor
from supervisor.output import OutputLog
from supervisor.process import Process
from supervisor.record import End, ExitStatus
from supervisor.registry import Registry
from supervisor.store import OutputStore

from .test_process import sh


def _finished(registry: Registry, handle: int, pid: int, output: bytes = b"") -> Process:
    process = Process(handle, ProcessSpec(command="true"), OutputLog(OutputStore()))
    process.pid = pid
    registry.add(process)
    if output:
        process.log.append("stdout", output, 0)
    process.finish(
        End(
            exit_status=ExitStatus(0, None),
            timed_out=False,
            oom_kills=0,
            members_killed=0,
            usage=None,
        ),
        is_outlived=False,
    )
    registry.finished(process)
    return process


async def test_the_oldest_beyond_the_count_are_forgotten() -> None:
    async with open_supervisor(SupervisorConfig(retention=Retention(count=3))) as supervisor:
        running = await supervisor.start(ProcessSpec(command="sleep", args=("1000",)))
        handles = [(await supervisor.run(sh("exit 0"))).record.handle for _ in range(6)]
        assert [p.handle for p in supervisor.processes()] == [running.handle, *handles[3:]]
        with pytest.raises(ProcessNotFound):
            supervisor.by_handle(handles[2])
        assert (supervisor.total, supervisor.running) == (7, 1)


async def test_the_oldest_beyond_the_bytes_are_forgotten() -> None:
    retention = Retention(output_bytes=250_000)
    async with open_supervisor(SupervisorConfig(retention=retention)) as supervisor:
        for _ in range(5):
            await supervisor.run(sh("head -c 100000 /dev/zero"))
        assert [p.log.kept_bytes for p in supervisor.processes()] == [100_000] * 2
        await supervisor.run(sh("head -c 300000 /dev/zero"))
        assert supervisor.processes() == []


async def test_the_old_are_forgotten_as_they_come_of_age(autojump_clock: MockClock) -> None:
    registry = Registry(Retention(seconds=60))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry.expire)
        for handle in (1, 2, 3):
            _finished(registry, handle, pid=handle)
            await trio.sleep(20)
        # Now at 60 s; the first was finished at 0, the others at 20 and 40.
        await trio.sleep(1)
        assert [p.handle for p in registry] == [2, 3]
        await trio.sleep(18)
        assert [p.handle for p in registry] == [2, 3]
        await trio.sleep(2)
        assert [p.handle for p in registry] == [3]
        await trio.sleep(20)
        assert list(registry) == []
        # And again, after the queue was empty.
        _finished(registry, 4, pid=4)
        await trio.sleep(59)
        assert [p.handle for p in registry] == [4]
        await trio.sleep(2)
        assert list(registry) == []
        nursery.cancel_scope.cancel()


async def test_without_a_bound_nothing_comes_of_age(autojump_clock: MockClock) -> None:
    registry = Registry(Retention(seconds=None))
    with trio.move_on_after(10**9):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.expire)
            _finished(registry, 1, pid=1)
    assert [p.handle for p in registry] == [1]


def test_forgetting_an_old_process_leaves_the_pid_to_its_successor() -> None:
    async def main() -> None:
        registry = Registry(Retention(count=1))
        first = _finished(registry, 1, pid=77)
        assert registry.by_pid(77) is first
        second = _finished(registry, 2, pid=77)
        assert registry.by_pid(77) is second
        with pytest.raises(ProcessNotFound):
            registry.by_handle(1)

    trio.run(main)


async def test_who_still_reads_a_forgotten_process_reads_on() -> None:
    async with open_supervisor(SupervisorConfig(retention=Retention(count=0))) as supervisor:
        process = await supervisor.start(sh("echo kept"))
        await process.wait()
        assert supervisor.processes() == []
        assert [chunk.data async for chunk in process.output()] == [b"kept\n"]
