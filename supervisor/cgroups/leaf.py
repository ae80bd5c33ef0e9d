"""A leaf: the cgroup of one unit, made fresh and removed with it.

Membership, killing and freezing are the version 2 hierarchy's, everywhere.
Limits and counters are those of whatever controllers the host has: in the same
directory (version 2), or in directories of their own (version 1, in a hybrid
host). `Controllers` is what the two have in common.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Protocol

import trio
from msgspec import Struct

from ..descriptors import beyond_the_limit
from ..errors import LimitUnavailable
from ..record import Usage
from . import files
from .events import CgroupEvents
from .removal import Removals

_logger = logging.getLogger(__name__)

# Between two looks at what nobody tells of.
_UNTOLD_SECONDS = 0.01


class CgroupLimits(Struct, frozen=True, kw_only=True):
    """The limits that controllers set; None leaves one as it is inherited.

    Attributes:
      memory_bytes: of the whole unit; beyond it the kernel kills.
      memory_swap_bytes: of swap, on top of that.
      cpu_cores: processors' worth of time.
      pids: processes and threads of the unit.
      io_weight: share of the disks' time, 1 to 10,000; 100 by default.
    """

    memory_bytes: int | None = None
    memory_swap_bytes: int | None = None
    cpu_cores: float | None = None
    pids: int | None = None
    io_weight: int | None = None


class Controllers(Protocol):
    """One unit's part of the controllers: limits and counters.

    Making one makes no directory.
    """

    watch_costs_a_descriptor: bool
    """Whether being told of kills for memory is only worth it where memory is limited."""

    def set_limits(self, limits: CgroupLimits) -> None:
        """Set what is not None, and make what directories that takes, but for the membership's.

        FileNotFoundError where a controller is missing.
        """

    def needs_directories_for(self, limits: CgroupLimits) -> bool:
        """Whether setting these limits would add to `directories`."""

    def find_directories(self) -> None:
        """Know those that are there already."""

    def directories(self) -> list[str]:
        """The directories that the unit's processes must join, besides the membership's."""

    def oom_kills(self) -> int:
        """How many times the kernel has killed in this unit for memory."""

    def usage(self) -> Usage:
        """What the unit has used so far."""

    def watch_ooms(
        self, stack: ExitStack, events: CgroupEvents, happened: Callable[[], None]
    ) -> None:
        """Call `happened` at every kill for memory, until the stack ends."""


class Leaf:
    """The cgroup of one unit. A context manager that owns it, and has it removed when it is empty.

    Whoever joins first makes its directories, unless a limit had to be set before.

    Args:
      directory: in the version 2 hierarchy.
      controllers: the unit's part of them.
      events: who tells of changes.
      removals: who removes it.
    """

    __slots__ = (
        "_changes",
        "_controllers",
        "_directory",
        "_events",
        "_is_left",
        "_is_over",
        "_is_to_freeze",
        "_oom_happened",
        "_removals",
        "_watches",
    )

    def __init__(
        self,
        directory: str,
        controllers: Controllers,
        events: CgroupEvents,
        removals: Removals,
    ) -> None:
        self._removals = removals
        self._directory = directory
        self._controllers = controllers
        self._events = events
        self._oom_happened = False
        self._is_left = False
        self._is_over = False
        self._is_to_freeze = False
        self._changes = trio.lowlevel.ParkingLot()
        self._watches = ExitStack()

    def _watch_ooms(self) -> None:
        self._controllers.watch_ooms(self._watches, self._events, self._note_oom)

    def __enter__(self) -> Leaf:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._changes.unpark_all()
        self._watches.close()
        if not self._is_left:
            self._removals.add(self.directories)

    def leave(self) -> None:
        """Leave it where it is, for a later supervisor."""
        self._is_left = True

    def limit(self, limits: CgroupLimits) -> None:
        """Set limits, before anyone has joined.

        Raises:
          LimitUnavailable: a controller is missing, or the kernel does not take the value.
          OSError: something has run short.
        """
        try:
            with suppress(FileExistsError):
                os.mkdir(self._directory)
            self._controllers.set_limits(limits)
            if limits.memory_bytes is not None and self._controllers.watch_costs_a_descriptor:
                self._watch_ooms()
        except FileNotFoundError as error:
            raise LimitUnavailable(
                f"the controller for a limit is not available here: {error}", field="limits"
            ) from error
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ERANGE, errno.EBUSY):
                raise
            raise LimitUnavailable(
                f"the kernel does not take a limit: {error}", field="limits"
            ) from error

    def needs_joins_for(self, limits: CgroupLimits) -> bool:
        """Whether whoever has joined already would have to join more for these limits."""
        return self._controllers.needs_directories_for(limits)

    @property
    def name(self) -> str:
        """Its name among the leaves of its supervisor."""
        return os.path.basename(self._directory)

    def take_over(self, *, watch_ooms: bool) -> None:
        """Know what an earlier supervisor has set up here."""
        self._controllers.find_directories()
        if watch_ooms or not self._controllers.watch_costs_a_descriptor:
            self._watch_ooms()

    @property
    def directories(self) -> tuple[str, ...]:
        """What its processes must join, and the first of them make, if it is not there."""
        return (*self._controllers.directories(), self._directory)

    def joined(self) -> None:
        """It has a member, and so it is there. Raises nothing: the member is there, too."""
        if not self._controllers.watch_costs_a_descriptor:
            try:
                self._watch_ooms()
            except OSError as error:
                _logger.info("%s: kills for memory are not told: %s", self._directory, error)
                self._oom_happened = True  # So whoever asks looks.

    def _note_oom(self) -> None:
        # No more than a note: version 1 tells at the beginning of an out of
        # memory, when the kill has not been counted yet.
        self._oom_happened = True

    def oom_kills(self) -> int:
        """How many times the kernel has killed in this unit for memory, read now."""
        return self._controllers.oom_kills()

    def oom_kills_if_told(self) -> int:
        """The same, but read only if the kernel has told of any."""
        return self._controllers.oom_kills() if self._oom_happened else 0

    def usage(self) -> Usage:
        """What the unit has used so far."""
        return self._controllers.usage()

    def member_count(self) -> int:
        """How many processes are alive in it, cgroups below it included."""
        count = 0
        with beyond_the_limit():  # Without a descriptor, os.walk would find nothing.
            for directory, _, _ in os.walk(self._directory):
                try:
                    count += files.read(f"{directory}/cgroup.procs").count("\n")
                except OSError as error:
                    # One that a member has removed since, or made a threaded one
                    # (EOPNOTSUPP), whose processes are counted above it.
                    if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
                        raise
        return count

    def is_empty(self) -> bool:
        """Whether nothing in it is alive; zombies do not count."""
        return self._event("populated") == 0

    def kill(self) -> None:
        """SIGKILL to all members at once, whatever they are forking (Linux 5.14)."""
        files.write(f"{self._directory}/cgroup.kill", 1)

    async def wait_until_empty(self) -> None:
        """Wait until nothing in it is alive."""
        await self._wait_while(lambda: not self.is_empty())

    async def freeze(self, frozen: bool) -> None:
        """Stop all members where they are, or let them go on; returns when that is so.

        Or when the other has been asked for since, or the unit is over.
        """

        def is_awaited() -> bool:
            return self._is_to_freeze == frozen and self._event("frozen") != frozen

        files.write(f"{self._directory}/cgroup.freeze", int(frozen))
        self._is_to_freeze = frozen
        self._changes.unpark_all()  # Who waits for the other would wait for ever.
        await self._wait_while(is_awaited)

    async def _wait_while(self, is_so: Callable[[], bool]) -> None:
        with ExitStack() as stack:
            try:
                path = f"{self._directory}/cgroup.events"
                stack.enter_context(self._events.watch(path, self._changes.unpark_all))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                # The user may watch no more files (inotify(7)), so nobody tells.
                while not self._is_over and is_so():  # noqa: ASYNC110
                    await trio.sleep(_UNTOLD_SECONDS)
                return
            while not self._is_over and is_so():
                await self._changes.park()

    def _event(self, key: str) -> int | None:
        return files.number(files.read(f"{self._directory}/cgroup.events"), key)
