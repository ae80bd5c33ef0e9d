"""A flood of orphans while others exit: all orphans are reaped, and every exit is told to who waits for it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from supervisor import ProcessSpec, Supervisor, SupervisorConfig, open_supervisor
from supervisor.reaper import Children, Reaper

from ..conftest import PATIENCE_SECONDS
from ..heavy import amount, figure
from ..kernel import children, processes, running_with
from ..test_process import first_line, sh
from ..test_server import serving
from ..wire import connect
from .witness import zombies_of

_ORPHANS = amount(400, heavy=10_000)
_OWN = 400

# Forks children that fork and exit. Every third orphan leads a session of its
# own, and some outlive their parents.
_FLOOD = """
import os, sys, time
for number in range(int(sys.argv[1])):
    if os.fork() == 0:
        if os.fork() == 0:
            if number % 3 == 0:
                os.setsid()
            time.sleep(number % 7 / 1000)
            os._exit(77)
        os._exit(0)
    os.wait()
"""


def flood(orphans: int = _ORPHANS) -> ProcessSpec:
    return ProcessSpec(command=sys.executable, args=("-ISc", _FLOOD, str(orphans)))


@pytest.fixture(params=["cgroups", "sessions", "parked"])
def config(request: pytest.FixtureRequest) -> SupervisorConfig:
    return SupervisorConfig(
        subreaper=True,
        sole_parent=True,
        use_cgroups=request.param != "sessions",
        parked_launchers=4 if request.param == "parked" else 0,
    )


@pytest.fixture
def beside_others() -> SupervisorConfig:
    return SupervisorConfig(subreaper=True)


@pytest.fixture(autouse=True)
def short_lived_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trio's worker threads end when they have nothing to do, and not ten seconds later.

    A process is a child of the thread that started it, and when that ends, of
    the first one, to which orphans come too.
    """
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.0)


async def no_zombie_is_left(parent: int) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while zombies_of(parent):
            await trio.lowlevel.checkpoint()


async def appeared(unique: str) -> int:
    """The pid of the one process that sleeps for this time, once it does."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not (pids := running_with(unique)):
            await trio.lowlevel.checkpoint()
    (pid,) = pids
    return pid


@asynccontextmanager
async def flooding(supervisor: Supervisor) -> AsyncIterator[None]:
    """Orphans come and go during this block, those of half of the floods after their unit's end."""

    async def one(spec: ProcessSpec) -> None:
        assert (await supervisor.run(spec)).exit_code == 0

    async with trio.open_nursery() as nursery:
        for number in range(4):
            spec = flood(_ORPHANS // 4)
            if number % 2:
                spec = ProcessSpec(command=spec.command, args=spec.args, descendants="keep")
            nursery.start_soon(one, spec)
        yield


async def test_every_exit_is_told_right_and_no_zombie_is_left(supervisor: Supervisor) -> None:
    wrong = []
    # All where it is as in a daemon, and fewer where less is different.
    own = _OWN if supervisor.config.parked_launchers else _OWN // 4
    left = iter(range(own))
    began = trio.current_time()

    async def run() -> None:
        for number in left:
            # Each leaves an orphan of its own, too.
            result = await supervisor.run(sh(f"(exit 77) & exit {number % 256}"))
            if result.exit_code != number % 256:
                wrong.append((number, result.exit_code))

    async with flooding(supervisor), trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(run)
    assert wrong == []
    await _became_zombies(set())
    figure(f"{_ORPHANS} orphans, {own} exits in {trio.current_time() - began:.1f} s")


async def test_who_exits_before_its_pid_is_known_is_not_taken_for_an_orphan() -> None:
    known = Children()
    with Reaper(known, "creche-none", sole_parent=True) as reaper:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reaper.run)
            await wait_all_tasks_blocked()
            with known.birth():
                own = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 5"], os.environ)
                orphan = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 6"], os.environ)
                await _became_zombies({own, orphan})
                await wait_all_tasks_blocked(0.05)  # The reaper has seen them, and waits.
                known.add(own)
            await _became_zombies({own})
            nursery.cancel_scope.cancel()
    assert _exit_code(own) == 5


def _exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def _became_zombies(pids: set[int]) -> None:
    """Wait until these are the zombies of this program."""
    with trio.fail_after(PATIENCE_SECONDS):
        while zombies_of(os.getpid()) != pids:
            await trio.lowlevel.checkpoint()


async def test_an_orphan_is_taken_in_and_reaped(supervisor: Supervisor) -> None:
    # Else the test above would be passed by whoever lets orphans go to PID 1.
    unique = f"1000.{uuid4().int % 10**9}"
    await supervisor.run(sh(f"setsid sleep {unique} & exit 0", descendants="keep"))
    pid = await appeared(unique)
    assert pid in children()
    os.kill(pid, signal.SIGKILL)
    await _became_zombies(set())
    assert pid not in children()


