"""What an earlier supervisor has left in a state directory, and how the next one takes it over.

What there may be, and how it got there, is told in `survival`. Here it is
looked through once, at the start: every process that the journal knows becomes
one of ours again, and whatever nobody knows is ended.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import trio

from .capture import Capture
from .cgroups import Leaf
from .chunk import Counts
from .entries import SELF, Found, Self, found_in, self_of
from .errors import StateDirUnusable
from .exit_status import exit_status_of
from .host import Host
from .journal import Recovered, read_journal
from .keeper import Keeper, open_keeper
from .leader import TakenOver
from .life import Launched
from .output import OutputLog
from .process import Process
from .session import kill_marked
from .stdin import Stdin
from .store import OutputStore
from .survival import PIDFD, STDERR, STDIN, STDOUT, Kept, Survival

_logger = logging.getLogger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# The signal that ends a launcher with nobody to give it orders, or to read its answer.
_NEVER_EXECUTED = signal.SIGRTMAX
_MORE_DESCRIPTORS = "it takes a higher limit of open files (ulimit -n)"


class Running(NamedTuple):
    """A process that goes on."""

    process: Process
    launched: Launched


class Inheritance:
    """What has been found. Owns the descriptors in it, until they are taken over.

    Attributes:
      directory: the state directory.
      name: of the supervisor, then and now.
      boot_id: of this boot.
      keeper: that of the directory.
      recovered: what its journal says.
      lock: of the units' cgroups, if the keeper had it; the caller's own.
      cgroups: where those are.
    """

    def __init__(self, directory: Path, boot_id: str, keeper: Keeper, recovered: Recovered) -> None:
        self.directory = directory
        self.boot_id = boot_id
        self.keeper = keeper
        self.recovered = recovered
        earlier = self_of(recovered) or Self(secrets.token_hex(8), boot_id, 1)
        self.name = earlier.name
        self._handles = earlier.handles
        # After a reboot no pid means what it meant.
        self._is_same_boot = earlier.boot_id == boot_id
        self._held = dict(keeper.held)
        self.lock = self._held.pop(SELF, {}).pop(0, None)
        self.cgroups = None if self.lock is None else earlier.cgroups

    async def take_over(
        self, store: OutputStore, host: Host, survival: Survival, add: Callable[[Process], None]
    ) -> list[Running]:
        """Make processes of what has been found, and return those that go on.

        Of one that has ended those descendants do that were to be kept.

        Args:
          add: is called with every one, oldest first, before anything else is
            asked of `survival`.

        Raises:
          StateDirUnusable: an output cannot be read for now, or there are too few
            descriptors; what is alive stays as it is.
        """
        host.parking.hold_back()
        found = found_in(self.recovered)
        self.recovered.entries.clear()  # Else it would all be held for as long as we live.
        try:
            # In a thread, since the disk may take its time. Nobody else uses the store yet.
            logs = await trio.to_thread.run_sync(self._restore_outputs, store, found)
        except OSError as error:
            store.disk.is_left = True  # What has been taken back is let go of.
            for held in self._held.values():
                _close(held)
            raise StateDirUnusable(
                f"the outputs in {self.directory} cannot be read: {error.strerror}"
            ) from error
        processes: list[tuple[Process, Found]] = []
        for item, log in zip(found, logs, strict=True):
            process = Process(item.handle, item.began.spec, log, survival)
            process.key = item.began.key
            processes.append((process, item))
        del logs
        running: list[Running] = []
        never_executed: list[int] = []
        for process, item in processes:
            descriptors = self._held.pop(item.began.kept, None)
            if descriptors is not None and self._goes_on(item):
                if item.ended is None and _was_never_executed(descriptors[PIDFD], item):
                    _close(descriptors)
                    never_executed.append(item.began.kept)
                    continue
                process.take_back(item, has_ended=item.ended is not None)
                try:
                    launched = self._launched(process, item, descriptors, host)
                except OSError as error:
                    raise StateDirUnusable(
                        f"process {item.handle} there cannot be taken over: {error.strerror}; "
                        f"{_MORE_DESCRIPTORS}"
                    ) from error
                running.append(Running(process, launched))
            else:
                if descriptors is not None:
                    _close(descriptors)
                    self.keeper.drop(item.began.kept)
                process.take_back(item, has_ended=True)
            add(process)
        survival.use_handles_from(max([self._handles, *(item.handle + 1 for item in found)]))
        lost = [p for p, item in processes if item.ended is None and p.has_ended]
        await trio.to_thread.run_sync(self._end_rest, lost)
        for process, item in processes:
            if item.ended is None and process.has_ended:
                survival.finish(process)
            elif process.pid == 0:
                survival.forget(process.handle)
        # Not before they are forgotten: without its descriptors one would seem to have ended.
        self.keeper.drop(*never_executed)
        for process, launched in running:
            kept = Kept(launched.leader.pidfd, launched.capture, launched.stdin)
            survival.take_over(process, kept)
        self._kill_unknown()
        return running

    def _goes_on(self, item: Found) -> bool:
        """Whether something of it may be alive, if the keeper has it."""
        is_over = item.ended is not None and item.began.spec.descendants != "keep"
        return self._is_same_boot and not is_over

    def _restore_outputs(self, store: OutputStore, found: list[Found]) -> list[OutputLog]:
        files = store.found()
        logs = []
        for item in found:
            name = f"{self.name}-{item.handle}"
            log = OutputLog(store, name, item.began.spec.output_policy)
            self._restore_output(store, log, name, files.pop(name, []), item)
            logs.append(log)
        for name, numbers in files.items():
            store.remove(name, numbers)
        return logs

    def _restore_output(
        self, store: OutputStore, log: OutputLog, name: str, numbers: list[int], found: Found
    ) -> None:
        counts = Counts()
        spill = store.spill(name) if numbers else None
        if spill is not None:
            spill.take_back(numbers, counts, is_same_boot=self._is_same_boot)
        log.take_back(spill, counts, found.chunks, found.read_to, is_over=found.is_over)
        found.complete(log.counts)

    def _launched(
        self, process: Process, found: Found, descriptors: dict[int, int], host: Host
    ) -> Launched:
        leader = TakenOver(found.began.pid, descriptors[PIDFD], host.children)
        capture = Capture(host.poller)
        spec, stdin = process.spec, None
        # A parked launcher has them all.
        if (stdout := descriptors.pop(STDOUT, None)) is not None and spec.stdout_mode == "capture":
            capture.take_over("stdout", stdout)
            stdout = None
        if (stderr := descriptors.pop(STDERR, None)) is not None and spec.stderr_mode == "capture":
            capture.take_over("stderr", stderr)
            stderr = None
        if (write_end := descriptors.pop(STDIN, None)) is not None and spec.stdin_mode == "pipe":
            stdin = Stdin(write_end, found.accepted_bytes)
            write_end = None
        for unused in (stdout, stderr, write_end):
            if unused is not None:
                os.close(unused)
        leaf: Leaf | None = None
        if found.began.leaf is not None:
            leaf = host.leaf_of(found.began.leaf, process.spec.limits)
        return Launched(leader, capture, stdin, leaf)

    def _end_rest(self, lost: list[Process]) -> None:
        """Nobody reads what these write any more, so what is left of them must not go on.

        A cgroup is ended as one that nobody knows.
        """
        if self._is_same_boot and lost:
            for process in lost:
                _logger.error("%r has been lost with its keeper, and is ended", process)
            kill_marked([f"{self.name}-{process.handle}" for process in lost])

    def _kill_unknown(self) -> None:
        """What the keeper has and the journal does not know was about to be started."""
        for key, descriptors in self._held.items():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptors[PIDFD], signal.SIGKILL)
            _close(descriptors)
            self.keeper.drop(key)
        self._held.clear()


@asynccontextmanager
async def open_inheritance(directory: Path) -> AsyncIterator[Inheritance]:
    """What is in a state directory, whose lock the caller holds; and its keeper, for the length of the block.

    Raises:
      StateDirUnusable: it cannot be used; or there are too few descriptors for
        what is to be taken over, all of which stays as it is.
      LaunchError: no keeper can be started.
    """
    boot_id = _read_boot_id()
    async with open_keeper(directory) as keeper:
        if keeper.withheld:
            # What is not ours would seem to be lost, and be ended.
            for descriptors in keeper.held.values():
                _close(descriptors)
            raise StateDirUnusable(
                f"of {len(keeper.withheld)} processes there the descriptors could not be had: "
                + _MORE_DESCRIPTORS
            )
        recovered = await trio.to_thread.run_sync(read_journal, directory, boot_id)
        yield Inheritance(directory, boot_id, keeper, recovered)


def _read_boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def _was_never_executed(pidfd: int, found: Found) -> bool:
    status = exit_status_of(pidfd)
    is_ours = _NEVER_EXECUTED in found.signals
    return status is not None and status.signal == _NEVER_EXECUTED and not is_ours


def _close(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
