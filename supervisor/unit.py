"""The unit: one leader process and everything that descends from it."""

from __future__ import annotations

import errno
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import SignalNotPermitted
from .exit_status import pid_of

# pidfd_send_signal(2), since Linux 6.9; unknown to older kernels (EINVAL).
_PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2


class Unit(ABC):
    """The members of one unit, from the leader's start until it is reaped. A context manager.

    No signal is sent to a number that could have come to mean a stranger: the
    leader's pid and group stay reserved until it is reaped, which its owner
    does last of all.

    Args:
      leader: pid of the leader, which leads a session and has not been reaped.
      pidfd: the leader's pidfd; it stays the caller's.
    """

    __slots__ = ("_pidfd", "leader")

    def __init__(self, leader: int, pidfd: int) -> None:
        self.leader = leader
        self._pidfd = pidfd

    def __enter__(self) -> Unit:
        return self

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    def signal_group(self, signum: int) -> None:
        """Send a signal to the leader's process group.

        Raises:
          SignalNotPermitted: all that are in it have become another user's.
        """
        with self._signalling():
            self._signal_group(signum)

    def signal_leader(self, signum: int) -> None:
        """Send a signal to the leader alone.

        Raises:
          SignalNotPermitted: it has become another user's.
        """
        with self._signalling():
            signal.pidfd_send_signal(self._pidfd, signum)

    @contextmanager
    def _signalling(self) -> Iterator[None]:
        try:
            yield
        except ProcessLookupError:
            pass  # Only the zombie is left.
        except PermissionError as error:
            raise SignalNotPermitted(
                f"process {self.leader} has become a user's whom this one may not signal"
            ) from error

    def _signal_group(self, signum: int) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, signum, None, _PIDFD_SIGNAL_PROCESS_GROUP)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # Not yet reaped, hence still the number of this very group; unless
            # it is somebody else's child.
            if pid_of(self._pidfd) is not None:
                os.killpg(self.leader, signum)

    @abstractmethod
    def kill(self) -> int:
        """SIGKILL to everything, the leader included; how many there were besides it.

        Raises:
          SignalNotPermitted: the leader lives on; whatever may be killed is killed.
        """

    @abstractmethod
    def is_alone(self) -> bool:
        """Whether the leader, which has exited, is known to have left nobody; looks once."""

    @abstractmethod
    async def kill_descendants(self) -> int:
        """Kill everything but the leader, which has exited; how many, once all are dead.

        A process in uninterruptible sleep dies when the kernel lets it, and
        this waits for that.
        """

    @abstractmethod
    async def wait_until_alone(self) -> None:
        """Wait until nothing but the leader is left, without killing."""
