"""Going on where one was: ids, tails, pages, ranges and frames, without a byte twice or missing."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import msgspec
import pytest

from supervisor import OutputLimits, Process, SupervisorConfig

from .conftest import Daemon
from .wire import connect

_SCRIPT = (
    "for i in $(seq 300); do echo out$i; echo err$i >&2; done; printf open; printf unended >&2"
)


async def _ended(daemon: Daemon, script: str) -> Process:
    body = {"command": "sh", "args": ["-c", script]}
    started = (await daemon.client.post("/processes", json=body)).json()
    process = daemon.supervisor.by_handle(started["handle"])
    await process.wait()
    return process


def _frames(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Ids and data of the output events."""
    found = []
    for frame in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in frame.splitlines())
        if fields.get("event") == "output":
            found.append((fields["id"], json.loads(fields["data"])))
    return found


@pytest.mark.parametrize("stream", ["stdout", "stderr", "output"])
async def test_a_follow_goes_on_behind_any_event(daemon: Daemon, stream: str) -> None:
    process = await _ended(daemon, _SCRIPT)
    url = f"/processes/{process.pid}/{stream}/follow"
    whole = _frames((await daemon.client.get(url)).text)
    assert len(whole) == 602 if stream == "output" else 301
    for number in random.sample(range(len(whole)), 40):
        event_id = whole[number][0]
        by_header = await daemon.client.get(url, headers={"last-event-id": event_id})
        by_query = await daemon.client.get(url, params={"from": event_id})
        assert by_header.text == by_query.text
        assert _frames(by_header.text) == whole[number + 1 :]


async def test_reconnecting_all_the_time_loses_and_repeats_nothing(daemon: Daemon) -> None:
    body = {"command": "sh", "args": ["-c", "seq 100000 & seq 100000 >&2; wait"]}
    async with await connect(daemon.url) as starter:
        pid = (await starter.json("POST", "/processes", body))["pid"]
    lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
    path = f"/processes/{pid}/output/follow"
    connections = 0
    is_over = False
    while not is_over:
        connections += 1
        text = b""
        async with (
            await connect(daemon.url) as connection,
            connection.stream_body("GET", path) as stream,
        ):
            async for data in stream:
                text += data
                if len(text) > 100_000:
                    break
        whole, _, _ = text.rpartition(b"\n\n")
        frames = _frames(whole.decode())
        for _, event in frames:
            lines[event["stream"]].append(event["line"])
        is_over = b"event: eof" in whole
        if frames:
            path = f"/processes/{pid}/output/follow?from={frames[-1][0]}"
    assert connections > 50
    expected = [str(number) for number in range(1, 100_001)]
    assert lines == {"stdout": expected, "stderr": expected}


async def test_a_tail_begins_so_many_lines_before_the_end(daemon: Daemon) -> None:
    process = await _ended(daemon, "seq 1000")
    url = f"/processes/{process.pid}/stdout"
    for count in (0, 1, 7, 1000, 5000):
        expected = [str(number) for number in range(1, 1001)][max(0, 1000 - count) :]
        followed = _frames((await daemon.client.get(f"{url}/follow?tail={count}")).text)
        assert [event["line"] for _, event in followed] == expected
        assert (await daemon.client.get(f"{url}?tail={count}")).json()["lines"] == expected


async def test_pages_of_lines_follow_each_other(daemon: Daemon) -> None:
    process = await _ended(daemon, _SCRIPT)
    url = f"/processes/{process.pid}/output"
    whole = (await daemon.client.get(url)).json()
    pages: list[str] = []
    params: dict[str, str] = {"limit": "37"}
    while (page := (await daemon.client.get(url, params=params)).json())["lines"]:
        assert len(page["lines"]) <= 37
        pages += page["lines"]
        params["from"] = page["next"]
    assert pages == whole["lines"]
    assert params["from"] == whole["next"]


async def test_an_open_line_of_a_running_process_comes_again_when_it_is_whole(
    daemon: Daemon,
) -> None:
    body = {"command": "sh", "args": ["-c", "printf 'a\\nb'; read x; echo c"], "stdin_mode": "pipe"}
    pid = (await daemon.client.post("/processes", json=body)).json()["pid"]
    process = daemon.supervisor.by_pid(pid)
    cursor = process.output()
    while cursor.position < 3:
        await anext(cursor)
    first = (await daemon.client.get(f"/processes/{pid}/stdout")).json()
    assert first["lines"] == ["a", "b"]
    await process.close_stdin()
    await process.wait()
    second = await daemon.client.get(f"/processes/{pid}/stdout", params={"from": first["next"]})
    assert second.json()["lines"] == ["bc"]


@pytest.mark.parametrize("start", ["x", "1-2-3", "-1", "99999", "0-99999", "1.5", "٣", ""])
async def test_a_place_that_is_none_is_refused(daemon: Daemon, start: str) -> None:
    process = await _ended(daemon, "echo hi")
    for view in ("stdout", "output", "stdout/follow", "output/follow"):
        answer = await daemon.client.get(f"/processes/{process.pid}/{view}", params={"from": start})
        if view.startswith("stdout") and start == "0-99999":
            assert answer.status_code == 200  # stderr is not read here.
        elif start:
            assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_QUERY")


