"""A unit without a cgroup: found through sessions, ancestry and a mark in the environment.

Every leader has a session of its own, and every process that it starts
inherits a mark in its environment. So a process belongs to the unit if it is
in the leader's session or group, if its parent belongs, or if it bears the
mark; a descendant that double-forks and calls setsid(2) still bears the mark.
(One that also erases its environment escapes once its parent has ended; only a
cgroup holds that.)

No signal is sent to a number that could have come to mean a stranger. The
leader's pid and group stay reserved until the leader is reaped, which its
owner does last of all; every other member is held by a pidfd, and looked at
again once held, before it is signalled.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import NamedTuple

import trio

from .descriptors import beyond_the_limit
from .exit_status import pid_of
from .readiness import wait_until_readable
from .unit import Unit

MARK_NAME = "CRECHE_UNIT"
"""The environment variable that all members of a unit inherit.

Its value is a path of marks, outermost first: a supervisor that itself runs in
a unit adds its own, so that its processes stay members of the outer unit too.
"""

_MARK_PREFIX = f"{MARK_NAME}=".encode()

# Until this much time has passed not even a fast machine has gone through all
# pids, so the pids given out since a leader's start are an interval.
_PID_CYCLE_SECONDS = 1.0


class SessionUnit(Unit):
    """The members of one unit, as far as /proc shows that they belong together.

    A context manager, which owns the pidfds of members that it has found.

    Args:
      leader, pidfd: see `Unit`.
      mark: this unit's own mark in the environment of all members.
      is_taken_over: whether an earlier supervisor has started it, maybe long
        ago, so that others may reap the leader. From then on its number proves
        nothing, and only the mark does.
    """

    __slots__ = ("_held", "_is_taken_over", "_mark", "_started")

    def __init__(self, leader: int, pidfd: int, mark: str, *, is_taken_over: bool = False) -> None:
        super().__init__(leader, pidfd)
        self._is_taken_over = is_taken_over
        self._mark = mark.encode()
        self._started = trio.current_time()
        self._held: dict[int, int] = {}

    def __exit__(self, *_: object) -> None:
        for pidfd in self._held.values():
            os.close(pidfd)
        self._held.clear()

    def kill(self) -> int:
        """SIGKILL to everything; what the members start meanwhile is left to `kill_descendants`."""
        try:
            # Found before the leader dies: its children lose their parent
            # with it, and one that left the session and erased its
            # environment has no other sign of belonging here.
            self._hold_members()
        finally:
            # The group first and at once: a leader that saw its child die
            # alone would exit with a status of its own.
            try:
                self.signal_group(signal.SIGKILL)
                # Of a group it is enough that one member may be signalled.
                self.signal_leader(signal.SIGKILL)
            finally:
                self._kill_held()
        return len(self._held)

    def is_alone(self) -> bool:
        """Whether no member is found."""
        self._hold_members()
        return not self._held

    async def kill_descendants(self) -> int:
        """Kill everything but the leader, until nobody new is found: they may fork meanwhile."""
        killed = 0
        self._hold_members()
        while self._held:
            self._kill_held()
            killed += await self._wait_for_held()
            self._hold_members()
        return killed

    async def wait_until_alone(self) -> None:
        """Wait for the members that are found, until nobody new is."""
        self._hold_members()
        while self._held:
            await self._wait_for_held()
            self._hold_members()

    async def _wait_for_held(self) -> int:
        """Wait until all that are held have ended; how many that were."""
        count = len(self._held)
        for pid in list(self._held):
            await wait_until_readable(self._held[pid])
            os.close(self._held.pop(pid))
        return count

    def _hold_members(self) -> None:
        """Hold the living members but the leader by a pidfd: all, or as many as there are descriptors for."""
        with beyond_the_limit():
            self._hold_members_now()

    def _hold_members_now(self) -> None:
        found: dict[int, int] = {}
        try:
            for pid in self._members():
                if pid not in self._held:
                    try:
                        found[pid] = os.pidfd_open(pid)
                    except ProcessLookupError:
                        continue
                    except OSError:
                        if not found:
                            raise
                        # Later, when these have ended. One less, to look at /proc by.
                        os.close(found.popitem()[1])
                        break
            # Looked at again now that they are held: a pid may have been
            # reused between the first look and the hold.
            for pid in self._members(among=found) if found else ():
                self._held[pid] = found.pop(pid)
        finally:
            for pidfd in found.values():
                os.close(pidfd)

    def _kill_held(self) -> None:
        for pidfd in self._held.values():
            # One that has become another user's must not save the rest.
            with suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def _members(self, among: dict[int, int] | None = None) -> list[int]:
        candidates = self._candidates() if among is None else among
        # Of one that is not our child, the number may mean somebody else by now.
        number = None if self._is_taken_over and pid_of(self._pidfd) is None else self.leader
        family = set() if number is None else {number}
        strangers: list[Stat] = []
        for pid in sorted(candidates):
            stat = read_stat(pid)
            if stat is None or pid == number or stat.state in "ZX":
                continue
            if self._is_ours(stat, number):
                family.add(pid)
            else:
                strangers.append(stat)
        # A child has its parent's membership, whatever it did to its session
        # and environment. Repeated, because pids wrap: a child's may be lower.
        while grown := [stat for stat in strangers if stat.parent in family]:
            family.update(stat.pid for stat in grown)
            strangers = [stat for stat in strangers if stat.pid not in family]
        family.discard(self.leader)
        return sorted(family)

    def _candidates(self) -> Iterator[int]:
        """The pids that can be members: those given out since the leader's start."""
        with open("/proc/loadavg", "rb") as file:
            newest = int(file.read().rsplit(maxsplit=1)[1])
        if newest == self.leader and not self._is_taken_over:
            return
        everything = self._is_taken_over or trio.current_time() - self._started > _PID_CYCLE_SECONDS
        wrapped = newest < self.leader
        for name in os.listdir("/proc"):
            if name.isdecimal():
                pid = int(name)
                if (
                    everything
                    or self.leader < pid <= newest
                    or (wrapped and (pid > self.leader or pid <= newest))
                ):
                    yield pid

    def _is_ours(self, stat: Stat, leaders_number: int | None) -> bool:
        if leaders_number is not None and leaders_number in (stat.session, stat.group):
            return True
        return self._mark in _marks_of(stat.pid)


