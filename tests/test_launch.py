"""Every way in which a start can fail has its own error and leaves nothing behind."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

import supervisor as creche
from supervisor import ProcessSpec, Supervisor, SupervisorConfig, launch, open_supervisor
from supervisor.launch import Launcher
from supervisor.leader import Leader
from supervisor.reaper import Children

from .conftest import PATIENCE_SECONDS
from .kernel import children as all_children

_ROOT = Path(__file__).parent.parent


async def _failure(supervisor: Supervisor, spec: ProcessSpec) -> creche.SupervisorError:
    with pytest.raises(creche.SupervisorError) as caught:
        await supervisor.start(spec)
    assert supervisor.processes() == []
    return caught.value


async def test_a_missing_command_is_told(supervisor: Supervisor) -> None:
    for command in ("no-such-command", "/no/such/command", "./no-such-command"):
        error = await _failure(supervisor, ProcessSpec(command=command))
        assert type(error) is creche.CommandNotFound
        assert (error.code, error.field) == ("COMMAND_NOT_FOUND", "command")
        assert command in str(error)
        assert isinstance(error.__cause__, FileNotFoundError)


async def test_a_command_is_looked_up_in_the_childs_path(
    supervisor: Supervisor, somewhere: Path
) -> None:
    program = somewhere / "only-here"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    await _failure(supervisor, ProcessSpec(command="only-here"))
    result = await supervisor.run(ProcessSpec(command="only-here", env={"PATH": str(somewhere)}))
    assert result.stdout == b"found\n"


async def test_a_relative_command_counts_from_the_working_directory(
    supervisor: Supervisor, somewhere: Path
) -> None:
    program = somewhere / "here"
    program.write_text("#!/bin/sh\npwd\n")
    program.chmod(0o755)
    result = await supervisor.run(ProcessSpec(command="./here", working_dir=str(somewhere)))
    assert result.stdout.decode().strip() == str(somewhere.resolve())


async def test_what_cannot_be_executed_is_told_apart(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    nonsense = tmp_path / "nonsense"
    nonsense.write_bytes(b"\x00\x01 not a program")
    nonsense.chmod(0o755)
    orphan = tmp_path / "orphan"
    orphan.write_text("#!/no/such/interpreter\n")
    orphan.chmod(0o755)
    expected = {
        plain: creche.NotExecutable,
        nonsense: creche.NotExecutable,
        tmp_path: creche.CommandIsDirectory,
        orphan: creche.InterpreterNotFound,
        plain / "below": creche.CommandNotFound,
    }
    for path, kind in expected.items():
        assert type(await _failure(supervisor, ProcessSpec(command=str(path)))) is kind


async def test_a_wrong_working_directory_is_told_apart(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    expected = {
        tmp_path / "missing": creche.WorkingDirNotFound,
        file: creche.WorkingDirNotADirectory,
        file / "below": creche.WorkingDirNotADirectory,
    }
    for path, kind in expected.items():
        # The command is missing too; the directory comes first.
        for command in ("true", "no-such-command"):
            error = await _failure(supervisor, ProcessSpec(command=command, working_dir=str(path)))
            assert type(error) is kind
            assert error.field == "working_dir"


@pytest.mark.parametrize(
    ("spec", "kind", "field"),
    [
        (ProcessSpec(command=""), creche.SpecError, "command"),
        (ProcessSpec(command="a\0b"), creche.NulByte, "command"),
        (ProcessSpec(command="true", args=("x", "a\0b")), creche.NulByte, "args[1]"),
        (ProcessSpec(command="true", env={"A": "a\0b"}), creche.NulByte, "env.A"),
        (ProcessSpec(command="true", env={"A\0": ""}), creche.NulByte, "env"),
        (ProcessSpec(command="true", env={"": "x"}), creche.BadEnvironmentName, "env"),
        (ProcessSpec(command="true", env={"A=B": "x"}), creche.BadEnvironmentName, "env"),
        (ProcessSpec(command="true", args=("\ud800",)), creche.InvalidText, "args[0]"),
        (ProcessSpec(command="true", working_dir=""), creche.SpecError, "working_dir"),
        (ProcessSpec(command="true", working_dir="/\0"), creche.NulByte, "working_dir"),
    ],
)
async def test_a_spec_that_no_kernel_could_start_names_its_field(
    supervisor: Supervisor, spec: ProcessSpec, kind: type[creche.SpecError], field: str
) -> None:
    error = await _failure(supervisor, spec)
    assert type(error) is kind
    assert error.field == field


async def test_too_long_an_argument_list_is_told(supervisor: Supervisor) -> None:
    error = await _failure(supervisor, ProcessSpec(command="true", args=("x" * 3_000_000,)))
    assert type(error) is creche.ArgumentListTooLong


async def test_any_bytes_can_be_an_argument(supervisor: Supervisor) -> None:
    every_byte = bytes(range(1, 256))
    result = await supervisor.run(
        ProcessSpec(command="printf", args=("%s", os.fsdecode(every_byte)))
    )
    assert result.stdout == every_byte


@contextmanager
def _limit(kind: int, soft: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


async def test_running_out_of_descriptors_is_told_and_cured(supervisor: Supervisor) -> None:
    spec = ProcessSpec(command="true", stdin_mode="pipe")
    await supervisor.run(ProcessSpec(command="true"))  # Trio's worker thread is there now.
    lowest = os.dup(0)
    os.close(lowest)
    kinds = set()
    # A start needs some ten descriptors: make each of them the missing one.
    for allowed in range(12):
        with _limit(resource.RLIMIT_NOFILE, lowest + allowed):
            try:
                process = await supervisor.start(spec)
            except creche.SupervisorError as error:
                kinds.add(type(error))
            else:
                await process.kill()
    assert kinds == {creche.OutOfDescriptors}
    assert (await supervisor.run(ProcessSpec(command="true"))).exit_code == 0


_OUT_OF_PROCESSES = """
import os, resource, trio
from supervisor import *
async def main():
    # Without cgroups, which it would lose the permission for.
    async with open_supervisor(SupervisorConfig(use_cgroups=False)) as supervisor:
        await supervisor.run(ProcessSpec(command="/bin/true"))
        os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        for _ in range(3):
            try:
                await supervisor.start(ProcessSpec(command="/bin/true"))
            except OutOfProcesses as error:
                print(error.code)
