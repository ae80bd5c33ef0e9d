"""Opening, leaving and looking things up: what the `async with` block guarantees."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from supervisor import (
    PidReused,
    Process,
    ProcessNotFound,
    ProcessSpec,
    Supervisor,
    SupervisorClosed,
    SupervisorConfig,
    open_supervisor,
)
from supervisor.cgroups import CgroupEvents

from .conftest import PATIENCE_SECONDS
from .kernel import children, running_with
from .test_process import first_line, sh


def _tree(unique: str) -> ProcessSpec:
    """A process that ignores SIGTERM, with a child that does, and one that left the session."""
    return sh(
        f"trap '' TERM; sleep {unique} & setsid sleep {unique} & echo ready; "
        f"while :; do sleep {unique}; done"
    )


async def test_leaving_the_block_kills_whole_trees_that_do_not_listen() -> None:
    unique = f"30.{uuid4().int % 10**9}"
    started: list[Process] = []
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_supervisor(SupervisorConfig(grace_seconds=0.1)) as supervisor:
            for _ in range(3):
                started.append(await supervisor.start(_tree(unique)))
                assert await first_line(started[-1]) == "ready"
    assert running_with(unique) == set()
    assert children() == set()
    assert [process.signal for process in started] == [9, 9, 9]


async def test_leaving_the_block_lets_processes_clean_up() -> None:
    async with open_supervisor(SupervisorConfig(grace_seconds=PATIENCE_SECONDS)) as supervisor:
        process = await supervisor.start(
            sh("trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.01; done")
        )
        assert await first_line(process) == "ready"
    assert process.exit_code == 5
    assert await process.log.read_all("stdout") == b"ready\nbye\n"


async def test_a_cancelled_block_leaves_nothing() -> None:
    unique = f"30.{uuid4().int % 10**9}"
    with trio.CancelScope() as scope:
        async with open_supervisor(SupervisorConfig(grace_seconds=0.1)) as supervisor:
            process = await supervisor.start(_tree(unique))
            assert await first_line(process) == "ready"
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert process.signal == 9
    assert running_with(unique) == set()


async def test_what_fails_in_the_hosts_own_task_ends_all_and_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unique = f"30.{uuid4().int % 10**9}"
    failing = trio.Event()

    async def run(_: CgroupEvents) -> None:
        await failing.wait()
        raise RuntimeError("of the host")

    monkeypatch.setattr(CgroupEvents, "run", run)
    started: list[Process] = []

    async def live() -> None:
        async with open_supervisor(SupervisorConfig(grace_seconds=0.1)) as supervisor:
            started.append(await supervisor.start(_tree(unique)))
            assert await first_line(started[-1]) == "ready"
            failing.set()
            await trio.sleep_forever()

    with trio.fail_after(PATIENCE_SECONDS), pytest.raises(ExceptionGroup) as failure:
        await live()
    assert failure.group_contains(RuntimeError, match="of the host")
    assert [process.signal for process in started] == [9]
    assert running_with(unique) == set()
    assert children() == set()


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - what is raised in the block
        async with open_supervisor() as supervisor:
            await supervisor.start(ProcessSpec(command="sleep", args=("1000",)))
            raise ZeroDivisionError
    with pytest.raises(ExceptionGroup) as caught:
        async with open_supervisor():
            raise ExceptionGroup("the caller's own", [ValueError()])
    assert caught.value.message == "the caller's own"


async def test_a_stopped_supervisor_starts_nothing_but_remembers() -> None:
    async with open_supervisor() as supervisor:
        process = await supervisor.start(sh("exit 3"))
        await process.wait()
        await supervisor.stop()
        with pytest.raises(SupervisorClosed):
            await supervisor.start(sh("exit 0"))
        assert supervisor.by_handle(process.handle).exit_code == 3


async def test_a_start_that_overlaps_the_stop_leaves_nothing() -> None:
    async with open_supervisor(SupervisorConfig(grace_seconds=0.1)) as supervisor:
        outcomes: list[str] = []

        async def start() -> None:
            try:
                await supervisor.start(ProcessSpec(command="sleep", args=("1000",)))
                outcomes.append("started")
            except SupervisorClosed:
                outcomes.append("refused")

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(start)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            await supervisor.stop()
        assert len(outcomes) == 10
        assert "refused" in outcomes
        assert supervisor.running == 0


async def test_handles_are_never_reused_and_pids_mean_the_newest(supervisor: Supervisor) -> None:
    first = await supervisor.start(sh("exit 1"))
    await first.wait()
    second = await supervisor.start(sh("exit 2"))
    await second.wait()
    assert first.handle < second.handle
    assert supervisor.by_handle(first.handle) is first
    assert supervisor.by_pid(second.pid) is second
    assert supervisor.by_pid(second.pid, handle=second.handle) is second
    with pytest.raises(PidReused):
        supervisor.by_pid(second.pid, handle=first.handle)
    with pytest.raises(ProcessNotFound):
        supervisor.by_handle(10**6)
    with pytest.raises(ProcessNotFound):
        supervisor.by_pid(10**9)


async def test_a_reused_pid_means_the_newer_process_and_the_older_stays_readable(
    supervisor: Supervisor,
) -> None:
    first = await supervisor.start(sh("exit 1"))
    await first.wait()
    # Let the kernel hand out the very same pid again (proc_sys_kernel(5)).
    # Another program may take it first; that would have to happen every time.
    for _ in range(100):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(first.pid - 1))
        second = await supervisor.start(sh("exit 2"))
        await second.wait()
        if second.pid == first.pid:
            break
    assert second.pid == first.pid
    assert supervisor.by_pid(first.pid) is second
    with pytest.raises(PidReused):
        supervisor.by_pid(first.pid, handle=first.handle)
    assert supervisor.by_handle(first.handle).exit_code == 1


async def test_processes_are_listed_oldest_first(supervisor: Supervisor) -> None:
    started = [await supervisor.start(sh("exit 0")) for _ in range(3)]
    assert supervisor.processes() == started
    for process in started:
        await process.wait()
    assert supervisor.processes() == started
    assert (supervisor.total, supervisor.running) == (3, 0)


async def test_the_environment_is_the_programs_plus_the_specs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INHERITED", "1")
    monkeypatch.setenv("REPLACED", "old")
    monkeypatch.setenv("CRECHE_TOKEN_FILE", "/secret")
    async with open_supervisor() as supervisor:
        result = await supervisor.run(
            ProcessSpec(command="env", env={"REPLACED": "new", "ADDED": "é=\n"})
        )
    lines = result.stdout.decode()
    assert "INHERITED=1\n" in lines
    assert "REPLACED=new\n" in lines
    assert "ADDED=é=\n\n" in lines
    assert "CRECHE_TOKEN_FILE" not in lines


async def test_an_interrupt_in_the_middle_of_a_start_leaves_nothing() -> None:
    unique = f"30.{uuid4().int % 10**9}"
    program = [sys.executable, "-c", _INTERRUPTED, unique]
    result = await trio.run_process(program, capture_stderr=True, check=False)
    assert result.stderr.strip().endswith(b"KeyboardInterrupt")
    assert running_with(unique) == set()


# Where the command has been executed, but the process has no task yet.
_INTERRUPTED = """
import signal, sys, trio
from supervisor import *
from supervisor.launch import Launcher
executed = Launcher.executed
async def interrupted(self, spec):
    await executed(self, spec)
    signal.raise_signal(signal.SIGINT)
