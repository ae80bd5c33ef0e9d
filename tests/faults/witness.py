"""What holds in every fault, whatever else does: the oracle of a daemon's cases."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from ..conftest import PATIENCE_SECONDS
from ..heavy import figure
from ..kernel import processes
from ..test_server import Command
from ..wire import connect

_LINES = 20_000
_PAUSE_SECONDS = 0.005
_PARKED = 8  # By default.


@asynccontextmanager
async def undisturbed(daemon: Command, url: str) -> AsyncIterator[None]:
    """Within this block the daemon answers and another process's output stays exact; after it nothing is left."""
    await _has_parked(daemon)
    descriptors = _descriptors(daemon)
    body = {
        "command": "sh",
        "args": ["-c", f"seq {_LINES}; read go; seq {_LINES} >&2; exit 9"],
        "stdin_mode": "pipe",
    }
    seconds: list[float] = []

    async def probe() -> None:
        async with await connect(url) as connection:
            while True:
                began = time.perf_counter()
                with trio.fail_after(PATIENCE_SECONDS):
                    assert await connection.json("GET", "/health") == {"healthy": True}
                seconds.append(time.perf_counter() - began)
                await trio.sleep(_PAUSE_SECONDS)

    async with await connect(url) as connection:
        pid = (await connection.json("POST", "/processes", body))["pid"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(probe)
            yield
            nursery.cancel_scope.cancel()
        await connection.request("POST", f"/processes/{pid}/stdin/close")
        expected = "".join(f"{number + 1}\n" for number in range(_LINES)).encode()
        for stream in ("stdout", "stderr"):
            path = f"/processes/{pid}/{stream}/raw?follow=true"
            assert await connection.request("GET", path) == expected
        assert (await connection.json("GET", f"/processes/{pid}"))["exit_code"] == 9
    assert seconds
    seconds.sort()
    p99 = seconds[len(seconds) * 99 // 100]
    figure(f"/health {len(seconds)} times, p99 {p99 * 1e3:.1f} ms, max {seconds[-1] * 1e3:.1f} ms")
    assert daemon.complaints == []
    await _has_parked(daemon)
    with trio.fail_after(PATIENCE_SECONDS):
        # What ends with a connection or a process does so a moment after.
        while _descriptors(daemon) > descriptors or zombies_of(daemon.process.pid):
            await trio.lowlevel.checkpoint()


def zombies_of(parent: int) -> set[int]:
    """The pids of a process's zombies."""
    return {entry.pid for entry in processes() if entry.parent == parent and entry.state == "Z"}


async def _has_parked(daemon: Command) -> None:
    """Wait until the daemon has all its launchers parked, which have descriptors there."""
    with trio.fail_after(PATIENCE_SECONDS):
        while _launchers(daemon) != _PARKED:
            await trio.lowlevel.checkpoint()


def _launchers(daemon: Command) -> int:
    return sum(
        entry.parent == daemon.process.pid and "/launcher/launcher-" in "".join(entry.arguments[:1])
        for entry in processes()
    )


def _descriptors(daemon: Command) -> int:
    """How many descriptors it has open, but for the fresh cgroups in stock."""
    count = 0
    for descriptor in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # Closed meanwhile.
            count += "/sys/fs/cgroup" not in os.readlink(descriptor)
    return count
