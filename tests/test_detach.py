"""Processes that a supervisor in the same program leaves to the next one."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from supervisor import (
    Limits,
    ProcessSpec,
    StateDirUnusable,
    Supervisor,
    SupervisorClosed,
    SupervisorConfig,
    open_supervisor,
)

from .conftest import PATIENCE_SECONDS
from .kernel import running_with


@pytest.mark.parametrize("use_cgroups", [True, False])
async def test_what_is_detached_goes_on_and_is_taken_over(
    tmp_path: Path, use_cgroups: bool
) -> None:
    config = SupervisorConfig(
        state_dir=tmp_path, survives=True, use_cgroups=use_cgroups, parked_launchers=2
    )
    script = "echo before; read line; echo $line; sleep 1000 & exit 7"
    async with open_supervisor(config) as first:
        process = await first.start(
            ProcessSpec(command="sh", args=("-c", script), stdin_mode="pipe")
        )
        over = await first.start(ProcessSpec(command="echo", args=("over",)))
        await over.wait()
        async for line in process.lines():
            assert line.text == "before"  # type: ignore[union-attr]
            break
        first.detach()
        with pytest.raises(SupervisorClosed):
            await first.start(ProcessSpec(command="true"))
    assert running_with(script)
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_supervisor(config) as second:
            assert second.name == first.name
            again = second.by_handle(process.handle)
            assert (again.status, again.pid) == ("running", process.pid)
            await again.write_stdin(b"after\n")
            record = await again.wait()
            assert (record.exit_code, record.members_killed) == (7, 1)
            assert await again.log.read_all("stdout") == b"before\nafter\n"
            assert await second.by_handle(over.handle).log.read_all("stdout") == b"over\n"
    assert not running_with(script)


async def test_limits_hold_for_what_is_taken_over(tmp_path: Path) -> None:
    config = SupervisorConfig(state_dir=tmp_path, survives=True)
    limits = Limits(memory_bytes=16 * 1024 * 1024)
    async with open_supervisor(config) as first:
        spec = ProcessSpec(
            command="sh",
            args=("-c", "read x; exec tail /dev/zero"),
            stdin_mode="pipe",
            limits=limits,
        )
        process = await first.start(spec)
        first.detach()
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_supervisor(config) as second:
            again = second.by_handle(process.handle)
            await again.write_stdin(b"go\n")
            assert (await again.wait()).status == "oom_killed"


async def test_only_what_survives_can_be_detached() -> None:
    async with open_supervisor() as supervisor:
        process = await supervisor.start(ProcessSpec(command="sleep", args=("1000",)))
        with pytest.raises(StateDirUnusable):
            supervisor.detach()
    assert (await process.wait()).status == "signaled"


@pytest.mark.parametrize("detaches", [False, True])
async def test_starts_that_are_under_way_at_the_end_are_over_before_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, detaches: bool
) -> None:
    config = SupervisorConfig(state_dir=tmp_path, survives=True)
    started = trio.lowlevel.ParkingLot()

    async def start_all_the_time(supervisor: Supervisor) -> None:
        with suppress(SupervisorClosed):
            while True:
                await supervisor.start(ProcessSpec(command="true"))
                started.unpark_all()

    for _ in range(10):
        async with trio.open_nursery() as callers, open_supervisor(config) as supervisor:
            for _ in range(8):
                callers.start_soon(start_all_the_time, supervisor)
            await started.park()
            if detaches:
                supervisor.detach()
    async with open_supervisor(config) as last:
        reasons = {(await process.wait()).reason for process in last.processes()}
    assert reasons
    # Stopped by SIGTERM, at most, but never lost.
    assert reasons <= ({"exited"} if detaches else {"exited", "signaled"})
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
