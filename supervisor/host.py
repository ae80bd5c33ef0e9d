"""What the host gives to all units: cgroups and the kernel's log, or the reasons why not."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import ExitStack
from typing import Literal

import trio
from msgspec import Struct

from .cgroups import CgroupEvents, CgroupLimits, CgroupTree, Leaf, NoCgroups, units_name
from .cgroups.mounts import OwnCgroups
from .errors import LimitUnavailable
from .launch import Launchers
from .oom import KernelLog
from .poller import Poller
from .prepared import Parking, PreparedLaunch
from .reaper import Children, Reaper
from .shortages import resource_error
from .spec import Limits

_NO_LIMITS = CgroupLimits()


class Capabilities(Struct, frozen=True, kw_only=True):
    """What this supervisor can do on this host.

    Attributes:
      cgroups: version of the controllers, 1 in a hybrid host; None for no
        cgroups, where a process that leaves its session, its parent and its
        environment escapes, and nothing tells who was killed for memory.
      no_cgroups_because: why there are none.
      controllers: those that can limit units.
      other_users: whether processes may run as another user.
      kernel_log: whether the kernel's log tells who was killed for memory.
    """

    cgroups: Literal[1, 2] | None
    no_cgroups_because: str | None
    controllers: tuple[str, ...]
    other_users: bool
    kernel_log: bool


class Host:
    """Opens what there is. A context manager that owns it.

    Args:
      name: of this supervisor, unique.
      use_cgroups: whether to look for cgroups at all.
      parked_launchers: how many launches are kept prepared.
      lock: of its cgroups, if an earlier supervisor of this name has left some.
      found_in: where that was.
      subreaper: whether to take orphans in.
      sole_parent: whether nothing is started here but by this supervisor.

    Raises:
      RuntimeError: `subreaper` outside the main thread.
    """

    def __init__(
        self,
        name: str,
        *,
        use_cgroups: bool,
        parked_launchers: int,
        subreaper: bool,
        sole_parent: bool,
        lock: int | None = None,
        found_in: OwnCgroups | None = None,
    ) -> None:
        self._name = name
        self._lock = lock
        self._found_in = found_in
        self._use_cgroups = use_cgroups
        self._stack = ExitStack()
        self._tree: CgroupTree | None = None
        self.children = Children()
        self.poller = Poller()
        self._reaper: Reaper | None = None
        if subreaper:
            self._reaper = Reaper(self.children, units_name(name), sole_parent=sole_parent)
        self.launchers = Launchers(self.children)
        self.parking = Parking(parked_launchers, self._fresh_leaf, self.launchers, self.poller)
        self._no_cgroups_because: str | None = "they are switched off"

    def __enter__(self) -> Host:
        with ExitStack() as stack:
            stack.enter_context(self.poller)
            stack.enter_context(self.launchers)
            if self._reaper is not None:
                stack.enter_context(self._reaper)
            self.kernel_log = stack.enter_context(
                KernelLog(from_its_beginning=self._lock is not None)
            )
            if self._use_cgroups:
                try:
                    self.events = stack.enter_context(CgroupEvents())
                    self._tree = stack.enter_context(
                        CgroupTree(self._name, self.events, self._lock, self._found_in)
                    )
                    self._no_cgroups_because = None
                except NoCgroups as error:
                    self._no_cgroups_because = str(error)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def lock(self) -> int | None:
        """The descriptor that locks the units' cgroups; None where there are none."""
        return None if self._tree is None else self._tree.lock

    @property
    def own_cgroups(self) -> OwnCgroups | None:
        """Where the units' cgroups are; None where there are none."""
        return None if self._tree is None else self._tree.own

    def leaf_of(self, name: str, limits: Limits) -> Leaf | None:
        """The cgroup of that name that an earlier supervisor has left, for a process with these limits."""
        leaf = None if self._tree is None else self._tree.leaf_of(name)
        if leaf is not None:
            leaf.take_over(watch_ooms=limits.memory_bytes is not None)
        return leaf

    async def kill_strangers(self, known: Collection[str]) -> None:
        """Kill what an earlier supervisor has left, but for what is in cgroups with these names."""
        if self._tree is not None:
            await self._tree.kill_strangers(known)

    @property
    def has_cgroups(self) -> bool:
        """Whether every unit gets a cgroup."""
        return self._tree is not None

    @property
    def capabilities(self) -> Capabilities:
        """What this host allows."""
        tree = self._tree
        return Capabilities(
            cgroups=None if tree is None else tree.version,
            no_cgroups_because=self._no_cgroups_because,
            controllers=() if tree is None else tuple(sorted(tree.controllers)),
            other_users=os.geteuid() == 0,
            kernel_log=self.kernel_log.readable,
        )

    def leave(self) -> None:
        """Leave what belongs to units where it is, for a later supervisor."""
        if self._tree is not None:
            self._tree.leave()

    async def run(self) -> None:
        """The host's own task, beside the poller's: orphans, events of cgroups, parking, what dead supervisors have left."""
        async with trio.open_nursery() as nursery:
            if self._reaper is not None:
                nursery.start_soon(self._reaper.run)
            if self._tree is not None:
                nursery.start_soon(self.events.run)
                nursery.start_soon(self._tree.sweep)
                nursery.start_soon(self._tree.removals.run)
            nursery.start_soon(self.parking.run)

    def start_is_over(self) -> None:
        """Make up for what a start has taken, now that it is not in its way."""
        self.parking.refill()

    def take_parked(self, limits: Limits) -> PreparedLaunch | None:
        """A launch that was parked, with these limits; None where none is right.

        Raises: as `take_leaf`.
        """
        wanted = _of_cgroup(limits)
        if self._tree is None and wanted != _NO_LIMITS:
            return None
        try:
            return self.parking.take(wanted)
        except OSError as error:
            raise resource_error(error) from error

    def take_leaf(self, limits: Limits) -> Leaf | None:
        """A cgroup with these limits, which becomes the caller's; None where there are none.

        Raises:
          LimitUnavailable: a limit cannot be set here.
          LaunchError: it cannot be made now.
        """
        wanted = _of_cgroup(limits)
        leaf = self._fresh_leaf()
        if leaf is None:
            if wanted != _NO_LIMITS:
                raise LimitUnavailable(
                    f"there are no cgroups for this limit: {self._no_cgroups_because}",
                    field="limits",
                )
            return None
        if wanted != _NO_LIMITS:
            with ExitStack() as on_failure:
                on_failure.enter_context(leaf)
                try:
                    leaf.limit(wanted)
                except OSError as error:
                    raise resource_error(error) from error
                on_failure.pop_all()
        return leaf

    def _fresh_leaf(self) -> Leaf | None:
        return None if self._tree is None else self._tree.fresh_leaf()


def _of_cgroup(limits: Limits) -> CgroupLimits:
    return CgroupLimits(
        memory_bytes=limits.memory_bytes,
        memory_swap_bytes=limits.memory_swap_bytes,
        cpu_cores=limits.cpu,
        pids=limits.pids,
        io_weight=limits.io_weight,
    )
