"""Case 11: readers that are slow or have stopped. Others get everything, and nothing is kept for the stuck.

Besides, tests/test_server.py has that none can hold up the end of the daemon,
and tests/test_outputs.py that none holds up a process, unless it wants `block`.
"""

from __future__ import annotations

import hashlib
import json

import pytest
import trio

from api.lists import ListBody
from supervisor import ProcessSpec, Retention, Supervisor, SupervisorConfig

from ..conftest import Daemon
from ..heavy import figure
from ..test_server import serving
from ..wire import connect
from .callers import memory_bytes, others_are_served, request, start

READERS = 50
FLOOD_BYTES = 4 * 1024 * 1024
# For 50 readers' batches, and one of each stuck one; the floods alone are 500 MiB.
GROWTH_BYTES = 96 * 1024 * 1024
LIST_GROWTH_BYTES = 64 * 1024 * 1024


async def _be_stuck(url: str, path: str) -> trio.SocketStream:
    """Ask, and read no more than the first byte of the answer."""
    sock = trio.socket.socket()
    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
    host, _, port = url.removeprefix("http://").rpartition(":")
    await sock.connect((host, int(port)))
    stream = trio.SocketStream(sock)
    await stream.send_all(request("GET", path, close=False))
    assert await stream.receive_some(1) == b"H"
    return stream


async def test_stuck_readers_of_every_kind_cost_others_nothing() -> None:
    async with serving() as (daemon, url):
        flood = f"read go; head -c {FLOOD_BYTES // 2} /dev/urandom | tee /dev/stderr"
        pid = await start(url, "sh", "-c", flood, stdin_mode="pipe")
        digests: list[str] = []

        async def read() -> None:
            async with await connect(url) as connection:
                digest = hashlib.sha256()
                path = f"/processes/{pid}/stdout/raw?follow=true"
                async with connection.stream_body("GET", path) as body:
                    async for data in body:
                        digest.update(data)
                digests.append(digest.hexdigest())

        stuck = [
            await _be_stuck(url, f"/processes/{pid}/{view}")
            for view in (
                "output/follow",
                "stdout/follow",
                "output/raw?follow=true",
                "output/frames?follow=true",
            )
        ]
        before = memory_bytes(daemon.process.pid)
        async with others_are_served(url), trio.open_nursery() as nursery:
            for _ in range(READERS):
                nursery.start_soon(read)
            async with await connect(url) as connection:
                await connection.request("POST", f"/processes/{pid}/stdin", "go")
                await connection.request("POST", f"/processes/{pid}/stdin/close")
                whole = await connection.request("GET", f"/processes/{pid}/stdout/raw?follow=true")
        assert len(whole) == FLOOD_BYTES // 2
        assert digests == [hashlib.sha256(whole).hexdigest()] * READERS
        growth = memory_bytes(daemon.process.pid, "VmHWM") - before
        figure(f"{READERS} readers and {len(stuck)} stuck: peak {growth / 2**20:.0f} MiB more")
        assert growth < GROWTH_BYTES
        for stream in stuck:
            await stream.aclose()


async def test_a_list_is_not_kept_for_whoever_does_not_read_it() -> None:
    async with serving("--parked-launchers", "0") as (daemon, url):
        for _ in range(100):
            await start(url, "true", "x" * 100_000)
        async with await connect(url) as connection:
            size = len(await connection.request("GET", "/processes"))
        assert size > 10_000_000
        before = memory_bytes(daemon.process.pid)
        async with others_are_served(url):
            stuck = [await _be_stuck(url, "/processes") for _ in range(30)]
        growth = memory_bytes(daemon.process.pid, "VmHWM") - before
        figure(f"{len(stuck)} stuck lists of {size / 2**20:.0f} MiB: peak {growth / 2**20:.0f} MiB")
        assert growth < LIST_GROWTH_BYTES
        for stream in stuck:
            await stream.aclose()


async def test_a_long_list_is_whole_and_in_order(daemon: Daemon) -> None:
    handles = []
    async with await connect(daemon.url) as connection:
        for _ in range(40):
            body = {"command": "sh", "args": ["-c", "read x", "x" * 5000], "stdin_mode": "pipe"}
            handles.append((await connection.json("POST", "/processes", body))["handle"])
    for path in ("/processes", "/usage"):
        answer = await daemon.client.get(path)
        assert [entry["handle"] for entry in answer.json()["processes"]] == handles
        head = await daemon.client.head(path)
        assert (head.status_code, head.content) == (200, b"")


class TestForgotten:
    @pytest.fixture
    def config(self) -> SupervisorConfig:
        return SupervisorConfig(retention=Retention(count=6))

    async def test_what_is_forgotten_before_its_turn_is_left_out(
        self, supervisor: Supervisor
    ) -> None:
        handles = []
        for _ in range(6):
            process = await supervisor.start(ProcessSpec(command="true", args=("x" * 50_000,)))
            await process.wait()
            handles.append(process.handle)
        body = ListBody(supervisor, supervisor.processes(), lambda process: process.record)
        text = body.read_batch()
        for _ in range(3):
            await supervisor.run(ProcessSpec(command="true"))
        while not body.is_over:
            text += body.read_batch()
        listed = [entry["handle"] for entry in json.loads(text)["processes"]]
        assert listed == handles[:2] + handles[3:]
        # And when all are.
        body = ListBody(supervisor, supervisor.processes(), lambda process: process.record)
        for _ in range(6):
            await supervisor.run(ProcessSpec(command="true"))
        assert json.loads(body.read_batch()) == {"processes": []}
