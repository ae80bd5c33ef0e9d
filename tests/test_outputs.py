"""Outputs over HTTP: any size, streamed; bounds and policies as every view tells them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from api import Server, create_app
from supervisor import (
    OutputLimits,
    OutputPolicy,
    Process,
    ProcessSpec,
    Stream,
    SupervisorConfig,
    open_supervisor,
)
from supervisor.chunk import STREAMS

from .conftest import PATIENCE_SECONDS, Daemon
from .test_server import Command, serving
from .wire import Connection, connect, parse_events

_MIB = 1024 * 1024
_LINE_BYTES = 100


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def config(state_dir: Path) -> SupervisorConfig:
    """Room for 1 MiB of each output."""
    return SupervisorConfig(
        state_dir=state_dir, output=OutputLimits(log_bytes=_MIB), grace_seconds=0.2
    )


class Frame(NamedTuple):
    """One of the `frames`; of a gap, `data` is the number of missing bytes."""

    position: int
    timestamp_ms: int | None
    stream: str
    data: bytes | int


def _frames(data: bytes) -> Iterator[Frame]:
    """What a body of MessagePack arrays says."""
    place = 0

    def number(size: int) -> int:
        nonlocal place
        place += size
        return int.from_bytes(data[place - size : place])

    def value() -> Any:
        nonlocal place
        kind = number(1)
        if kind < 0x80:
            return kind
        if kind & 0xE0 == 0xA0:
            place += kind & 0x1F
            return data[place - (kind & 0x1F) : place].decode()
        if kind == 0xC0:
            return None
        if 0xC4 <= kind <= 0xC6:
            size = number(1 << (kind - 0xC4))
            place += size
            return data[place - size : place]
        assert 0xCC <= kind <= 0xCF, hex(kind)
        return number(1 << (kind - 0xCC))

    while place < len(data):
        assert number(1) == 0x94
        yield Frame(value(), value(), value(), value())


def _numbered(begin: int, end: int) -> bytes:
    """What `_lines` writes between two offsets."""
    first = begin // _LINE_BYTES
    lines = b"".join([b"%099d\n" % number for number in range(first, -(-end // _LINE_BYTES))])
    return lines[begin - first * _LINE_BYTES : end - first * _LINE_BYTES]


def _lines(size: int) -> str:
    """Writes numbered lines of 100 bytes."""
    return f"seq -f %099.0f 0 {size // _LINE_BYTES - 1}"


def _joined(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


async def _start(daemon: Daemon, script: str, **more: object) -> Process:
    body = {"command": "sh", "args": ["-c", script], **more}
    answer = await daemon.client.post("/processes", json=body)
    assert answer.status_code == 201, answer.text
    return daemon.supervisor.by_pid(answer.json()["pid"])


async def _ended(daemon: Daemon, script: str, **more: object) -> Process:
    process = await _start(daemon, script, **more)
    with trio.fail_after(PATIENCE_SECONDS):
        await process.wait()
    return process


async def _ended_by_url(connection: Connection, body: dict[str, Any]) -> int:
    """The pid of a process that has been started and has ended."""
    pid: int = (await connection.json("POST", "/processes", body))["pid"]
    with trio.fail_after(PATIENCE_SECONDS):
        while (await connection.json("GET", f"/processes/{pid}"))["status"] == "running":
            pass
    return pid


# --- bodies of any size -----------------------------------------------------------


def _peak_bytes(daemon: Command) -> int:
    """The most memory that a daemon had since `_forget_peak` (proc(5))."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    (kibibytes,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(kibibytes) * 1024


def _forget_peak(daemon: Command) -> int:
    """Begin anew, and return what it has now."""
    Path(f"/proc/{daemon.process.pid}/clear_refs").write_text("5")
    return _peak_bytes(daemon)


