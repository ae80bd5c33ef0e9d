"""How processes ended that are somebody else's children."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import trio
import trio.testing

from supervisor.exit_status import exit_status_of, wait_exit_status
from supervisor.record import ExitStatus

from .conftest import PATIENCE_SECONDS

# A parent between us and the process: tells its pid, ends it on the first
# line, and reaps it on the second.
_PARENT = """
import subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
print(child.pid, flush=True)
sys.stdin.readline()
child.stdin.close()
sys.stdin.readline()
child.wait()
print("reaped", flush=True)
sys.stdin.readline()
"""

_ENDS = [
    pytest.param("read x; exit 23", ExitStatus(23, None), id="exited"),
    pytest.param("read x; exit 0", ExitStatus(0, None), id="succeeded"),
    pytest.param("read x; kill -9 $$", ExitStatus(None, 9), id="killed"),
]


def _program(*command: str, pass_fds: Sequence[int] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=pass_fds
    )


class Stranger:
    """A process whose parent is another one."""

    def __init__(self, parent: subprocess.Popen[str], pidfd: int) -> None:
        self._parent = parent
        self.pidfd = pidfd

    def _tell(self) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.write("\n")
        self._parent.stdin.flush()

    def let_end(self) -> None:
        self._tell()

    def let_be_reaped(self) -> None:
        self._tell()

    def wait_until_reaped(self) -> None:
        assert self._parent.stdout is not None
        assert self._parent.stdout.readline() == "reaped\n"


@contextmanager
def _stranger(*arguments: str) -> Iterator[Stranger]:
    command = [sys.executable, "-c", _PARENT, *arguments]
    with _program(*command) as parent:
        assert parent.stdout is not None
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        try:
            yield Stranger(parent, pidfd)
        finally:
            os.close(pidfd)


async def _exited(stranger: Stranger) -> None:
    stranger.let_end()
    with trio.fail_after(PATIENCE_SECONDS):
        await trio.lowlevel.wait_readable(stranger.pidfd)


def kernel_keeps_status() -> bool:
    """Whether it tells how one ended that was reaped (Linux 6.15), tried with a child of our own."""
    with subprocess.Popen(["/bin/sh", "-c", "exit 7"]) as child:
        pidfd = os.pidfd_open(child.pid)
    try:
        return exit_status_of(pidfd) == ExitStatus(7, None)
    finally:
        os.close(pidfd)


@pytest.mark.parametrize(("script", "expected"), _ENDS)
async def test_a_zombie_says_how_it_ended(script: str, expected: ExitStatus) -> None:
    with _stranger("/bin/sh", "-c", script) as stranger:
        assert exit_status_of(stranger.pidfd) is None
        await _exited(stranger)
        assert exit_status_of(stranger.pidfd) == expected
        with trio.fail_after(PATIENCE_SECONDS):
            assert await wait_exit_status(stranger.pidfd) == expected


@pytest.mark.parametrize(("script", "expected"), _ENDS)
async def test_what_somebody_else_has_reaped_still_says_how_it_ended(
    script: str, expected: ExitStatus
) -> None:
    known = kernel_keeps_status()
    with _stranger("/bin/sh", "-c", script) as stranger:
        await _exited(stranger)
        stranger.let_be_reaped()
        stranger.wait_until_reaped()
        assert exit_status_of(stranger.pidfd) == (expected if known else None)
        with trio.fail_after(PATIENCE_SECONDS):
            status = await wait_exit_status(stranger.pidfd)
        assert status == (expected if known else ExitStatus(None, None))


async def test_waiting_begins_before_the_end() -> None:
    with _stranger("/bin/sh", "-c", "read x; exit 23") as stranger:
        statuses = []

        async def wait() -> None:
            statuses.append(await wait_exit_status(stranger.pidfd))

        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                assert statuses == []
                stranger.let_end()
        assert statuses == [ExitStatus(23, None)]


# Its first thread ends alone (_exit(2) on SYS_exit), and with another code; the rest goes on.
_HEADLESS = """
import ctypes, os, sys, threading
libc = ctypes.CDLL(None)
first = ctypes.c_ulong(threading.get_ident())
def rest():
    libc.pthread_join(first, None)
    print("alone", flush=True)
    sys.stdin.readline()
    os._exit(23)
threading.Thread(target=rest).start()
libc.syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 7)
"""


async def test_a_leader_that_is_gone_before_its_threads_has_not_ended() -> None:
    command = [sys.executable, "-c", _HEADLESS]
    with _program(*command) as child:
        pidfd = os.pidfd_open(child.pid)
        try:
            assert child.stdout is not None
            assert child.stdin is not None
            assert child.stdout.readline() == "alone\n"
            assert exit_status_of(pidfd) is None
            child.stdin.write("\n")
            child.stdin.flush()
            with trio.fail_after(PATIENCE_SECONDS):
                assert await wait_exit_status(pidfd) == ExitStatus(23, None)
        finally:
            os.close(pidfd)


# Nobody asks for the end of a process of root's; prints what is known at each time.
_NOBODY_ASKS = """
import os, sys, trio, trio.testing
from supervisor.exit_status import exit_status_of, wait_exit_status
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
pidfd = int(sys.argv[1])
async def main():
    await trio.lowlevel.wait_readable(pidfd)
    print(exit_status_of(pidfd), flush=True)
    async with trio.open_nursery() as nursery:
        @nursery.start_soon
        async def wait():
            print((await wait_exit_status(pidfd)), flush=True)
        await trio.testing.wait_all_tasks_blocked()
        print("waits", flush=True)
trio.run(main)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
async def test_the_zero_that_others_see_in_a_zombie_is_not_believed() -> None:
    """Until the reaping; then the pidfd itself tells, to whoever holds it."""
    known = kernel_keeps_status()
    with _stranger("/bin/sh", "-c", "read x; exit 23") as stranger:
        await _exited(stranger)
        command = [sys.executable, "-c", _NOBODY_ASKS, str(stranger.pidfd)]
        with _program(*command, pass_fds=[stranger.pidfd]) as nobody:
            assert nobody.stdout is not None
            assert nobody.stdout.readline() == "None\n"
            if known:
                assert nobody.stdout.readline() == "waits\n"
            stranger.let_be_reaped()
            if known:
                assert nobody.stdout.readline() == f"{ExitStatus(23, None)}\n"
