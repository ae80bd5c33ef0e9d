"""Descriptors of children: 0, 1 and 2 and no other, however many are started at the same time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from ..conftest import PATIENCE_SECONDS
from ..test_server import serving
from ..wire import connect

_STARTS = 200
_AT_ONCE = 20


async def _stopped(pid: int) -> None:
    """Wait until it has stopped: before, it may have its own libraries open."""
    with trio.fail_after(PATIENCE_SECONDS):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "T":
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("parked", ["0", "8"])
async def test_200_starts_side_by_side_leak_no_descriptor(parked: str) -> None:
    pids: list[int] = []

    async def start(url: str) -> None:
        async with await connect(url) as connection:
            for number in range(_STARTS // _AT_ONCE):
                mode = "pipe" if number % 2 else "closed"
                spec = {"command": "sh", "args": ["-c", "kill -STOP $$"], "stdin_mode": mode}
                pids.append((await connection.json("POST", "/processes", spec))["pid"])
                assert connection.status == 201

    async with serving("--parked-launchers", parked) as (_, url):
        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(start, url)
        assert len(pids) == _STARTS
        outputs = set()
        for pid in pids:
            await _stopped(pid)
            assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
            outputs |= {os.readlink(f"/proc/{pid}/fd/{stream}") for stream in (1, 2)}
        # And each has its own.
        assert len(outputs) == 2 * _STARTS
        async with await connect(url) as connection:
            for pid in pids:
                await connection.request("DELETE", f"/processes/{pid}")
                assert connection.status == 204
