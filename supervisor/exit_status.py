"""How a process ended that is not our child, asked of its pidfd.

waitid(2) tells only parents. For the rest the kernel has two places, and the
reaping by whoever is the parent now moves the status from one to the other:

- up to the reaping, the zombie's `/proc/PID/stat`, field 52 (proc_pid_stat(5)):
  for those who may trace it (ptrace(2), PTRACE_MODE_READ_FSCREDS). Others
  see a 0 there, which is not believed.
- after it, the pidfd itself: PIDFD_GET_INFO with PIDFD_INFO_EXIT, since Linux
  6.15 (ioctl_pidfd(2), `struct pidfd_info` in linux/pidfd.h).

A pidfd is readable from the exit on, and hung up from the reaping on, since
Linux 6.9 (pidfd_open(2); `pidfd_poll` in the kernel's fs/pidfs.c).
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
from enum import Enum

from .readiness import wait_until_readable
from .record import ExitStatus

_UNKNOWN = ExitStatus(None, None)

# _IOWR(0xFF, 11, struct pidfd_info), whose first version has 64 bytes: the mask
# of what is asked for and then of what is told, ten ids, and the status.
_PIDFD_GET_INFO = 3 << 30 | 64 << 16 | 0xFF << 8 | 11
_PIDFD_INFO_EXIT = 8
_INFO = struct.Struct("=Q52xi")


class _Unknown(Enum):
    """Why there is no status, and whether there may be one."""

    UNTIL_REAPED = "not before it has been reaped"
    FOR_EVER = "this kernel does not tell"


def exit_status_of(pidfd: int) -> ExitStatus | None:
    """How the process ended, as far as that can be told now; whether it is our child or not.

    None while it runs, while it is a zombie that we may not look into, and for
    ever where it has been reaped and the kernel does not keep the status.
    """
    status = _look(pidfd)
    return status if isinstance(status, ExitStatus) else None


async def wait_exit_status(pidfd: int) -> ExitStatus:
    """Wait until the process has exited, and return how; with neither code nor signal if that cannot be known.

    Where its zombie says nothing to us, this waits for its parent to reap it,
    which is init for one whose parent has died.
    """
    await wait_until_readable(pidfd)
    status = _look(pidfd)
    if status is _Unknown.UNTIL_REAPED:
        await _wait_until_reaped(pidfd)
        status = _look(pidfd)
    return status if isinstance(status, ExitStatus) else _UNKNOWN


async def _wait_until_reaped(pidfd: int) -> None:
    # The zombie is readable already. An epoll that asks for no event is
    # readable, to whoever watches it, only once the pidfd is hung up.
    with select.epoll(flags=select.EPOLL_CLOEXEC) as reaped:
        reaped.register(pidfd, 0)
        await wait_until_readable(reaped.fileno())


def _look(pidfd: int) -> ExitStatus | _Unknown:
    status = _of_reaped(pidfd)
    if status is _Unknown.UNTIL_REAPED:
        found = _of_zombie(pidfd)
        # It may have been reaped between the two.
        return found or _of_reaped(pidfd)
    if status is _Unknown.FOR_EVER:
        return _of_zombie(pidfd) or status
    return status


def _of_reaped(pidfd: int) -> ExitStatus | _Unknown:
    info = bytearray(_INFO.pack(_PIDFD_INFO_EXIT, 0))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError as error:
        # ESRCH: reaped, on a kernel that does not keep the status. ENOTTY and
        # EINVAL: an older one.
        if error.errno not in (errno.ESRCH, errno.ENOTTY, errno.EINVAL):
            raise
        return _Unknown.FOR_EVER
    mask, status = _INFO.unpack(info)
    return _decoded(status) if mask & _PIDFD_INFO_EXIT else _Unknown.UNTIL_REAPED


def _of_zombie(pidfd: int) -> ExitStatus | None:
    exited = select.poll()
    exited.register(pidfd, select.POLLIN)
    # A leader can be a zombie whose other threads go on; its status is not the process's then.
    if not exited.poll(0) or (pid := pid_of(pidfd)) is None:
        return None
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name before the last parenthesis may hold anything.
            state, *fields = file.read().rpartition(b") ")[2].split()
        # Needs the same permission as field 52 (proc_pid_ns(5)), and says so.
        os.readlink(f"/proc/{pid}/ns/user")
    except OSError:
        return None
    # Still unreaped, hence unreaped all along: so it was its pid that we read.
    if state != b"Z" or pid_of(pidfd) != pid:
        return None
    return _decoded(int(fields[52 - 4]))


def pid_of(pidfd: int) -> int | None:
    """The pid in our namespace; None once it is reaped (pidfd_open(2), /proc/PID/fdinfo)."""
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
        for line in file:
            name, _, value = line.partition(b":")
            if name == b"Pid":
                return int(value) if int(value) > 0 else None
    return None


def _decoded(status: int) -> ExitStatus:
    code = os.waitstatus_to_exitcode(status)
    return ExitStatus(code, None) if code >= 0 else ExitStatus(None, -code)