async def test_other_children_of_the_program_keep_their_exits(
    beside_others: SupervisorConfig,
) -> None:
    async with open_supervisor(beside_others) as supervisor:
        others = []
        async with flooding(supervisor):
            for number in range(40):
                others.append(_other_child(number))
                result = await trio.run_process(["sh", "-c", f"exit {number}"], check=False)
                assert result.returncode == number
                assert (await supervisor.run(sh(f"exit {number}"))).exit_code == number
        # All that are left are the others, which nobody has waited for yet.
        await _became_zombies({other.pid for other in others})
        assert [other.wait() for other in others] == list(range(40))


async def test_without_cgroups_orphans_show_themselves_by_their_session() -> None:
    config = SupervisorConfig(subreaper=True, use_cgroups=False)
    async with open_supervisor(config) as supervisor:
        for _ in range(20):
            await supervisor.run(sh("(sleep 0.01; exit 77) & exit 0", descendants="keep"))
        await _became_zombies(set())


def _other_child(number: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sh", "-c", f"exit {number}"], start_new_session=number % 2 == 0)


async def test_leaving_the_block_reaps_the_orphans_of_killed_trees(
    supervisor: Supervisor, beside_others: SupervisorConfig
) -> None:
    del supervisor  # The test's own one is about what comes after its block.
    async with open_supervisor(beside_others) as inner:
        script = "for i in 1 2 3 4 5 6 7 8; do setsid sleep 1000 & done; echo ready; sleep 1000"
        for _ in range(10):
            process = await inner.start(sh(script, descendants="keep"))
            assert await first_line(process) == "ready"
    assert zombies_of(os.getpid()) == set()


async def test_nothing_is_taken_without_being_asked() -> None:
    handler = signal.getsignal(signal.SIGCHLD)
    async with open_supervisor():
        assert signal.getsignal(signal.SIGCHLD) is handler
        assert not _is_subreaper()
    async with open_supervisor(SupervisorConfig(subreaper=True)):
        assert signal.getsignal(signal.SIGCHLD) is not handler
        assert _is_subreaper()
    assert signal.getsignal(signal.SIGCHLD) is handler
    assert not _is_subreaper()


def _is_subreaper() -> bool:
    value = ctypes.c_int(-1)
    assert ctypes.CDLL(None).prctl(37, ctypes.byref(value), 0, 0, 0) == 0
    return bool(value.value)


async def test_outside_the_main_thread_a_subreaper_is_refused() -> None:
    async def use() -> None:
        async with open_supervisor(SupervisorConfig(subreaper=True)):
            pass

    with pytest.raises(RuntimeError, match="main thread"):
        await trio.to_thread.run_sync(trio.run, use)
    assert not _is_subreaper()


_AS_PID_1 = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


async def test_the_daemon_as_pid_1_reaps_all_and_takes_everything_along() -> None:
    unique = f"1000.{uuid4().int % 10**9}"
    async with serving("--grace-seconds", "0.2", under=_AS_PID_1) as (daemon, url):
        (pid,) = {entry.pid for entry in processes() if entry.parent == daemon.process.pid}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_run_floods, url)
            async with await connect(url) as connection:
                for number in range(100):
                    body = {"command": "sh", "args": ["-c", f"(exit 77) & exit {number}"]}
                    events = await connection.events("POST", "/processes/run", body)
                    assert events[-1].data == {"reason": "exited", "exit_code": number}
                # Somebody else's, as with `docker exec`: of no unit.
                script = f"setsid sh -c 'sleep 0.01' & setsid sleep {unique} & exit 0"
                entering = ["nsenter", "--target", str(pid), "--pid", "--mount"]
                await trio.run_process([*entering, "setsid", "--wait", "sh", "-c", script])
                for descendants in ("kill", "keep"):
                    script = f"trap '' TERM; setsid sleep {unique} & sleep {unique}; :"
                    body = {"command": "sh", "args": ["-c", script], "descendants": descendants}
                    await connection.json("POST", "/processes", body)
        await no_zombie_is_left(pid)
        os.kill(pid, signal.SIGTERM)
        assert await daemon.exited() == 0
        assert running_with(unique) == set()
        assert daemon.complaints == []


async def _run_floods(url: str) -> None:
    spec = flood()
    body = {"command": spec.command, "args": spec.args, "descendants": "keep"}
    async with await connect(url) as connection:
        events = await connection.events("POST", "/processes/run", body)
        assert events[-1].data["exit_code"] == 0


async def test_the_daemon_is_a_subreaper_where_asked() -> None:
    unique = f"1000.{uuid4().int % 10**9}"
    async with serving("--subreaper") as (daemon, url), await connect(url) as connection:
        body = {"command": "sh", "args": ["-c", f"setsid sleep {unique} &"], "descendants": "keep"}
        await connection.json("POST", "/processes", body)
        orphan = await appeared(unique)
        assert {entry.parent for entry in processes() if entry.pid == orphan} == {
            daemon.process.pid
        }
        os.kill(orphan, signal.SIGKILL)
        await no_zombie_is_left(daemon.process.pid)
