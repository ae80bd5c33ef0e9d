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
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import msgspec
import trio
from msgspec import Struct

from .accounts import Account
from .capture import Capture
from .cgroups import CgroupUnit, Leaf
from .ending import end_tree, outlive, settle
from .environment import Environment
from .errors import KilledBeforeExec
from .host import Host
from .launch import orders_for
from .leader import Leader, TakenOver
from .patience import stood_still
from .prepared import PreparedLaunch, prepare
from .process import Process
from .session import SessionUnit
from .spec import Limits
from .stdin import Stdin
from .survival import Survival
from .unit import Unit

_logger = logging.getLogger(__name__)


class Circumstances(Struct, frozen=True):
    """What a process is started with, besides its spec.

    Attributes:
      account: whom to become, or None to stay who the supervisor is.
      environment: the whole environment of the process.
      mark: the unit's own mark in that environment, where it has no cgroup.
      limits: what it may use, the supervisor's defaults included.
      attributes: what else it starts with, encoded.
      no_new_privs: whether executing anything can give it no privileges.
      timeout: seconds after which the tree is killed, or None.
      drain_seconds: how long descendants may go on writing after the leader's exit.
      key: of the request that asks for it, if that may come again.
    """

    account: Account | None
    environment: Environment
    mark: str
    limits: Limits
    attributes: bytes
    no_new_privs: bool
    timeout: float | None
    drain_seconds: float
    key: str | None = None


class Launched(NamedTuple):
    """A leader, and our side of everything that it has."""

    leader: Leader | TakenOver
    capture: Capture
    stdin: Stdin | None
    leaf: Leaf | None


async def live(
    process: Process,
    circumstances: Circumstances,
    host: Host,
    survival: Survival | None,
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
        try:
            launched = await _launch(process, circumstances, host, survival, ours)
        except BaseException:
            if survival is not None:
                survival.give_up(process)
            raise
        if launched.leaf is not None:
            launched.leaf.joined()
        await _live(process, launched, circumstances, host, survival, started, ended, ours)


async def live_on(
    process: Process,
    launched: Launched,
    circumstances: Circumstances,
    host: Host,
    survival: Survival,
    started: Callable[[], None],
    ended: Callable[[], None],
) -> None:
    """The rest of a life that has begun under an earlier supervisor; as `live`.

    Args:
      launched: what that has left; the leader and the capture are owned here
        from now on, and the leaf. If the process has ended, it is of the
        descendants that were to be kept.
    """
    with ExitStack() as ours:
        if launched.leaf is not None:
            ours.enter_context(launched.leaf)
        ours.enter_context(launched.capture)
        if launched.stdin is not None:
            ours.callback(launched.stdin.close_now)
        ours.enter_context(launched.leader)
        if process.has_ended:
            unit = ours.enter_context(_unit_of(launched, circumstances))
            started()
            await outlive(process, unit, launched.capture)
            _be_left_by(process, launched, survival)
        else:
            await _live(process, launched, circumstances, host, survival, started, ended, ours)


def _unit_of(launched: Launched, circumstances: Circumstances) -> Unit:
    leader = launched.leader
    if launched.leaf is not None:
        return CgroupUnit(leader.pid, leader.pidfd, launched.leaf)
    return SessionUnit(
        leader.pid,
        leader.pidfd,
        circumstances.mark,
        is_taken_over=isinstance(leader, TakenOver),
    )


async def _live(
    process: Process,
    launched: Launched,
    circumstances: Circumstances,
    host: Host,
    survival: Survival | None,
    started: Callable[[], None],
    ended: Callable[[], None],
    ours: ExitStack,
) -> None:
    unit = ours.enter_context(_unit_of(launched, circumstances))
    process.begin(unit, launched.leaf, launched.stdin)
    admitted = False
    timed_out = False
    try:
        # If the start was cancelled meanwhile, nobody waits for this process.
        await trio.lowlevel.checkpoint_if_cancelled()
        started()
        admitted = True
        # Whoever has asked for the start goes on before all that is to come: that takes
        # two batches of the scheduler, since in the first one the order is random.
        await trio.lowlevel.cancel_shielded_checkpoint()
        await trio.lowlevel.cancel_shielded_checkpoint()
        with process.scope:
            timed_out = await _run(process, launched, unit, circumstances, survival)
    except Exception:
        if not admitted:
            raise
        _logger.exception("%r failed in the supervisor and is ended", process)
    finally:
        if process.is_let_go:
            _be_left_by(process, launched, survival)
        else:
            await _conclude(
                process, launched, unit, host, survival, ended if admitted else None, timed_out
            )


async def _conclude(
    process: Process,
    launched: Launched,
    unit: Unit,
    host: Host,
    survival: Survival | None,
    ended: Callable[[], None] | None,
    timed_out: bool,
) -> None:
    """The end; without `ended` of one of which nobody has been told."""
    leader, capture, _, leaf = launched
    keep = process.spec.descendants == "keep" and process.has_exited
    end = await end_tree(process, leader, unit, leaf, host.kernel_log, keep=keep)
    try:
        capture.drain()
    except OSError:
        _logger.exception("the last output of %r could not be read", process)
    process.finish(msgspec.structs.replace(end, timed_out=timed_out))
    if ended is not None:
        ended()
        await settle(process)
    try:
        if keep:
            await outlive(process, unit, capture)
    finally:
        if ended is not None:
            _be_left_by(process, launched, survival)
        elif survival is not None:
            survival.give_up(process)


def _be_left_by(process: Process, launched: Launched, survival: Survival | None) -> None:
    """What survives of it is needed no longer; or all is left as it is, if it was let go."""
    if process.is_let_go:
        launched.leader.let_go()
        if launched.leaf is not None:
            launched.leaf.leave()
    elif survival is not None:
        survival.leave(process)


async def _launch(
    process: Process,
    circumstances: Circumstances,
    host: Host,
    survival: Survival | None,
    ours: ExitStack,
) -> Launched:
    """The leader that executes the command, and our side of its pipes; all of it owned by `ours`."""
    spec = process.spec

    def orders(*, null_unused_pipes: bool) -> bytes:
        return orders_for(
            spec,
            account=circumstances.account,
            environment=circumstances.environment,
            attributes=circumstances.attributes,
            no_new_privs=circumstances.no_new_privs,
            null_unused_pipes=null_unused_pipes,
        )

    async def give(prepared: PreparedLaunch, orders: bytes) -> Launched:
        with ExitStack() as stack:
            stack.enter_context(prepared.resources)
            stdin = prepared.fit(spec)
            if survival is not None:
                # Before it can do anything: so nothing is ever done that is not known.
                survival.begin(process, prepared, stdin, circumstances.timeout, circumstances.key)
            leader = stack.enter_context(await prepared.launcher.carry_out(orders, spec))
            ours.enter_context(stack.pop_all())
            return Launched(leader, prepared.capture, stdin, prepared.leaf)

    if host.parking.has_some:
        # Encoded first: if that fails, no parked launcher is lost to it.
        for_parked = orders(null_unused_pipes=True)
        if (parked := host.take_parked(circumstances.limits)) is not None:
            try:
                return await give(parked, for_parked)
            except KilledBeforeExec:
                # While it was waiting, so it says nothing of this process.
                if survival is not None:
                    survival.give_up(process)
    for_this = orders(null_unused_pipes=False)
    leaf = host.take_leaf(circumstances.limits)
    # Orders that it is spawned with save time, but cannot be known before.
    early = for_this if survival is None else b""
    return await give(await prepare(spec, leaf, host.launchers, early), for_this)


async def _run(
    process: Process,
    launched: Launched,
    unit: Unit,
    circumstances: Circumstances,
    survival: Survival | None,
) -> bool:
    """Capture until the leader has exited and the pipes are closed or out of time; whether it timed out."""
    leader, capture, _, _ = launched
    async with trio.open_nursery() as nursery:
        move = None if survival is None else partial(survival.move, process)
        nursery.start_soon(capture.run, process.log, move)
        timed_out = False
        if circumstances.timeout is None:
            await leader.wait()
        else:
            elapsed = time.monotonic() - process.started_clock
            seconds = max(0.0, circumstances.timeout - elapsed)
            while True:
                with trio.move_on_after(seconds) as patience:
                    await leader.wait()
                if not stood_still(patience):
                    break
                seconds = circumstances.timeout
            timed_out = patience.cancelled_caught
        if timed_out:
            process.kill_now(unit)
            await leader.wait()
        process.note_exit()
        nursery.cancel_scope.deadline = trio.current_time() + circumstances.drain_seconds
    return timed_out
