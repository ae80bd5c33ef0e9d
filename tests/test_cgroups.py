"""Units in cgroups, on whatever version this kernel has: limits, ends, and who was killed for memory."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from supervisor import (
    Limits,
    LimitUnavailable,
    Process,
    ProcessRecord,
    ProcessSpec,
    Supervisor,
    SupervisorConfig,
    open_supervisor,
)
from supervisor.cgroups.mounts import find_own_cgroups

from .conftest import PATIENCE_SECONDS
from .heavy import amount
from .injection import injecting
from .kernel import children, descriptors, running_with
from .test_process import first_line, sh

MIB = 1024 * 1024
_LIVE = int(os.environ.get("CRECHE_TEST_LIVE_PROCESSES", amount(2000, heavy=5000)))
_REPETITIONS = int(os.environ.get("CRECHE_TEST_REPETITIONS", amount(300, heavy=1000)))


def hog(limit_mib: int = 16) -> ProcessSpec:
    """A leader that asks for memory from its first instruction on and never stops."""
    return ProcessSpec(
        command="tail", args=("/dev/zero",), limits=Limits(memory_bytes=limit_mib * MIB)
    )


def units_of(name: str) -> set[str]:
    """The directories for the units of the supervisor with that name, in all hierarchies."""
    own = find_own_cgroups()
    found = set()
    for directory in {own.unified, *own.by_controller.values()}:
        assert directory is not None
        for path, below, _ in os.walk(directory):
            found |= {f"{path}/{creche}" for creche in below if creche == f"creche-{name}"}
    return found


@asynccontextmanager
async def kernel_log_victims() -> AsyncIterator[Counter[int]]:
    """How often the kernel's log names each pid as a victim, from the block's beginning to its end.

    Read all the time, since the log is a ring that forgets.
    """
    victims: Counter[int] = Counter()
    descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(descriptor, 0, os.SEEK_END)

    def read() -> None:
        while True:
            try:
                record = os.read(descriptor, 8192)
            except BlockingIOError:
                return
            if match := re.search(rb"Killed process (\d+) ", record):
                victims[int(match[1])] += 1

    async def follow() -> None:
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            read()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            yield victims
            nursery.cancel_scope.cancel()
        read()
    finally:
        os.close(descriptor)


async def test_there_are_cgroups_with_all_controllers(supervisor: Supervisor) -> None:
    # Everything below is worth nothing on a host without them.
    capabilities = supervisor.capabilities
    assert capabilities.cgroups in (1, 2), capabilities.no_cgroups_because
    assert {"memory", "pids", "cpu"} <= set(capabilities.controllers)
    assert capabilities.kernel_log


async def test_a_leader_killed_for_memory(supervisor: Supervisor) -> None:
    result = await supervisor.run(hog())
    record = result.record
    assert (record.status, record.signal, record.reason) == ("oom_killed", 9, "oom_killed")
    assert record.oom_killed
    assert record.oom_kills == 1
    assert record.signaled_by is None
    assert record.usage is not None
    assert record.usage.cpu_user_us + record.usage.cpu_system_us > 0


async def test_a_member_killed_for_memory_is_told_apart(supervisor: Supervisor) -> None:
    process = await supervisor.start(
        sh(
            "tail /dev/zero; echo gone; read line; exit 7",
            stdin_mode="pipe",
            stderr_mode="discard",  # The shell says that it was killed.
            limits=Limits(memory_bytes=16 * MIB),
        )
    )
    assert await first_line(process) == "gone"
    assert process.status == "running"
    with trio.fail_after(PATIENCE_SECONDS):
        while process.record.oom_kills == 0:
            await trio.lowlevel.checkpoint()
    await process.close_stdin()
    record = await process.wait()
    assert (record.status, record.exit_code, record.oom_killed) == ("exited", 7, False)
    assert record.oom_kills == 1


async def test_a_strangers_sigkill_after_a_members_kill_is_not_the_kernels(
    supervisor: Supervisor,
) -> None:
    process = await supervisor.start(
        sh(
            "tail /dev/zero; echo gone; sleep 1000; :",
            stderr_mode="discard",
            limits=Limits(memory_bytes=16 * MIB),
        )
    )
    assert await first_line(process) == "gone"
    os.kill(process.pid, signal.SIGKILL)
    record = await process.wait()
    assert (record.status, record.signal, record.signaled_by) == ("signaled", 9, "other")
    assert record.oom_kills == 1


async def test_our_own_sigkill_is_told_from_a_strangers(supervisor: Supervisor) -> None:
    ours = await supervisor.start(ProcessSpec(command="sleep", args=("1000",)))
    await ours.kill()
    strangers = await supervisor.start(ProcessSpec(command="sleep", args=("1000",)))
    os.kill(strangers.pid, signal.SIGKILL)
    await strangers.wait()
    by_signal = await supervisor.start(ProcessSpec(command="sleep", args=("1000",)))
    by_signal.send_signal(signal.SIGTERM)
    await by_signal.wait()
    records = [process.record for process in (ours, strangers, by_signal)]
    assert [record.status for record in records] == ["signaled"] * 3
    assert [record.signaled_by for record in records] == ["supervisor", "other", "supervisor"]


async def test_a_sigkill_that_races_the_kernels_never_contradicts_its_log(
    supervisor: Supervisor,
) -> None:
    records: list[ProcessRecord] = []
    left = iter(range(_REPETITIONS))
    # How long the kernel lets it live here: our kills sweep over five times that.
    alone = await supervisor.start(hog(4))
    assert (await alone.wait()).oom_killed
    assert alone.duration_seconds is not None
    lifetime = alone.duration_seconds

    async def race() -> None:
        for number in left:
            process = await supervisor.start(hog(4))
            if number % 10 == 0:
                await process.wait()  # So that some are the kernel's for sure.
            with trio.move_on_after(lifetime * (number % 30) / 6):
                await process.wait()
            await process.kill()
            records.append(process.record)

    async with kernel_log_victims() as victims, trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(race)
    said = Counter(record.pid for record in records if record.oom_killed)
    assert said, "no kill for memory won"
    assert any(not record.oom_killed for record in records), "no kill of ours won"
    pids = {record.pid for record in records}
    assert {pid: count for pid, count in victims.items() if pid in pids} == dict(said)


async def test_whatever_a_descendant_does_it_dies_with_the_leader(supervisor: Supervisor) -> None:
    unique = f"30.{uuid4().int % 10**9}"
    escape = f"env -i PATH=$PATH setsid sh -c 'setsid sleep {unique} >/dev/null 2>&1 &'"
    process = await supervisor.start(sh(f"{escape} & {escape} & wait; echo done"))
    record = await process.wait()
    assert await process.log.read_all("stdout") == b"done\n"
    assert record.members_killed == 2
    assert running_with(unique) == set()


def cgroup_of(process: Process) -> Path:
    """The directory of a process's cgroup in the version 2 hierarchy."""
    own = find_own_cgroups().unified
    assert own is not None
    ours, its = (
        next(line for line in text.splitlines() if line.startswith("0::")).removeprefix("0::")
        for text in (
            Path("/proc/self/cgroup").read_text(),
            Path(f"/proc/{process.pid}/cgroup").read_text(),
        )
    )
    return Path(os.path.normpath(f"{own}/{os.path.relpath(its, ours)}"))


