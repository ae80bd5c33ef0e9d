"""Follow and run over HTTP: the frames, their end, and how long they last."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from supervisor import OutputLimits, SupervisorConfig

from .conftest import Daemon
from .kernel import running_with, trio_tasks
from .wire import Event, connect, parse_events


async def test_the_frames_of_a_run_are_as_the_contract_says(daemon: Daemon) -> None:
    async with await connect(daemon.url) as connection:
        body = {"command": "sh", "args": ["-c", "echo out; echo err >&2; exit 3"]}
        text = await connection.request("POST", "/processes/run", body)
    assert connection.status == 200
    assert b"event:" not in text
    started, out, err, exited = parse_events(text)
    process = daemon.supervisor.processes()[0]
    assert started.data == {
        "handle": process.handle,
        "pid": process.pid,
        "started_at": process.started_at,
    }
    for event, line, stream in ((out, "out", "stdout"), (err, "err", "stderr")):
        assert process.started_at <= event.data.pop("timestamp")
        assert event.data == {"line": line, "stream": stream}
    assert exited.data == {"exit_code": 3, "reason": "exited"}


@pytest.mark.parametrize(
    ("request_body", "exit_frame"),
    [
        ({"args": ["-c", "exit 0"]}, {"reason": "exited", "exit_code": 0}),
        ({"args": ["-c", "kill -15 $$"]}, {"reason": "signaled", "signal": 15}),
        ({"args": ["-c", "sleep 30"], "timeout": 0.2}, {"reason": "timed_out", "signal": 9}),
    ],
)
async def test_the_exit_frame_says_how_it_ended(
    daemon: Daemon, request_body: dict[str, object], exit_frame: dict[str, object]
) -> None:
    async with await connect(daemon.url) as connection:
        events = await connection.events(
            "POST", "/processes/run", {"command": "sh", **request_body}
        )
    assert events[-1].data == exit_frame


async def test_what_a_run_has_started_comes_with_the_head(daemon: Daemon) -> None:
    body = b'{"command": "true"}'
    head = b"POST /api/v1/processes/run HTTP/1.1\r\nhost: localhost\r\n"
    head += b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with await connect(daemon.url) as connection:
        await connection.stream.send_all(head + body)
        first = await connection.stream.receive_some()
        assert first.startswith(b"HTTP/1.1 200 ")
        assert (
            first.partition(b"\r\n\r\n")[2].partition(b"\r\n")[2].startswith(b'data: {"handle":1,')
        )


async def test_a_run_closes_stdin_and_captures_whatever_the_modes_say(daemon: Daemon) -> None:
    body = {
        "command": "sh",
        "args": ["-c", "cat; echo out; echo err >&2"],
        "stdin_mode": "pipe",
        "stdout_mode": "discard",
        "stderr_mode": "discard",
    }
    async with await connect(daemon.url) as connection:
        events = await connection.events("POST", "/processes/run", body)
    assert [event.data.get("line") for event in events] == [None, "out", "err", None]


async def test_the_frames_of_the_follows_are_as_the_contract_says(daemon: Daemon) -> None:
    async with await connect(daemon.url) as connection:
        body = {"command": "sh", "args": ["-c", "echo out; echo err >&2"]}
        pid = (await connection.json("POST", "/processes", body))["pid"]
        assert connection.status == 201
        for stream, lines in (("stdout", ["out"]), ("stderr", ["err"]), ("output", ["out", "err"])):
            events = await connection.events("GET", f"/processes/{pid}/{stream}/follow")
            assert [event.name for event in events] == ["output"] * len(lines) + ["eof"]
            assert [event.data["line"] for event in events[:-1]] == lines
            assert events[-1].data == {}
            for event in events[:-1]:
                assert type(event.data["timestamp"]) is int
                assert ("stream" in event.data) == (stream == "output")


async def test_a_line_of_control_characters_and_broken_utf8_stays_one_frame(
    daemon: Daemon,
) -> None:
    async with await connect(daemon.url) as connection:
        body = {"command": "printf", "args": [r"a\r\000\001\377\342\200\250b\n"]}
        events = await connection.events("POST", "/processes/run", body)
    assert events[1].data["line"] == "a\r\0\x01\ufffd\u2028b"


async def test_the_end_of_a_follow_comes_with_the_leaders_exit(daemon: Daemon) -> None:
    unique = f"30.{uuid4().int % 10**9}"
    async with await connect(daemon.url) as connection:
        body = {"command": "sh", "args": ["-c", f"sleep {unique} & echo hi"]}
        pid = (await connection.json("POST", "/processes", body))["pid"]
        with trio.fail_after(10):
            events = await connection.events("GET", f"/processes/{pid}/output/follow")
        assert [event.data.get("line") for event in events] == ["hi", None]
        assert (await connection.json("GET", f"/processes/{pid}"))["exit_code"] == 0
        with trio.fail_after(10):
            events = await connection.events("POST", "/processes/run", body)
        assert [event.data.get("line") for event in events] == [None, "hi", None]
    assert running_with(unique) == set()


async def test_the_final_status_is_visible_when_eof_is_sent(daemon: Daemon) -> None:
    async with await connect(daemon.url) as following, await connect(daemon.url) as getting:
        for _ in range(50):
            body = {"command": "sh", "args": ["-c", "echo x; exit 7"]}
            pid = (await following.json("POST", "/processes", body))["pid"]
            path = f"/processes/{pid}/output/follow"
            async with following.stream_body("GET", path) as stream:
                async for data in stream:
                    if b"event: eof" in data:
                        assert (await getting.json("GET", f"/processes/{pid}"))["exit_code"] == 7


async def test_many_followers_of_one_process_each_get_everything(daemon: Daemon) -> None:
    async with await connect(daemon.url) as connection:
        body = {"command": "sh", "args": ["-c", "read go; seq 20000"], "stdin_mode": "pipe"}
        pid = (await connection.json("POST", "/processes", body))["pid"]
        counts: list[int] = []

        async def follow(started: trio.Event) -> None:
            async with await connect(daemon.url) as follower:
                started.set()
                events = await follower.events("GET", f"/processes/{pid}/stdout/follow")
                assert [event.data["line"] for event in events[:-1]] == [
                    str(number) for number in range(1, 20_001)
                ]
                counts.append(len(events))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                started = trio.Event()
                nursery.start_soon(follow, started)
                await started.wait()
            await daemon.supervisor.by_pid(pid).write_stdin(b"\n")
        assert counts == [20_001] * 5


# A run is not watched for its client's leave from the first moment on.
@pytest.mark.parametrize("moment", [b"early", b"late"])
async def test_a_client_of_a_run_that_leaves_ends_it(daemon: Daemon, moment: bytes) -> None:
    unique = f"30.{uuid4().int % 10**9}"
    async with await connect(daemon.url) as connection:
        script = f"sleep {unique} & echo early; sleep 0.2; echo late; sleep {unique}; :"
        body = {"command": "sh", "args": ["-c", script]}
        async with connection.stream_body("POST", "/processes/run", body) as stream:
            async for data in stream:
                if moment in data:
                    break
    record = await daemon.supervisor.processes()[0].wait()
    assert record.signal == signal.SIGKILL
    assert running_with(unique) == set()


async def test_a_follower_that_leaves_changes_nothing(daemon: Daemon) -> None:
    before = trio_tasks()
    async with await connect(daemon.url) as connection:
        body = {"command": "sh", "args": ["-c", "echo hi; read go"], "stdin_mode": "pipe"}
        pid = (await connection.json("POST", "/processes", body))["pid"]
        process = daemon.supervisor.by_pid(pid)
        await wait_all_tasks_blocked()  # The process's reader begins after the answer.
        with_process = trio_tasks()
        async with connection.stream_body("GET", f"/processes/{pid}/output/follow") as stream:
            async for data in stream:
                if b"hi" in data:
                    break
    # The connection's tasks end; the process and its tasks stay.
    with trio.fail_after(10):
        while trio_tasks() >= with_process:
            await trio.lowlevel.checkpoint()
    assert process.status == "running"
    await process.kill()
    with trio.fail_after(10):
        while trio_tasks() > before:
            await trio.lowlevel.checkpoint()


class TestForHours:
    """Time runs 200 times as fast here, for the whole stack on real sockets."""

    @pytest.fixture
    def fast_clock(self) -> MockClock:
        return MockClock(rate=200)

    async def test_a_follow_of_a_silent_process_stays_open(
        self, fast_clock: MockClock, daemon: Daemon
    ) -> None:
        async with await connect(daemon.url) as connection:
            body = {"command": "sh", "args": ["-c", "read go; echo late"], "stdin_mode": "pipe"}
            pid = (await connection.json("POST", "/processes", body))["pid"]
            path = f"/processes/{pid}/output/follow"
            async with connection.stream_body("GET", path) as stream:
                await self._is_alive_after(1000.0, stream, daemon)

    async def test_a_run_of_a_silent_process_stays_open(
        self, fast_clock: MockClock, daemon: Daemon, tmp_path: os.PathLike[str]
    ) -> None:
        fifo = os.path.join(tmp_path, "fifo")
        os.mkfifo(fifo)
        async with await connect(daemon.url) as connection:
            body = {"command": "sh", "args": ["-c", f"read go < {fifo}; echo late"]}
            async with connection.stream_body("POST", "/processes/run", body) as stream:
                await self._is_alive_after(1000.0, stream, daemon, fifo)

    async def _is_alive_after(
        self, seconds: float, stream: AsyncIterator[bytes], daemon: Daemon, fifo: str | None = None
    ) -> None:
        began = trio.current_time()
        comments = 0
        lines = []
        async for data in stream:
            comments += data == b":\n\n"
            lines += [event.data["line"] for event in parse_events(data) if "line" in event.data]
            if data == b":\n\n" and trio.current_time() - began > seconds:
                seconds = float("inf")
                if fifo is None:
                    await daemon.supervisor.processes()[0].write_stdin(b"\n")
                else:
                    with open(fifo, "wb") as file:
                        file.write(b"\n")
        assert seconds == float("inf")
        assert 50 < comments < 70  # One each 15 s.
        assert lines == ["late"]


class TestOverTheLimit:
    """What the log's limit has cost is told in a frame that clients pass over."""

    @pytest.fixture
    def config(self) -> SupervisorConfig:
        return SupervisorConfig(output=OutputLimits(unspilled_bytes=100_000))

    async def test_a_gap_is_an_event_of_its_own(self, daemon: Daemon) -> None:
        async with await connect(daemon.url) as connection:
            body = {"command": "seq", "args": ["100000"]}
            process = await connection.json("POST", "/processes", body)
            await daemon.supervisor.by_handle(process["handle"]).wait()
            path = f"/processes/{process['pid']}/stdout"
            gap, first, *lines, eof = await connection.events("GET", path + "/follow")
            assert (gap.name, eof) == ("gap", Event("eof", {}))
            snapshot = await connection.json("GET", path)
        assert gap.data["stream"] == "stdout"
        assert gap.data["missing_bytes"] == snapshot["missing_bytes"] > 400_000
        assert gap.data["missing_lines"] == snapshot["missing_lines"] > 70_000
        assert [first.data["line"], *(line.data["line"] for line in lines)] == snapshot["lines"]
        assert snapshot["lines"][-1] == "100000"
        assert snapshot["line_count"] == len(snapshot["lines"])