async def test_raw_bytes_are_exact_whole_in_ranges_and_live(daemon: Daemon) -> None:
    size = 3_000_000
    script = f"head -c {size} /dev/urandom | tee /dev/stderr; read x"
    body = {"command": "sh", "args": ["-c", script], "stdin_mode": "pipe"}
    pid = (await daemon.client.post("/processes", json=body)).json()["pid"]
    process = daemon.supervisor.by_pid(pid)
    cursor = process.output()
    while cursor.position < 2 * size:
        await anext(cursor)
    everything = await process.log.read_all("stdout")
    for stream in ("stdout", "stderr"):
        url = f"/processes/{pid}/{stream}/raw"
        answer = await daemon.client.get(url)
        assert answer.headers["content-length"] == str(size)
        assert hashlib.sha256(answer.content).digest() == hashlib.sha256(everything).digest()
        for first, last in ((0, 0), (5, 99), (65_535, 65_536), (size - 1, size + 10)):
            answer = await daemon.client.get(url, headers={"range": f"bytes={first}-{last}"})
            assert answer.status_code == 206
            assert answer.content == everything[first : last + 1]
            assert answer.headers["content-range"] == f"bytes {first}-{min(last, size - 1)}/*"
        for text, expected in (("-100", everything[-100:]), (f"{size - 7}-", everything[-7:])):
            answer = await daemon.client.get(url, headers={"range": f"bytes={text}"})
            assert answer.content == expected
        answer = await daemon.client.get(url, headers={"range": f"bytes={size}-"})
        assert (answer.status_code, answer.json()["code"]) == (416, "RANGE_NOT_SATISFIABLE")
    async with daemon.client.stream(
        "GET", f"/processes/{pid}/stdout/raw?follow=true", headers={"range": "bytes=1000-"}
    ) as live:
        assert live.status_code == 206
        assert live.headers["content-range"] == f"bytes 1000-{2**53 - 1}/*"
        received = bytearray()
        async for data in live.aiter_raw():
            received += data
            if len(received) == size - 1000:
                await process.close_stdin()
    assert received == everything[1000:]
    await process.wait()
    answer = await daemon.client.get(
        f"/processes/{pid}/stdout/raw?follow=true", headers={"range": "bytes=1000-"}
    )
    assert answer.headers["content-range"] == f"bytes 1000-{size - 1}/{size}"
    assert answer.content == everything[1000:]
    both = await daemon.client.get(f"/processes/{pid}/output/raw")
    assert len(both.content) == 2 * size
    assert (await daemon.client.head(f"/processes/{pid}/output/raw")).content == b""


async def test_frames_say_when_where_and_what(daemon: Daemon) -> None:
    process = await _ended(daemon, "echo out; printf 'err\\377' >&2")
    url = f"/processes/{process.pid}/output/frames"
    decoder = msgspec.msgpack.Decoder()

    def decode(data: bytes) -> list[list[Any]]:
        # MessagePack needs no delimiter: a frame ends where its array does.
        frames = []
        while data:
            for end in range(1, len(data) + 1):
                try:
                    frames.append(decoder.decode(data[:end]))
                except msgspec.DecodeError:
                    continue
                data = data[end:]
                break
        return frames

    frames = decode((await daemon.client.get(url)).content)
    assert [(position, stream, data) for position, _, stream, data in frames] == [
        (chunk.position, chunk.stream, chunk.data)
        for chunk in await process.log.cursor().read(10**6)
    ]
    assert b"".join(frame[3] for frame in frames) == b"out\nerr\xff"
    rest = decode((await daemon.client.get(url, params={"from": 6})).content)
    assert b"".join(frame[3] for frame in rest) == b"r\xff"
    assert (await daemon.client.get(url, params={"from": 10})).status_code == 400


class TestOverTheLimit:
    """What has been dropped is told by every view."""

    @pytest.fixture
    def config(self) -> SupervisorConfig:
        return SupervisorConfig(output=OutputLimits(unspilled_bytes=100_000))

    async def test_raw_says_how_much_is_missing(self, daemon: Daemon) -> None:
        process = await _ended(daemon, "seq 100000")
        kept = await process.log.read_all("stdout")
        answer = await daemon.client.get(f"/processes/{process.pid}/stdout/raw")
        assert answer.content == kept
        assert answer.headers["creche-missing-bytes"] == str(process.log.dropped_bytes)
        frames = await daemon.client.get(f"/processes/{process.pid}/output/frames")
        assert msgspec.msgpack.encode((0, None, "gap", process.log.dropped_bytes)) in frames.content


async def test_a_long_line_comes_in_parts_below_a_mebibyte(daemon: Daemon) -> None:
    script = "head -c 1000000 /dev/zero | tr '\\0' '\\001'; echo; echo next"
    process = await _ended(daemon, script)
    text = (await daemon.client.get(f"/processes/{process.pid}/stdout/follow")).text
    assert max(map(len, text.splitlines())) < 1024 * 1024
    frames = [event for _, event in _frames(text)]
    parts = [event for event in frames if event.get("partial")]
    assert len(parts) > 5
    line = "".join(event["line"] for event in (*parts, frames[len(parts)]))
    assert line == "\x01" * 1_000_000
    assert frames[-1]["line"] == "next"
    whole = (await daemon.client.get(f"/processes/{process.pid}/stdout")).json()["lines"]
    assert whole == [line, "next"]
