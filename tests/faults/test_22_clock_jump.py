"""The wall clock jumps by days, or back: timeouts, grace and retention do not notice, times of day do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from ..conftest import PATIENCE_SECONDS
from ..test_server import serving
from ..wire import Connection, connect, parse_events

_LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
_DAY_MS = 24 * 3600 * 1000


@pytest.mark.skipif(not _LIBRARIES, reason="libfaketime is not installed")
@pytest.mark.parametrize(("jump", "jump_ms"), [("+10d", 10 * _DAY_MS), ("-1h", -3600 * 1000)])
async def test_a_jump_of_the_clock_ends_nothing_and_prolongs_nothing(
    tmp_path: Path, jump: str, jump_ms: int
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0")
    environment = {
        **os.environ,
        "LD_PRELOAD": str(_LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    options = ("--retain-seconds", "3600", "--grace-seconds", "0.2")
    async with serving(*options, environment=environment) as (daemon, url):
        async with await connect(url) as connection:
            finished = await _start(connection, "exit 6")
            living = await _start(
                connection, "trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done"
            )
            runs: dict[str, tuple[dict[str, object], float]] = {}
            async with trio.open_nursery() as nursery:
                # One whose time is over soon, and one that has enough.
                for name, script, timeout in (
                    ("short", "sleep 1000", 1.0),
                    ("long", "sleep 1; exit 8", PATIENCE_SECONDS),
                ):
                    await nursery.start(_run, url, script, timeout, _noting(runs, name))
                clock.write_text(jump)
            assert runs["short"][0]["reason"] == "timed_out"
            assert 0.9 < runs["short"][1] < PATIENCE_SECONDS
            assert runs["long"][0] == {"reason": "exited", "exit_code": 8}
            # Retention has not expired, and durations are on no clock of the day.
            record = await connection.json("GET", f"/processes/{finished}")
            assert record["exit_code"] == 6
            later = await _start(connection, "exit 0")
            jumped = (await connection.json("GET", f"/processes/{later}"))["started_at"]
            assert abs(jumped - record["started_at"] - jump_ms) < PATIENCE_SECONDS * 1000
            await connection.request("DELETE", f"/processes/{living}?grace_ms=10000")
            record = await connection.json("GET", f"/processes/{living}")
            assert record["exit_code"] == 7
            assert 0 < record["duration_us"] < PATIENCE_SECONDS * 1e6
        assert daemon.complaints == []


async def _start(connection: Connection, script: str) -> int:
    body = {"command": "sh", "args": ["-c", script]}
    pid: int = (await connection.json("POST", "/processes", body))["pid"]
    return pid


def _noting(
    runs: dict[str, tuple[dict[str, object], float]], name: str
) -> Callable[[dict[str, object], float], None]:
    def note(end: dict[str, object], seconds: float) -> None:
        runs[name] = (end, seconds)

    return note


async def _run(
    url: str,
    script: str,
    timeout: float,
    ended: Callable[[dict[str, object], float], None],
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    body = {"command": "sh", "args": ["-c", script], "timeout": timeout}
    text = b""
    began = time.monotonic()
    async with (
        await connect(url) as connection,
        connection.stream_body("POST", "/processes/run", body) as stream,
    ):
        async for data in stream:
            if not text:
                task_status.started()
            text += data
    ended(_last(text), time.monotonic() - began)


def _last(text: bytes) -> dict[str, object]:
    return parse_events(text)[-1].data
