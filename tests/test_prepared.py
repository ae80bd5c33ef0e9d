"""Parked launchers: used when they are right, never when they are not, and gone with the supervisor."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from supervisor import (
    ArgumentListTooLong,
    Limits,
    ProcessSpec,
    Supervisor,
    SupervisorConfig,
    open_supervisor,
)

from .conftest import PATIENCE_SECONDS
from .kernel import processes
from .test_cgroups import MIB
from .test_process import sh

_PARKED = 3


@pytest.fixture
def config() -> SupervisorConfig:
    return SupervisorConfig(parked_launchers=_PARKED)


async def parked() -> set[int]:
    """The pids of the launchers that wait, once all do."""
    with trio.fail_after(PATIENCE_SECONDS):
        while len(found := _launchers()) < _PARKED:
            await trio.lowlevel.checkpoint()
    return found


def _launchers() -> set[int]:
    # Not what is still between its fork and its execution, and holds us up with it.
    return {
        entry.pid
        for entry in processes()
        if entry.parent == os.getpid() and entry.arguments[1:3] == ("0", "0")
    }


async def test_a_start_takes_one_that_waits_and_another_takes_its_place(
    supervisor: Supervisor,
) -> None:
    before = await parked()
    process = await supervisor.start(sh("read line", stdin_mode="pipe"))
    assert process.pid in before
    await process.kill()
    after = await parked()
    assert process.pid not in after
    assert len(after & before) == _PARKED - 1


async def test_a_burst_beyond_the_parked_ones_is_served_too(supervisor: Supervisor) -> None:
    await parked()
    results = []

    async def run(number: int) -> None:
        results.append((await supervisor.run(sh(f"echo {number}"))).stdout)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(run, number)
    assert sorted(map(int, results)) == list(range(20))


async def test_one_that_was_killed_is_not_used(supervisor: Supervisor) -> None:
    for pid in await parked():
        os.kill(pid, signal.SIGKILL)
    assert (await supervisor.run(sh("echo alive"))).stdout == b"alive\n"


async def test_stopped_ones_do_not_hold_up_the_end(config: SupervisorConfig) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_supervisor(config):
            for pid in await parked():
                os.kill(pid, signal.SIGSTOP)


async def test_one_that_was_parked_in_another_directory_is_not_used(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await parked()
    monkeypatch.chdir(tmp_path)
    process = await supervisor.start(ProcessSpec(command="pwd"))
    assert process.pid not in before
    await process.wait()
    assert (await process.log.read_all("stdout")).decode().strip() == str(tmp_path)


async def test_one_that_was_parked_meanwhile_in_another_directory_is_not_used_either(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await parked()
    home = os.getcwd()
    with monkeypatch.context() as elsewhere:
        process = await supervisor.start(sh("read line", stdin_mode="pipe"))
        elsewhere.chdir(tmp_path)
        await process.kill()
        await parked()  # Now one of them is from there.
    for _ in range(2 * _PARKED):
        result = await supervisor.run(ProcessSpec(command="pwd"))
        assert result.stdout.decode().strip() == home


async def test_limits_are_set_on_parked_ones_or_they_are_passed_over(
    supervisor: Supervisor,
) -> None:
    await parked()
    hog = ProcessSpec(command="tail", args=("/dev/zero",), limits=Limits(memory_bytes=16 * MIB))
    assert (await supervisor.run(hog)).reason == "oom_killed"
    await parked()
    crowd = sh("for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done", limits=Limits(pids=5))
    assert b"ork" in (await supervisor.run(crowd)).stderr


async def test_a_failed_start_uses_up_one_and_leaves_nothing(supervisor: Supervisor) -> None:
    await parked()
    with pytest.raises(ArgumentListTooLong):
        await supervisor.start(ProcessSpec(command="true", args=("x" * 9_000_000,)))
    assert len(await parked()) == _PARKED
    assert supervisor.processes() == []


async def test_streams_that_are_not_wanted_are_null_devices(supervisor: Supervisor) -> None:
    await parked()
    spec = ProcessSpec(command="sleep", args=("1000",), stdout_mode="discard")
    process = await supervisor.start(spec)
    streams = [os.readlink(f"/proc/{process.pid}/fd/{descriptor}") for descriptor in range(3)]
    assert streams[:2] == ["/dev/null", "/dev/null"]
    assert streams[2].startswith("pipe:")
    await process.kill()