CHURNING = """
import itertools, os, sys
own = sys.stdin.readline().strip()
if os.fork() == 0:
    os.setsid()
    for step in itertools.count():
        if step == 10:
            print("ready", flush=True)
        for number in range(20):
            os.mkdir(f"{own}/{number}")
        for number in range(20):
            os.rmdir(f"{own}/{number}")
sys.stdin.readline()
sys.exit(3)
"""


@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_unit_that_makes_and_removes_cgroups_ends_like_any_other(
    supervisor: Supervisor, is_killed: bool
) -> None:
    unique = f"churning-{uuid4().hex}"
    churning = ProcessSpec(command=sys.executable, args=("-c", CHURNING, unique), stdin_mode="pipe")
    for _ in range(10):
        process = await supervisor.start(churning)
        await process.write_stdin(f"{cgroup_of(process)}\n".encode())
        assert await first_line(process) == "ready"
        with trio.fail_after(PATIENCE_SECONDS):
            if is_killed:
                assert await process.kill() == 2
            else:
                await process.close_stdin()
                assert (await process.wait()).exit_code == 3
        assert process.record.members_killed == 1
        assert running_with(unique) == set()


async def test_a_unit_with_a_threaded_cgroup_ends_like_any_other(supervisor: Supervisor) -> None:
    process = await supervisor.start(sh("sleep 1000 & echo ready; wait"))
    assert await first_line(process) == "ready"
    below = cgroup_of(process) / "threaded"
    below.mkdir()
    (below / "cgroup.type").write_text("threaded")
    with trio.fail_after(PATIENCE_SECONDS):
        assert await process.kill() == 2


