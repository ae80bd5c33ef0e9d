"""The supervisor: starts processes, owns them, and lets none outlive it."""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial

import msgspec
import trio

from .attributes import Attributes
from .birth import Circumstances, begin
from .config import SupervisorConfig
from .errors import KeyReused, SpecError, StateDirUnusable, StdinNotWritable, SupervisorClosed
from .host import Capabilities, Host
from .identities import Identities
from .inheritance import Inheritance, open_inheritance
from .life import Launched, Life
from .output import OutputLog
from .process import Process, now_ms
from .record import RunResult
from .registry import Registry
from .shortages import SHORTAGES, resource_error
from .spec import ProcessSpec, StdinMode
from .store import OutputStore
from .survival import Survival, open_survival

_logger = logging.getLogger(__name__)


class Supervisor:
    """Owns processes. Made by `open_supervisor`.

    Attributes:
      name: unique in the world; the directory of its cgroups is `creche-NAME`.
      config: its settings.
      opened_at: when it was opened, in seconds of `time.monotonic`.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        host: Host,
        store: OutputStore,
        registry: Registry,
        survival: Survival | None,
        name: str,
        config: SupervisorConfig,
    ) -> None:
        self.config = config
        self._survival = survival
        self._starting: dict[str, trio.Event] = {}
        self._host = host
        self._store = store
        self.name = name
        self.opened_at = time.monotonic()
        self._nursery = nursery
        self._registry = registry
        self._identities = Identities(
            config.default_user, config.environment, is_marked=not host.has_cgroups
        )
        self._handles = itertools.count(1)
        # Running, or ended with descendants that were to be kept.
        self._alive: set[Process] = set()
        # The nursery must not be left before they are over.
        self._starts_under_way = 0
        self._one_less = trio.lowlevel.ParkingLot()
        self._is_detached = False
        self._attributes = Attributes(config.umask, config.oom_score_adj, config.descriptor_limits)
        self._closing = False

    # What has been executed must not lose its owner to a Ctrl-C in between.
    @trio.lowlevel.enable_ki_protection
    async def start(
        self, spec: ProcessSpec, *, timeout: float | None = None, key: str | None = None
    ) -> Process:
        """Start a process and return it once its command has been executed.

        Args:
          spec: what to start.
          timeout: seconds after which its whole tree is killed; None for never.
            They begin anew if they were over while this program stood still.
          key: of the caller's choice. As long as a process is remembered that was
            started with it, nothing is started, and that one is returned.

        If this is cancelled, either no process is left or it is returned.

        Raises:
          SpecError: the spec can never be started.
          LaunchError: it could not be started now; the subclass says why.
          SupervisorClosed: the supervisor is stopping.
          KeyReused: the key belongs to a process with another spec.
        """
        if key is None:
            return await self._start(spec, timeout, None)
        while (starting := self._starting.get(key)) is not None:
            await starting.wait()
        if (process := self._registry.by_key(key)) is not None:
            await trio.lowlevel.checkpoint()
            if process.spec != spec:
                raise KeyReused(
                    f"the key {key!r} has started process {process.handle}, with another spec"
                )
            return process
        self._starting[key] = trio.Event()
        try:
            return await self._start(spec, timeout, key)
        finally:
            self._starting.pop(key).set()

    async def _start(self, spec: ProcessSpec, timeout: float | None, key: str | None) -> Process:
        if self._closing:
            raise SupervisorClosed("the supervisor is stopping")
        spec.check()
        if timeout is not None and not timeout >= 0:
            raise SpecError("timeout is not a number of seconds", field="timeout")
        survival = self._survival
        handle = next(self._handles) if survival is None else survival.next_handle()
        log = OutputLog(self._store, f"{self.name}-{handle}", spec.output_policy)
        process = Process(handle, spec, log, survival)
        process.key = key
        mark = f"{self.name}-{handle}"
        account, environment = self._identities.of(spec, mark)
        limits = spec.limits.over(self.config.limits)
        circumstances = Circumstances(
            account,
            environment,
            mark,
            limits,
            self._attributes.encode(spec, limits),
            spec.no_new_privs or self.config.no_new_privs,
            timeout,
            self.config.drain_seconds,
            key,
        )
        self._starts_under_way += 1
        try:
            life = await begin(process, circumstances, self._host, self._survival)
            # No checkpoint before it has a task: nobody would end it if this were cancelled.
            if self._closing:
                await life.abandon()
                raise SupervisorClosed("the supervisor is stopping")
            self._registry.add(process)
            self._alive.add(process)
            self._nursery.start_soon(self._own, life)
            return process
        finally:
            self._starts_under_way -= 1
            self._one_less.unpark_all()
            self._host.start_is_over()

    async def run(
        self, spec: ProcessSpec, *, input: bytes | None = None, timeout: float | None = None
    ) -> RunResult:
        """Start a process, wait for its end and return its outputs.

        Args:
          spec: what to start. Nobody else can feed its stdin, so that is a
            pipe if there is an `input`, and closed otherwise. Nobody reads its
            output before its end either, so where the policy is `block`, past a
            bound the oldest goes instead of the process waiting for ever.
          input: what it is to read, before the end of its stdin. What it does
            not read is no error.
          timeout: seconds after which its whole tree is killed; None for never.

        If this is cancelled, the whole tree is killed before it returns.

        Raises: as `start`.
        """
        stdin_mode: StdinMode = "closed" if input is None else "pipe"
        spec = msgspec.structs.replace(spec, stdin_mode=stdin_mode)
        if (spec.output_policy or self.config.output.policy) == "block":
            spec = msgspec.structs.replace(spec, output_policy="drop_oldest")
        process = await self.start(spec, timeout=timeout)
        try:
            if input is not None:
                with suppress(StdinNotWritable):
                    await process.write_stdin(input)
                    await process.close_stdin()
            record = await process.wait()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await process.kill()
            raise
        reason = process.reason
        assert reason is not None
        return RunResult(
            record=record,
            reason=reason,
            stdout=await process.log.read_all("stdout"),
            stderr=await process.log.read_all("stderr"),
        )

    def by_handle(self, handle: int) -> Process:
        """The process with that handle.

        Raises:
          ProcessNotFound: there is none, or it has been forgotten.
        """
        return self._registry.by_handle(handle)

    def by_pid(self, pid: int, *, handle: int | None = None) -> Process:
        """The newest process that had this pid; with `handle`, only if it is that one.

        Raises:
          ProcessNotFound: there is none, or it has been forgotten.
          PidReused: the newest process with this pid has another handle.
        """
        return self._registry.by_pid(pid, handle=handle)

    def processes(self) -> list[Process]:
        """All remembered processes, running and finished, oldest first."""
        return list(self._registry)

    @property
    def capabilities(self) -> Capabilities:
        """What can be done on this host, and why not the rest."""
        return self._host.capabilities

    @property
    def running(self) -> int:
        """How many processes are running."""
        return self._registry.running

    @property
    def total(self) -> int:
        """How many processes have ever been started here."""
        return self._registry.total

    async def stop(self, *, grace_seconds: float | None = None) -> None:
        """Start nothing any more and end everything: SIGTERM, then SIGKILL of the whole trees.

        Args:
          grace_seconds: between the two; None for the configured time.

        Returns when all processes have ended; they stay readable. If
        cancelled, those that have not ended yet may still be running.
        """
        self._closing = True
        grace = self.config.grace_seconds if grace_seconds is None else grace_seconds
        async with trio.open_nursery() as nursery:
            for process in self._alive:
                nursery.start_soon(process.stop, grace)

    def detach(self) -> None:
        """Start nothing any more, and let everything go on when the supervisor's block is left.

        The next supervisor on the state directory goes on with it.

        Raises:
          StateDirUnusable: this one does not survive (`SupervisorConfig.survives`).
        """
        if self._survival is None:
            raise StateDirUnusable("processes can only go on if their supervisor `survives`")
        self._closing = True
        self._is_detached = True

    async def _leave(self) -> None:
        """End everything, or see to it that it can go on."""
        if not self._is_detached:
            await self.stop()
            await self._wait_while(lambda: self._starts_under_way > 0)
            return
        assert self._survival is not None
        self._host.leave()
        for process in list(self._alive):
            process.let_go()
        await self._wait_while(lambda: self._starts_under_way > 0 or bool(self._alive))
        await self._survival.detach()

    def _end_by_force(self) -> None:
        """SIGKILL to everything that is alive, which its own task does."""
        for process in self._alive:
            process.scope.cancel()

    async def _wait_while(self, there_are: Callable[[], bool]) -> None:
        while there_are():
            await self._one_less.park()

    @trio.lowlevel.enable_ki_protection
    async def _own(self, life: Life) -> None:
        process = life.process
        try:
            await life.run(partial(self._registry.finished, process))
        finally:
            self._alive.discard(process)
            self._one_less.unpark_all()

    async def _take_over(self, inheritance: Inheritance) -> None:
        """Go on with what an earlier supervisor has left, and have all outlive this one too.

        If this fails or is cancelled, all of it is left to the next one.
        """
        survival = self._survival
        assert survival is not None
        self._is_detached = True
        running = await inheritance.take_over(self._store, self._host, survival, self._registry.add)
        self._registry.forgotten = survival.forget
        self._host.parking.survive(survival)
        now = now_ms()
        ended = [
            (now if process.ended_at is None else process.ended_at, process.handle, process)
            for process in self._registry
            if process.has_ended
        ]
        for ended_at, _, process in sorted(ended):
            self._registry.finished(process, seconds_ago=max(0, now - ended_at) / 1000)
        del ended
        leaves = set()
        for process, launched in running:
            self._alive.add(process)
            if launched.leaf is not None:
                leaves.add(launched.leaf.name)
            self._nursery.start_soon(self._own, self._resumed(process, launched))
        self._nursery.start_soon(self._host.kill_strangers, leaves)
        survival.attach()
        self._is_detached = False

    def _resumed(self, process: Process, launched: Launched) -> Life:
        assert process.began is not None
        resources = launched.owned()
        unit = resources.enter_context(launched.unit(f"{self.name}-{process.handle}"))
        if process.has_ended:
            process.be_outlived()
        else:
            process.begin(unit, launched.leaf, launched.stdin)
        return Life(
            process,
            launched,
            unit,
            resources,
            self._host.kernel_log,
            self._survival,
            timeout=process.began.timeout,
            drain_seconds=self.config.drain_seconds,
        )


@asynccontextmanager
async def open_supervisor(
    config: SupervisorConfig = SupervisorConfig(),
) -> AsyncIterator[Supervisor]:
    """A supervisor for the length of an `async with` block.

    Leaving the block, in whatever way, stops every process: SIGTERM, the
    grace period, SIGKILL of what is left of each tree; unless they have been
    told to go on (`Supervisor.detach`). When the block is left
    nothing of them is alive and nothing is unreaped; only a process in
    uninterruptible sleep is given up, after five seconds and with an error in
    the log. A cancelled block is left only after that, too.

    What the block raises comes out as it is, not in an exception group.

    Raises:
      StateDirUnusable: the state directory cannot be used.
      LaunchError: something has run short, such as descriptors; or no keeper can be started.
      RuntimeError: a subreaper was asked for outside the main thread.
    """
    failure: BaseException | None = None
    async with AsyncExitStack() as stack:
        store = stack.enter_context(
            OutputStore(config.output, config.state_dir, outlives=config.survives)
        )
        inheritance = None
        if config.survives:
            if config.state_dir is None:
                raise StateDirUnusable("processes can only survive in a state directory")
            inheritance = await stack.enter_async_context(open_inheritance(config.state_dir))
        name = secrets.token_hex(8) if inheritance is None else inheritance.name
        try:
            host = stack.enter_context(
                Host(
                    name,
                    use_cgroups=config.use_cgroups,
                    parked_launchers=config.parked_launchers,
                    subreaper=config.subreaper,
                    sole_parent=config.sole_parent,
                    lock=None if inheritance is None else inheritance.lock,
                    found_in=None if inheritance is None else inheritance.cgroups,
                )
            )
        except OSError as error:
            if error.errno in SHORTAGES:
                raise resource_error(error) from error
            raise
        registry = Registry(config.retention)
        survival = None
        if inheritance is not None:
            # Around the nursery: whatever goes on in there may still be written down.
            survival = await stack.enter_async_context(
                open_survival(inheritance, registry.find, host.lock, host.own_cgroups)
            )
        # Around all else: by it the processes' own tasks see their ends, also if the host fails.
        await stack.enter_async_context(_running(host.poller.run))
        await stack.enter_async_context(_running(host.run))
        async with trio.open_nursery() as nursery:
            supervisor = Supervisor(nursery, host, store, registry, survival, name, config)
            nursery.start_soon(registry.expire)
            # What fails is raised again below: the nursery would wrap it in a group.
            try:
                if inheritance is not None:
                    await supervisor._take_over(inheritance)
                yield supervisor
            except BaseException as error:
                failure = error
            with trio.CancelScope(shield=True):
                try:
                    await supervisor._leave()
                except BaseException as error:
                    # Interrupted once more, which means: at once.
                    failure = failure or error
                    supervisor._end_by_force()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@asynccontextmanager
async def _running(run: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """This task runs within the block: also while what was interrupted comes to its end there."""
    scope = trio.CancelScope(shield=True)

    async def shielded() -> None:
        with scope:
            await run()

    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shielded)
        try:
            yield
        except BaseException as error:
            failure = error  # As above.
        scope.cancel()
    if failure is not None:
        raise failure
