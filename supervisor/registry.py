"""Which processes are remembered, how they are found, and when they are forgotten.

Running processes are always remembered. Finished ones form a queue in the
order of their ends, and the oldest of it are forgotten as soon as the queue
exceeds the retention in number, age or bytes of output.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import trio
from msgspec import Struct

from .errors import PidReused, ProcessNotFound
from .process import Process


class Retention(Struct, frozen=True, kw_only=True):
    """How long finished processes stay readable: until the first bound that they exceed.

    Attributes:
      count: how many finished processes are kept.
      seconds: how long after its end one is kept, or None for no bound.
      output_bytes: how many bytes of output all finished ones keep together.
    """

    count: int = 10_000
    seconds: float | None = 3600.0
    output_bytes: int = 256 * 1024 * 1024


class _Finished(NamedTuple):
    process: Process
    expires_at: float
    output_bytes: int


class Registry:
    """The processes of one supervisor, by handle, by pid and by key.

    Args:
      retention: of those that have ended.

    Attributes:
      forgotten: if set, is called with the handle of each that is remembered no longer.
    """

    def __init__(self, retention: Retention) -> None:
        self._retention = retention
        self.forgotten: Callable[[int], None] | None = None
        self._by_key: dict[str, Process] = {}
        self._by_handle: dict[int, Process] = {}
        self._newest_by_pid: dict[int, Process] = {}
        self._finished: deque[_Finished] = deque()
        self._finished_bytes = 0
        self._total = 0
        self._expiry_changed = trio.lowlevel.ParkingLot()

    def __iter__(self) -> Iterator[Process]:
        """All remembered processes, oldest first."""
        return iter(self._by_handle.values())

    @property
    def total(self) -> int:
        """How many processes have ever been started."""
        return self._total

    @property
    def running(self) -> int:
        """How many processes are running."""
        return len(self._by_handle) - len(self._finished)

    def by_handle(self, handle: int) -> Process:
        """The process with that handle.

        Raises:
          ProcessNotFound: there is none, or it has been forgotten.
        """
        try:
            return self._by_handle[handle]
        except KeyError:
            raise ProcessNotFound(f"no process has handle {handle}") from None

    def by_pid(self, pid: int, *, handle: int | None = None) -> Process:
        """The newest process that had this pid.

        Args:
          handle: the process that the caller means, if it wants to be sure.

        Raises:
          ProcessNotFound: there is none, or it has been forgotten.
          PidReused: there is one, but its handle is another.
        """
        process = self._newest_by_pid.get(pid)
        if process is None:
            raise ProcessNotFound(f"no process has pid {pid}")
        if handle is not None and process.handle != handle:
            raise PidReused(f"pid {pid} now belongs to handle {process.handle}, not {handle}")
        return process

    def add(self, process: Process) -> None:
        """Remember a process that has just been started."""
        self._total += 1
        self._by_handle[process.handle] = process
        self._newest_by_pid[process.pid] = process
        if process.key is not None:
            self._by_key[process.key] = process

    def find(self, handle: int) -> Process | None:
        """The process with that handle, if it is remembered."""
        return self._by_handle.get(handle)

    def by_key(self, key: str) -> Process | None:
        """The process that a request with this key has started, if it is remembered."""
        return self._by_key.get(key)

    def finished(self, process: Process, *, seconds_ago: float = 0.0) -> None:
        """Put a process that has ended, so long ago, under the retention."""
        seconds = self._retention.seconds
        expires_at = float("inf")
        if seconds is not None:
            expires_at = trio.current_time() + seconds - seconds_ago
        size = process.log.kept_bytes
        was_empty = not self._finished
        self._finished.append(_Finished(process, expires_at, size))
        self._finished_bytes += size
        while self._finished and (
            len(self._finished) > self._retention.count
            or self._finished_bytes > self._retention.output_bytes
        ):
            self._forget_oldest()
        if was_empty:
            self._expiry_changed.unpark_all()

    async def expire(self) -> None:
        """A task that forgets processes as they come of age; it never returns."""
        while True:
            if self._finished:
                await trio.sleep_until(self._finished[0].expires_at)
                while self._finished and self._finished[0].expires_at <= trio.current_time():
                    self._forget_oldest()
            else:
                await self._expiry_changed.park()

    def _forget_oldest(self) -> None:
        process, _, size = self._finished.popleft()
        self._finished_bytes -= size
        del self._by_handle[process.handle]
        if self._newest_by_pid.get(process.pid) is process:
            del self._newest_by_pid[process.pid]
        if process.key is not None and self._by_key.get(process.key) is process:
            del self._by_key[process.key]
        if self.forgotten is not None:
            self.forgotten(process.handle)