async def test_a_fork_bomb_stays_within_its_limit_and_dies_at_once(supervisor: Supervisor) -> None:
    process = await supervisor.start(
        ProcessSpec(
            command="bash",
            # Forks for ever, each fork a forker.
            args=("-c", "echo ready; bomb() { bomb | bomb & }; bomb; while :; do :; done"),
            stderr_mode="discard",
            limits=Limits(pids=100),
        )
    )
    assert await first_line(process) == "ready"
    assert (await supervisor.run(sh("echo fine"))).stdout == b"fine\n"
    with trio.fail_after(PATIENCE_SECONDS):
        await process.kill()
    assert process.signal == 9


async def test_a_frozen_unit_stands_still_and_can_be_killed(supervisor: Supervisor) -> None:
    process = await supervisor.start(sh("echo ready; while :; do :; done"))
    assert await first_line(process) == "ready"
    with trio.fail_after(PATIENCE_SECONDS):
        await process.freeze()
        first = process.usage
        second = process.usage
        assert first is not None
        assert second is not None
        assert first.cpu_user_us == second.cpu_user_us
        await process.thaw()
        while process.usage == second:
            await trio.lowlevel.checkpoint()
        await process.freeze()
        await process.kill()
    assert process.signal == 9


async def frozen_with(process: Process, other: Callable[[], Awaitable[object]]) -> None:
    """Freeze a process that takes its time to stand still, and begin the other before it does."""
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.freeze)
            # Twice: of those who can go on Trio takes a random one first.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            await other()


BUSY = sh("for i in $(seq 40); do (while :; do :; done) & done; echo ready; wait")


async def test_whoever_waits_for_a_freeze_takes_nothing_from_another(
    supervisor: Supervisor,
) -> None:
    process = await supervisor.start(BUSY)
    assert await first_line(process) == "ready"

    async def freeze_and_leave() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await process.freeze()

    for _ in range(5):
        await frozen_with(process, process.freeze)
        await process.thaw()
        await frozen_with(process, freeze_and_leave)
        await process.thaw()
    await process.kill()


async def test_who_waits_for_a_freeze_is_let_go_by_a_thaw(supervisor: Supervisor) -> None:
    process = await supervisor.start(BUSY)
    assert await first_line(process) == "ready"
    for _ in range(5):
        await frozen_with(process, process.thaw)
    await process.kill()


async def test_a_wait_for_a_freeze_holds_up_no_end_and_ends_with_it(supervisor: Supervisor) -> None:
    for _ in range(5):
        process = await supervisor.start(BUSY)
        assert await first_line(process) == "ready"
        await frozen_with(process, process.kill)
        assert process.record.members_killed == 40


