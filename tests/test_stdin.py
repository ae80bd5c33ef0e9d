"""stdin: what is accepted is told, whoever leaves or closes half-way, and nobody else is held up."""

from __future__ import annotations

import hashlib
import json
import random
import signal
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from supervisor import Process, ProcessSpec, StdinNotWritable, Supervisor

from .conftest import PATIENCE_SECONDS, Daemon
from .test_server import serving
from .wire import Connection, connect

_MIB = 1024 * 1024
# What a pipe holds (pipe(7)).
_PIPE_BYTES = 64 * 1024

# Reads stdin with a command, but only when it is told to.
_WAITS_FOR_USR1 = "trap '{}; exit' USR1; echo up; while :; do sleep 0.01; done"


def _spec(script: str, *arguments: str) -> ProcessSpec:
    return ProcessSpec(command="sh", args=("-c", script, *arguments), stdin_mode="pipe")


async def _start(daemon: Daemon, script: str) -> Process:
    body = {"command": "sh", "args": ["-c", script], "stdin_mode": "pipe"}
    answer = await daemon.client.post("/processes", json=body)
    assert answer.status_code == 201, answer.text
    return daemon.supervisor.by_pid(answer.json()["pid"])


async def _lines(process: Process) -> list[bytes]:
    """All that it wrote, once it has ended."""
    with trio.fail_after(PATIENCE_SECONDS):
        await process.wait()
    return (await process.log.read_all("stdout")).splitlines()


async def _wrote(process: Process, text: bytes) -> None:
    """Wait until it has written this."""
    data = b""
    with trio.fail_after(PATIENCE_SECONDS):
        async for chunk in process.output():
            data += chunk.data
            if text in data:
                return
    raise AssertionError(f"it has ended after {data!r}")


# --- in the engine ----------------------------------------------------------------


async def test_a_cancelled_write_can_be_gone_on_with(supervisor: Supervisor) -> None:
    data = random.Random(2).randbytes(4 * _MIB)
    process = await supervisor.start(_spec(_WAITS_FOR_USR1.format("sha256sum")))
    await _wrote(process, b"up\n")
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.write_stdin, data[process.stdin_accepted_bytes :])
            await wait_all_tasks_blocked(0.02)
            nursery.cancel_scope.cancel()
    assert _PIPE_BYTES <= process.stdin_accepted_bytes < len(data)
    process.send_signal(signal.SIGUSR1)
    with trio.fail_after(PATIENCE_SECONDS):
        await process.write_stdin(data[process.stdin_accepted_bytes :])
        await process.close_stdin()
    assert process.stdin_accepted_bytes == len(data)
    *_, last = await _lines(process)
    assert last.split()[0].decode() == hashlib.sha256(data).hexdigest()


async def test_concurrent_writes_arrive_whole_and_in_the_order_of_their_beginning(
    supervisor: Supervisor,
) -> None:
    process = await supervisor.start(_spec("exec cat"))
    lines = [b"%d:" % number + b"x" * 150_000 + b"\n" for number in range(20)]
    async with trio.open_nursery() as nursery:
        for line in lines:
            nursery.start_soon(process.write_stdin, line)
            await wait_all_tasks_blocked()
    await process.close_stdin()
    with trio.fail_after(PATIENCE_SECONDS):
        await process.wait()
    assert await process.log.read_all("stdout") == b"".join(lines)
    assert process.record.stdin_accepted_bytes == sum(map(len, lines))


async def test_writers_that_wait_are_whole_though_others_are_cancelled(
    supervisor: Supervisor,
) -> None:
    process = await supervisor.start(_spec(_WAITS_FOR_USR1.format("cat")))
    await _wrote(process, b"up\n")
    scopes = {letter: trio.CancelScope() for letter in (b"a", b"b", b"c", b"d")}

    async def write(letter: bytes) -> None:
        with scopes[letter]:
            await process.write_stdin(letter * 200_000)

    async with trio.open_nursery() as nursery:
        for letter in scopes:
            nursery.start_soon(write, letter)
            await wait_all_tasks_blocked()
        scopes[b"c"].cancel()  # It still waits for its turn.
        await wait_all_tasks_blocked()
        scopes[b"a"].cancel()  # It has written a part.
        await wait_all_tasks_blocked()
        assert process.stdin_accepted_bytes == _PIPE_BYTES
        process.send_signal(signal.SIGUSR1)
    await process.close_stdin()
    await process.wait()
    expected = b"a" * _PIPE_BYTES + b"b" * 200_000 + b"d" * 200_000
    assert await process.log.read_all("stdout") == b"up\n" + expected
    assert process.record.stdin_accepted_bytes == len(expected)


