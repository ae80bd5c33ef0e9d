"""Out of memory: was it the leader that the kernel killed?

The counter of a unit's cgroup says that the kernel has killed somebody in it.
The kernel raises it before it sends the SIGKILL (mm/oom_kill.c,
__oom_kill_process), so it is never late when the victim's exit is seen. But it
does not say whom, and a leader may die by somebody else's SIGKILL after a
member was killed for memory. The kernel's log says whom: every victim by its
pid. That line comes right after the SIGKILL, so it may be a moment late.

Where the log cannot be read (no privilege, or another pid namespace, whose pids
are not ours), a SIGKILL that we did not send, in a unit with a kill for memory,
counts as the kernel's.
"""

from __future__ import annotations

import os
import re

import trio

from .shortages import SHORTAGES

_VICTIM = re.compile(rb"^[0-9]+,[0-9]+,([0-9]+),.*?Killed process ([0-9]+) \(")
# PROC_PID_INIT_INO of the kernel: the namespace whose pids the log uses.
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"
_LATENESS_SECONDS = 0.1
_REMEMBERED_VICTIMS = 10_000


class KernelLog:
    """The victims that the kernel's log names. A context manager that owns the descriptor.

    Args:
      from_its_beginning: whether it is for processes that are older than this, too.
    """

    def __init__(self, *, from_its_beginning: bool = False) -> None:
        self._descriptor: int | None = None
        self._victims: dict[int, int] = {}
        self._reading = trio.Lock()
        try:
            if os.readlink("/proc/self/ns/pid") == _INITIAL_PID_NAMESPACE:
                flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
                self._descriptor = os.open("/dev/kmsg", flags)
                os.lseek(self._descriptor, 0, os.SEEK_SET if from_its_beginning else os.SEEK_END)
        except OSError as error:
            if error.errno in SHORTAGES:
                raise
            # It can be read by privileged programs only.

    def __enter__(self) -> KernelLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    @property
    def readable(self) -> bool:
        """Whether the log tells anything here."""
        return self._descriptor is not None

    async def has_killed(self, pid: int, *, since: float) -> bool:
        """Whether the kernel has killed this process for memory.

        Waits up to a tenth of a second for a line that is late.

        Args:
          pid: of a process that has died by SIGKILL.
          since: when it was started, in seconds of the monotonic clock; an
            older line means a predecessor with the same pid.
        """
        assert self._descriptor is not None
        # The log's clock is not disciplined by NTP and drifts from the other.
        since_us = int((since - 1.0) * 1_000_000)
        async with self._reading:
            with trio.move_on_after(_LATENESS_SECONDS):
                while True:
                    self._read()
                    if self._victims.get(pid, -1) >= since_us:
                        return True
                    await trio.lowlevel.wait_readable(self._descriptor)
        return False

    def _read(self) -> None:
        assert self._descriptor is not None
        while True:
            try:
                record = os.read(self._descriptor, 8192)
            except BlockingIOError:
                return
            except BrokenPipeError:
                continue  # Records were overwritten; the next read goes on behind them.
            if match := _VICTIM.match(record):
                self._victims.pop(int(match[2]), None)
                self._victims[int(match[2])] = int(match[1])
                if len(self._victims) > _REMEMBERED_VICTIMS:
                    del self._victims[next(iter(self._victims))]