trio.run(main)
"""


async def test_running_out_of_processes_is_told() -> None:
    result = await trio.run_process(
        [sys.executable, "-c", _OUT_OF_PROCESSES], capture_stdout=True, check=False
    )
    assert result.stdout.split() == [b"OUT_OF_PROCESSES"] * 3


async def test_a_cancelled_start_leaves_nothing() -> None:
    # Wherever in the start the cancellation comes, the fixture then counts.
    async with open_supervisor() as supervisor:
        for delay in range(40):
            with trio.move_on_after(delay / 20_000):
                await supervisor.start(ProcessSpec(command="sleep", args=("1000",)))
        survivors = supervisor.processes()
        for process in survivors:
            assert process.status == "running"
            await process.kill()
        assert supervisor.running == 0


async def test_a_child_has_three_descriptors_and_a_session_of_its_own(
    supervisor: Supervisor,
) -> None:
    result = await supervisor.run(
        ProcessSpec(
            command="sh",
            args=("-c", "ls /proc/$$/fd; cut -d ' ' -f 1,5,6 /proc/$$/stat"),
        )
    )
    *descriptors, ids = result.stdout.decode().splitlines()
    assert set(descriptors) - {"10"} == {"0", "1", "2"}  # 10 is dash's own, for a script.
    assert len(set(ids.split())) == 1


async def test_a_parked_launcher_holds_nothing_that_the_program_has_left_inheritable() -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    async with open_supervisor(SupervisorConfig(parked_launchers=4)) as supervisor:
        # Each start is followed by another launcher that is parked.
        for _ in range(8):
            await supervisor.run(ProcessSpec(command="true"))
        os.close(writer)
        with trio.fail_after(PATIENCE_SECONDS):
            await trio.lowlevel.wait_readable(reader)
        assert os.read(reader, 1) == b""
    os.close(reader)


async def test_many_starts_at_once_need_few_threads(supervisor: Supervisor) -> None:
    await supervisor.run(ProcessSpec(command="true"))
    # A thread that Trio has used stays for a while (trio.to_thread.run_sync).
    before = len(os.listdir("/proc/self/task"))
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(supervisor.run, ProcessSpec(command="true"))
    assert len(os.listdir("/proc/self/task")) <= before + 2


async def test_no_signal_is_ignored_or_blocked_at_birth(supervisor: Supervisor) -> None:
    result = await supervisor.run(
        ProcessSpec(command="grep", args=("-E", "^Sig(Blk|Ign)", "/proc/self/status"))
    )
    assert {line.split()[1] for line in result.stdout.splitlines()} == {b"0" * 16}


async def test_a_launcher_that_is_killed_before_exec_is_no_start(supervisor: Supervisor) -> None:
    # A limit that leaves no room even for the launcher.
    for command in ("true", "/no/such/command"):
        spec = ProcessSpec(command=command, limits=creche.Limits(memory_bytes=4096))
        error = await _failure(supervisor, spec)
        assert type(error) is creche.KilledBeforeExec


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
async def test_one_that_is_killed_before_it_is_a_launcher_is_no_start() -> None:
    children = Children()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        ours.setblocking(False)
        pid = os.fork()
        if not pid:
            while True:
                signal.pause()
        launcher = Launcher(Leader(pid, os.pidfd_open(pid), children), ours)
        os.kill(pid, signal.SIGKILL)
    with launcher.leader:
        launcher.order(b"orders", 0)
        with pytest.raises(creche.KilledBeforeExec):
            await launcher.executed(ProcessSpec(command="true"))
    assert pid not in children
    assert pid not in all_children()


async def test_a_pipe_that_cannot_be_waited_for_is_closed_again() -> None:
    strace = ["strace", "-o", "/dev/null", "-e", "inject=epoll_ctl:error=ENOSPC"]
    result = await trio.run_process(
        [*strace, sys.executable, "-c", _NO_ROOM], capture_stdout=True, cwd=_ROOT
    )
    assert result.stdout == b"No space left on device\nTrue\n"


_NO_ROOM = """
import os
from supervisor.capture import Capture
from supervisor.poller import Poller
before = os.listdir("/proc/self/fd")
with Poller() as poller, Capture(poller) as capture:
    try:
        capture.open("stdout")
    except OSError as error:
        print(error.strerror)
