"""A daemon that is restarted in place, again and again, under load.

Nothing ends by it, no connection is refused, and whoever follows goes on where
it was. That a daemon which is killed loses nothing either is in `test_01_kill`.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import time
from contextlib import suppress
from pathlib import Path

import h11
import pytest
import trio

from ..conftest import PATIENCE_SECONDS
from ..heavy import amount, figure
from ..test_server import Command, serving
from ..wire import connect
from .lives import is_dead

_RESTARTS = amount(4, heavy=10)
_BROKEN = (h11.RemoteProtocolError, trio.BrokenResourceError, AssertionError)


async def test_a_restart_in_place_ends_nothing_and_refuses_nobody(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    script = f"i=0; while ! [ -e {stop} ]; do echo $i; i=$((i+1)); sleep 0.003; done; exit 7"
    async with serving("--state-dir", str(tmp_path / "state")) as (daemon, url):
        pid = daemon.process.pid
        async with await connect(url) as connection:
            spec = {"command": "sh", "args": ["-c", script]}
            counter = (await connection.json("POST", "/processes", spec))["pid"]
            spec = {"command": "cat", "stdin_mode": "pipe"}
            echo = (await connection.json("POST", "/processes", spec))["pid"]
        lines: list[int] = []
        gaps_ms: list[float] = []
        keys: list[str] = []
        restarting = trio.CancelScope()
        with trio.fail_after(2 * PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_follow, url, counter, lines, gaps_ms)
                nursery.start_soon(_start_all_the_time, url, keys, restarting)
                for number in range(_RESTARTS):
                    await _restarted(daemon, number)
                    async with await connect(url) as connection:
                        await connection.request(
                            "POST", f"/processes/{echo}/stdin", raw=b"%d\n" % number
                        )
                restarting.cancel()
                stop.touch()
        async with await connect(url) as connection:
            record = await connection.json("GET", f"/processes/{counter}")
            await connection.request("POST", f"/processes/{echo}/stdin/close")
            echoed = await connection.request("GET", f"/processes/{echo}/stdout/raw?follow=true")
            processes = (await connection.json("GET", "/processes"))["processes"]
        assert daemon.process.pid == pid
        assert (record["status"], record["exit_code"]) == ("exited", 7)
        assert lines == list(range(len(lines)))
        assert len(lines) > 10 * _RESTARTS
        assert echoed == b"".join(b"%d\n" % number for number in range(_RESTARTS))
        marks = [entry["args"][0] for entry in processes if entry["command"] == "true"]
        assert sorted(marks) == sorted(keys)
        assert {entry["exit_code"] for entry in processes if entry["command"] == "true"} == {0}
        assert daemon.complaints == []
    figure(
        f"{_RESTARTS} restarts: {len(lines)} lines, {len(keys)} starts, nothing lost or refused; "
        f"a follower was without for {max(gaps_ms):.0f} ms at most"
    )


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_during_a_restart_drains_the_next_daemon(signum: int) -> None:
    async with serving() as (daemon, url):
        async with await connect(url) as follower:
            spec = {"command": "sh", "args": ["-c", "echo up; exec sleep 1000"]}
            pid = (await follower.json("POST", "/processes", spec))["pid"]
            path = f"/processes/{pid}/stdout/follow"
            async with follower.stream_body("GET", path) as body:
                with trio.fail_after(PATIENCE_SECONDS):
                    text = b""
                    while b'"up"' not in text:
                        text += await anext(body)
                # Which the follower holds up.
                daemon.process.send_signal(signal.SIGUSR2)
                await daemon.logged("restarting")
                daemon.process.send_signal(signum)
                assert await daemon.exited() == 0
        await is_dead(pid)
        messages = [entry["message"] for entry in daemon.log]
        assert messages == ["serving", "restarting", "serving", "stopping", "stopped"]
        assert daemon.log[3]["running"] == 1


@pytest.mark.parametrize("limit", ["reached", "raised"])
async def test_a_restart_takes_no_descriptor(limit: str) -> None:
    few_at_first = ("prlimit", "--nofile=64:4096")
    async with serving("--parked-launchers", "0", under=few_at_first) as (daemon, url):
        pid = daemon.process.pid
        spec = {"command": "sleep", "args": ["1000"]}
        async with await connect(url) as first:
            for _ in range(20):  # Which takes more than 64.
                assert (await first.json("POST", "/processes", spec))["status"] == "running"
            # So that the connection that ends by the restart is none of the 64.
            last = await connect(url)
        async with last:
            for _ in range(2):
                assert (await last.json("POST", "/processes", spec))["status"] == "running"
            if limit == "reached":
                taken = set(map(int, os.listdir(f"/proc/{pid}/fd")))
                lowest = min(set(range(4096)) - taken)
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, 4096))
            await _restarted(daemon, 0)
        async with await connect(url) as connection:
            processes = (await connection.json("GET", "/processes"))["processes"]
        assert [entry["status"] for entry in processes] == ["running"] * 22


async def _restarted(daemon: Command, number: int) -> None:
    """Restart the daemon, and wait until the next one serves."""
    daemon.process.send_signal(signal.SIGUSR2)
    await daemon.logged_times("serving", number + 2)


async def _follow(url: str, pid: int, lines: list[int], gaps_ms: list[float]) -> None:
    """Follow to the end, over every break."""
    position = ""
    broke_off = 0.0
    while True:
        text = b""
        with suppress(*_BROKEN):
            async with await connect(url) as connection:
                query = f"?from={position}" if position else ""
                path = f"/processes/{pid}/stdout/follow{query}"
                async with connection.stream_body("GET", path) as body:
                    async for data in body:
                        if broke_off:
                            gaps_ms.append((time.monotonic() - broke_off) * 1000)
                            broke_off = 0.0
                        *frames, text = (text + data).split(b"\n\n")
                        for frame in frames:
                            if b"event: eof" in frame:
                                return
                            if found := re.search(rb'id: (\S+)\n.*"line":"(\d+)"', frame, re.S):
                                position = found[1].decode()
                                lines.append(int(found[2]))
        broke_off = broke_off or time.monotonic()


async def _start_all_the_time(url: str, keys: list[str], until: trio.CancelScope) -> None:
    """Start one process after the other; a start whose connection ends is sent again."""
    with until:
        while True:
            key = f"start-{len(keys)}"
            keys.append(key)
            with trio.CancelScope(shield=True):
                await _start(url, key)
            await trio.lowlevel.checkpoint()


async def _start(url: str, key: str) -> None:
    while True:
        # Refused connections are no excuse, so `connect` may raise nothing.
        async with await connect(url) as connection:
            with suppress(*_BROKEN):
                await connection.request(
                    "POST",
                    "/processes",
                    {"command": "true", "args": [key]},
                    headers={"idempotency-key": key},
                )
                assert connection.status == 201
                return
