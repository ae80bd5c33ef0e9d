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

The leader's exit can be waited for in the same place, by its pidfd. So a process
that is over soon, and has said little, needs one task for everything.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from fcntl import F_GETPIPE_SZ, F_SETPIPE_SZ, fcntl

import trio

from .chunk import Stream
from .output import OutputLog
from .spill import Take

_READ_BYTES = 64 * 1024
# After so much, other tasks and the log have their turn.
_TURN_BYTES = 1024 * 1024

# A process that fills its pipes faster than they are read in a turn is a flood:
# it gets larger pipes (1 MiB is what everybody may have, pipe(7)), larger reads,
# and shorter turns here, since more is read where it is written to disk.
_FLOOD_PIPE_BYTES = 1024 * 1024
_FLOOD_READ_BYTES = 256 * 1024
_FLOOD_TURN_BYTES = 1
_FLOOD_PATIENCE_SECONDS = 0.005


Move = Callable[[Stream, int, int, int], bytes]
"""Reads from a stream's pipe, a descriptor, so many bytes at most, at a time in ms; as os.read(2)."""


class Capture:
    """Reads a process's stdout and stderr into its log. A context manager that owns the read ends.

    Use: `open` the streams that are wanted, start the process with the write
    ends, close those, and let a task `run` into the log.
    """

    __slots__ = ("_epoll", "_is_flood", "_log", "_move", "_pidfd", "_read_bytes", "_streams")

    def __init__(self) -> None:
        self._log: OutputLog | None = None
        self._move: Move | None = None
        self._is_flood = False
        self._read_bytes = _READ_BYTES
        self._streams: dict[int, Stream] = {}
        # Of a leader whose exit is waited for here.
        self._pidfd: int | None = None
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
          OSError: no descriptors are left, or something else has run short.
        """
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        self._streams[read_end] = stream
        try:
            # Only our end: O_NONBLOCK belongs to the open file description, and
            # most programs do not expect it on the other.
            os.set_blocking(read_end, False)
            self._epoll.register(read_end, select.EPOLLIN)
        except OSError:
            os.close(write_end)
            raise
        return write_end

    def take_over(self, stream: Stream, read_end: int) -> None:
        """Read from a pipe that an earlier supervisor has made, too; it is owned here from now on."""
        self._streams[read_end] = stream
        self._epoll.register(read_end, select.EPOLLIN)

    @property
    def is_over(self) -> bool:
        """Whether every writer is gone from every stream."""
        return not self._streams

    @property
    def read_ends(self) -> dict[Stream, int]:
        """The pipes that are open, by stream."""
        return {stream: descriptor for descriptor, stream in self._streams.items()}

    def close_stream(self, stream: Stream) -> None:
        """Give a stream up, whose write end nobody uses."""
        for descriptor in [fd for fd, name in self._streams.items() if name == stream]:
            self._close(descriptor)

    async def run_until_exit(self, pidfd: int, log: OutputLog, move: Move | None) -> None:
        """Read into `log` until the leader exits, or the log has to wait, which is for `run`.

        Args:
          pidfd: the leader's.
          move: as in `run`.
        """
        self._log = log
        self._move = move
        self._pidfd = pidfd
        self._epoll.register(pidfd, select.EPOLLIN)
        try:
            while self._pidfd is not None and log.is_settled:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                self._read_turn()
        finally:
            self._forget_leader()

    def _forget_leader(self) -> None:
        if self._pidfd is not None:
            self._epoll.unregister(self._pidfd)
            self._pidfd = None

    async def run(self, log: OutputLog | None, move: Move | None = None) -> None:
        """Read into `log`, or into nothing, until every writer is gone from every stream.

        While the log waits for its disk, or for its readers, so does the process.

        Args:
          move: moves what is read to where it outlives us; None where it need not.
        """
        self._log = log
        self._move = move
        while True:
            if log is not None and not log.is_settled:
                await log.settle(self._read_flood if self._is_flood else None)
            if not self._streams:
                return
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self._read_turn()

    def _read_turn(self) -> None:
        """Read what is there, up to a bound beyond which it is a flood."""
        left = _FLOOD_TURN_BYTES if self._is_flood else _TURN_BYTES
        while left > 0:
            count = self._read_within(0, self._take)
            if not count:
                self._is_flood = False
                return
            left -= count
        self._become_flood()

    def drain(self) -> None:
        """Read what is in the pipes now, without waiting.

        At least the capacity of each pipe: that holds everything that a dead
        writer can have left. Not much more, so that a writer that is still
        alive cannot keep this from ending.
        """
        capacity = max((fcntl(fd, F_GETPIPE_SZ) for fd in self._streams), default=0)
        for _ in range(capacity // _READ_BYTES + 2):
            if not self._read_within(0, self._take):
                return

    def _take(self, stream: Stream, descriptor: int, max_bytes: int) -> int:
        """Read into the log."""
        timestamp_ms = time.time_ns() // 1_000_000
        if self._move is None or self._log is None:
            data = os.read(descriptor, max_bytes)
        else:
            data = self._move(stream, descriptor, max_bytes, timestamp_ms)
        if data and self._log is not None:
            self._log.append(stream, data, timestamp_ms)
        return len(data)

    def _read_flood(self, take: Take) -> int:
        """Let a thread take what there is, with a little patience."""
        return self._read_within(_FLOOD_PATIENCE_SECONDS, take)

    def _read_within(self, seconds: float, take: Take) -> int:
        """Read once from each pipe that has something, in order; returns how many bytes.

        Closes those that are at their end.
        """
        count = 0
        while (
            not count
            and (self._streams or self._pidfd is not None)
            and (events := self._epoll.poll(seconds))
        ):
            for descriptor, event in events:
                if descriptor == self._pidfd:
                    self._forget_leader()
                # Without anything to read it is only hung up, which saves the read.
                elif event & select.EPOLLIN and (
                    taken := take(self._streams[descriptor], descriptor, self._read_bytes)
                ):
                    count += taken
                else:
                    self._close(descriptor)
        return count

    def _become_flood(self) -> None:
        self._is_flood = True
        if self._read_bytes == _READ_BYTES:
            self._read_bytes = _FLOOD_READ_BYTES
            for descriptor in self._streams:
                with suppress(OSError):  # The user's share of pipes may be used up.
                    fcntl(descriptor, F_SETPIPE_SZ, _FLOOD_PIPE_BYTES)

    def _close(self, descriptor: int) -> None:
        self._epoll.unregister(descriptor)
        del self._streams[descriptor]
        os.close(descriptor)
