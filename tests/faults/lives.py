"""A daemon that is killed and started again on the same state directory, and what a client sees of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import h11
import trio

from ..afterlife import end_what_outlives
from ..conftest import PATIENCE_SECONDS
from ..kernel import end_cgroups_of_the_dead, processes, supervisors_cgroups
from ..test_server import Command
from ..wire import Connection, connect

_ROOT = Path(__file__).parent.parent.parent
WITHOUT_CGROUPS = (
    *("unshare", "--mount", "--propagation", "private"),
    *("sh", "-c", 'umount --recursive --lazy /sys/fs/cgroup && exec "$@"', "sh"),
)
# What a client of `wire` sees of a daemon that is killed.
GONE = (OSError, trio.BrokenResourceError, h11.ProtocolError, AssertionError)


class Lives:
    """The daemon, one life after the other.

    Attributes:
      state_dir: which all of them have.
      mark: in the environment of all that they start.
      command: the present one, or the last.
      url: where it serves, or has served.
      seconds: from the start of each to where it serves.
    """

    def __init__(
        self, state_dir: Path, nursery: trio.Nursery, options: Sequence[str], under: Sequence[str]
    ) -> None:
        self.state_dir = state_dir
        self.mark = f"CRECHE_TEST={uuid4().hex}"
        self.command: Command
        self.url = ""
        self.seconds: list[float] = []
        self._nursery = nursery
        self._options = options
        self._under = under

    async def spawn(
        self, *, under: Sequence[str] | None = None, environment: Mapping[str, str] = {}
    ) -> Command:
        """Start one, and wait for nothing."""
        prefix = self._under if under is None else under
        command = [*prefix, sys.executable, "-m", "api", "serve", "--bind", "127.0.0.1:0"]
        process = await trio.lowlevel.open_process(
            [*command, "--state-dir", str(self.state_dir), *self._options],
            stderr=-1,
            cwd=_ROOT,
            env={**os.environ, **environment},
        )
        self.command = Command(process)
        self._nursery.start_soon(_read_log, self.command)
        return self.command

    async def start(
        self, *, under: Sequence[str] | None = None, environment: Mapping[str, str] = {}
    ) -> None:
        """Start one, and wait until it serves."""
        began = time.perf_counter()
        await self.spawn(under=under, environment=environment)
        entry = await self.command.logged("serving")
        self.seconds.append(time.perf_counter() - began)
        self.url = f"http://{entry['addresses'][0]}"

    async def kill(self) -> None:
        """SIGKILL to it."""
        self.command.process.kill()
        await self.command.process.wait()

    async def restart(self) -> None:
        """The end of one life and the beginning of the next."""
        await self.kill()
        await self.start()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """One to the present daemon."""
        async with await connect(self.url) as connection:
            yield connection

    async def json(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] = {}
    ) -> Any:
        """What it answers."""
        async with self.connection() as connection:
            return await connection.json(method, path, body, headers=headers)

    async def launch(self, script: str, *, key: str | None = None, **spec: Any) -> dict[str, Any]:
        """Start a shell script; its record."""
        name, _, value = self.mark.partition("=")
        body = {"command": "bash", "args": ["-c", script], **spec}
        body["env"] = {**spec.get("env", {}), name: value}
        headers = {} if key is None else {"Idempotency-Key": key}
        async with self.connection() as connection:
            record: dict[str, Any] = await connection.json(
                "POST", "/processes", body, headers=headers
            )
            assert connection.status in (200, 201), record
        return record

    async def record(self, handle: int) -> dict[str, Any]:
        """What became of one."""
        found = {entry["handle"]: entry for entry in await self.records()}
        record: dict[str, Any] = found[handle]
        return record

    async def records(self) -> list[dict[str, Any]]:
        """Of all."""
        records: list[dict[str, Any]] = (await self.json("GET", "/processes"))["processes"]
        return records

    async def raw(self, record: Mapping[str, Any], stream: str) -> bytes:
        """All that it has written to a stream so far."""
        path = f"/processes/{record['pid']}/{stream}/raw?handle={record['handle']}"
        async with self.connection() as connection:
            with trio.fail_after(PATIENCE_SECONDS):
                data = await connection.request("GET", path)
            assert connection.status == 200, data
        return data

    async def ended(self, record: Mapping[str, Any], *, from_: int = 0) -> dict[str, Any]:
        """The record of one once it has ended, and its output from there on has been read."""
        path = f"/processes/{record['pid']}/output/frames?handle={record['handle']}"
        async with self.connection() as connection:
            with trio.fail_after(PATIENCE_SECONDS):
                await connection.request("GET", f"{path}&follow=true&from={from_}")
            assert connection.status == 200
        return await self.record(record["handle"])

    def marked(self) -> set[int]:
        """The pids of all living processes that were started by any of these daemons."""
        found = set()
        for entry in processes():
            try:
                environment = Path(f"/proc/{entry.pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if self.mark.encode() in environment and entry.state not in "ZX":
                found.add(entry.pid)
        return found

    def keepers(self) -> set[int]:
        """The pids of the keepers of the directory."""
        return {
            entry.pid
            for entry in processes()
            if entry.arguments == ("creche-keeper", str(self.state_dir)) and entry.state not in "ZX"
        }


async def _read_log(command: Command) -> None:
    assert command.process.stderr is not None
    async with command.process.stderr:
        await command.read_log()


@asynccontextmanager
async def lives(state_dir: Path, *options: str, under: Sequence[str] = ()) -> AsyncIterator[Lives]:
    """None lives yet; at the end of the block nothing of them is left.

    `under` is a command that starts them, if nothing else is asked for.
    """
    cgroups = supervisors_cgroups()
    state_dir.mkdir(mode=0o700, exist_ok=True)
    async with trio.open_nursery() as nursery:
        daemon = Lives(state_dir.resolve(), nursery, options, under)
        try:
            yield daemon
        finally:
            with trio.CancelScope(shield=True):
                if hasattr(daemon, "command"):
                    await daemon.kill()
                await end_what_outlives(state_dir)
                end_cgroups_of_the_dead(supervisors_cgroups() - cgroups)
                for pid in daemon.marked():
                    os.kill(pid, 9)


async def wrote(daemon: Lives, record: dict[str, Any], data: bytes, stream: str = "stdout") -> None:
    """Wait until it has written all of this."""
    path = f"/processes/{record['pid']}/{stream}/raw?handle={record['handle']}&follow=true"
    seen = b""
    with trio.fail_after(PATIENCE_SECONDS):
        async with daemon.connection() as connection, connection.stream_body("GET", path) as body:
            async for part in body:
                seen += part
                if seen.startswith(data):
                    break
    assert seen.startswith(data)


async def is_dead(pid: int) -> None:
    """Wait until a process that may be anybody's child has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