async def test_a_reader_that_goes_is_an_error_with_the_count(supervisor: Supervisor) -> None:
    process = await supervisor.start(
        _spec("head -c 500000 >/dev/null; exec <&-; echo closed; sleep 1000")
    )
    with trio.fail_after(PATIENCE_SECONDS), pytest.raises(StdinNotWritable) as caught:
        await process.write_stdin(bytes(10 * _MIB))
    error = caught.value
    assert 500_000 <= error.accepted_bytes <= 500_000 + 2 * _PIPE_BYTES
    assert process.stdin_accepted_bytes == error.accepted_bytes
    assert not process.stdin_writable
    with pytest.raises(StdinNotWritable) as caught:
        await process.write_stdin(b"more")
    assert caught.value.accepted_bytes == 0
    assert process.status == "running"
    await process.kill()
    assert process.record.stdin_accepted_bytes == error.accepted_bytes


async def test_a_full_pipe_ends_with_the_process(supervisor: Supervisor) -> None:
    process = await supervisor.start(_spec("exec sleep 1000"))
    errors: list[StdinNotWritable] = []

    async def write() -> None:
        try:
            await process.write_stdin(bytes(_MIB))
        except StdinNotWritable as error:
            errors.append(error)

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            nursery.start_soon(write)
            await wait_all_tasks_blocked()
            await process.kill()
    assert sorted(error.accepted_bytes for error in errors) == [0, _PIPE_BYTES]


# --- over HTTP --------------------------------------------------------------------


async def test_the_answer_and_the_record_tell_what_was_accepted(daemon: Daemon) -> None:
    process = await _start(daemon, "exec wc -c")
    url = f"/processes/{process.pid}"
    for content, total in ((b"", 0), (b"hello", 5), (bytes(3 * _MIB), 5 + 3 * _MIB)):
        answer = await daemon.client.post(f"{url}/stdin", content=content)
        assert answer.status_code == 204
        assert answer.headers["creche-accepted-bytes"] == str(len(content))
        record = (await daemon.client.get(url)).json()
        assert record["stdin_accepted_bytes"] == total
    assert (await daemon.client.post(f"{url}/stdin/close")).status_code == 204
    assert await _lines(process) == [b"%d" % total]
    assert (await daemon.client.get(url)).json()["stdin_accepted_bytes"] == total


async def test_a_body_that_the_process_does_not_read_to_its_end_is_told_exactly(
    daemon: Daemon,
) -> None:
    script = "head -c 3000000 | wc -c; exec <&-; exec sleep 1000"
    process = await _start(daemon, script)
    url = f"/processes/{process.pid}"
    with trio.fail_after(PATIENCE_SECONDS):
        answer = await daemon.client.post(f"{url}/stdin", content=bytes(16 * _MIB))
    assert answer.status_code == 400
    body = answer.json()
    assert body["code"] == "STDIN_NOT_WRITABLE"
    assert 3_000_000 <= body["accepted_bytes"] <= 3_000_000 + 2 * _PIPE_BYTES
    record = (await daemon.client.get(url)).json()
    assert record["status"] == "running"
    assert record["stdin_accepted_bytes"] == body["accepted_bytes"]
    assert not record["stdin_writable"]
    answer = await daemon.client.post(f"{url}/stdin", content=b"more")
    assert (answer.status_code, answer.json()["accepted_bytes"]) == (400, 0)
    await process.kill()


async def test_a_client_that_leaves_half_way_is_told_of_by_the_record(daemon: Daemon) -> None:
    process = await _start(daemon, "read size; echo up; head -c $size | sha256sum; exec sha256sum")
    first, second = random.Random(3).randbytes(300_000), b"and the rest"
    connection = await connect(daemon.url)
    head = f"POST /api/v1/processes/{process.pid}/stdin HTTP/1.1\r\nHost: localhost\r\n"
    await connection.stream.send_all(f"{head}Content-Length: 9000000\r\n\r\n300000\n".encode())
    await _wrote(process, b"up")
    await connection.stream.send_all(first)
    await _wrote(process, b"-\n")  # It has read them all.
    await connection.stream.aclose()
    record = (await daemon.client.get(f"/processes/{process.pid}")).json()
    assert record["status"] == "running"
    assert record["stdin_writable"]
    assert record["stdin_accepted_bytes"] == len(b"300000\n") + len(first)
    answer = await daemon.client.post(f"/processes/{process.pid}/stdin", content=second)
    assert answer.headers["creche-accepted-bytes"] == str(len(second))
    await process.close_stdin()
    digests = [line.split()[0].decode() for line in (await _lines(process))[1:]]
    assert digests == [hashlib.sha256(data).hexdigest() for data in (first, second)]


