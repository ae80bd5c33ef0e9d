"""The supervisor: starts processes, owns them, and lets none outlive it."""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import trio
from msgspec import Struct

from .accounts import Account, Accounts
from .environment import BaseEnvironment, Environment
from .errors import SpecError, StdinNotWritable, SupervisorClosed
from .host import Capabilities, Host
from .life import Circumstances, live
from .output import OutputLog
from .process import Process
from .record import RunResult
from .registry import Registry, Retention
from .session import MARK_NAME
from .spec import Limits, ProcessSpec, StdinMode, User
from .store import OutputLimits, OutputStore

_logger = logging.getLogger(__name__)

# One for each account that is in use.
_BASE_ENVIRONMENTS = 100
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class SupervisorConfig(Struct, frozen=True, kw_only=True):
    """Settings of a supervisor.

    Attributes:
      default_user: whom processes run as when their spec names no user; None
        for the supervisor's own user.
      environment: what every process's environment starts from; None for this
        program's own, without the daemon's settings (`CRECHE_*`).
      retention: how long finished processes stay readable.
      limits: what each process may use, where its spec says nothing.
      use_cgroups: whether to give every process a cgroup, where the host allows it.
      parked_launchers: how many launches are kept prepared, to make starts quicker.
      output: how much output is kept, and what happens past that.
      state_dir: where outputs that are too large for memory are spilled to; None
        to keep all in memory. Made if it is not there. No two supervisors can
        share one. A program whose event loop is busy should lower
        `sys.setswitchinterval`, so that the threads that write get their turn.
      grace_seconds: between SIGTERM and SIGKILL when the supervisor is left.
      drain_seconds: how long descendants that hold the output pipes may go on
        writing after the leader's exit, before they are killed.
    """

    default_user: str | User | None = None
    environment: dict[str, str] | None = None
    retention: Retention = Retention()
    limits: Limits = Limits()
    use_cgroups: bool = True
    parked_launchers: int = 0
    output: OutputLimits = OutputLimits()
    state_dir: Path | None = None
    grace_seconds: float = 5.0
    drain_seconds: float = 0.05


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
        name: str,
        config: SupervisorConfig,
    ) -> None:
        self.config = config
        self._host = host
        self._store = store
        self.name = name
        self.opened_at = time.monotonic()
        self._nursery = nursery
        self._registry = Registry(config.retention)
        self._accounts = Accounts()
        self._handles = itertools.count(1)
        # Running, or ended with descendants that were to be kept.
        self._alive: set[Process] = set()
        self._closing = False
        environment = dict(os.environ) if config.environment is None else config.environment
        self._outer_mark = environment.get(MARK_NAME)
        self._environment = {
            name: value for name, value in environment.items() if not name.startswith("CRECHE_")
        }
        self._environment.setdefault("PATH", _DEFAULT_PATH)
        # By what an account adds to it.
        self._base_environments: dict[tuple[tuple[str, str], ...], BaseEnvironment] = {}

    async def start(self, spec: ProcessSpec, *, timeout: float | None = None) -> Process:
        """Start a process and return it once its command has been executed.

        Args:
          spec: what to start.
          timeout: seconds after which its whole tree is killed; None for never.

        If this is cancelled, either no process is left or it is returned.

        Raises:
          SpecError: the spec can never be started.
          LaunchError: it could not be started now; the subclass says why.
          SupervisorClosed: the supervisor is stopping.
        """
        if self._closing:
            raise SupervisorClosed("the supervisor is stopping")
        spec.check()
        if timeout is not None and not timeout >= 0:
            raise SpecError("timeout is not a number of seconds", field="timeout")
        handle = next(self._handles)
        log = OutputLog(self._store, f"{self.name}-{handle}", spec.output_policy)
        process = Process(handle, spec, log)
        mark = f"{self.name}-{handle}"
        account, environment = self._identity(spec, mark)
        limits = spec.limits.over(self.config.limits)
        circumstances = Circumstances(
            account, environment, mark, limits, timeout, self.config.drain_seconds
        )
        try:
            await self._nursery.start(self._own, process, circumstances)
        finally:
            self._host.start_is_over()
        return process

    async def run(
        self, spec: ProcessSpec, *, input: bytes | None = None, timeout: float | None = None
    ) -> RunResult:
        """Start a process, wait for its end and return its outputs.

        Args:
          spec: what to start. Nobody else can feed its stdin, so that is a
            pipe if there is an `input`, and closed otherwise.
          input: what it is to read, before the end of its stdin. What it does
            not read is no error.
          timeout: seconds after which its whole tree is killed; None for never.

        If this is cancelled, the whole tree is killed before it returns.

        Raises: as `start`.
        """
        stdin_mode: StdinMode = "closed" if input is None else "pipe"
        spec = msgspec.structs.replace(spec, stdin_mode=stdin_mode)
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

    async def _own(
        self,
        process: Process,
        circumstances: Circumstances,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        def started() -> None:
            if self._closing:
                raise SupervisorClosed("the supervisor is stopping")
            self._registry.add(process)
            self._alive.add(process)
            task_status.started()

        def ended() -> None:
            self._registry.finished(process)

        try:
            await live(process, circumstances, self._host, started, ended)
        finally:
            self._alive.discard(process)

    def _identity(self, spec: ProcessSpec, mark: str) -> tuple[Account | None, Environment]:
        """Whom the process becomes (None: nobody else) and its whole environment."""
        user = self.config.default_user if spec.user is None else spec.user
        account = None if user is None else self._accounts.look_up(user)
        base = self._base_environment({} if account is None else account.environment)
        if account is not None and account.is_own:
            account = None
        additions = spec.env
        if not self._host.has_cgroups:
            outer = "" if self._outer_mark is None else f"{self._outer_mark}/"
            additions = {**additions, MARK_NAME: outer + mark}
        return account, Environment(base, additions)

    def _base_environment(self, of_account: dict[str, str]) -> BaseEnvironment:
        key = tuple(of_account.items())
        if (base := self._base_environments.get(key)) is None:
            if len(self._base_environments) >= _BASE_ENVIRONMENTS:
                self._base_environments.clear()
            base = BaseEnvironment({**self._environment, **of_account})
            self._base_environments[key] = base
        return base


@asynccontextmanager
async def open_supervisor(
    config: SupervisorConfig = SupervisorConfig(),
) -> AsyncIterator[Supervisor]:
    """A supervisor for the length of an `async with` block.

    Leaving the block, in whatever way, stops every process: SIGTERM, the
    grace period, SIGKILL of what is left of each tree. When the block is left
    nothing of them is alive and nothing is unreaped; only a process in
    uninterruptible sleep is given up, after five seconds and with an error in
    the log. A cancelled block is left only after that, too.

    What the block raises comes out as it is, not in an exception group.

    Raises:
      StateDirUnusable: the state directory cannot be used.
    """
    failure: BaseException | None = None
    name = secrets.token_hex(8)
    host = Host(name, use_cgroups=config.use_cgroups, parked_launchers=config.parked_launchers)
    with OutputStore(config.output, config.state_dir) as store, host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.run)
            supervisor = Supervisor(nursery, host, store, name, config)
            nursery.start_soon(supervisor._registry.expire)
            try:
                yield supervisor
            except BaseException as error:
                # Raised again below: the nursery would wrap it in a group.
                failure = error
            finally:
                with trio.CancelScope(shield=True):
                    await supervisor.stop()
                nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
