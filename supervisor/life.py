"""The life of one process, in its own nursery: from the spawn to the last byte and the reaping.

    spawning ──exec──▶ running ──the leader exits──▶ ending ──▶ ended
        │                 │
        └─▶ typed error   └─ timeout, kill, stop: a signal to the group

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
import signal
from collections.abc import Callable
from contextlib import ExitStack

import msgspec
import trio
from msgspec import Struct

from .accounts import Account
from .capture import Capture
from .cgroups import CgroupUnit, Leaf
from .environment import Environment
from .errors import KilledBeforeExec
from .host import Host
from .launch import Leader, orders_for
from .oom import KernelLog
from .prepared import PreparedLaunch, prepare
from .process import Process
from .record import End, ExitStatus
from .session import SessionUnit
from .spec import Limits, ProcessSpec
from .stdin import Stdin
from .unit import Unit

_logger = logging.getLogger(__name__)

# How long a killed tree may take to be dead. Only a process in
# uninterruptible sleep takes longer, and it must not hold up everything else.
_DEATH_SECONDS = 5.0


class Circumstances(Struct, frozen=True):
    """What a process is started with, besides its spec.

    Attributes:
      account: whom to become, or None to stay who the supervisor is.
      environment: the whole environment of the process.
      mark: the unit's own mark in that environment, where it has no cgroup.
      limits: what it may use, the supervisor's defaults included.
      timeout: seconds after which the tree is killed, or None.
      drain_seconds: how long descendants may go on writing after the leader's exit.
    """

    account: Account | None
    environment: Environment
    mark: str
    limits: Limits
    timeout: float | None
    drain_seconds: float


async def live(
    process: Process,
    circumstances: Circumstances,
    host: Host,
    started: Callable[[], None],
    ended: Callable[[], None],
) -> None:
    """Start `process`, and return when nothing of it is left.

    Calls `started` once the command has been executed; what that raises ends
    the process again. Calls `ended` at the process's end, which may come
    before the return if the spec keeps descendants.

    What goes wrong after `started` is logged and ends this process alone. From
    then on cancellation from outside waits for the end; cancelling
    `process.scope` brings it about.

    Raises:
      LaunchError, LimitUnavailable: nothing was started.
    """
    with ExitStack() as ours:
        leader, capture, stdin, leaf = await _launch(process.spec, circumstances, host, ours)
        unit: Unit
        if leaf is None:
            unit = SessionUnit(leader.pid, leader.pidfd, circumstances.mark)
        else:
            unit = CgroupUnit(leader.pid, leader.pidfd, leaf)
        ours.enter_context(unit)
        process.begin(unit, leaf, stdin)
        admitted = False
        timed_out = False
        try:
            # If the start was cancelled meanwhile, nobody waits for this process.
            await trio.lowlevel.checkpoint_if_cancelled()
            started()
            admitted = True
            with process.scope:
                timed_out = await _run(process, leader, unit, capture, circumstances)
        except Exception:
            if not admitted:
                raise
            _logger.exception("%r failed in the supervisor and is ended", process)
        finally:
            keep = process.spec.descendants == "keep" and process.has_exited
            end = await _end(process, leader, unit, leaf, host.kernel_log, keep=keep)
            try:
                capture.drain()
            except OSError:
                _logger.exception("the last output of %r could not be read", process)
            process.finish(msgspec.structs.replace(end, timed_out=timed_out))
            if admitted:
                ended()
                await _settle(process)
            if keep:
                await _outlive(process, unit, capture)


async def _launch(
    spec: ProcessSpec, circumstances: Circumstances, host: Host, ours: ExitStack
) -> tuple[Leader, Capture, Stdin | None, Leaf | None]:
    """The leader that executes the command, and our side of its pipes; all of it owned by `ours`."""

    def orders(*, null_unused_pipes: bool) -> bytes:
        return orders_for(
            spec,
            account=circumstances.account,
            environment=circumstances.environment,
            limits=circumstances.limits,
            null_unused_pipes=null_unused_pipes,
        )

    async def give(
        prepared: PreparedLaunch, orders: bytes
    ) -> tuple[Leader, Capture, Stdin | None, Leaf | None]:
        with ExitStack() as stack:
            stack.enter_context(prepared.resources)
            stdin = prepared.fit(spec)
            leader = stack.enter_context(await prepared.launcher.carry_out(orders, spec))
            ours.enter_context(stack.pop_all())
            return leader, prepared.capture, stdin, prepared.leaf

    if host.parking.has_some:
        # Encoded first: if that fails, no parked launcher is lost to it.
        for_parked = orders(null_unused_pipes=True)
        if (parked := host.take_parked(circumstances.limits)) is not None:
            try:
                return await give(parked, for_parked)
            except KilledBeforeExec:
                pass  # While it was waiting, so it says nothing of this process.
    for_this = orders(null_unused_pipes=False)
    fresh = host.take_leaf(circumstances.limits)
    return await give(await prepare(spec, fresh, for_this), for_this)


async def _run(
    process: Process, leader: Leader, unit: Unit, capture: Capture, circumstances: Circumstances
) -> bool:
    """Capture until the leader has exited and the pipes are closed or out of time; whether it timed out."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(capture.run, process.log)
        timed_out = False
        if circumstances.timeout is None:
            await leader.wait()
        else:
            with trio.move_on_after(circumstances.timeout) as patience:
                await leader.wait()
            timed_out = patience.cancelled_caught
        if timed_out:
            process.kill_now(unit)
            await leader.wait()
        process.note_exit()
        nursery.cancel_scope.deadline = trio.current_time() + circumstances.drain_seconds
    return timed_out


