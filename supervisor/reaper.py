"""Orphans: children that this program has not started but taken in, and their zombies.

Whose parent has died becomes a child of the nearest subreaper above it, or of
PID 1 of its pid namespace (PR_SET_CHILD_SUBREAPER(2const)), and once it has
exited it stays a zombie until that one reaps it.

Nothing here may take the exit of a process that somebody else in this program
waits for: `subprocess` would then report 0, whatever it was. So there is no
wait for any child, but for each one by itself, in this order:

1. List the children that have exited and are not known as the supervisor's own.
   Hold each by a pidfd, which goes on meaning it when its pid is reused.
2. Wait until every process is known that was being started meanwhile: it has a
   pid from its fork on, which only a worker thread knows at first.
3. Who is unknown still, and an orphan, is reaped.

An orphan shows that it is one by where it is: in a unit's cgroup, or in a
session that is neither this program's nor its own, where no fork can lead to.
(A zombie keeps both.) A program that starts nothing but through its supervisor
needs no such sign.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress

import trio

from .readiness import wait_until_readable
from .session import read_stat

_logger = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_PF_EXITING = 0x4  # include/linux/sched.h

_libc = ctypes.CDLL(None, use_errno=True)

# So many descriptors are held at once.
_BATCH = 64
# A storm of exits takes no more than a tenth of the time for looking at it.
_REST = 10
_MAX_REST_SECONDS = 0.5
_LAST_SECONDS = 1.0


class Children:
    """The supervisor's own children, from before their fork until they are reaped."""

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self._births: set[trio.Event] = set()

    def __contains__(self, pid: int) -> bool:
        return pid in self._pids

    @contextmanager
    def birth(self) -> Iterator[None]:
        """A process is started in this block, and added in it."""
        birth = trio.Event()
        self._births.add(birth)
        try:
            yield
        finally:
            self._births.remove(birth)
            birth.set()

    def add(self, pid: int) -> None:
        """This is a child of ours."""
        self._pids.add(pid)

    def forget(self, pid: int) -> None:
        """It has been reaped, or is given up."""
        self._pids.discard(pid)

    async def all_born(self) -> None:
        """Wait until all are added that are being started now."""
        for birth in list(self._births):
            await birth.wait()


class Reaper:
    """Takes orphans in and reaps them. A context manager for the main thread; a task must `run` it.

    Within the block SIGCHLD is handled here, and this program is a subreaper.

    Args:
      children: those to leave alone.
      units: name of the directory that the units' cgroups are in.
      sole_parent: whether all other children are orphans.

    Raises:
      RuntimeError: this is not the main thread.
    """

    def __init__(self, children: Children, units: str, *, sole_parent: bool) -> None:
        self._children = children
        self._units = f"/{units}/".encode()
        self._sole_parent = sole_parent
        self._stack = ExitStack()
        self._exits: AsyncIterator[int]

    def __enter__(self) -> Reaper:
        with ExitStack() as stack:
            self._exits = stack.enter_context(trio.open_signal_receiver(signal.SIGCHLD))
            was_subreaper = ctypes.c_int()
            _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(was_subreaper))
            _prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))
            stack.callback(_prctl, _PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(was_subreaper.value))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    async def run(self) -> None:
        """Reap orphans as they exit, until cancelled; then those too that are exiting."""
        try:
            while True:
                began = trio.current_time()
                try:
                    await self._reap(self._exited())
                except OSError as error:
                    # Out of descriptors, which comes to an end with other exits.
                    _logger.info("orphans could not be reaped: %s", error)
                took = trio.current_time() - began
                await trio.sleep(min(took * _REST, _MAX_REST_SECONDS))
                await anext(self._exits)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _LAST_SECONDS):
                try:
                    await self._reap_last()
                except OSError as error:
                    _logger.warning("orphans stay zombies: %s", error)

    def _exited(self) -> list[int]:
        """The strangers among the children that are zombies."""
        return [pid for pid in self._strangers() if _is_zombie(pid)]

    def _strangers(self) -> list[int]:
        return [pid for pid in _adopted() if pid not in self._children]

    async def _reap(self, pids: list[int]) -> None:
        for start in range(0, len(pids), _BATCH):
            with ExitStack() as stack:
                held = [(pid, _hold(pid, stack)) for pid in pids[start : start + _BATCH]]
                await self._children.all_born()
                for pid, pidfd in held:
                    if pidfd is not None and pid not in self._children and self._is_orphan(pid):
                        _take_exit(pidfd)
            await trio.lowlevel.checkpoint()

    async def _reap_last(self) -> None:
        """Reap who is exiting too: a killed unit counts as empty before all are zombies."""
        with ExitStack() as stack:
            for pid in self._strangers():
                stat = read_stat(pid)
                if stat is None or not stat.flags & _PF_EXITING or not self._is_orphan(pid):
                    continue
                if (pidfd := _hold(pid, stack)) is not None:
                    await wait_until_readable(pidfd)
        await self._reap(self._exited())

    def _is_orphan(self, pid: int) -> bool:
        if self._sole_parent:
            return True
        stat = read_stat(pid)
        if stat is None:
            return False
        if stat.session not in (pid, os.getsid(0)):
            return True
        with open(f"/proc/{pid}/cgroup", "rb") as file:
            return self._units in file.read()


def _adopted() -> list[int]:
    """The pids of children, all orphans included.

    Orphans are given to a process's first thread (kernel/exit.c, `find_new_reaper`).
    """
    own = os.getpid()
    try:
        with open(f"/proc/{own}/task/{own}/children", "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:
        # A kernel without CONFIG_PROC_CHILDREN.
        stats = [read_stat(int(name)) for name in os.listdir("/proc") if name.isdecimal()]
        return [stat.pid for stat in stats if stat is not None and stat.parent == own]


def _is_zombie(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _hold(pid: int, stack: ExitStack) -> int | None:
    """A pidfd of it, which the stack closes; None if it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    stack.callback(os.close, pidfd)
    return pidfd


def _take_exit(pidfd: int) -> None:
    with suppress(ChildProcessError):  # It was reaped meanwhile.
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)


def _prctl(option: int, argument: object) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