async def test_every_limit_of_the_unit_is_set(supervisor: Supervisor) -> None:
    limits = Limits(memory_bytes=64 * MIB, cpu=0.5, pids=10)
    result = await supervisor.run(
        sh("for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done", limits=limits)
    )
    assert b"ork" in result.stderr  # "Cannot fork"
    process = await supervisor.start(sh("while :; do :; done", limits=limits))
    with trio.move_on_after(1):
        await process.wait()
    await process.kill()
    assert process.usage is not None
    used = process.usage.cpu_user_us + process.usage.cpu_system_us
    assert process.duration_seconds is not None
    # Half a processor, and up to two periods of a tenth of a second.
    assert used < process.duration_seconds * 500_000 + 200_000


async def test_limits_of_each_process_are_set(supervisor: Supervisor) -> None:
    limits = Limits(open_files=33, core_bytes=0, file_bytes=1024)
    result = await supervisor.run(sh("ulimit -n; ulimit -c; ulimit -f", limits=limits))
    assert result.stdout.split() == [b"33", b"0", b"2"]


async def test_default_limits_apply_where_the_spec_says_nothing() -> None:
    config = SupervisorConfig(limits=Limits(open_files=44, file_bytes=1024))
    async with open_supervisor(config) as supervisor:
        result = await supervisor.run(sh("ulimit -n; ulimit -f", limits=Limits(open_files=55)))
    assert result.stdout.split() == [b"55", b"2"]


async def test_a_limit_without_cgroups_is_refused() -> None:
    async with open_supervisor(SupervisorConfig(use_cgroups=False)) as supervisor:
        assert supervisor.capabilities.cgroups is None
        with pytest.raises(LimitUnavailable):
            await supervisor.start(sh("exit 0", limits=Limits(memory_bytes=MIB)))
        assert (await supervisor.run(sh("exit 0"))).record.usage is None


async def test_usage_counts_descendants(supervisor: Supervisor) -> None:
    process = await supervisor.start(
        sh(
            "sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'; head -c 20m /dev/zero | tail -c 15m >/dev/null"
        )
    )
    usage = (await process.wait()).usage
    assert usage is not None
    assert usage.cpu_user_us + usage.cpu_system_us > 1000
    assert usage.memory_peak_bytes is None or usage.memory_peak_bytes > 15 * MIB
    assert usage.page_faults is not None
    assert usage.page_faults > 1000


async def test_many_starts_with_a_limit_each_leave_no_cgroup() -> None:
    async with open_supervisor() as supervisor:
        limiter = trio.CapacityLimiter(8)

        async def run(number: int) -> None:
            async with limiter:
                limits = Limits(memory_bytes=(32 + number % 7) * MIB, pids=20 + number % 5)
                result = await supervisor.run(ProcessSpec(command="true", limits=limits))
                assert result.exit_code == 0

        async with trio.open_nursery() as nursery:
            for number in range(2 * _REPETITIONS):
                nursery.start_soon(run, number)
        # One for the units in each hierarchy, and in it the few fresh ones in stock.
        units = units_of(supervisor.name)
        assert units
        with trio.fail_after(PATIENCE_SECONDS):
            for path in units:
                while sum(name.isdecimal() for name in os.listdir(path)) > 8:
                    await trio.lowlevel.checkpoint()  # They are removed in a thread.
    assert units_of(supervisor.name) == set()


async def test_thousands_of_live_processes_cost_no_thread_and_leave_no_cgroup() -> None:
    threads = threading.active_count()
    # Three descriptors each: this fits into the usual hard limit of 20,000.
    spec = ProcessSpec(command="sleep", args=("1000",), stderr_mode="discard")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        async with open_supervisor(SupervisorConfig(grace_seconds=PATIENCE_SECONDS)) as supervisor:
            for _ in range(_LIVE):
                await supervisor.start(spec)
            assert supervisor.running == _LIVE
            # Trio keeps a few idle worker threads; one for each would be thousands.
            assert threading.active_count() <= threads + 5
            used = time.process_time()
            await trio.sleep(1)
            assert time.process_time() - used < 0.2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert children() == set()
    assert units_of(supervisor.name) == set()


