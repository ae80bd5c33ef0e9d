"""The read ends of one process's output pipes, read in the order in which the kernel filled them.

Why one reader for both streams
===============================

Two pipes have no common order, but one epoll has: its ready list is a queue,
and a pipe joins it at the first write after it was last found empty (`man 7
epoll`; fs/eventpoll.c). Two tasks that each wait for their own pipe lose that
order, because Trio runs the tasks of one batch in random order: of `echo a;
echo b >&2`, every second run would show `b` first. So both pipes sit in an
epoll of their own, from before the process exists, and one task waits for that
epoll and reads in the order of its queue.

The epoll is level-triggered, and its queue is polled until it is empty before
the task waits again. That drops the stale entries that level triggering leaves
in it, which would otherwise keep an old order.
"""

from __future__ import annotations

import os
import select
import time
from contextlib import ExitStack
from fcntl import F_GETPIPE_SZ, fcntl

import trio

from .output import OutputLog, Stream

_READ_BYTES = 64 * 1024
_ROUNDS_PER_TURN = 16


class Capture:
    """Reads a process's stdout and stderr into its log. A context manager that owns the read ends.

    Use: `open` the streams that are wanted, start the process with the write
    ends, close those, and let a task `run` into the log.
    """

    __slots__ = ("_epoll", "_log", "_streams")

    def __init__(self) -> None:
        self._log: OutputLog | None = None
        self._streams: dict[int, Stream] = {}
        self._epoll = select.epoll(select.EPOLL_CLOEXEC)

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            stack.callback(self._epoll.close)
            for descriptor in self._streams:
                stack.callback(os.close, descriptor)
            self._streams.clear()

    def open(self, stream: Stream) -> int:
        """Make a pipe for `stream` and return its write end, which the caller owns.

        Only the child may keep it, so that its end is end-of-file here.

        Raises:
          OSError: no descriptors are left.
        """
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        self._streams[read_end] = stream
        # Only our end: O_NONBLOCK belongs to the open file description, and
        # most programs do not expect it on the other.
        os.set_blocking(read_end, False)
        self._epoll.register(read_end, select.EPOLLIN)
        return write_end

    def close_stream(self, stream: Stream) -> None:
        """Give a stream up, whose write end nobody uses."""
        for descriptor in [fd for fd, name in self._streams.items() if name == stream]:
            self._close(descriptor)

    async def run(self, log: OutputLog | None) -> None:
        """Read into `log`, or into nothing, until every writer is gone from every stream."""
        self._log = log
        while self._streams:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for _ in range(_ROUNDS_PER_TURN):
                if not self._read_ready():
                    break

    def drain(self) -> None:
        """Read what is in the pipes now, without waiting.

        At least the capacity of each pipe: that holds everything that a dead
        writer can have left. Not much more, so that a writer that is still
        alive cannot keep this from ending.
        """
        capacity = max((fcntl(fd, F_GETPIPE_SZ) for fd in self._streams), default=0)
        for _ in range(capacity // _READ_BYTES + 2):
            if not self._read_ready():
                return

    def _read_ready(self) -> bool:
        """Read once from each pipe that has something, in order; whether any had."""
        events = self._epoll.poll(0)
        for descriptor, _ in events:
            if data := os.read(descriptor, _READ_BYTES):
                if self._log is None:
                    continue
                self._log.append(self._streams[descriptor], data, time.time_ns() // 1_000_000)
            else:
                self._close(descriptor)
        return bool(events)

    def _close(self, descriptor: int) -> None:
        self._epoll.unregister(descriptor)
        del self._streams[descriptor]
        os.close(descriptor)
