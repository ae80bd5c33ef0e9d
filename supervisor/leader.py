"""The leader of a process, as its parent sees it: a pidfd, the exit, and the reaping."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Self

import trio

from .descriptors import beyond_the_limit
from .errors import LaunchError
from .exit_status import wait_exit_status
from .readiness import is_readable, wait_until_readable
from .reaper import Children
from .record import ExitStatus

# How long whoever is the parent of one that we have taken over may take to reap
# it, where nobody else can tell how it ended.
_REAPING_SECONDS = 5.0
# Between two looks at one that has exited, and that its tracer has not seen yet.
_TRACED_SECONDS = 0.01


class _Held:
    """The leader, held by its pidfd; it is reaped at the end of the block if it is our child.

    Args:
      pid: its.
      pidfd: its, owned here from now on.
      children: ours; it is added to them if it is one.
      is_child: whether it is.
    """

    __slots__ = ("_children", "_is_child", "_is_let_go", "pid", "pidfd")

    def __init__(self, pid: int, pidfd: int, children: Children, *, is_child: bool) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._children = children
        self._is_child = is_child
        self._is_let_go = False
        if is_child:
            children.add(pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # One that is let go keeps its status for whoever takes it over, and one
        # that does not die is the kernel's.
        if self._is_child:
            if not self._is_let_go:
                with suppress(ChildProcessError):
                    os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
            self._children.forget(self.pid)
        os.close(self.pidfd)

    def let_go(self) -> None:
        """Leave it as it is, unreaped."""
        self._is_let_go = True


class Leader(_Held):
    """A child of this program, from its spawn until it is reaped. A context manager that owns it and its pidfd.

    The zombie is kept until then, so that pid, group and session stay this
    process's own for as long as they are used.

    Args:
      pid: its.
      pidfd: its, owned here from now on.
      children: ours; it is added to them.
    """

    __slots__ = ("_exit_status",)

    def __init__(self, pid: int, pidfd: int, children: Children) -> None:
        super().__init__(pid, pidfd, children, is_child=True)
        # Once it has exited.
        self._exit_status: ExitStatus | None = None

    def has_exited(self) -> bool:
        """Whether the leader has; looks."""
        if self._exit_status is None:
            self._exit_status = self._look()
        return self._exit_status is not None

    async def wait(self) -> None:
        """Wait until the leader has exited. It stays a zombie."""
        while not self.has_exited():
            # This may return for nothing; see `readiness`.
            await trio.lowlevel.wait_readable(self.pidfd)
            if not self.has_exited() and is_readable(self.pidfd):
                # Whoever traces it is told first (ptrace(2)), and nobody tells us when.
                await trio.sleep(_TRACED_SECONDS)

    async def exit_status(self) -> ExitStatus:
        """How the leader, which has exited, ended; without reaping it. No checkpoint."""
        if self._exit_status is None:
            self._exit_status = self._look()
        assert self._exit_status is not None
        return self._exit_status

    def _look(self) -> ExitStatus | None:
        try:
            info = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:
            # Something else in this program waits for children that are not
            # its own. subprocess would say 0 here, which would be invented.
            return ExitStatus(None, None)
        if info is None:
            return None
        if info.si_code == os.CLD_EXITED:
            return ExitStatus(info.si_status, None)
        return ExitStatus(None, info.si_status)

    async def die(self) -> None:
        """Kill it if it has not exited, and wait until it has; for one of which nobody needs the status. Not interrupted by cancellation."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await self.wait()


def take_from_trio(process: trio.Process, children: Children) -> Leader:
    """The child that Trio has just spawned; from now on Trio and `subprocess` wait for it no more.

    Trio need not have a pidfd, and would then wait for it in a thread, and say so
    to nobody: a thread for every process, and the end of everything where there
    can be no thread.

    Raises:
      LaunchError: it could not be held, and was killed; it may have executed its
        command before.
    """
    trios, process._pidfd = process._pidfd, None
    if trios is not None:
        trios.close()
    try:
        pidfd = _open_pidfd(process.pid)
    except OSError as error:
        with suppress(ProcessLookupError):  # Killed before it led a group.
            os.killpg(process.pid, signal.SIGKILL)
        process._proc.wait()  # It is dying already.
        raise LaunchError(f"the process could not be held, and was killed: {error}") from error
    # So that nobody complains that it was not waited for.
    process._proc.returncode = 0
    return Leader(process.pid, pidfd, children)


def _open_pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError:
        with beyond_the_limit():
            return os.pidfd_open(pid)


class TakenOver(_Held):
    """The leader of a process that an earlier supervisor has started. A context manager that owns its pidfd.

    It need not be our child. If it is not, it is reaped by somebody else, and
    its pid may mean a stranger from then on; its pidfd never does.

    Args:
      pid: its.
      pidfd: its, owned here from now on.
      children: ours; it is added to them if it is one.
    """

    __slots__ = ()

    def __init__(self, pid: int, pidfd: int, children: Children) -> None:
        super().__init__(pid, pidfd, children, is_child=_is_child(pidfd))

    def has_exited(self) -> bool:
        """Whether the leader has; looks."""
        return is_readable(self.pidfd)

    async def wait(self) -> None:
        """Wait until the leader has exited."""
        await wait_until_readable(self.pidfd)

    async def exit_status(self) -> ExitStatus:
        """How the leader, which has exited, ended; neither code nor signal if nobody can tell."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _REAPING_SECONDS):
            return await wait_exit_status(self.pidfd)
        return ExitStatus(None, None)


def _is_child(pidfd: int) -> bool:
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return False
    return True
