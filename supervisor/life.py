"""The life of one process, in its own nursery: from the execution to the last byte and the reaping.

    birth ──exec──▶ running ──the leader exits──▶ ending ──▶ ended
      │                │
      └─▶ typed error  └─ timeout, kill, stop: a signal to the group

Ending is one sequence, and every way to end a process leads through it:

1. The leader has exited and is a zombie: its number cannot be reused.
2. Whoever still holds the pipes has `drain_seconds` to finish writing. A
   process alone closes them by exiting, so this usually takes no time.
3. Everything else in the unit is killed, and seen to be dead.
4. What is left in the pipes is read; nothing can be added any more.
5. The log is closed and the status becomes final, both in one step, so that
   whoever sees the end of the output sees the status too.
6. The leader is reaped; from here on its pid may mean a stranger.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import msgspec
import trio

from .capture import Capture
from .cgroups import CgroupUnit, Leaf
from .ending import end_tree, outlive, settle
from .leader import Leader, TakenOver
from .oom import KernelLog
from .patience import stood_still
from .process import Process
from .session import SessionUnit
from .stdin import Stdin
from .survival import Survival
from .unit import Unit

_logger = logging.getLogger(__name__)


class Launched(NamedTuple):
    """A leader, and our side of everything that it has."""

    leader: Leader | TakenOver
    capture: Capture
    stdin: Stdin | None
    leaf: Leaf | None

    def owned(self) -> ExitStack:
        """All of it, for one that was taken over."""
        with ExitStack() as stack:
            if self.leaf is not None:
                stack.enter_context(self.leaf)
            stack.enter_context(self.capture)
            if self.stdin is not None:
                stack.callback(self.stdin.close_now)
            stack.enter_context(self.leader)
            return stack.pop_all()

    def unit(self, mark: str) -> Unit:
        """The leader and everything that descends from it.

        Args:
          mark: the unit's own mark in its environment, where it has no cgroup.
        """
        leader = self.leader
        if self.leaf is not None:
            return CgroupUnit(leader.pid, leader.pidfd, self.leaf)
        is_taken_over = isinstance(leader, TakenOver)
        return SessionUnit(leader.pid, leader.pidfd, mark, is_taken_over=is_taken_over)


class Life:
    """One process, from the execution of its command to its end. Must be `run` by a task, or `abandon`ed.

    Args:
      process: whose life this is. If it has ended, under an earlier supervisor, the
        life is that of the descendants that were to be kept.
      launched: what is watched.
      unit: the leader and everything that descends from it.
      resources: owns all of these, and is owned here from now on.
      kernel_log: tells who was killed for memory.
      survival: keeps what outlives the supervisor, if anything does.
      timeout: seconds after which the tree is killed, or None.
      drain_seconds: how long descendants may go on writing after the leader's exit.
    """

    __slots__ = (
        "_drain_seconds",
        "_kernel_log",
        "_kill_at",
        "_launched",
        "_resources",
        "_survival",
        "_timeout",
        "_unit",
        "process",
    )

    def __init__(
        self,
        process: Process,
        launched: Launched,
        unit: Unit,
        resources: ExitStack,
        kernel_log: KernelLog,
        survival: Survival | None,
        *,
        timeout: float | None,
        drain_seconds: float,
    ) -> None:
        self.process = process
        self._launched = launched
        self._resources = resources
        self._kernel_log = kernel_log
        self._survival = survival
        self._timeout = timeout
        # On Trio's clock.
        self._kill_at = math.inf
        self._drain_seconds = drain_seconds
        self._unit = unit

    async def run(self, ended: Callable[[], None]) -> None:
        """Return when nothing of the process is left.

        Cancellation from outside waits for that; cancelling `process.scope` brings
        it about. What goes wrong is logged and ends this process alone.

        Args:
          ended: is called at the process's end, which comes before the return if
            descendants are to be kept.
        """
        process = self.process
        with self._resources:
            if process.has_ended:
                await self._be_outlived()
                return
            timed_out = False
            try:
                with process.scope:
                    timed_out = await self._watch()
            except Exception:
                _logger.exception("%r failed in the supervisor and is ended", process)
            finally:
                if process.is_let_go:
                    self._be_left()
                else:
                    await self._conclude(ended, timed_out=timed_out)

    async def abandon(self) -> None:
        """End the process, of which nobody has been told. Not interrupted by cancellation."""
        with self._resources:
            await self._end(timed_out=False)
            if self._survival is not None:
                self._survival.give_up(self.process)

    async def _watch(self) -> bool:
        """Capture until the leader has exited and the pipes are closed or out of time; whether it timed out."""
        process, survival = self.process, self._survival
        leader, capture, _, _ = self._launched
        move = None if survival is None else partial(survival.move, process)
        if self._timeout is not None:
            elapsed = time.monotonic() - process.started_clock
            self._kill_at = trio.current_time() + max(0.0, self._timeout - elapsed)
        # Most processes are over before their output has to wait for anything. They need
        # no other task than this one.
        timed_out = await self._until_timeout(
            partial(capture.run_until_exit, leader.pidfd, process.log, move)
        )
        if capture.is_over and leader.has_exited():
            process.note_exit()
            return False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(capture.run, process.log, move)
            timed_out = timed_out or await self._until_timeout(leader.wait)
            if timed_out:
                process.kill_now(self._unit)
                await leader.wait()
            process.note_exit()
            nursery.cancel_scope.deadline = trio.current_time() + self._drain_seconds
        return timed_out

    async def _until_timeout(self, wait: Callable[[], Awaitable[None]]) -> bool:
        """Wait; whether the process's timeout came before."""
        while True:
            with trio.CancelScope(deadline=self._kill_at) as patience:
                await wait()
            if not stood_still(patience):
                return patience.cancelled_caught
            assert self._timeout is not None
            self._kill_at = trio.current_time() + self._timeout

    async def _conclude(self, ended: Callable[[], None], *, timed_out: bool) -> None:
        process = self.process
        keep = await self._end(timed_out=timed_out)
        ended()
        if not process.log.is_settled:
            await settle(process)
            if self._survival is not None:
                self._survival.note_settled(process)
        if keep:
            await self._be_outlived()
        else:
            self._be_left()

    async def _be_outlived(self) -> None:
        try:
            await outlive(self.process, self._unit, self._launched.capture)
        finally:
            self.process.no_more_outlived()
            self._be_left()

    async def _end(self, *, timed_out: bool) -> bool:
        """The end, up to the final status; whether descendants are kept."""
        process = self.process
        leader, capture, _, leaf = self._launched
        keep = process.spec.descendants == "keep" and process.has_exited
        end = await end_tree(process, leader, self._unit, leaf, self._kernel_log, keep=keep)
        try:
            capture.drain()
        except OSError:
            _logger.exception("the last output of %r could not be read", process)
        process.finish(msgspec.structs.replace(end, timed_out=timed_out), is_outlived=keep)
        return keep

    def _be_left(self) -> None:
        """What survives of it is needed no longer; or all is left as it is, if it was let go."""
        launched = self._launched
        if self.process.is_let_go:
            launched.leader.let_go()
            if launched.leaf is not None:
                launched.leaf.leave()
        elif self._survival is not None:
            self._survival.leave(self.process)