def kill_marked(marks: Collection[str]) -> None:
    """SIGKILL to all that bear the mark of one of these units, until nobody new is found."""
    wanted = {mark.encode() for mark in marks}
    killed: set[int] = set()
    while found := {pid for pid in _all_pids() if not wanted.isdisjoint(_marks_of(pid))} - killed:
        killed |= found
        for pid in found:
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                try:
                    # Held now, hence the same in the second look and in the kill.
                    if not wanted.isdisjoint(_marks_of(pid)):
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                finally:
                    os.close(pidfd)


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _marks_of(pid: int) -> list[bytes]:
    """The marks of all units that it is in, as far as its environment tells."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = file.read()
    except OSError:
        return []  # Gone, or another user's and so not started by us.
    if _MARK_PREFIX not in environment:
        return []
    return [
        mark
        for variable in environment.split(b"\0")
        if variable.startswith(_MARK_PREFIX)
        for mark in variable.removeprefix(_MARK_PREFIX).split(b"/")
    ]


class Stat(NamedTuple):
    """What the kernel says of a process, zombies included; `flags` are PF_* of include/linux/sched.h."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    flags: int


def read_stat(pid: int) -> Stat | None:
    """The head of /proc/PID/stat (proc_pid_stat(5)); None when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command's name, in parentheses, may hold anything.
            fields = file.read().rpartition(b") ")[2].split(maxsplit=7)
    except OSError:
        return None
    state, parent, group, session, _, _, flags, _ = fields
    return Stat(pid, state.decode(), int(parent), int(group), int(session), int(flags))
