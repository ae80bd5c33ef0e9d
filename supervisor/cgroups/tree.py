"""The supervisor's own part of the cgroup tree: found at the start, removed at the end.

    own cgroup/                 where the supervisor was started
    ├── creche-daemon/          the supervisor itself, if it had to move (below)
    └── creche-3f2a…/           the units of one supervisor; locked while it lives
        ├── 1/                  a leaf
        └── 2/

Version 2 gives controllers only to the children of a cgroup without processes
of its own (kernel, cgroup-v2.rst, "No Internal Process Constraint"). So where
the own cgroup refuses to pass its controllers on, its processes move into a
leaf beside the units. The root of a host is exempt from that rule.

In a hybrid host the limits are version 1's, and each of its hierarchies that is
needed has the same units' directory under the supervisor's own cgroup there.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import os
import secrets
from collections.abc import Collection
from contextlib import ExitStack, suppress
from typing import Literal

from ..descriptors import beyond_the_limit
from ..shortages import SHORTAGES
from . import files
from .events import CgroupEvents
from .leaf import Controllers, Leaf
from .mounts import OwnCgroups, find_own_cgroups
from .removal import Removals, remove_tree
from .version1 import Version1Controllers
from .version2 import Version2Controllers

_logger = logging.getLogger(__name__)

_PREFIX = "creche-"
_DAEMON = "creche-daemon"
_CONTROLLERS = ("memory", "pids", "cpu", "io")
_VERSION1_NAMES = {"io": "blkio"}


class NoCgroups(Exception):
    """There can be no cgroups here; the message says why."""


def units_name(supervisor: str) -> str:
    """The name of the directory with the units of the supervisor of that name."""
    return _PREFIX + supervisor


class CgroupTree:
    """Makes the leaves of one supervisor. A context manager that owns the units' directories.

    Args:
      name: of this supervisor, unique.
      events: who tells of changes.
      lock: of the units' directory, owned here from now on, if an earlier
        supervisor of this name has left both.
      found_in: where it was, which need not be where this one is.

    Raises:
      NoCgroups: the kernel, the mounts or the permissions do not allow it.
      OSError: something has run short.

    Attributes:
      own: where this supervisor was started, or the one before it.
      version: of the controllers: `2`, or `1` in a hybrid host.
      controllers: those that can limit, by their version 2 names.
      removals: of its leaves.
    """

    def __init__(
        self,
        name: str,
        events: CgroupEvents,
        lock: int | None = None,
        found_in: OwnCgroups | None = None,
    ) -> None:
        own = find_own_cgroups()
        if own.unified is not None and os.path.basename(own.unified) == _DAEMON:
            own = own._replace(unified=os.path.dirname(own.unified))
        if found_in is not None and os.path.exists(f"{found_in.unified}/{units_name(name)}"):
            own = found_in
        if own.unified is None:
            raise NoCgroups("no cgroup version 2 hierarchy is mounted")
        self.own = own
        self._events = events
        self._name = units_name(name)
        self._names = itertools.count(1)
        self._is_left = False
        self._base = own.unified
        self._units = f"{self._base}/{self._name}"
        # Of the names of leaves, which an earlier supervisor has used up.
        self._prefix = f"{secrets.token_hex(3)}-" if os.path.exists(self._units) else ""
        self.removals = Removals()
        self._stack = ExitStack()
        self._version1_parents: dict[str, str] = {}
        self.version: Literal[1, 2] = 2
        self.controllers: frozenset[str]
        with ExitStack() as stack:
            try:
                self.lock = self._make_units(stack, lock)
                if not os.path.exists(f"{self._units}/cgroup.kill"):
                    raise NoCgroups("the kernel has no cgroup.kill (Linux 5.14)")
                self.controllers = self._enable_controllers()
                if "memory" not in self.controllers and "memory" in own.by_controller:
                    self._make_version1_parents(own.by_controller, stack)
            except OSError as error:
                if error.errno in SHORTAGES:
                    raise
                raise NoCgroups(f"{error.filename}: {error.strerror}") from error
            self._stack = stack.pop_all()

    def __enter__(self) -> CgroupTree:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_left:
            self._stack.pop_all()
            os.close(self.lock)
        self._stack.close()

    def leave(self) -> None:
        """Leave the units where they are, for a later supervisor."""
        self._is_left = True

    def fresh_leaf(self) -> Leaf:
        """A new leaf: a reused one would keep old counters, and late events of its predecessor."""
        return self._leaf(f"{self._prefix}{next(self._names)}")

    def leaf_of(self, name: str) -> Leaf | None:
        """The leaf of that name that an earlier supervisor has left; None if it is not there."""
        return self._leaf(name) if os.path.exists(f"{self._units}/{name}") else None

    def _leaf(self, name: str) -> Leaf:
        directory = f"{self._units}/{name}"
        controllers: Controllers = (
            Version2Controllers(directory)
            if self.version == 2
            else Version1Controllers(self._version1_parents, name, directory)
        )
        return Leaf(directory, controllers, self._events, self.removals)

    async def kill_strangers(self, known: Collection[str]) -> None:
        """Kill and remove what an earlier supervisor has left here, but for the leaves with these names."""
        for name in self._strange_names(known):
            with self._leaf(name) as stranger:
                try:
                    stranger.take_over(watch_ooms=False)
                    if not stranger.is_empty():
                        _logger.warning("killing what is left in %s/%s", self._units, name)
                        stranger.kill()
                        await stranger.wait_until_empty()
                except OSError as error:
                    _logger.warning("%s/%s: %s", self._units, name, error)

    def _strange_names(self, known: Collection[str]) -> list[str]:
        if not self._prefix:
            return []
        return [
            name
            for name in _directories_in(self._units)
            if name not in known and not name.startswith(self._prefix)
        ]

    async def sweep(self) -> None:
        """Kill and remove what dead supervisors have left beside this one."""
        for name in _directories_in(self._base):
            directory = f"{self._base}/{name}"
            if name in (self._name, _DAEMON) or not name.startswith(_PREFIX):
                continue
            with ExitStack() as stack:
                try:
                    _lock(directory, stack)
                    _logger.info("removing what a dead supervisor left in %s", directory)
                    controllers = Version2Controllers(directory)
                    stale = Leaf(directory, controllers, self._events, self.removals)
                    stale.kill()
                    await stale.wait_until_empty()
                except BlockingIOError:
                    continue  # Its supervisor lives.
                except OSError as error:
                    _logger.warning("%s: %s", directory, error)
                    continue
            # That by which it is found comes last, in case this is interrupted.
            for parent in self._version1_parents.values():
                remove_tree(f"{os.path.dirname(parent)}/{name}")
            remove_tree(directory)

    def _make_units(self, stack: ExitStack, lock: int | None) -> int:
        """Make the directory, or take it over; returns its lock."""
        while True:
            with suppress(FileExistsError):
                os.mkdir(self._units)
            with ExitStack() as attempt:
                attempt.callback(remove_tree, self._units)
                if lock is None:
                    descriptor = _lock(self._units, attempt)
                else:
                    descriptor = lock
                    attempt.callback(os.close, descriptor)
                # Another supervisor may have swept it before it was locked.
                if os.path.exists(self._units):
                    stack.push(attempt.pop_all())
                    return descriptor
            lock = None

    def _enable_controllers(self) -> frozenset[str]:
        available = set(files.read(f"{self._base}/cgroup.controllers").split())
        wanted = [controller for controller in _CONTROLLERS if controller in available]
        enabled = set()
        for controller in wanted:
            try:
                self._enable(controller)
            except OSError as error:
                if error.errno in SHORTAGES:
                    raise
                _logger.info("no %s controller: %s", controller, error)
            else:
                enabled.add(controller)
        return frozenset(enabled)

    def _enable(self, controller: str) -> None:
        control = f"{self._base}/cgroup.subtree_control"
        if controller not in files.read(control).split():
            try:
                files.write(control, f"+{controller}")
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                self._move_processes_out()
                files.write(control, f"+{controller}")
        files.write(f"{self._units}/cgroup.subtree_control", f"+{controller}")

    def _move_processes_out(self) -> None:
        """Move all processes of the own cgroup into a leaf, so that it can pass controllers on."""
        daemon = f"{self._base}/{_DAEMON}"
        with suppress(FileExistsError):
            os.mkdir(daemon)
        while pids := files.read(f"{self._base}/cgroup.procs").split():
            for pid in pids:
                with suppress(ProcessLookupError):
                    files.write(f"{daemon}/cgroup.procs", pid)

    def _make_version1_parents(self, own: dict[str, str], stack: ExitStack) -> None:
        available = set()
        for controller in _CONTROLLERS:
            name = _VERSION1_NAMES.get(controller, controller)
            if name not in own:
                continue
            if not os.access(own[name], os.W_OK | os.X_OK):
                _logger.info("no %s controller: %s cannot be written", controller, own[name])
                continue
            directory = f"{own[name]}/{self._name}"
            stack.callback(remove_tree, directory)
            self._version1_parents[name] = directory
            available.add(controller)
        if available:
            self.version = 1
            self.controllers = frozenset(available)
        if memory := self._version1_parents.get("memory"):
            # Every leaf has a directory there; the others are made by the first that needs one.
            with suppress(FileExistsError):
                os.mkdir(memory)


def _directories_in(directory: str) -> list[str]:
    """Their names, out of the reserve of descriptors if need be; logs if there is no telling."""
    try:
        with beyond_the_limit(), os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except OSError as error:
        # What runs must not suffer for what has been left.
        _logger.error("what is left in %s stays: %s", directory, error.strerror)
        return []


def _lock(directory: str, stack: ExitStack) -> int:
    """Hold the directory's lock until the stack ends; returns its descriptor.

    Raises:
      BlockingIOError: another process holds it.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor
