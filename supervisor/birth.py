"""The birth of one process: from its circumstances to the execution of its command.

Whoever asks for a start does this in its own task, and nothing else happens in
between: the process gets a task of its own when there is something to watch.
"""

from __future__ import annotations

import os

from msgspec import Struct

from .accounts import Account
from .environment import Environment
from .errors import KilledBeforeExec
from .host import Host
from .launch import orders_for
from .life import Launched, Life
from .prepared import PreparedLaunch, prepare
from .process import Process
from .shortages import resource_error
from .spec import Limits
from .stdin import Stdin, open_stdin
from .survival import Survival


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


async def begin(
    process: Process, circumstances: Circumstances, host: Host, survival: Survival | None
) -> Life:
    """Execute the command of `process`, and return its life, which the caller must `run` or `abandon`.

    There is no checkpoint after the execution. If this is cancelled, or if it
    raises, nothing is left.

    Raises:
      LaunchError, LimitUnavailable: nothing was started.
    """
    if process.spec.stdin_mode == "closed":
        return await _begin(process, circumstances, None, host.launchers.null, host, survival)
    try:
        stdin, read_end = open_stdin()
    except OSError as error:
        raise resource_error(error) from error
    try:
        return await _begin(process, circumstances, stdin, read_end, host, survival)
    except BaseException:
        stdin.close_now()
        raise
    finally:
        os.close(read_end)


async def _begin(
    process: Process,
    circumstances: Circumstances,
    stdin: Stdin | None,
    stdin_end: int,
    host: Host,
    survival: Survival | None,
) -> Life:
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

    async def give(prepared: PreparedLaunch, orders: bytes) -> Life:
        launcher, capture, leaf, resources, _ = prepared
        with resources:
            if survival is not None:
                # Before it can do anything: so nothing is ever done that is not known.
                survival.begin(process, prepared, stdin, circumstances.timeout, circumstances.key)
            leader = resources.enter_context(launcher.leader)
            launcher.order(orders, stdin_end)
            # While they are carried out.
            prepared.fit(spec)
            launched = Launched(leader, capture, stdin, leaf)
            unit = resources.enter_context(launched.unit(circumstances.mark))
            process.begin(unit, leaf, stdin)
            await launcher.executed(spec)
            if leaf is not None:
                leaf.joined()
            owned = resources.pop_all()
            if stdin is not None:
                owned.callback(stdin.close_now)
            return Life(
                process,
                launched,
                unit,
                owned,
                host.kernel_log,
                survival,
                timeout=circumstances.timeout,
                drain_seconds=circumstances.drain_seconds,
            )

    try:
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
        return await give(await prepare(spec, leaf, host.launchers, host.poller), for_this)
    except BaseException:
        if survival is not None:
            survival.give_up(process)
        raise
