"""Thousands of processes at once: started, listed and ended, at a bounded cost for each.

`test_cgroups` has five thousand in one program; here it is a daemon of its own,
over HTTP, which is what others see of them.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from uuid import uuid4

import trio

from ..conftest import PATIENCE_SECONDS
from ..heavy import amount, figure
from ..kernel import running_with
from ..test_server import serving
from ..wire import connect

_LIVE = amount(300, heavy=5000)
_CLIENTS = 8


async def test_all_that_live_are_listed_and_end_with_the_daemon() -> None:
    unique = f"1000.{uuid4().int % 10**9}"
    # Three descriptors each: the usual hard limit is 20,000.
    body = {"command": "sleep", "args": [unique], "stderr_mode": "discard"}
    pids: set[int] = set()
    patience = PATIENCE_SECONDS * amount(1, heavy=4)
    async with serving() as (daemon, url):
        status = Path(f"/proc/{daemon.process.pid}/status")
        before = _kib(status, "VmRSS")
        left = iter(range(_LIVE))

        async def client() -> None:
            async with await connect(url) as connection:
                for _ in left:
                    answer = await connection.json("POST", "/processes", body)
                    assert connection.status == 201, answer
                    pids.add(answer["pid"])

        began = time.perf_counter()
        with trio.fail_after(patience):
            async with trio.open_nursery() as nursery:
                for _ in range(_CLIENTS):
                    nursery.start_soon(client)
        starting = time.perf_counter() - began
        assert len(pids) == _LIVE
        assert running_with(unique) == pids
        grown = _kib(status, "VmRSS") - before
        descriptors = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
        async with await connect(url) as connection:
            began = time.perf_counter()
            listed = (await connection.json("GET", "/processes"))["processes"]
            listing = time.perf_counter() - began
        assert {entry["pid"] for entry in listed if entry["status"] == "running"} == pids
        began = time.perf_counter()
        daemon.process.send_signal(signal.SIGTERM)
        assert await daemon.exited(patience) == 0
        ending = time.perf_counter() - began
        assert running_with(unique) == set()
        assert daemon.complaints == []
    figure(
        f"{_LIVE} alive: {_LIVE / starting:.0f} starts/s, {grown / _LIVE:.1f} KiB and "
        f"{descriptors / _LIVE:.2f} descriptors each, listed in {listing * 1e3:.0f} ms, "
        f"all ended in {ending:.2f} s"
    )
    assert grown / _LIVE < 64
    assert descriptors < 4 * _LIVE + 200


def _kib(status: Path, name: str) -> int:
    (line,) = [line for line in status.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])
