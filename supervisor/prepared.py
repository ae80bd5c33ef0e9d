"""Prepared launches: everything that a process needs before its orders, in one go, ahead of need if wanted.

A prepared launch is a spawned launcher with its output pipes and its cgroup. A start
that takes one that was parked pays neither for the fork, nor for the hop to a thread
and back, nor for joining the cgroup (whose first join after a quiet time waits
some 8 ms for the kernel). Its stdin comes with its orders, since most want none.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import trio

from .capture import Capture
from .cgroups import CgroupLimits, Leaf
from .errors import LaunchError
from .launch import Launcher, Launchers
from .poller import Poller
from .shortages import resource_error
from .spec import ProcessSpec

if TYPE_CHECKING:
    from .survival import Survival

_logger = logging.getLogger(__name__)

_EVERY_STREAM = ProcessSpec(command="parked")

# A spawn takes as much as a start. It waits until nothing has been started for so
# long, to be in the way neither of what has been nor of the next; unless half are gone.
_QUIET_SECONDS = 0.005


class PreparedLaunch(NamedTuple):
    """A spawned launcher, with its output pipes and its cgroup.

    Attributes:
      launcher: to be given its orders, or dismissed.
      capture: our ends of its output pipes.
      leaf: its cgroup, or None.
      resources: owns all of these but the launcher.
      kept: the keeper's key of their descriptors, if it has them.
    """

    launcher: Launcher
    capture: Capture
    leaf: Leaf | None
    resources: ExitStack
    kept: int | None = None

    def fit(self, spec: ProcessSpec) -> None:
        """Close our ends of the pipes that the spec does not want."""
        if spec.stdout_mode == "discard":
            self.capture.close_stream("stdout")
        if spec.stderr_mode == "discard":
            self.capture.close_stream("stderr")

    async def dismiss(self) -> None:
        """Give it up, unused."""
        with self.resources:
            await self.launcher.dismiss()


async def prepare(
    spec: ProcessSpec, leaf: Leaf | None, launchers: Launchers, poller: Poller
) -> PreparedLaunch:
    """Make the pipes that `spec` wants for its output, and spawn a launcher.

    Args:
      leaf: its cgroup, which is owned here from now on, also if this fails.
      launchers: where it comes from.
      poller: tells when there is something in the pipes.

    Raises:
      LaunchError: nothing is left.
    """
    with ExitStack() as ours, ExitStack() as the_childs:

        def childs(descriptor: int) -> int:
            the_childs.callback(os.close, descriptor)
            return descriptor

        if leaf is not None:
            ours.enter_context(leaf)
        try:
            capture = ours.enter_context(Capture(poller))
            stdout_end = stderr_end = subprocess.DEVNULL
            if spec.stdout_mode == "capture":
                stdout_end = childs(capture.open("stdout"))
            if spec.stderr_mode == "capture":
                stderr_end = childs(capture.open("stderr"))
        except OSError as error:
            raise resource_error(error) from error
        launcher = await launchers.spawn(
            cgroups=() if leaf is None else leaf.directories, stdout=stdout_end, stderr=stderr_end
        )
        return PreparedLaunch(launcher, capture, leaf, ours.pop_all())


class _Parked(NamedTuple):
    launch: PreparedLaunch
    # In which it is, which is not always where we were before or after: device and inode.
    directory: tuple[int, int] | None


class Parking:
    """Launches that were prepared for no spec in particular. A task must `run` it.

    A parked launcher has inherited what the program was when it was parked. One
    that was parked in another directory is not used; other changes of the
    program's own process (umask, limits, niceness) reach only later ones.

    Args:
      size: how many are kept; 0 for none.
      take_leaf: where their cgroups come from.
      launchers: where they themselves do.
      poller: tells when there is something in their pipes.
    """

    def __init__(
        self,
        size: int,
        take_leaf: Callable[[], Leaf | None],
        launchers: Launchers,
        poller: Poller,
    ) -> None:
        self._size = size
        self._take_leaf = take_leaf
        self._launchers = launchers
        self._poller = poller
        self._parked: deque[_Parked] = deque()
        self._unusable: list[PreparedLaunch] = []
        self._refill = trio.lowlevel.ParkingLot()
        self._quiet_at = -math.inf
        self._survival: Survival | None = None
        self._is_held_back = False

    def hold_back(self) -> None:
        """Park nothing until `survive`: descriptors are for what is being taken over first."""
        self._is_held_back = True

    def survive(self, survival: Survival) -> None:
        """From now on have the keeper know of what is parked: that is not to be in a start's way either."""
        self._survival = survival
        self._is_held_back = False
        self._refill.unpark_all()

    @property
    def has_some(self) -> bool:
        """Whether any is parked."""
        return bool(self._parked)

    def take(self, limits: CgroupLimits) -> PreparedLaunch | None:
        """One that waits for orders, with these limits; None if there is none.

        Raises:
          LimitUnavailable: a limit cannot be set here.
          OSError: something has run short.
        """
        directory = _directory(".") if self._parked else None
        while self._parked:
            parked = self._parked.popleft()
            prepared, leaf = parked.launch, parked.launch.leaf
            if parked.directory != directory:
                self._unusable.append(prepared)
                continue
            if leaf is not None and limits != CgroupLimits():
                if leaf.needs_joins_for(limits):
                    self._parked.appendleft(parked)
                    return None
                try:
                    leaf.limit(limits)
                except BaseException:
                    self._unusable.append(prepared)
                    raise
            return prepared
        return None

    def refill(self) -> None:
        """Park more soon: to be called when a start is over, and not to be in its way."""
        self._quiet_at = trio.current_time() + _QUIET_SECONDS
        if len(self._parked) < self._size or self._unusable:
            self._refill.unpark_all()

    async def run(self) -> None:
        """Keep launchers parked, until cancelled; then dismiss them."""
        try:
            while True:
                while self._unusable:
                    await self._dismiss(self._unusable.pop())
                if self._is_held_back or len(self._parked) == self._size:
                    await self._refill.park()
                elif len(self._parked) > self._size // 2 and trio.current_time() < self._quiet_at:
                    with trio.CancelScope(deadline=self._quiet_at):
                        await self._refill.park()
                elif not await self._park():
                    await self._refill.park()
        finally:
            for prepared in (*(parked.launch for parked in self._parked), *self._unusable):
                await self._dismiss(prepared)

    async def _park(self) -> bool:
        """Park one more; whether that could be done."""
        try:
            prepared = await prepare(
                _EVERY_STREAM, self._take_leaf(), self._launchers, self._poller
            )
            if self._survival is not None:
                prepared = prepared._replace(kept=self._survival.park(prepared))
            directory = _directory(f"/proc/{prepared.launcher.leader.pid}/cwd")
            self._parked.append(_Parked(prepared, directory))
        except (LaunchError, OSError) as error:
            # Whoever starts a process now gets this error too.
            _logger.info("no launcher can be parked: %s", error)
            return False
        return True

    async def _dismiss(self, prepared: PreparedLaunch) -> None:
        if self._survival is not None and prepared.kept is not None:
            self._survival.drop(prepared.kept)
        await prepared.dismiss()


def _directory(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino)