async def test_where_no_file_can_be_watched_processes_start_and_end(supervisor: Supervisor) -> None:
    unique = f"30.{uuid4().int % 10**9}"
    # As when its user watches as many files as one may.
    async with injecting(os.getpid(), "inotify_add_watch:error=ENOSPC"):
        script = f"setsid sleep {unique} & echo ready; read go"
        process = await supervisor.start(sh(script, stdin_mode="pipe"))
        assert await first_line(process) == "ready"
        await process.freeze()
        await process.thaw()
        assert process.oom_kills == 0
        assert await process.kill() == 2
        assert running_with(unique) == set()
        result = await supervisor.run(sh(f"sleep {unique} &"))
        assert result.record.members_killed == 1
        assert running_with(unique) == set()


async def test_what_goes_wrong_with_descendants_changes_nothing_of_how_the_leader_ended(
    supervisor: Supervisor,
) -> None:
    async with injecting(os.getpid(), "inotify_add_watch:error=ENOMEM"):
        result = await supervisor.run(sh("sleep 1000 & exit 3"))
    assert (result.reason, result.exit_code) == ("exited", 3)


async def test_a_copy_of_what_told_of_kills_for_memory_tells_nothing_after_the_end(
    supervisor: Supervisor,
) -> None:
    if "memory" not in find_own_cgroups().by_controller:
        pytest.skip("only version 1 tells through a descriptor of each unit")
    before = descriptors()
    process = await supervisor.start(
        sh("read go", stdin_mode="pipe", limits=Limits(memory_bytes=16 * MIB))
    )
    told_by = {
        descriptor
        for descriptor, what in descriptors().items()
        if "eventfd" in what and descriptor not in before
    }
    # What a fork of this program would have.
    copies = [os.dup(descriptor) for descriptor in told_by]
    try:
        assert copies
        await process.close_stdin()
        await process.wait()
        with trio.fail_after(PATIENCE_SECONDS):
            for copy in copies:
                await trio.lowlevel.wait_readable(copy)  # The cgroup has been removed.
            await wait_all_tasks_blocked()
    finally:
        for copy in copies:
            os.close(copy)


async def test_a_hierarchy_is_used_only_where_a_limit_needs_it(supervisor: Supervisor) -> None:
    own = find_own_cgroups()
    always = {own.unified, own.by_controller.get("memory", own.unified)}
    await supervisor.run(sh("true"))
    assert units_of(supervisor.name) == {f"{base}/creche-{supervisor.name}" for base in always}
    pids = always | {own.by_controller.get("pids", own.unified)}
    await supervisor.run(ProcessSpec(command="true", limits=Limits(pids=10)))
    assert units_of(supervisor.name) == {f"{base}/creche-{supervisor.name}" for base in pids}


async def test_what_a_dead_supervisor_left_is_swept(tmp_path: Path) -> None:
    unique = f"30.{uuid4().int % 10**9}"
    program = tmp_path / "doomed.py"
    program.write_text(_DOOMED)
    result = await trio.run_process(
        [sys.executable, str(program), unique], capture_stdout=True, check=False
    )
    assert result.returncode == -signal.SIGKILL
    name = result.stdout.decode().strip()
    assert running_with(unique)
    assert units_of(name)
    async with open_supervisor():
        with trio.fail_after(PATIENCE_SECONDS):
            while units_of(name):
                await trio.lowlevel.checkpoint()
        assert running_with(unique) == set()


_DOOMED = """
import os, signal, sys, trio
from supervisor import *
async def main():
    async with open_supervisor() as supervisor:
        await supervisor.start(ProcessSpec(command="sleep", args=(sys.argv[1],)))
        print(supervisor.name, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
trio.run(main)
"""