async def test_a_line_of_40_mb_needs_no_such_memory(tmp_path: Path) -> None:
    size = 40 * 10**6
    text = random.Random(1).randbytes(size // 2).hex()
    (tmp_path / "line").write_text(text)
    body = {"command": "cat", "args": [str(tmp_path / "line")]}
    async with serving() as (daemon, url), await connect(url) as connection:
        await _ended_by_url(connection, {"command": "seq", "args": ["100000"]})  # To warm up.
        before = _forget_peak(daemon)
        pid = await _ended_by_url(connection, body)
        answer = await connection.json("GET", f"/processes/{pid}/stdout")
        assert answer["line_count"] == 1
        assert answer["lines"] == [text]
        assert (answer["missing_bytes"], answer["missing_lines"]) == (0, 0)
        follow = await connection.request("GET", f"/processes/{pid}/stdout/follow")
        raw = await connection.request("GET", f"/processes/{pid}/stdout/raw")
        grown = _peak_bytes(daemon) - before
        assert daemon.complaints == []
    assert raw == text.encode()
    assert max(map(len, follow.split(b"\n"))) < _MIB
    *parts, eof = parse_events(follow)
    assert eof.name == "eof"
    assert "".join(part.data["line"] for part in parts) == text
    assert all(part.data.get("partial") for part in parts[:-1])
    assert "partial" not in parts[-1].data
    assert grown < 24 * _MIB


@pytest.mark.parametrize("view", ["stdout", "stdout/follow", "stdout/raw", "output/frames"])
async def test_a_large_output_is_streamed_in_every_view(tmp_path: Path, view: str) -> None:
    size = 40 * 10**6
    async with serving() as (daemon, url), await connect(url) as connection:
        pid = await _ended_by_url(connection, {"command": "sh", "args": ["-c", _lines(size)]})
        before = _forget_peak(daemon)
        async with connection.stream_body("GET", f"/processes/{pid}/{view}") as body:
            first = await anext(body)
            async with await connect(url) as other:  # Others are answered meanwhile.
                assert await other.json("GET", "/health") == {"healthy": True}
            assert first
            received = len(first)
            async for data in body:
                received += len(data)
        assert received >= size
        assert _peak_bytes(daemon) - before < 24 * _MIB


async def test_the_lines_so_far_are_json_at_any_size_and_shape(daemon: Daemon) -> None:
    text = 'a"b\\c\t\x01\u2028é😀' * 30_000
    data = text.encode() + b"\n\n\xff\x00\r\n" + text.encode()
    script = "head -c $0 >&2"
    body = {
        "command": "sh",
        "args": ["-c", script, str(len(data))],
        "stdin_mode": "pipe",
    }
    pid = (await daemon.client.post("/processes", json=body)).json()["pid"]
    assert (await daemon.client.post(f"/processes/{pid}/stdin", content=data)).status_code == 204
    await daemon.supervisor.by_pid(pid).wait()
    for view in ("stderr", "output"):
        answer = (await daemon.client.get(f"/processes/{pid}/{view}")).json()
        assert answer["lines"] == [text, "", "\ufffd\x00", text]
        assert answer["line_count"] == 4
    assert (await daemon.client.get(f"/processes/{pid}/stdout")).json()["lines"] == []


async def test_many_readers_of_every_kind_get_the_same_bytes(
    daemon: Daemon, tmp_path: Path
) -> None:
    size = 16 * _MIB
    chance = random.Random(2)
    contents: dict[str, bytes] = {stream: chance.randbytes(size) for stream in STREAMS}
    for stream, data in contents.items():
        (tmp_path / stream).write_bytes(data)
    script = f"read go; cat {tmp_path}/stdout & cat {tmp_path}/stderr >&2; wait"

    async def raw(url: str, stream: Stream, pid: int, begin: int) -> None:
        digest = hashlib.sha256()
        path = f"{url}/api/v1/processes/{pid}/{stream}/raw?follow=true"
        headers = {"range": f"bytes={begin}-"}
        async with (
            httpx.AsyncClient(timeout=PATIENCE_SECONDS, trust_env=False) as client,
            client.stream("GET", path, headers=headers) as answer,
        ):
            async for data in answer.aiter_raw():
                digest.update(data)
        assert digest.digest() == hashlib.sha256(contents[stream][begin:]).digest()

    async def frames(url: str, pid: int) -> None:
        path = f"/processes/{pid}/output/frames?follow=true"
        async with await connect(url) as connection:
            body = await connection.request("GET", path)
        place = 0
        offsets: dict[str, int] = dict.fromkeys(STREAMS, 0)
        for frame in _frames(body):
            assert frame.position == place
            assert frame.stream in ("stdout", "stderr")
            assert isinstance(frame.data, bytes)
            offset = offsets[frame.stream]
            place += len(frame.data)
            offsets[frame.stream] += len(frame.data)
            assert frame.data == contents[frame.stream][offset : offsets[frame.stream]]
        assert offsets == dict.fromkeys(STREAMS, size)

    async with _large_daemon(tmp_path / "large") as large:
        process = await _start(large, script, stdin_mode="pipe")
        async with trio.open_nursery() as nursery:
            for number in range(3):
                for stream in STREAMS:
                    begin = chance.randrange(size) if number else 0
                    nursery.start_soon(raw, large.url, stream, process.pid, begin)
            for _ in range(2):
                nursery.start_soon(frames, large.url, process.pid)
            await wait_all_tasks_blocked(0.01)
            await process.write_stdin(b"\n")
        assert process.record.output_kept_bytes == 2 * size
        assert process.record.output_spilled_bytes > size
        for stream in STREAMS:
            answer = await large.client.get(f"/processes/{process.pid}/{stream}")
            count = contents[stream].count(b"\n") + (not contents[stream].endswith(b"\n"))
            assert answer.json()["line_count"] == count


@asynccontextmanager
async def _large_daemon(state_dir: Path) -> AsyncIterator[Daemon]:
    """One with the bounds as shipped."""
    async with open_supervisor(SupervisorConfig(state_dir=state_dir)) as supervisor:
        server = Server(create_app(supervisor), "127.0.0.1:0", graceful_seconds=0.2)
        async with trio.open_nursery() as nursery:
            url = f"http://{(await nursery.start(server.serve))[0]}"
            async with httpx.AsyncClient(
                base_url=f"{url}/api/v1", timeout=PATIENCE_SECONDS, trust_env=False
            ) as client:
                yield Daemon(url, supervisor, client)
            server.stop()


async def test_a_busy_daemon_holds_up_no_flood() -> None:
    """Threads that write compete with the one that answers."""
    body = {"command": "sh", "args": ["-c", _lines(50 * 10**6)]}
    async with serving() as (_, url), await connect(url) as connection:
        seconds: list[float] = []
        for pause in (0.02, 0):
            began = trio.current_time()
            pid = (await connection.json("POST", "/processes", body))["pid"]
            with trio.fail_after(PATIENCE_SECONDS):
                while True:
                    await trio.sleep(pause)
                    record = await connection.json("GET", f"/processes/{pid}")
                    if record["status"] != "running":
                        break
            seconds.append(trio.current_time() - began)
        idle, busy = seconds
        assert busy < 15 * idle + 1


# --- drop_oldest ------------------------------------------------------------------


async def test_what_is_missing_at_the_beginning_is_told_by_every_view(daemon: Daemon) -> None:
    size = 10 * 10**6
    process = await _ended(daemon, _lines(size))
    url = f"/processes/{process.pid}"
    dropped = process.record.output_dropped_bytes
    assert size - 2 * _MIB < dropped < size
    answer = (await daemon.client.get(f"{url}/stdout")).json()
    assert answer["missing_bytes"] == dropped
    assert answer["missing_lines"] == dropped // _LINE_BYTES
    assert _joined(answer["lines"]) == _numbered(dropped, size)
    raw = await daemon.client.get(f"{url}/stdout/raw")
    assert raw.headers["creche-missing-bytes"] == str(dropped)
    assert raw.content == _numbered(dropped, size)
    gap, *frames = _frames((await daemon.client.get(f"{url}/output/frames")).content)
    assert gap == Frame(0, None, "gap", dropped)
    assert b"".join(frame.data for frame in frames if isinstance(frame.data, bytes)) == raw.content
    events = parse_events((await daemon.client.get(f"{url}/output/follow")).content)
    assert events[0].name == "gap"
    assert events[0].data == {
        "stream": "stdout",
        "missing_bytes": dropped,
        "missing_lines": dropped // _LINE_BYTES,
    }
    assert _joined([event.data["line"] for event in events[1:-1]]) == raw.content


async def test_a_resume_over_a_hole_is_told_in_bytes_but_not_in_lines(daemon: Daemon) -> None:
    size = 5 * 10**6
    process = await _ended(daemon, _lines(size))
    url = f"/processes/{process.pid}/output"
    begin = 1234 * _LINE_BYTES
    dropped = process.record.output_dropped_bytes
    headers = {"last-event-id": f"{begin}-0"}
    text = (await daemon.client.get(f"{url}/follow", headers=headers)).text
    gap, *events, eof = parse_events(text.encode())
    assert gap.name == "gap"
    assert gap.data == {
        "stream": "stdout",
        "missing_bytes": dropped - begin,
        "missing_lines": None,
    }
    assert text.startswith(f"id: {dropped}-0\n")
    assert _joined([event.data["line"] for event in events]) == _numbered(dropped, size)
    assert eof.name == "eof"
    answer = (await daemon.client.get(url, params={"from": f"{begin}-0"})).json()
    assert (answer["missing_bytes"], answer["missing_lines"]) == (dropped - begin, None)
    assert _joined(answer["lines"]) == _numbered(dropped, size)
    # Whoever goes on behind the gap finds none.
    text = (await daemon.client.get(f"{url}/follow", params={"from": f"{dropped}-0"})).text
    assert "event: gap" not in text
    (first, *_) = _frames((await daemon.client.get(f"{url}/frames?from={begin}")).content)
    assert first == Frame(begin, None, "gap", dropped - begin)


async def test_a_range_over_a_hole_is_what_is_kept_of_it(daemon: Daemon) -> None:
    size = 5 * 10**6
    process = await _ended(daemon, _lines(size))
    dropped = process.record.output_dropped_bytes
    url = f"/processes/{process.pid}/stdout/raw"
    headers = {"range": f"bytes={dropped - 1000}-{dropped + 999}"}
    answer = await daemon.client.get(url, headers=headers)
    assert answer.status_code == 206
    assert answer.content == _numbered(dropped, dropped + 1000)
    assert answer.headers["creche-missing-bytes"] == "1000"
    assert answer.headers["content-range"] == f"bytes {dropped}-{dropped + 999}/{size}"


@pytest.mark.parametrize("view", ["stdout/raw", "output/raw", "stdout/raw?follow=true"])
async def test_a_range_without_any_byte_that_is_kept_cannot_be_satisfied(
    daemon: Daemon, view: str
) -> None:
    size = 5 * 10**6
    process = await _ended(daemon, _lines(size))
    dropped = process.record.output_dropped_bytes
    url = f"/processes/{process.pid}/{view}"
    for text in ("10-19", f"0-{dropped - 1}", f"{size}-", f"{size}-{size + 9}"):
        answer = await daemon.client.get(url, headers={"range": f"bytes={text}"})
        assert (answer.status_code, answer.json()["code"]) == (416, "RANGE_NOT_SATISFIABLE")
        assert answer.headers["content-range"] == f"bytes */{size}"
    assert str(dropped) not in answer.json()["error"]
    answer = await daemon.client.get(url, headers={"range": "bytes=10-19"})
    assert f"those before {dropped} have been dropped" in answer.json()["error"]
    answer = await daemon.client.get(url, headers={"range": f"bytes=10-{dropped}"})
    assert answer.status_code == 206
    assert answer.headers["creche-missing-bytes"] == str(dropped - 10)
    assert answer.content == _numbered(dropped, dropped + 1)


# --- drop_newest ------------------------------------------------------------------


async def test_drop_newest_is_told_at_the_end_of_every_view(daemon: Daemon) -> None:
    size = 10 * 10**6
    process = await _ended(daemon, _lines(size), output_policy="drop_newest")
    url = f"/processes/{process.pid}"
    record = process.record
    kept = record.output_kept_bytes
    assert record.exit_code == 0
    assert _MIB // 2 < kept < 2 * _MIB
    assert record.output_dropped_bytes == size - kept
    answer = (await daemon.client.get(f"{url}/stdout")).json()
    assert answer["missing_bytes"] == size - kept
    assert answer["missing_lines"] == size // _LINE_BYTES - kept // _LINE_BYTES
    assert "\n".join(answer["lines"]).encode() == _numbered(0, kept).removesuffix(b"\n")
    events = parse_events((await daemon.client.get(f"{url}/output/follow")).content)
    assert [event.name for event in events[-2:]] == ["gap", "eof"]
    assert events[-2].data == {
        "stream": "stdout",
        "missing_bytes": size - kept,
        "missing_lines": answer["missing_lines"],
    }
    assert [event.data["line"] for event in events[:-2]] == answer["lines"]
    *frames, gap = _frames((await daemon.client.get(f"{url}/output/frames")).content)
    assert gap == Frame(kept, None, "gap", size - kept)
    data = b"".join(frame.data for frame in frames if isinstance(frame.data, bytes))
    assert data == _numbered(0, kept)


@pytest.mark.parametrize("query", ["", "?follow=true"])
async def test_a_raw_body_without_its_end_breaks_off(daemon: Daemon, query: str) -> None:
    process = await _ended(daemon, _lines(10**7), output_policy="drop_newest")
    received = bytearray()
    path = f"/processes/{process.pid}/stdout/raw{query}"
    async with daemon.client.stream("GET", path) as answer:
        assert answer.status_code == 200
        try:
            async for data in answer.aiter_raw():
                received += data
        except httpx.RemoteProtocolError:
            pass
        else:
            raise AssertionError("it has ended like a whole one")
    assert received == _numbered(0, process.record.output_kept_bytes)
    # What there is can be had.
    kept = process.record.output_kept_bytes
    answer = await daemon.client.get(
        f"/processes/{process.pid}/stdout/raw", headers={"range": f"bytes=0-{kept - 1}"}
    )
    assert answer.content == received


async def test_drop_newest_in_a_run_is_told_before_its_exit(daemon: Daemon) -> None:
    body = {"command": "sh", "args": ["-c", _lines(10**7)], "output_policy": "drop_newest"}
    async with await connect(daemon.url) as connection:
        events = await connection.events("POST", "/processes/run", body)
    assert events[-1].data == {"reason": "exited", "exit_code": 0}
    gaps = [event.data["missing_bytes"] for event in events if event.name == "gap"]
    record = daemon.supervisor.processes()[0].record
    assert sum(gaps) == record.output_dropped_bytes


# --- block ------------------------------------------------------------------------


async def _blocked(process: Process) -> None:
    """Wait until the process is held up."""
    with trio.fail_after(PATIENCE_SECONDS):
        while process.log.kept_bytes < _MIB // 2:
            await trio.lowlevel.checkpoint()
        end = -1
        while end != process.log.end:
            end = process.log.end
            await wait_all_tasks_blocked(0.05)


@pytest.mark.parametrize("view", ["stdout/follow", "stdout/raw?follow=true"])
async def test_block_loses_nothing_for_a_slow_reader(daemon: Daemon, view: str) -> None:
    size = 10 * 10**6
    process = await _start(daemon, _lines(size), output_policy="block")
    await _blocked(process)
    assert process.status == "running"
    assert process.log.end < size // 2
    received = bytearray()
    async with (
        await connect(daemon.url) as connection,
        connection.stream_body("GET", f"/processes/{process.pid}/{view}") as body,
    ):
        async for data in body:
            received += data
            assert process.log.kept_bytes < 4 * _MIB
            if len(received) < 20_000:
                # It waits for us, and others for neither.
                with trio.fail_after(3):
                    await daemon.client.get("/health")
    assert process.record.exit_code == 0
    if view == "stdout/follow":
        events = parse_events(bytes(received))
        received = bytearray(_joined([event.data["line"] for event in events[:-1]]))
    assert received == _numbered(0, size)


async def test_a_get_makes_room_for_a_blocked_process(daemon: Daemon) -> None:
    size = 4 * 10**6
    process = await _start(daemon, _lines(size), output_policy="block")
    lines: list[str] = []
    place = "0-0"
    with trio.fail_after(PATIENCE_SECONDS):
        while process.status == "running":
            url = f"/processes/{process.pid}/stdout"
            answer = (await daemon.client.get(url, params={"from": place})).json()
            assert answer["missing_bytes"] == 0
            place = answer["next"]
            whole = int(place.partition("-")[0])
            lines += answer["lines"]
            if whole % _LINE_BYTES == 0 and len(lines) > whole // _LINE_BYTES:
                lines.pop()  # An open line, which comes again.
        answer = (await daemon.client.get(url, params={"from": place})).json()
    lines += answer["lines"]
    assert answer["missing_bytes"] == 0
    assert _joined(lines) == _numbered(0, size)


async def test_a_run_reads_a_blocked_output_whole(daemon: Daemon) -> None:
    size = 5 * 10**6
    body = {"command": "sh", "args": ["-c", _lines(size)], "output_policy": "block"}
    async with await connect(daemon.url) as connection:
        with trio.fail_after(PATIENCE_SECONDS):
            events = await connection.events("POST", "/processes/run", body)
    lines = [event.data["line"] for event in events[1:-1]]
    assert _joined(lines) == _numbered(0, size)
    assert events[-1].data == {"reason": "exited", "exit_code": 0}


@pytest.mark.parametrize("config", [SupervisorConfig(output=OutputLimits(unspilled_bytes=_MIB))])
async def test_pages_take_a_blocked_output_whole(daemon: Daemon) -> None:
    size = 3 * 10**6
    process = await _start(daemon, _lines(size), output_policy="block")
    await _blocked(process)
    url = f"/processes/{process.pid}/stdout"
    lines: list[str] = []
    place = "0-0"
    with trio.fail_after(PATIENCE_SECONDS):
        while len(lines) < size // _LINE_BYTES:
            parameters = {"from": place, "limit": str(100)}
            answer = (await daemon.client.get(url, params=parameters)).json()
            assert answer["missing_bytes"] == 0
            whole = (
                int(answer["next"].partition("-")[0]) - len(lines) * _LINE_BYTES
            ) // _LINE_BYTES
            lines += answer["lines"][:whole]
            place = answer["next"]
        await process.wait()
    assert _joined(lines) == _numbered(0, size)


@pytest.mark.parametrize("view", ["stdout/raw", "output/raw"])
async def test_ranges_take_a_blocked_output_whole(daemon: Daemon, view: str) -> None:
    size = 3 * 10**6
    process = await _start(daemon, _lines(size), output_policy="block")
    await _blocked(process)
    received = bytearray()
    with trio.fail_after(PATIENCE_SECONDS):
        while len(received) < size:
            headers = {"range": f"bytes={len(received)}-{len(received) + 9999}"}
            answer = await daemon.client.get(f"/processes/{process.pid}/{view}", headers=headers)
            if answer.status_code != 416:  # Not written yet.
                assert "creche-missing-bytes" not in answer.headers
                received += answer.content
        await process.wait()
    assert received == _numbered(0, size)


@pytest.mark.parametrize(
    ("method", "view", "headers"),
    [
        ("HEAD", "stdout", {}),
        ("HEAD", "output", {}),
        ("HEAD", "stdout/raw", {}),
        ("HEAD", "output/frames", {}),
        ("GET", "stdout?tail=1", {}),
        ("GET", "output?tail=1", {}),
        ("GET", "stdout/raw", {"range": "bytes=-10"}),
        ("GET", "output/raw", {"range": "bytes=-10"}),
        ("GET", "stdout?limit=0", {}),
    ],
)
async def test_what_nobody_was_given_makes_no_room_for_a_blocked_process(
    daemon: Daemon, method: str, view: str, headers: dict[str, str]
) -> None:
    process = await _start(daemon, _lines(3 * 10**6), output_policy="block")
    await _blocked(process)
    assert process.log.readership is not None
    url = f"/processes/{process.pid}/{view}"
    for _ in range(5):
        assert (await daemon.client.request(method, url, headers=headers)).is_success
        await _blocked(process)
    assert process.log.readership.read_to == (0, 0)
    answer = (await daemon.client.get(f"/processes/{process.pid}/stdout")).json()
    assert answer["missing_bytes"] == 0


async def test_a_long_line_that_a_client_has_only_begun_comes_again_whole(daemon: Daemon) -> None:
    script = f"head -c 200000 /dev/zero | tr '\\0' x; read go; echo; {_lines(3 * 10**6)}"
    process = await _start(daemon, script, output_policy="block", stdin_mode="pipe")
    url = f"/processes/{process.pid}/stdout"
    with trio.fail_after(PATIENCE_SECONDS):
        while process.log.end < 200_000:
            await trio.lowlevel.checkpoint()
        answer = (await daemon.client.get(url)).json()
        assert answer["lines"] == ["x" * 200_000]
        assert answer["next"] == "0-0"
        await process.write_stdin(b"\n")
        await _blocked(process)
        answer = (await daemon.client.get(url)).json()
    assert answer["missing_bytes"] == 0
    assert answer["lines"][0] == "x" * 200_000


async def test_a_blocked_process_is_killed_at_once(daemon: Daemon) -> None:
    process = await _start(daemon, "exec yes", output_policy="block")
    await _blocked(process)
    with trio.fail_after(3):
        answer = await daemon.client.delete(f"/processes/{process.pid}")
        assert answer.status_code == 204
        assert (await process.wait()).signal == 9
    end = process.log.end
    assert process.record.output_dropped_bytes == 0
    raw = await daemon.client.get(f"/processes/{process.pid}/stdout/raw")
    assert raw.content == (b"y\n" * (end // 2 + 1))[:end]


async def test_the_end_of_a_process_waits_for_no_reader(daemon: Daemon) -> None:
    script = f"{_lines(20 * 10**6)} & read go; exit 7"
    process = await _start(daemon, script, output_policy="block", stdin_mode="pipe")
    await _blocked(process)
    await process.write_stdin(b"\n")
    with trio.fail_after(3):
        record = await process.wait()
    assert (record.status, record.exit_code) == ("exited", 7)
    assert record.members_killed == 1
    answer = (await daemon.client.get(f"/processes/{process.pid}/stdout")).json()
    assert answer["missing_bytes"] == 0
    assert "\n".join(answer["lines"]).encode() == _numbered(0, process.log.end).removesuffix(b"\n")


async def test_a_timeout_ends_a_blocked_process(daemon: Daemon) -> None:
    spec = ProcessSpec(command="yes", output_policy="block")
    process = await daemon.supervisor.start(spec, timeout=0.5)
    await _blocked(process)
    with trio.fail_after(3):
        await process.wait()
    assert process.reason == "timed_out"


async def test_a_run_whose_client_does_not_read_times_out(daemon: Daemon) -> None:
    body = {"command": "yes", "output_policy": "block", "timeout": 0.5}
    async with await connect(daemon.url) as connection:
        content = json.dumps(body)
        head = "POST /api/v1/processes/run HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        await connection.stream.send_all((head + content).encode())
        await connection.stream.receive_some(1)
        (process,) = daemon.supervisor.processes()
        with trio.fail_after(5):
            await process.wait()
        assert process.reason == "timed_out"


@pytest.mark.parametrize("policy", ["", "drop", 1, ["block"]])
async def test_a_policy_that_is_none_is_refused(daemon: Daemon, policy: object) -> None:
    body = {"command": "true", "output_policy": policy}
    answer = await daemon.client.post("/processes", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, "output_policy")


@pytest.mark.parametrize("policy", [None, "drop_oldest", "drop_newest", "block"])
async def test_a_small_output_is_the_same_under_every_policy(
    daemon: Daemon, policy: OutputPolicy | None
) -> None:
    process = await _ended(daemon, _lines(30_000), output_policy=policy)
    answer = await daemon.client.get(f"/processes/{process.pid}/stdout/raw")
    assert answer.content == _numbered(0, 30_000)
    assert process.record.output_dropped_bytes == 0
