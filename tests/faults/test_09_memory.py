"""No more memory: a fork that fails for it is in `test_08_processes`; here the kernel kills, and not the daemon."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import trio

from ..conftest import PATIENCE_SECONDS
from ..test_server import serving
from ..wire import connect
from .bystander import ended, unharmed
from .confined import Confinement, confined

_MIB = 1024 * 1024


def _limit(cgroup: Confinement, mib: int) -> None:
    name = "memory.limit_in_bytes"
    if not (cgroup.directory / name).exists():
        name = "memory.max"
    cgroup.write(name, mib * _MIB)


def _oom_score_adj(pid: int | str) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


@pytest.mark.parametrize("inherited", [0, 800])
async def test_children_come_before_the_daemon(inherited: int) -> None:
    prefix = ("choom", "-n", str(inherited), "--")
    async with serving(under=prefix) as (daemon, url), await connect(url) as connection:
        spec = {"command": "cat", "args": ["/proc/self/oom_score_adj"]}
        started = await connection.json("POST", "/processes", spec)
        await ended(connection, started["pid"])
        output = await connection.json("GET", f"/processes/{started['pid']}/output")
        childs = int(output["lines"][0])
        daemons = _oom_score_adj(daemon.process.pid)
        if daemons == inherited:  # It may not go lower.
            assert childs == min(1000, inherited + 500)
        else:
            assert (daemons, childs) == (-999, inherited)


async def test_the_kernel_kills_many_small_children_before_the_larger_daemon() -> None:
    with confined("memory") as cgroup:
        async with serving(under=cgroup.prefix) as (daemon, url):
            async with unharmed(daemon, url) as bystander:
                await bystander.work()
                _limit(cgroup, 192)
                # Each takes 16 MiB, so that none is as large as the daemon, and waits.
                script = "x=$(head -c 16777216 /dev/zero | tr '\\0' x); read go"
                spec = {"command": "sh", "args": ["-c", script], "stdin_mode": "pipe"}
                records: list[dict[str, Any]] = []
                with trio.fail_after(PATIENCE_SECONDS):
                    async with await connect(url) as connection:
                        began = time.monotonic()
                        pids: list[int] = []
                        while not any(record["status"] == "oom_killed" for record in records):
                            await connection.request("GET", "/health")
                            assert connection.status == 200
                            if len(pids) < 100:
                                answer = await connection.json("POST", "/processes", spec)
                                assert connection.status in (201, 400, 503)
                                if connection.status == 201:
                                    pids.append(answer["pid"])
                            listed = await connection.json("GET", "/processes")
                            records = listed["processes"]
                        assert time.monotonic() - began < PATIENCE_SECONDS
                        assert bystander.pid not in {
                            record["pid"] for record in records if record["status"] != "running"
                        }
                        for pid in pids:
                            await connection.request("DELETE", f"/processes/{pid}")
                        started = await connection.json("POST", "/processes", {"command": "true"})
                        assert (await ended(connection, started["pid"]))["exit_code"] == 0
            assert daemon.process.poll() is None
            daemon.process.terminate()
            assert await daemon.exited() == 0