async def main():
    async with open_supervisor() as supervisor:
        Launcher.executed = interrupted
        await supervisor.start(ProcessSpec(command="sleep", args=(sys.argv[1],)))
        await trio.sleep_forever()
trio.run(main)
"""


async def test_a_second_interrupt_ends_what_defies_the_first(tmp_path: Path) -> None:
    unique = f"30.{uuid4().int % 10**9}"
    os.mkfifo(told := tmp_path / "told")
    program = [sys.executable, "-c", _DEFIANT, str(told), unique]
    process = await trio.lowlevel.open_process(program, stdout=subprocess.PIPE)
    assert process.stdout is not None
    async with process.stdout:
        with trio.fail_after(PATIENCE_SECONDS):
            assert await process.stdout.receive_some() == b"ready\n"
            process.send_signal(signal.SIGINT)
            assert await trio.to_thread.run_sync(told.read_text) == "SIGTERM\n"
            assert running_with(unique)
            process.send_signal(signal.SIGINT)
            rest = b""
            async for data in process.stdout:
                rest += data
            assert await process.wait() == -signal.SIGINT
    # The trees were seen to be dead, and nothing was logged.
    assert re.fullmatch(rb"(signaled 9 [1-9]\d*\n){3}", rest)
    assert running_with(unique) == set()


_DEFIANT = """
import logging, sys, trio
from supervisor import *
async def main():
    config = SupervisorConfig(grace_seconds=1000)
    async with open_supervisor(config) as supervisor:
        for trap in ("", "", f"echo SIGTERM > {sys.argv[1]}"):
            script = (
                f"trap '{trap}' TERM; for i in $(seq 60); do sleep {sys.argv[2]} & done;"
                f"echo ready; while :; do sleep {sys.argv[2]}; done"
            )
            process = await supervisor.start(ProcessSpec(command="sh", args=("-c", script)))
            processes.append(process)
            async for line in process.lines():
                break
        sys.stdout.write("ready\\n"); sys.stdout.flush()
        await trio.sleep_forever()
processes = []
logging.basicConfig(stream=sys.stdout, level=logging.ERROR)
try:
    trio.run(main)
finally:
    for process in processes:
        print(process.status, process.signal, process.record.members_killed)
"""


async def test_supervisors_nest(supervisor: Supervisor) -> None:
    # One within a process of another: the inner one's orphans still belong to the outer unit.
    unique = f"30.{uuid4().int % 10**9}"
    process = await supervisor.start(
        ProcessSpec(
            command=sys.executable,
            args=("-c", _INNER, unique),
        )
    )
    assert await first_line(process) == "ready"
    await process.kill()
    assert running_with(unique) == set()


_INNER = """
import sys, trio
from supervisor import *
async def main():
    async with open_supervisor() as supervisor:
        await supervisor.start(ProcessSpec(command="sleep", args=(sys.argv[1],)))
        print("ready", flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


async def test_a_normal_life_logs_nothing(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await supervisor.run(sh("echo x; sleep 1000 & exit 1"))
        process = await supervisor.start(ProcessSpec(command="sleep", args=("1000",)))
        await process.kill()
    assert caplog.records == []