async def test_a_full_pipe_holds_up_its_own_request_alone(daemon: Daemon) -> None:
    process = await _start(daemon, "exec sleep 1000")
    other = await _start(daemon, "exec cat")
    answers: list[bytes] = []

    async def receive(connection: Connection) -> None:
        answer = b""
        while not answer.endswith(b"}\n"):
            data = await connection.stream.receive_some(65536)
            assert data
            answer += data
        answers.append(answer)

    async with await connect(daemon.url) as connection, trio.open_nursery() as nursery:
        head = f"POST /api/v1/processes/{process.pid}/stdin HTTP/1.1\r\nHost: localhost\r\n"
        head += "Content-Length: 200000\r\n\r\n"
        await connection.stream.send_all(head.encode() + bytes(200_000))
        nursery.start_soon(receive, connection)
        with trio.fail_after(PATIENCE_SECONDS):
            while process.stdin_accepted_bytes < _PIPE_BYTES // 2:
                await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked(0.05)
        accepted_bytes = process.stdin_accepted_bytes
        assert answers == []
        for _ in range(20):
            with trio.fail_after(3):
                answer = await daemon.client.post(f"/processes/{other.pid}/stdin", content=b"x")
                assert answer.status_code == 204
        record = (await daemon.client.get(f"/processes/{process.pid}")).json()
        assert record["stdin_accepted_bytes"] == accepted_bytes <= _PIPE_BYTES
        assert answers == []
        with trio.fail_after(5):
            assert (await daemon.client.delete(f"/processes/{process.pid}")).status_code == 204
    answer_head, _, body = answers[0].partition(b"\r\n\r\n")
    assert answer_head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["accepted_bytes"] == accepted_bytes
    await other.kill()


async def test_bodies_at_the_same_time_arrive_piece_by_piece_and_complete(daemon: Daemon) -> None:
    process = await _start(daemon, "exec wc -c")
    accepted: list[int] = []

    async def post(content: bytes) -> None:
        answer = await daemon.client.post(f"/processes/{process.pid}/stdin", content=content)
        accepted.append(int(answer.headers["creche-accepted-bytes"]))

    sizes = [0, 1, 1000, 100_000, _MIB, 3 * _MIB, 3 * _MIB]
    async with trio.open_nursery() as nursery:
        for size in sizes:
            nursery.start_soon(post, bytes(size))
    assert sorted(accepted) == sizes
    assert process.stdin_accepted_bytes == sum(sizes)
    await process.close_stdin()
    assert await _lines(process) == [b"%d" % sum(sizes)]


async def test_a_large_body_flows_through_a_daemon_of_little_memory() -> None:
    block = bytes(range(251)) * 4177
    count = 64

    async with serving() as (daemon, url), await connect(url) as control:
        body = {
            "command": "sh",
            "args": ["-c", "read go; exec sha256sum"],
            "stdin_mode": "pipe",
        }
        pid = (await control.json("POST", "/processes", body))["pid"]
        await control.request("POST", f"/processes/{pid}/stdin", 1)
        proc = Path(f"/proc/{daemon.process.pid}")
        (proc / "clear_refs").write_text("5")
        before = _peak_bytes(proc)
        async with await connect(url) as connection:
            head = f"POST /api/v1/processes/{pid}/stdin HTTP/1.1\r\nHost: localhost\r\n"
            size = 1 + count * len(block)
            await connection.stream.send_all(f"{head}Content-Length: {size}\r\n\r\n\n".encode())
            with trio.fail_after(PATIENCE_SECONDS):
                for _ in range(count):
                    await connection.stream.send_all(block)
            answer = await connection.stream.receive_some(65536)
        assert answer.startswith(b"HTTP/1.1 204 ")
        assert f"creche-accepted-bytes: {size}".encode() in answer.lower()
        grown = _peak_bytes(proc) - before
        await control.request("POST", f"/processes/{pid}/stdin/close")
        events = await control.events("GET", f"/processes/{pid}/stdout/follow")
        assert daemon.complaints == []
    digest = hashlib.sha256(block * count).hexdigest()
    assert events[0].data["line"].split()[0] == digest
    assert grown < 16 * _MIB


async def test_a_large_body_that_is_not_read_stays_with_its_client() -> None:
    async with serving() as (daemon, url), await connect(url) as control:
        body = {"command": "sleep", "args": ["1000"], "stdin_mode": "pipe"}
        pid = (await control.json("POST", "/processes", body))["pid"]
        proc = Path(f"/proc/{daemon.process.pid}")
        (proc / "clear_refs").write_text("5")
        before = _peak_bytes(proc)
        async with await connect(url) as connection:
            head = f"POST /api/v1/processes/{pid}/stdin HTTP/1.1\r\nHost: localhost\r\n"
            head += "Content-Length: 67108864\r\n\r\n"
            await connection.stream.send_all(head.encode())
            sent = 0
            with trio.move_on_after(1) as patience:
                while True:  # Until the kernel's buffers are full, too.
                    await connection.stream.send_all(bytes(65536))
                    sent += 65536
            assert patience.cancelled_caught
            assert sent < 32 * _MIB
            record = await control.json("GET", f"/processes/{pid}")
            assert 0 < record["stdin_accepted_bytes"] <= _PIPE_BYTES
        assert _peak_bytes(proc) - before < 8 * _MIB
        # The client has left, and the process goes on.
        assert (await control.json("GET", f"/processes/{pid}"))["status"] == "running"
        assert await control.request("DELETE", f"/processes/{pid}") == b""
        assert daemon.complaints == []


def _peak_bytes(proc: Path) -> int:
    """The most memory that a process had since its `clear_refs` (proc(5))."""
    lines = (proc / "status").read_text().splitlines()
    (kibibytes,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kibibytes) * 1024
