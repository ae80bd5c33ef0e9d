"""The read ends of one process's output pipes, read in the order in which they were filled.

Why one reader for both streams
===============================

Two pipes have no common order, but one epoll has: its ready list is a queue,
and a pipe joins it at a write (`man 7 epoll`; fs/eventpoll.c). Two tasks that
each wait for their own pipe lose that order, because Trio runs the tasks of one
batch in random order: of `echo a; echo b >&2`, every second run would show `b`
first. So both pipes sit in the same epoll (`poller`), from before the process
exists, and are read in the order in which we are told of them. That is exact for
who writes less than a read takes at a time; a flood is read from each in turn.

What has been read has lost its place: what comes to it behind the other pipe's is
read behind that.

The leader's exit can be waited for in the same place, by its pidfd. So a process
that is over soon, and has said little, needs one task for everything.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from fcntl import F_GETPIPE_SZ, F_SETPIPE_SZ, fcntl, ioctl
from termios import FIONREAD

import trio

from .chunk import Stream
from .output import OutputLog
from .poller import Poller
from .spill_file import Take

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

    __slots__ = (
        "_failure",
        "_is_flood",
        "_log",
        "_move",
        "_pidfd",
        "_poller",
        "_read_bytes",
        "_ready",
        "_rest",
        "_streams",
        "_waiting",
    )

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._log: OutputLog | None = None
        self._move: Move | None = None
        self._is_flood = False
        self._read_bytes = _READ_BYTES
        self._streams: dict[int, Stream] = {}
        # Of a leader whose exit is waited for here.
        self._pidfd: int | None = None
        # What we have been told of and have not read since, in that order, and its events.
        self._ready: dict[int, int] = {}
        # What may have more all the same, such as what has been read since.
        self._rest: dict[int, int] = {}
        self._waiting = trio.lowlevel.ParkingLot()
        self._failure: Exception | None = None

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            for descriptor in self._streams:
                stack.callback(self._close, descriptor)

    def open(self, stream: Stream) -> int:
        """Make a pipe for `stream` and return its write end, which the caller owns.

        Only the child may keep it, so that its end is end-of-file here.

        Raises:
          OSError: no descriptors are left, or something else has run short.
        """
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        # Only our end: O_NONBLOCK belongs to the open file description, and
        # most programs do not expect it on the other.
        os.set_blocking(read_end, False)
        try:
            self.take_over(stream, read_end)
        except OSError:
            os.close(write_end)
            raise
        return write_end

    def take_over(self, stream: Stream, read_end: int) -> None:
        """Read from a pipe that an earlier supervisor has made, too; it is owned here from now on.

        Raises:
          OSError: something has run short; the pipe is closed.
        """
        try:
            self._poller.add(read_end, self._note)
        except OSError:
            os.close(read_end)
            raise
        self._streams[read_end] = stream

    def _note(self, descriptor: int, event: int) -> None:
        self._ready[descriptor] = event
        self._rest.pop(descriptor, None)
        if self._waiting and not self._has_read_all(descriptor, event):
            self._waiting.unpark_all()

    def _has_read_all(self, descriptor: int, event: int) -> bool:
        """Read for a task that waits, and is not woken if that was all; most output is a line at a time."""
        if self._log is None or event != select.EPOLLIN or descriptor == self._pidfd:
            return False
        try:
            self._read(descriptor, event)
            if _is_filled(descriptor) or not self._log.is_settled:
                return False
        except Exception as error:
            self._failure = error  # Met by the task.
            return False
        self._forget(descriptor)
        return True

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
        self._poller.add(pidfd, self._note)
        try:
            while self._pidfd is not None and log.is_settled:
                await self._wait()
                self._read_turn()
        finally:
            self._forget_leader()

    def _forget_leader(self) -> None:
        if self._pidfd is not None:
            self._poller.remove(self._pidfd)
            self._forget(self._pidfd)
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
                await self._settle(log)
            if not self._streams:
                return
            await self._wait()
            self._read_turn()

    async def _settle(self, log: OutputLog) -> None:
        # What comes meanwhile would wake us for nothing, and take the interpreter from the
        # thread that reads it.
        for descriptor in self._streams:
            self._poller.mute(descriptor)
        try:
            await log.settle(self._read_flood if self._is_flood else None)
        finally:
            for descriptor in self._streams:
                self._poller.unmute(descriptor)

    async def _wait(self) -> None:
        """Wait until there is something to read."""
        if self._ready or self._rest:
            await trio.lowlevel.checkpoint()
        else:
            await self._waiting.park()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _read_turn(self) -> None:
        """Read what is there, up to a bound beyond which it is a flood."""
        left = _FLOOD_TURN_BYTES if self._is_flood else _TURN_BYTES
        while left > 0:
            count = self._read_ready()
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
        # Also what nobody could be told of yet, as many others have something.
        for descriptor in self._streams:
            if descriptor not in self._ready:
                self._rest.setdefault(descriptor, 0)
        capacity = max((fcntl(fd, F_GETPIPE_SZ) for fd in self._streams), default=0)
        for _ in range(capacity // _READ_BYTES + 2):
            if not self._read_ready():
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

    def _read_ready(self) -> int:
        """Read once from each pipe that has something, in order; returns how many bytes.

        Closes those that are at their end.
        """
        count = 0
        if self._rest:
            # What has come behind the other pipe's is to be read behind it.
            self._poller.poll()
        for descriptor, event in (self._ready | self._rest).items():
            if descriptor == self._pidfd:
                self._forget_leader()
            elif _is_filled(descriptor):
                count += self._read(descriptor, event)
            elif event & select.EPOLLHUP:
                self._close(descriptor)
            else:
                self._forget(descriptor)
        return count

    def _read(self, descriptor: int, event: int) -> int:
        count = self._take(self._streams[descriptor], descriptor, self._read_bytes)
        self._ready.pop(descriptor, None)
        self._rest[descriptor] = event
        return count

    def _read_flood(self, take: Take) -> int:
        """Let a thread take what there is, stdout first, with a little patience."""
        poll = select.poll()
        for descriptor in self._streams:
            poll.register(descriptor, select.POLLIN)
        count = 0
        for descriptor, event in poll.poll(_FLOOD_PATIENCE_SECONDS * 1000):
            if event & select.POLLIN:
                count += take(self._streams[descriptor], descriptor, self._read_bytes)
        return count

    def _become_flood(self) -> None:
        self._is_flood = True
        if self._read_bytes == _READ_BYTES:
            self._read_bytes = _FLOOD_READ_BYTES
            for descriptor in self._streams:
                with suppress(OSError):  # The user's share of pipes may be used up.
                    fcntl(descriptor, F_SETPIPE_SZ, _FLOOD_PIPE_BYTES)

    def _close(self, descriptor: int) -> None:
        self._poller.remove(descriptor)
        self._forget(descriptor)
        del self._streams[descriptor]
        os.close(descriptor)

    def _forget(self, descriptor: int) -> None:
        self._ready.pop(descriptor, None)
        self._rest.pop(descriptor, None)


def _is_filled(pipe: int) -> bool:
    """Whether there is something in it."""
    return any(ioctl(pipe, FIONREAD, bytes(4)))