print(os.listdir("/proc/self/fd") == before)
"""


async def test_orders_that_cannot_be_given_are_no_start() -> None:
    children = Children()
    with launch.Launchers(children) as launchers:
        launcher = await launchers.spawn(cgroups=(), stdout=launchers.null, stderr=launchers.null)
        pid = launcher.leader.pid
        with launcher.leader:
            launcher.order(b"orders", -1)
            with pytest.raises(creche.LaunchError, match="Bad file descriptor"):
                await launcher.executed(ProcessSpec(command="true"))
    assert pid not in children
    assert pid not in all_children()


async def test_an_installation_that_is_being_replaced_stops_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = shutil.copy(launch._LAUNCHER, tmp_path)
    monkeypatch.setattr(launch, "_LAUNCHER", installed)
    async with open_supervisor() as supervisor:
        os.unlink(installed)
        result = await supervisor.run(ProcessSpec(command="cat", args=("/proc/self/comm",)))
        assert result.stdout == b"cat\n"


async def test_a_program_may_have_the_launchers_name(
    supervisor: Supervisor, somewhere: Path
) -> None:
    program = somewhere / f"launcher-{os.uname().machine}"
    program.write_text("#!/bin/sh\necho mine\n")
    program.chmod(0o755)
    for _ in range(20):
        assert (await supervisor.run(ProcessSpec(command=str(program)))).stdout == b"mine\n"
