"""No more processes or threads: whoever starts is told, nothing is half made, and what is there goes on."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from ..conftest import PATIENCE_SECONDS
from ..injection import injecting
from ..kernel import running_with
from ..test_server import Command, serving
from ..wire import Connection, connect
from .bystander import ended, unharmed
from .confined import Confinement, confined

_TRUE = {"command": "true"}
# All ways to a process or a thread.
_CLONES = "clone,clone3,fork,vfork"


async def _refused(connection: Connection, spec: dict[str, Any] = _TRUE) -> str:
    """Try to start something, which is refused so that it may be tried again; with which code."""
    with trio.fail_after(PATIENCE_SECONDS):
        answer = await connection.json("POST", "/processes", spec)
    assert connection.status == 503
    assert connection.headers["retry-after"] == "1"
    return str(answer["code"])


@pytest.mark.parametrize("error", ["EAGAIN", "ENOMEM"])
async def test_a_clone_that_fails_is_told_and_leaves_nothing(error: str) -> None:
    # Without a state directory, which is looked through by a thread at the start.
    options = ("--parked-launchers", "0", "--state-dir", "")
    async with serving(*options) as (daemon, url), await connect(url) as other:
        async with injecting(daemon.process.pid, f"{_CLONES}:error={error}"):
            # No thread is there yet: not even the one that would fork can be made
            # (which is no OSError, but a RuntimeError without an errno).
            assert await _refused(other) == "OUT_OF_PROCESSES"
        async with unharmed(daemon, url) as bystander:
            async with injecting(daemon.process.pid, f"{_CLONES}:error={error}"):
                # One is there now, and it is the fork that fails; unless the thread
                # is busy removing the cgroup of the one before.
                codes = {await _refused(other) for _ in range(50)}
                wanted = "OUT_OF_PROCESSES" if error == "EAGAIN" else "OUT_OF_MEMORY"
                assert {wanted} <= codes <= {wanted, "OUT_OF_PROCESSES"}
                await bystander.work()
            assert (await other.json("GET", "/info"))["running_processes"] == 1
        started = await other.json("POST", "/processes", _TRUE)
        assert (await ended(other, started["pid"]))["exit_code"] == 0
        assert daemon.complaints == []


def _full(cgroup: Confinement) -> None:
    """Let there be no more processes in it than there are."""
    cgroup.write("pids.max", cgroup.read("pids.current"))


def _impatient(directory: Path) -> dict[str, str]:
    """An environment in which Trio keeps no idle threads, which it usually does for ten seconds."""
    (directory / "sitecustomize.py").write_text(
        "import trio\ntrio._core._thread_cache.IDLE_TIMEOUT = 0.001\n"
    )
    return {**os.environ, "PYTHONPATH": str(directory)}


async def _threads_are_gone(daemon: Command) -> None:
    """Wait until the daemon has no thread but its first."""
    while len(list(Path(f"/proc/{daemon.process.pid}/task").iterdir())) > 1:
        await trio.lowlevel.checkpoint()


async def test_a_limit_of_processes_costs_neither_output_nor_ends(tmp_path: Path) -> None:
    size = 3 * 10**6
    with confined("pids") as cgroup:
        async with (
            serving(
                "--parked-launchers", "0", environment=_impatient(tmp_path), under=cgroup.prefix
            ) as (daemon, url),
            await connect(url) as other,
        ):
            mark = f"1000.{daemon.process.pid}"
            async with unharmed(daemon, url) as bystander:
                # More than stays in memory, written when no thread can be made to spill it.
                flood = f"read go; exec seq -f %099.0f {size // 100}"
                tree = f"setsid sleep {mark} & exec sleep {mark}"
                pids = []
                for script in (flood, tree):
                    spec = {"command": "sh", "args": ["-c", script], "stdin_mode": "pipe"}
                    pids.append((await other.json("POST", "/processes", spec))["pid"])
                with trio.fail_after(PATIENCE_SECONDS):
                    while len(running_with(mark)) < 2:
                        await trio.lowlevel.checkpoint()
                    await _threads_are_gone(daemon)
                _full(cgroup)
                for _ in range(20):
                    assert await _refused(other) == "OUT_OF_PROCESSES"
                await bystander.work()
                await other.request("POST", f"/processes/{pids[0]}/stdin", raw=b"\n")
                record = await ended(other, pids[0])
                assert (record["status"], record["exit_code"]) == ("exited", 0)
                data = await other.request("GET", f"/processes/{pids[0]}/stdout/raw")
                assert data == b"".join(b"%099d\n" % (n + 1) for n in range(size // 100))
                await other.request("DELETE", f"/processes/{pids[1]}")
                assert other.status == 204
                assert running_with(mark) == set()

                cgroup.write("pids.max", "max")
                began = time.monotonic()
                started = await other.json("POST", "/processes", _TRUE)
                assert other.status == 201
                assert time.monotonic() - began < 1
                assert (await ended(other, started["pid"]))["exit_code"] == 0
            assert daemon.complaints == []
            daemon.process.terminate()
            assert await daemon.exited() == 0


async def test_parked_launchers_start_what_no_fork_could() -> None:
    with confined("pids") as cgroup:
        async with serving("--parked-launchers", "3", under=cgroup.prefix) as (daemon, url):
            async with unharmed(daemon, url) as bystander:
                await daemon.has_parked(3)
                _full(cgroup)
                connection = bystander.connection
                held = {"command": "sleep", "args": ["1000"]}
                pids = []
                for _ in range(3):
                    pids.append((await connection.json("POST", "/processes", held))["pid"])
                    assert connection.status == 201
                assert await _refused(connection, held) == "OUT_OF_PROCESSES"
                for pid in pids:
                    await connection.request("DELETE", f"/processes/{pid}")
                    assert connection.status == 204
                cgroup.write("pids.max", "max")
                await connection.json("POST", "/processes", _TRUE)
                assert connection.status == 201
            assert daemon.complaints == []
            daemon.process.terminate()
            assert await daemon.exited() == 0
