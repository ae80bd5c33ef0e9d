"""Thousands of live processes: what they do to a start, what it takes to look at them, and what they cost."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from msgspec import Struct

from .contest import Contender, compete, latencies
from .daemons import Creche, Daemon
from .setting import Setting
from .sleepers import fill, sleeper
from .tables import Table

_MANY = 5000
_SOME = 1000
# What one takes in Creche, and in sandbox-agent.
_DESCRIPTORS_EACH = 3
_DESCRIPTORS_OF_PEERS = 4
_OTHER_DESCRIPTORS = 500
_IDLE_SECONDS = 10.0
_COMMAND = ("/bin/true",)


class Full(Struct, frozen=True):
    """A daemon with processes in it.

    Attributes:
      daemon: itself.
      identities: of its processes.
      grown_bytes: by how much they have made it larger; None if that cannot be seen.
    """

    daemon: Daemon
    identities: tuple[str, ...]
    grown_bytes: int | None

    @property
    def name(self) -> str:
        """In the tables."""
        return f"{self.daemon.name}, {len(self.identities):,} live"


def live(setting: Setting) -> list[Table]:
    """Start, get and list with 0, 1,000 and 5,000 live processes, and what those cost."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = limit - _OTHER_DESCRIPTORS
    wanted = setting.scaled(_MANY, least=200)
    many = min(wanted, free // _DESCRIPTORS_EACH)
    peers_many = min(wanted, free // _DESCRIPTORS_OF_PEERS)
    some = setting.scaled(_SOME, least=50)
    with ExitStack() as stack:
        command = stack.enter_context(sleeper())
        full = [_full(stack.enter_context(Creche().open()), command, n) for n in (0, some, many)]
        for peer in setting.peers:
            full += [_full(stack.enter_context(peer.open()), command, n) for n in (0, peers_many)]
        crowded = [one for one in full if len(one.identities) in (many, peers_many)]
        idle = _idle(crowded, max(3.0, _IDLE_SECONDS * setting.scale))
        contest = partial(_contest, stack, setting)
        return [
            contest("start", full, lambda one: one.daemon.dialect.start(_COMMAND)),
            contest("get", full, _get),
            contest("list", crowded, lambda one: one.daemon.dialect.list()),
            _memory(crowded),
            idle,
        ]


def _full(daemon: Daemon, command: Sequence[str], number: int) -> Full:
    # What it needs anyway is there before: the first processes are not counted.
    fill(daemon, _COMMAND, 50)
    before = None if daemon.pid is None else daemon.resident_bytes()
    identities = tuple(fill(daemon, tuple(command), number))
    grown = None if before is None else daemon.resident_bytes() - before
    return Full(daemon, identities, grown)


def _get(one: Full) -> bytes:
    """For one that lives; where none does, for one that has ended."""
    dialect = one.daemon.dialect
    if one.identities:
        return dialect.get(one.identities[len(one.identities) // 2])
    with one.daemon.connect() as client:
        return dialect.get(dialect.identity(client.exchange(dialect.start(_COMMAND))))


def _contest(
    stack: ExitStack,
    setting: Setting,
    what: str,
    full: Sequence[Full],
    request: Callable[[Full], bytes],
) -> Table:
    contenders = [
        Contender(one.name, partial(stack.enter_context(one.daemon.connect()).time, request(one)))
        for one in full
    ]
    results = compete(contenders, rounds=setting.scaled(20), times=20, warm_up=2)
    return latencies(f"{what}, one client, by live processes", results)


def _memory(crowded: Sequence[Full]) -> Table:
    rows = tuple(
        (one.name, round(one.grown_bytes / len(one.identities) / 1024, 1))
        for one in crowded
        if one.grown_bytes is not None
    )
    note = "Resident memory of the daemon itself, without its children's and the kernel's."
    return Table(
        title="memory per live process", columns=("KiB",), rows=rows, notes=(note,), plotted=(0,)
    )


def _idle(crowded: Sequence[Full], seconds: float) -> Table:
    seen = [one for one in crowded if one.daemon.pid is not None]
    before = [one.daemon.cpu_seconds() for one in seen]
    time.sleep(seconds)  # What is measured: a time in which nothing happens.
    rows = tuple(
        (one.name, round((one.daemon.cpu_seconds() - was) / seconds * 100, 3))
        for one, was in zip(seen, before, strict=True)
    )
    return Table(title="processor time while idle", columns=("% of a core",), rows=rows)
