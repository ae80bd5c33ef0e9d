"""One epoll for the pipes and the leaders of all processes, so that none needs a descriptor to wait with."""

from __future__ import annotations

import select
from collections.abc import Callable

import trio

_MOST_AT_ONCE = 256


class Poller:
    """Tells when descriptors become ready. A context manager; a task must `run` it.

    Each is told of once, and again when more has come (EPOLLET, epoll(7)): whoever
    is told must remember it until nothing is left there, and may take its time. The
    order is the one in which they became ready: the epoll's ready list is a queue.
    """

    __slots__ = ("_epoll", "_told")

    def __init__(self) -> None:
        self._epoll = select.epoll(select.EPOLL_CLOEXEC)
        self._told: dict[int, Callable[[int, int], None]] = {}

    def __enter__(self) -> Poller:
        return self

    def __exit__(self, *_: object) -> None:
        self._told.clear()
        self._epoll.close()

    # All processes depend on what is below, also while a Ctrl-C ends them.

    @trio.lowlevel.enable_ki_protection
    def add(self, descriptor: int, told: Callable[[int, int], None]) -> None:
        """Watch a descriptor until it is removed, which comes before it is closed: others may have its file, too.

        Args:
          told: is called with it and its events (epoll_ctl(2)); must not raise.

        Raises:
          OSError: no more can be watched.
        """
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLET)
        self._told[descriptor] = told

    @trio.lowlevel.enable_ki_protection
    def remove(self, descriptor: int) -> None:
        """Watch it no longer, if it is watched."""
        if self._told.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def mute(self, descriptor: int) -> None:
        """Tell of nothing there, but of its end, until `unmute`."""
        self._epoll.modify(descriptor, select.EPOLLET)

    def unmute(self, descriptor: int) -> None:
        """Tell of it again, first of what is there already."""
        self._epoll.modify(descriptor, select.EPOLLIN | select.EPOLLET)

    @trio.lowlevel.enable_ki_protection
    def poll(self) -> None:
        """Tell of what is ready now."""
        for descriptor, event in self._epoll.poll(0, _MOST_AT_ONCE):
            self._told[descriptor](descriptor, event)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Tell of what becomes ready, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self.poll()
