"""What of a supervisor's processes survives it, however it ends.

The guarantee
=============

A supervisor that survives can be killed at any instant. The next one on the
same state directory finds every process under its handle: the running ones go
on, with their output complete, and of those that have ended it says how.

How
===

Two things are kept for every process, and neither needs the supervisor:

- its *descriptors*, by the keeper (`keeper`): the pidfd, our ends of the pipes.
  So its pipes have a reader, and its exit status is not lost when whoever is
  its parent by then reaps it;
- its *entries*, in the journal (`journal`): what was started, the output that
  has not been spilled, how it ended.

A start is made known in steps, and each crash in between has its answer:

    launcher waits ─▶ kept ─▶ BEGAN ─▶ orders ─▶ exec ─▶ ... ─▶ ENDED
      it ends by its own signal, and is forgotten   it goes on

Output is moved from the pipe into the journal, or into a spill file, by
splice(2): at every instant it is in one of them.

What a kill costs all the same
==============================

- When a process has ended without a supervisor, `ended_at` and its duration are
  those of the next one's look at it.
- Of a write to stdin that was not answered, what the pipe took last may not be
  counted. What was answered for was taken, once, and is counted.
- How many bytes `drop_newest` has dropped of a running process is forgotten.
- A spill file that cannot be read at the start is a gap, and positions go on behind
  it. If it was being written at the kill, what it had got last is not known from
  anywhere else, and those positions are given again.
- Under `block`, what had been read for a client and was not yet sent to it may
  have made room for more already.
- Descendants that were to be kept are ours again, and so are the ends of the
  pipes that they write to, until they end, or their process is forgotten.

Why so
======

- A parent that survives, one for each process (conmon, containerd-shim), would
  have the exit status on every kernel, and cost a process for each process. The
  keeper is one for all, and starts nothing. But whose supervisor was killed is a
  child of init from then on. On Linux before 6.15 its status is `unknown` when it
  ends, unless we see the zombie before init does. (A program that executes
  another keeps its children, so a restart in place costs no status.)
- systemd's descriptor store would do the keeper's work, where there is systemd.
- If the keeper dies, the supervisor starts another and gives it everything
  again. If it is stopped, nobody waits for it but the next supervisor. If both
  die, the pipes have died with them: what is left of the processes is killed,
  and their records say `unknown`.
- After a reboot (by the boot id) no pid and no keeper means anything any more.
- A supervisor that cannot take all over, for want of descriptors, say, does not
  start, and leaves all as it is. What it did not know it would have to kill.
- Without a cgroup the number of a leader proves nothing once somebody else has
  reaped it. From then on members are known by their mark alone (`session`).
- The machine's own death may cost the last seconds: nothing waits for a disk.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from .cgroups.mounts import OwnCgroups
from .chunk import Stream
from .entries import (
    ACCEPTED,
    BEGAN,
    CAPTURED,
    ENDED,
    NUMBER,
    OF_SELF,
    OUTPUT,
    OVER,
    READ,
    READ_TO,
    SELF,
    SIGNALED,
    Began,
    Self,
    encode_began,
    encode_captured,
    encode_ended,
    encode_self,
)
from .frames import frame_header, next_header
from .journal import Journal, Recovered, State
from .keeper import Descriptors, Keeper

if TYPE_CHECKING:
    from .capture import Capture
    from .inheritance import Inheritance
    from .prepared import PreparedLaunch
    from .process import Process
    from .stdin import Stdin

_logger = logging.getLogger(__name__)

# Tags of descriptors at the keeper.
PIDFD: Final = 0
STDIN: Final = 1
STDOUT: Final = 2
STDERR: Final = 3

# After which the disk is tried again.
_RETRY_SECONDS: Final = 1.0
# Keys of the keeper are unique, whatever an earlier supervisor has left there.
_LEAST_KEY: Final = 1 << 32
_KEY_BITS: Final = 62
# What the keeper need not have any more costs it descriptors, and to tell it costs
# us; so it is told of so much at once, or after so long.
_GATHERED: Final = 16
_GATHERING_SECONDS: Final = 0.25
# Handles are reserved in advance, so that none is used again whatever is forgotten.
_RESERVED_HANDLES = 1000


class Kept(NamedTuple):
    """What the keeper is to have of a process, or of a launch."""

    pidfd: int
    capture: Capture
    stdin: Stdin | None

    def descriptors(self) -> Descriptors:
        """Those of it that are open now, by their tags."""
        descriptors = {PIDFD: self.pidfd}
        for stream, read_end in self.capture.read_ends.items():
            descriptors[STDOUT if stream == "stdout" else STDERR] = read_end
        if self.stdin is not None and self.stdin.descriptor is not None:
            descriptors[STDIN] = self.stdin.descriptor
        return descriptors


class Survival:
    """Keeps what survives, up to date. A context manager that owns the journal.

    What cannot be written now is logged, and written when it can be. Meanwhile
    the processes go on: they just would not survive, or not all of their output
    would.

    Args:
      directory: the state directory.
      name: of the supervisor.
      boot_id: of this boot.
      keeper: that of the directory.
      recovered: the journal, as it was found.
      process_of: the process with a handle, if it is remembered.
      lock: of the units' cgroups, which must stay locked; or None.
      cgroups: where those are; or None.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        boot_id: str,
        keeper: Keeper,
        recovered: Recovered,
        process_of: Callable[[int], Process | None],
        lock: int | None,
        cgroups: OwnCgroups | None,
    ) -> None:
        self._keeper = keeper
        self._process_of = process_of
        self._self = Self(name, boot_id, 1, cgroups)
        self._lock = lock
        self._next_handle = 1
        # By the keeper's keys.
        self._kept: dict[int, Kept] = {}
        self._keys = itertools.count(_LEAST_KEY + secrets.randbits(_KEY_BITS))
        # Those that have begun and not ended, which others need not know yet.
        self._processes: dict[int, Process] = {}
        # What the keeper need not have any more, and has not been told.
        self._dropped: list[int] = []
        self._is_dropping = trio.lowlevel.ParkingLot()
        self._journal = Journal(directory, self._state_of, recovered)
        # Of what the journal lacks something, which could not be written; and
        # what the keeper is not to be told before it is.
        self._late: set[int] = set()
        self._dropped_late: dict[int, int] = {}
        self._becomes_late = trio.lowlevel.ParkingLot()
        # The keeper is not to be ended before all that it has is ours.
        self._is_attached = False

    def __enter__(self) -> Survival:
        self._journal.__enter__()
        if self._lock is not None:
            self._keeper.put(SELF, {0: self._lock})
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.__exit__()

    async def run(self) -> None:
        """See to it that there is a keeper, and that it has what it should, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keeper.run, self._all_kept)
            nursery.start_soon(self._catch_up)
            while True:
                if not self._dropped:
                    await self._is_dropping.park()
                await trio.sleep(_GATHERING_SECONDS)
                self._drop_now()

    def _drop_now(self) -> None:
        if self._dropped:
            dropped, self._dropped = self._dropped, []
            self._keeper.drop(*dropped)

    async def _catch_up(self) -> None:
        """Write what is late, once the disk takes it again."""
        while True:
            if not self._late:
                await self._becomes_late.park()
            await trio.sleep(_RETRY_SECONDS)
            try:
                while self._late:
                    key = next(iter(self._late))
                    self._journal.rewrite(key)
                    self._late.remove(key)
                    if (kept := self._dropped_late.pop(key, None)) is not None:
                        self._drop_soon(kept)
            except OSError:
                continue
            _logger.info("what should outlive the supervisor can be written again")

    def attach(self) -> None:
        """All that there was is ours now."""
        self._is_attached = True

    async def detach(self) -> None:
        """See to it that the keeper has been told everything, and leave all to the next supervisor."""
        self._is_attached = False
        self._drop_now()
        await self._keeper.settle()

    async def end(self) -> None:
        """Nothing is left that must be kept, unless it is left to the next supervisor; not while `run` does."""
        if self._is_attached:
            await self._keeper.end()

    # --- handles ---

    def use_handles_from(self, handle: int) -> None:
        """All below have been given out."""
        self._next_handle = handle
        self._reserve()

    def next_handle(self) -> int:
        """One that was never given out."""
        handle = self._next_handle
        if handle >= self._self.handles:
            self._reserve()
        self._next_handle += 1
        return handle

    def _reserve(self) -> None:
        self._self.handles = self._next_handle + _RESERVED_HANDLES
        self._append(SELF, OF_SELF, encode_self(self._self), begins=True)

    # --- the life of a process ---

    def begin(
        self,
        process: Process,
        prepared: PreparedLaunch,
        stdin: Stdin | None,
        timeout: float | None,
        key: str | None,
    ) -> None:
        """It may be executed from now on."""
        launcher, leaf = prepared.launcher, prepared.leaf
        kept = prepared.kept
        if kept is None or stdin is not None:
            kept = self._keep(prepared, stdin, kept)
        self._processes[process.handle] = process
        process.began = Began(
            process.spec,
            launcher.leader.pid,
            time.time_ns() // 1_000_000,
            time.monotonic(),
            timeout,
            None if leaf is None else leaf.name,
            key,
            kept,
        )
        self._append(process.handle, BEGAN, encode_began(process.began), begins=True)

    def take_over(self, process: Process, kept: Kept) -> None:
        """It goes on, with what the keeper has of it."""
        assert process.began is not None
        self._processes[process.handle] = process
        self._kept[process.began.kept] = kept

    def park(self, prepared: PreparedLaunch) -> int:
        """Have a launch kept, before it is known what for; returns the keeper's key."""
        return self._keep(prepared, None, None)

    def _keep(self, prepared: PreparedLaunch, stdin: Stdin | None, key: int | None) -> int:
        if key is None:
            key = next(self._keys)
        kept = Kept(prepared.launcher.leader.pidfd, prepared.capture, stdin)
        self._kept[key] = kept
        self._keeper.put(key, kept.descriptors())
        return key

    def drop(self, key: int) -> None:
        """Have this kept no longer. Soon: to wake the keeper costs more than to tell it."""
        del self._kept[key]
        self._drop_soon(key)

    def _drop_soon(self, key: int) -> None:
        if not self._dropped:  # Whoever waits has been woken by the first.
            self._is_dropping.unpark_all()
        self._dropped.append(key)
        if len(self._dropped) == _GATHERED:
            self._drop_now()

    def give_up(self, process: Process) -> None:
        """It has not been executed, and never will be."""
        if self._processes.pop(process.handle, None) is not None:
            assert process.began is not None
            self.drop(process.began.kept)
            process.began = None
            self.forget(process.handle)

    def move(
        self, process: Process, stream: Stream, pipe: int, max_bytes: int, timestamp_ms: int
    ) -> bytes:
        """Read from its pipe into the journal, and return it; as os.read."""
        log = process.log
        if log.drops_newest:
            if log.becomes_over():
                self._append(process.handle, OVER, b"")
        elif process.handle not in self._late:
            header = next_header(log.counts, stream, timestamp_ms)
            try:
                return self._journal.splice(process.handle, OUTPUT, header, pipe, max_bytes)
            except BlockingIOError:
                raise
            except OSError as error:
                self._be_late(process.handle, error)
        return os.read(pipe, max_bytes)

    def accept(self, process: Process) -> None:
        """Its stdin has taken more, or was closed."""
        self._append(process.handle, ACCEPTED, NUMBER.pack(process.stdin_accepted_bytes))
        if process.handle in self._processes and not process.stdin_writable:
            assert process.began is not None
            # While the keeper has it, the process sees no end.
            key = process.began.kept
            self._keeper.put(key, self._kept[key].descriptors())

    def signal(self, process: Process, signum: int) -> None:
        """It is sent a signal from here."""
        self._append(process.handle, SIGNALED, bytes([signum]))

    def finish(self, process: Process) -> None:
        """Its end is complete."""
        self._append(process.handle, ENDED, encode_ended(process))

    def note_settled(self, process: Process) -> None:
        """The last of its output has been spilled after its end, or could not be."""
        if self._process_of(process.handle) is not None:
            self.finish(process)

    def leave(self, process: Process) -> None:
        """Nothing of it is left that must be kept."""
        if self._processes.pop(process.handle, None) is not None:
            assert process.began is not None
            if process.handle in self._late:
                # The keeper knows at least how it ended.
                del self._kept[process.began.kept]
                self._dropped_late[process.handle] = process.began.kept
            else:
                self.drop(process.began.kept)

    def note_read(self, handle: int) -> None:
        """Somebody has read more of its output, and it waits for that."""
        if (process := self._processes.get(handle)) is not None and not process.has_ended:
            assert process.log.readership is not None
            self._append(handle, READ, READ_TO.pack(*process.log.readership.read_to))

    def note_poured(self, handle: int) -> None:
        """Some of its output has gone past the journal, into a file that may be lost."""
        if (process := self._processes.get(handle)) is not None:
            self._append(handle, CAPTURED, encode_captured(process.log.counts))

    def forget(self, handle: int) -> None:
        """Nobody can ask for it any more."""
        try:
            self._journal.end(handle)
        except OSError as error:
            self._be_late(handle, error)

    def _append(self, key: int, kind: int, payload: bytes, *, begins: bool = False) -> None:
        if key in self._late:
            return  # It will be written whole.
        try:
            self._journal.append(key, kind, payload, begins=begins)
        except OSError as error:
            self._be_late(key, error)

    def _be_late(self, key: int, error: OSError) -> None:
        if not self._late:
            _logger.warning("what should outlive the supervisor cannot be written: %s", error)
        self._late.add(key)
        self._becomes_late.unpark_all()

    def _all_kept(self) -> Iterable[tuple[int, Descriptors]]:
        if self._lock is not None:
            yield SELF, {0: self._lock}
        for key, kept in self._kept.items():
            yield key, kept.descriptors()

    def _state_of(self, key: int) -> State | None:
        if key == SELF:
            return [(OF_SELF, encode_self(self._self))]
        process = self._processes.get(key) or self._process_of(key)
        if process is None or process.began is None:
            return None
        state = [(BEGAN, encode_began(process.began))]
        if process.signals_sent:
            state.append((SIGNALED, bytes(process.signals_sent)))
        if process.stdin_accepted_bytes:
            state.append((ACCEPTED, NUMBER.pack(process.stdin_accepted_bytes)))
        if process.log.readership is not None:
            state.append((READ, READ_TO.pack(*process.log.readership.read_to)))
        if process.log.is_over:
            state.append((OVER, b""))
        if process.log.end:
            state.append((CAPTURED, encode_captured(process.log.counts)))
        state += [(OUTPUT, frame_header(chunk) + chunk.data) for chunk in process.log.unspilled]
        if process.has_ended:
            state.append((ENDED, encode_ended(process)))
        return state


@asynccontextmanager
async def open_survival(
    inheritance: Inheritance,
    process_of: Callable[[int], Process | None],
    lock: int | None,
    cgroups: OwnCgroups | None,
) -> AsyncIterator[Survival]:
    """Goes on where what was found has ended. At the end of the block nothing must need to survive."""
    survival = Survival(
        inheritance.directory,
        inheritance.name,
        inheritance.boot_id,
        inheritance.keeper,
        inheritance.recovered,
        process_of,
        lock,
        cgroups,
    )
    with survival:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(survival.run)
            failure: BaseException | None = None
            try:
                yield survival
            except BaseException as error:
                failure = error  # Raised below: the nursery would wrap it in a group.
            nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await survival.end()
    if failure is not None:
        raise failure
