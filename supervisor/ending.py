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
from .process import UNKNOWN, Process
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
    exit_status = await _end_leader(process, leader, unit)
    members_killed = process.members_killed
    if process.has_exited and not keep:
        # Those that a kill has hit may still be dying, and counted again.
        members_killed = max(members_killed, await _end_descendants(process, unit))
    oom_kills = 0
    usage = None
    try:
        if leaf is not None:
            oom_kills = leaf.oom_kills()
            usage = leaf.usage()
            if oom_kills and exit_status.signal == signal.SIGKILL:
                with _within(_DEATH_SECONDS):
                    oom_killed = await _was_oom_killed(process, kernel_log)
                    exit_status = msgspec.structs.replace(exit_status, oom_killed=oom_killed)
    except Exception:
        _logger.exception("what %r has used is not known completely", process)
    return End(
        exit_status=exit_status,
        timed_out=False,
        oom_kills=oom_kills,
        members_killed=members_killed,
        usage=usage,
    )


async def _end_leader(process: Process, leader: Leader | TakenOver, unit: Unit) -> ExitStatus:
    """See to it that the leader is dead, the others killed with it; how it ended, if that can be known."""
    try:
        while not process.has_exited:
            with _within(_DEATH_SECONDS) as patience:
                _kill(process, unit)
                await leader.wait()
                process.note_exit()
            if patience.cancelled_caught and not stood_still(patience):
                _logger.error("%r does not die; it is left to the kernel", process)
                return UNKNOWN
        return await leader.exit_status()
    except Exception:
        _logger.exception("how %r ended is not known", process)
        return UNKNOWN


def _kill(process: Process, unit: Unit) -> None:
    try:
        process.kill_now(unit)
    except OSError:
        # Maybe not all, and maybe the leader all the same.
        _logger.exception("the tree of %r could not be killed completely", process)


async def _end_descendants(process: Process, unit: Unit) -> int:
    """See to it that all but the leader, which has exited, are dead; how many were killed."""
    try:
        while not unit.is_alone():
            with _within(_DEATH_SECONDS) as patience:
                return await unit.kill_descendants()
            if not stood_still(patience):
                _logger.error("the descendants of %r do not die", process)
                break
    except Exception:
        _logger.exception("the descendants of %r could not be killed", process)
    return 0


async def settle(process: Process) -> None:
    """Spill the last of the output, which can be read already."""
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
    if not process.is_let_go:
        process.kept_killed = await _end_descendants(process, unit)


def _within(seconds: float) -> trio.CancelScope:
    """A block that only its own deadline cancels."""
    return trio.CancelScope(shield=True, deadline=trio.current_time() + seconds)


async def _was_oom_killed(process: Process, kernel_log: KernelLog) -> bool:
    """Whether it was the leader whom the kernel killed, of a unit in which it did kill; see `oom`."""
    if kernel_log.readable:
        return await kernel_log.has_killed(process.pid, since=process.started_clock)
    return not process.was_killed
