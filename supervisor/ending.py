"""The end of one process: its tree dead, what it used, and how it ended.

Everything here is bounded in time, and what goes wrong is logged: it must not
hold up the end of anything else.
"""

from __future__ import annotations

import logging
import signal

import msgspec
import trio

from .capture import Capture
from .cgroups import Leaf
from .leader import Leader, TakenOver
from .oom import KernelLog
from .patience import stood_still
from .process import Process
from .record import End, ExitStatus
from .unit import Unit

_logger = logging.getLogger(__name__)

# How long a killed tree may take to be dead. Only a process in
# uninterruptible sleep takes longer, and it must not hold up everything else.
_DEATH_SECONDS = 5.0


async def end_tree(
    process: Process,
    leader: Leader | TakenOver,
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
        members_killed = process.members_killed
        if not process.has_exited or not (keep or unit.is_alone()):
            with _within(_DEATH_SECONDS) as patience:
                if not process.has_exited:
                    process.kill_now(unit)
                    await leader.wait()
                    process.note_exit()
                if not keep:
                    # Those that a kill has hit may still be dying, and counted again.
                    members_killed = max(process.members_killed, await unit.kill_descendants())
            if stood_still(patience):
                return await end_tree(process, leader, unit, leaf, kernel_log, keep=keep)
            if patience.cancelled_caught:
                _logger.error("%r does not die; it is left to the kernel", process)
        if process.has_exited:
            exit_status = await leader.exit_status()
        if leaf is not None:
            oom_kills = leaf.oom_kills()
            usage = leaf.usage()
            if oom_kills and exit_status.signal == signal.SIGKILL:
                with _within(_DEATH_SECONDS):
                    oom_killed = await _was_oom_killed(process, kernel_log)
                    exit_status = msgspec.structs.replace(exit_status, oom_killed=oom_killed)
    except Exception:
        _logger.exception("the tree of %r could not be ended completely", process)
    return End(
        exit_status=exit_status,
        timed_out=False,
        oom_kills=oom_kills,
        members_killed=members_killed,
        usage=usage,
    )


async def settle(process: Process) -> None:
    """Spill the last of the output, which can be read already."""
    if process.log.is_settled:
        return
    try:
        with trio.CancelScope(shield=True):
            await process.log.settle()
    except Exception:
        _logger.exception("the last output of %r stays in memory", process)


async def outlive(process: Process, unit: Unit, capture: Capture) -> None:
    """Let the descendants go on until they end or `process.scope` is cancelled."""
    try:
        with process.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(capture.run, None)
                await unit.wait_until_alone()
                nursery.cancel_scope.cancel()
    except Exception:
        _logger.exception("the descendants of %r are ended", process)
    if process.is_let_go:
        return
    try:
        with _within(_DEATH_SECONDS) as patience:
            process.kept_killed = await unit.kill_descendants()
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
