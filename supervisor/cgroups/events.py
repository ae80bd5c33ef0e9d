"""Changes of all cgroups' event files: one inotify descriptor, one task.

The kernel reports a change of `cgroup.events` and `memory.events` as a
modification of the file (kernel, cgroup-v2.rst), so inotify(7) can watch any
number of them through one descriptor. Version 1 has no such file for out of
memory, but signals an eventfd (kernel, cgroup-v1/memory.rst); those sit in the
same epoll.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import trio

_IN_MODIFY = 0x2
_IN_Q_OVERFLOW = 0x4000
_EVENT = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


class CgroupEvents:
    """Calls back when a watched file changes. A context manager that owns its descriptors.

    A task must `run` it. A callback must not raise.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)  # Closed with its object.
        self._inotify = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            self._epoll.register(self._inotify, select.EPOLLIN)
        except OSError:
            os.close(self._inotify)
            raise
        self._by_watch: dict[int, list[Callable[[], object]]] = {}
        self._by_eventfd: dict[int, Callable[[], object]] = {}

    def __enter__(self) -> CgroupEvents:
        return self

    def __exit__(self, *_: object) -> None:
        self._epoll.close()
        os.close(self._inotify)

    @contextmanager
    def watch(self, path: str, changed: Callable[[], object]) -> Iterator[None]:
        """Call `changed` whenever the file at `path` has changed, within this block.

        Raises:
          OSError: there is no such file, or no more can be watched.
        """
        watch = _checked(_libc.inotify_add_watch(self._inotify, os.fsencode(path), _IN_MODIFY))
        # The same for all who watch this file (inotify_add_watch(2)).
        told = self._by_watch.setdefault(watch, [])
        told.append(changed)
        try:
            yield
        finally:
            told.remove(changed)
            if not told:
                del self._by_watch[watch]
                # Fails if the file has gone, and its watch with it.
                _libc.inotify_rm_watch(self._inotify, watch)

    @contextmanager
    def watch_oom_control(self, directory: str, happened: Callable[[], object]) -> Iterator[None]:
        """Call `happened` at every out of memory in a version 1 memory cgroup, within this block.

        Also when the cgroup is removed.

        Raises:
          OSError: no descriptors are left, or the cgroup has gone.
        """
        event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                with open(f"{directory}/cgroup.event_control", "w") as file:
                    file.write(f"{event} {control}")
            finally:
                os.close(control)
            self._epoll.register(event, select.EPOLLIN)
            self._by_eventfd[event] = happened
            try:
                yield
            finally:
                del self._by_eventfd[event]
                # Not left to the closing: whoever this program has forked may hold a
                # copy, and then the removal of the cgroup would be told for ever.
                self._epoll.unregister(event)
        finally:
            os.close(event)

    async def run(self) -> None:
        """Wait for changes and call back, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for descriptor, _ in self._epoll.poll(0):
                if descriptor == self._inotify:
                    self._read_inotify()
                elif happened := self._by_eventfd.get(descriptor):
                    # Empty if the event was that of a predecessor, closed
                    # since, whose number this one has.
                    with suppress(BlockingIOError):
                        os.eventfd_read(descriptor)
                        happened()

    def _read_inotify(self) -> None:
        data = os.read(self._inotify, 65536)
        changed: dict[int, None] = {}
        for offset in _offsets(data):
            watch, mask, _, _ = _EVENT.unpack_from(data, offset)
            if mask & _IN_Q_OVERFLOW:
                # Some events were lost: anything may have changed.
                changed = dict.fromkeys(self._by_watch)
                break
            if mask & _IN_MODIFY:
                changed[watch] = None
        for watch in changed:
            for callback in self._by_watch.get(watch, ()):
                callback()


def _offsets(data: bytes) -> Iterator[int]:
    offset = 0
    while offset < len(data):
        yield offset
        offset += _EVENT.size + int(_EVENT.unpack_from(data, offset)[3])


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
