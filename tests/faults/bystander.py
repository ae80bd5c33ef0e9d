"""What every fault must leave alone: the daemon, the output of other processes, and nothing left over."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from ..conftest import PATIENCE_SECONDS
from ..kernel import Entry, processes
from ..test_server import Command
from ..wire import Connection, connect

_CHUNK = b"".join(b"%099d\n" % number for number in range(600))
_STEADY = 20
# Eight cgroups, in each hierarchy that they may need.
_MOST_IN_STOCK = 8 * 5
_MOST_PARKED = 8
# Two pipes, an epoll, a socket and a pidfd.
_DESCRIPTORS_PER_PARKED = 5


class Bystander:
    """A process that has nothing to do with the fault, and a connection from before it.

    Attributes:
      connection: is open already.
      pid: of the process, which copies its stdin.
    """

    def __init__(self, connection: Connection, pid: int) -> None:
        self.connection = connection
        self.pid = pid
        self._sent = hashlib.sha256()

    async def work(self) -> None:
        """Have it copy something more."""
        self._sent.update(_CHUNK)
        await self.connection.request("POST", f"/processes/{self.pid}/stdin", raw=_CHUNK)
        assert self.connection.status == 204

    async def check(self) -> None:
        """Let it end, and compare what it has written."""
        with trio.fail_after(PATIENCE_SECONDS):
            await self.connection.request("POST", f"/processes/{self.pid}/stdin/close")
            await self.connection.request("GET", f"/processes/{self.pid}/output/follow")
            data = await self.connection.request("GET", f"/processes/{self.pid}/stdout/raw")
            record = await self.connection.json("GET", f"/processes/{self.pid}")
        assert (record["status"], record["exit_code"]) == ("exited", 0)
        assert hashlib.sha256(data).hexdigest() == self._sent.hexdigest()


@asynccontextmanager
async def unharmed(daemon: Command, url: str) -> AsyncIterator[Bystander]:
    """Check that whatever happens in this block harms nobody else and leaves nothing over."""
    async with await connect(url) as connection:
        before = await _settled(daemon, connection)
        spec = {"command": "cat", "stdin_mode": "pipe"}
        pid = (await connection.json("POST", "/processes", spec))["pid"]
        bystander = Bystander(connection, pid)
        await bystander.work()
        yield bystander
        await bystander.work()
        await bystander.check()
        with trio.fail_after(PATIENCE_SECONDS):
            while await _settled(daemon, connection) != before:
                pass
    assert daemon.process.poll() is None
    assert [entry for entry in _children(daemon) if entry.state == "Z"] == []


async def ended(connection: Connection, pid: int) -> dict[str, Any]:
    """The record of a process once it has ended."""
    with trio.fail_after(PATIENCE_SECONDS):
        await connection.request("GET", f"/processes/{pid}/output/follow")
        record: dict[str, Any] = await connection.json("GET", f"/processes/{pid}")
    return record


def open_descriptors(daemon: Command) -> list[str]:
    """What the daemon has open."""
    directory = f"/proc/{daemon.process.pid}/fd"
    opened = []
    for name in os.listdir(directory):
        with suppress(FileNotFoundError):  # Closed since.
            opened.append(os.readlink(f"{directory}/{name}"))
    return opened


async def _settled(daemon: Command, connection: Connection) -> int:
    """Descriptors of a daemon that does nothing any more on its own, without what is kept ahead of need."""
    seen: list[int] = []
    while len(seen) < _STEADY or len(set(seen[-_STEADY:])) > 1:
        await connection.request("GET", "/health")
        opened = open_descriptors(daemon)
        # A journal is opened when there is room for one. The others are made
        # again only after a start or two.
        opened = [path for path in opened if "/journal." not in path]
        in_stock = sum(path.endswith("/cgroup.procs") for path in opened)
        parked = len(_children(daemon))
        assert in_stock <= _MOST_IN_STOCK
        assert parked <= _MOST_PARKED
        seen.append(len(opened) - in_stock - parked * _DESCRIPTORS_PER_PARKED)
    return seen[-1]


def _children(daemon: Command) -> list[Entry]:
    return [entry for entry in processes() if entry.parent == daemon.process.pid]