async def _end(
    process: Process,
    leader: Leader,
    unit: Unit,
    leaf: Leaf | None,
    kernel_log: KernelLog,
    *,
    keep: bool,
) -> End:
    """See to it that the whole tree is dead (with `keep`, the leader), and tell how it ended.

    Bounded in time; raises nothing.
    """
    exit_status = ExitStatus(None, signal.SIGKILL)
    oom_kills = members_killed = 0
    usage = None
    try:
        with _within(_DEATH_SECONDS) as patience:
            if not process.has_exited:
                process.kill_now(unit)
                await leader.wait()
                process.note_exit()
            exit_status = leader.exit_status()
            if not keep:
                # Those that a kill has hit may still be dying, and counted again.
                members_killed = max(process.members_killed, await unit.kill_descendants())
            if leaf is not None:
                oom_kills = leaf.oom_kills()
                usage = leaf.usage()
                if oom_kills and exit_status.signal == signal.SIGKILL:
                    oom_killed = await _was_oom_killed(process, kernel_log)
                    exit_status = msgspec.structs.replace(exit_status, oom_killed=oom_killed)
        if patience.cancelled_caught:
            _logger.error("%r does not die; it is left to the kernel", process)
    except Exception:
        _logger.exception("the tree of %r could not be ended completely", process)
    return End(
        exit_status=exit_status,
        timed_out=False,
        oom_kills=oom_kills,
        members_killed=members_killed,
        usage=usage,
    )


async def _settle(process: Process) -> None:
    """Spill the last of the output, which can be read already."""
    if process.log.is_settled:
        return
    try:
        with trio.CancelScope(shield=True):
            await process.log.settle()
    except Exception:
        _logger.exception("the last output of %r stays in memory", process)


async def _outlive(process: Process, unit: Unit, capture: Capture) -> None:
    """Let the descendants go on until they end or `process.scope` is cancelled."""
    with process.outlived():
        try:
            with process.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(capture.run, None)
                    await unit.wait_until_alone()
                    nursery.cancel_scope.cancel()
        except Exception:
            _logger.exception("the descendants of %r are ended", process)
        try:
            with _within(_DEATH_SECONDS) as patience:
                await unit.kill_descendants()
            if patience.cancelled_caught:
                _logger.error("the descendants of %r do not die", process)
        except OSError:
            _logger.exception("the descendants of %r could not be killed", process)


def _within(seconds: float) -> trio.CancelScope:
    """A block that only its own deadline cancels."""
    return trio.CancelScope(shield=True, deadline=trio.current_time() + seconds)


async def _was_oom_killed(process: Process, kernel_log: KernelLog) -> bool:
    """Whether it was the leader whom the kernel killed, of a unit in which it did kill; see `oom`."""
    if kernel_log.readable:
        return await kernel_log.has_killed(process.pid, since=process.started_clock)
    return not process.was_killed
