"""What the host gives to all units: cgroups and the kernel's log, or the reasons why not."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Literal

import trio
from msgspec import Struct

from .cgroups import CgroupEvents, CgroupLimits, CgroupTree, FreshLeaf, LeafStock, NoCgroups
from .errors import LimitUnavailable
from .launch import resource_error
from .oom import KernelLog
from .prepared import Parking, PreparedLaunch
from .spec import Limits

_NO_LIMITS = CgroupLimits()
_LEAVES_IN_STOCK = 8


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
    """

    def __init__(self, name: str, *, use_cgroups: bool, parked_launchers: int) -> None:
        self._name = name
        self._use_cgroups = use_cgroups
        self._stack = ExitStack()
        self._tree: CgroupTree | None = None
        self._leaves: LeafStock | None = None
        self.parking = Parking(parked_launchers, self._take_leaf_to_park)
        self._no_cgroups_because: str | None = "they are switched off"

    def __enter__(self) -> Host:
        with ExitStack() as stack:
            self.kernel_log = stack.enter_context(KernelLog())
            if self._use_cgroups:
                try:
                    self.events = stack.enter_context(CgroupEvents())
                    self._tree = stack.enter_context(CgroupTree(self._name, self.events))
                    self._leaves = stack.enter_context(LeafStock(self._tree, _LEAVES_IN_STOCK))
                    self._no_cgroups_because = None
                except NoCgroups as error:
                    self._no_cgroups_because = str(error)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

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

    async def run(self) -> None:
        """The host's own task: events of cgroups, stocks, and what dead supervisors have left."""
        async with trio.open_nursery() as nursery:
            if self._tree is not None and self._leaves is not None:
                nursery.start_soon(self.events.run)
                nursery.start_soon(self._tree.sweep)
                nursery.start_soon(self._tree.removals.run)
                nursery.start_soon(self._leaves.run)
            nursery.start_soon(self.parking.run)

    def start_is_over(self) -> None:
        """Make up for what a start has taken, now that it is not in its way."""
        if self._leaves is not None:
            self._leaves.refill()
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

    def take_leaf(self, limits: Limits) -> FreshLeaf | None:
        """A fresh cgroup with these limits, which becomes the caller's; None where there are none.

        Raises:
          LimitUnavailable: a limit cannot be set here.
          LaunchError: it cannot be made now.
        """
        wanted = _of_cgroup(limits)
        if self._leaves is None:
            if wanted != _NO_LIMITS:
                raise LimitUnavailable(
                    f"there are no cgroups for this limit: {self._no_cgroups_because}",
                    field="limits",
                )
            return None
        try:
            fresh = self._leaves.take()
            if wanted != _NO_LIMITS:
                try:
                    fresh.leaf.limit(wanted)
                except BaseException:
                    with fresh.leaf, fresh.closes_joins:
                        raise
        except OSError as error:
            raise resource_error(error) from error
        return fresh

    def _take_leaf_to_park(self) -> FreshLeaf | None:
        return None if self._leaves is None else self._leaves.take()


def _of_cgroup(limits: Limits) -> CgroupLimits:
    return CgroupLimits(
        memory_bytes=limits.memory_bytes,
        memory_swap_bytes=limits.memory_swap_bytes,
        cpu_cores=limits.cpu,
        pids=limits.pids,
        io_weight=limits.io_weight,
    )
