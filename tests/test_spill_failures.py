"""Outputs on disks that are full, fail or are slow, and a lack of descriptors: what it costs, and what not."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import trio

from supervisor import (
    OutOfDescriptors,
    OutputLimits,
    OutputLog,
    OutputPolicy,
    OutputStore,
    Supervisor,
    SupervisorConfig,
    open_supervisor,
    spill_file,
)
from supervisor.frames import SIZE

from .conftest import PATIENCE_SECONDS, Daemon
from .injection import injecting
from .pipes import pipe_with
from .spilling import (
    LINE_BYTES,
    MIB,
    all_written,
    check_kept,
    check_lines,
    ended_over_http,
    ended_process,
    files_of,
    is_spilled,
    numbered,
    numbered_script,
    raw_stdout,
    read_only,
    shell_spec,
    small_disk,
    start_over_http,
    without_descriptors,
)
from .test_server import serving
from .wire import connect


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def config(state_dir: Path) -> SupervisorConfig:
    return SupervisorConfig(state_dir=state_dir, grace_seconds=0.2)


# --- a full disk ----------------------------------------------------------------


class TestFullDisk:
    """The state directory is on a disk of 8 MiB."""

    @pytest.fixture
    def state_dir(self, tmp_path: Path) -> Iterator[Path]:
        directory = tmp_path / "disk"
        with small_disk(directory):
            yield directory

    @pytest.fixture
    def config(self, state_dir: Path) -> SupervisorConfig:
        return SupervisorConfig(state_dir=state_dir, output=OutputLimits(unspilled_bytes=MIB))

    @pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest"])
    async def test_a_flood_runs_on_and_everybody_is_told_what_is_missing(
        self, daemon: Daemon, policy: OutputPolicy
    ) -> None:
        size = 100 * 10**6
        async with await connect(daemon.url) as connection:
            body = {"command": "sh", "args": ["-c", numbered_script(size)], "output_policy": policy}
            started = await connection.json("POST", "/processes", body)
            process = daemon.supervisor.by_handle(started["handle"])
            answers = 0
            with trio.fail_after(PATIENCE_SECONDS):
                while process.status == "running":
                    with trio.fail_after(3):
                        await connection.request("GET", "/health")
                        await connection.request("GET", f"/processes/{process.pid}")
                    answers += 1
                    await trio.sleep(0.005)  # Others want to ask, too.
        assert answers > 20
        record = process.record
        assert (record.exit_code, process.log.end) == (0, size)
        assert record.output_spill_error == os.strerror(28)
        assert record.output_spilled_bytes > 2 * MIB
        assert record.output_dropped_bytes > size // 2
        await check_kept(process)
        first = await anext(process.output())
        assert first.position == (0 if policy == "drop_newest" else process.log.start)
        missing_bytes, missing_lines = await check_lines(process)
        assert missing_bytes == record.output_dropped_bytes
        assert abs(missing_lines * LINE_BYTES - missing_bytes) < 100 * LINE_BYTES
        answer = (await daemon.client.get(f"/processes/{process.pid}/stdout")).json()
        assert answer["missing_bytes"] == missing_bytes
        assert answer["missing_lines"] == missing_lines

    async def test_a_blocked_flood_loses_nothing(self, supervisor: Supervisor) -> None:
        size = 50 * 10**6
        process = await supervisor.start(shell_spec(numbered_script(size), policy="block"))
        place = 0
        with trio.fail_after(PATIENCE_SECONDS):
            async for chunk in process.output():
                assert chunk.position == place
                place = chunk.end
                assert chunk.data == numbered(chunk.position, chunk.end)
        assert place == size
        assert process.record.exit_code == 0

    @pytest.mark.parametrize("policy", get_args(OutputPolicy))
    async def test_without_any_room_memory_has_to_do_and_the_next_process_has_room_again(
        self, supervisor: Supervisor, state_dir: Path, policy: OutputPolicy
    ) -> None:
        filler = state_dir / "filler"
        subprocess.run(f"cat /dev/zero > {filler}", shell=True, stderr=subprocess.DEVNULL)
        size = 20 * 10**6
        process = await supervisor.start(shell_spec(numbered_script(size), policy=policy))
        if policy == "block":
            async for chunk in process.output():
                assert chunk.data == numbered(chunk.position, chunk.end)
        with trio.fail_after(PATIENCE_SECONDS):
            await process.wait()
        record = process.record
        assert (record.exit_code, process.log.end) == (0, size)
        assert record.output_spill_error == os.strerror(28)
        assert record.output_spilled_bytes == 0
        assert MIB // 2 < record.output_kept_bytes < 3 * MIB
        await check_kept(process)

        filler.unlink()
        later = await ended_process(supervisor, numbered_script(2 * 10**6), policy)
        await all_written(later, 2 * 10**6)
        assert later.record.output_spill_error is None
        assert is_spilled(later, 2 * 10**6)
        await check_kept(later)

    async def test_a_process_spills_again_when_there_is_room_again(
        self, supervisor: Supervisor, state_dir: Path
    ) -> None:
        filler = state_dir / "filler"
        subprocess.run(f"cat /dev/zero > {filler}", shell=True, stderr=subprocess.DEVNULL)
        script = f"{numbered_script(3 * 10**6)}; read go; {numbered_script(3 * 10**6, 3 * 10**6)}"
        process = await supervisor.start(shell_spec(script, stdin=True))
        await all_written(process, 3 * 10**6)
        assert process.record.output_spilled_bytes == 0
        filler.unlink()
        await process.write_stdin(b"\n")
        await process.wait()
        assert process.record.output_spilled_bytes > 10**6
        assert process.record.output_spill_error == os.strerror(28)
        await check_kept(process)

    async def test_memory_stays_bounded_however_long_the_disk_is_full(
        self, supervisor: Supervisor, state_dir: Path
    ) -> None:
        subprocess.run(
            f"cat /dev/zero > {state_dir / 'filler'}", shell=True, stderr=subprocess.DEVNULL
        )
        script = f"{numbered_script(100 * 10**6)} & {numbered_script(100 * 10**6)} >&2; wait"
        process = await ended_process(supervisor, script, "drop_newest")
        assert process.log.end == 200 * 10**6
        assert process.record.output_kept_bytes < 4 * MIB


async def test_room_that_is_less_than_what_waits_is_used_all_the_same(tmp_path: Path) -> None:
    directory = tmp_path / "disk"
    with small_disk(directory):
        subprocess.run(
            f"cat /dev/zero > {directory / 'filler'}", shell=True, stderr=subprocess.DEVNULL
        )
        limits = OutputLimits(unspilled_bytes=32 * MIB)
        async with open_supervisor(
            SupervisorConfig(state_dir=directory, output=limits)
        ) as supervisor:
            script = (
                f"{numbered_script(20 * 10**6)}; read go; {numbered_script(5 * 10**6, 20 * 10**6)}"
            )
            process = await supervisor.start(shell_spec(script, stdin=True))
            await all_written(process, 20 * 10**6)
            assert process.record.output_kept_bytes == 20 * 10**6
            (directory / "filler").unlink()
            await process.write_stdin(b"\n")
            await process.wait()
            assert process.record.output_spilled_bytes > 2 * MIB
            await check_kept(process)
        del supervisor, process


# --- a disk that fails ----------------------------------------------------------


class TestReadOnly:
    """Files of 64 KiB, so that new ones are needed all the time."""

    @pytest.fixture
    def config(self, state_dir: Path) -> SupervisorConfig:
        output = OutputLimits(log_bytes=16 * MIB, unspilled_bytes=4 * MIB)
        return SupervisorConfig(state_dir=state_dir, output=output)

    async def test_a_directory_that_becomes_read_only_ends_nobody(
        self, supervisor: Supervisor, state_dir: Path
    ) -> None:
        parts = [numbered_script(5 * 10**6, part * 5 * 10**6) for part in range(3)]
        process = await supervisor.start(shell_spec("; read go; ".join(parts), stdin=True))
        await all_written(process, 5 * 10**6)
        assert process.record.output_spilled_bytes > 4 * 10**6
        with read_only(state_dir):
            await process.write_stdin(b"\n")
            await all_written(process, 10 * 10**6)
            assert process.status == "running"
            assert process.record.output_spill_error == os.strerror(30)
            other = await ended_process(supervisor, numbered_script(2 * 10**6))
            assert other.record.exit_code == 0
            assert other.record.output_spill_error == os.strerror(30)
            assert other.record.output_spilled_bytes == 0
            await check_kept(other)
            assert other.record.output_dropped_bytes == 0
        await process.write_stdin(b"\n")
        await process.wait()
        spilled_bytes = process.record.output_spilled_bytes
        assert process.record.exit_code == 0
        await check_kept(process)
        later = await ended_process(supervisor, numbered_script(2 * 10**6))
        await all_written(later, 2 * 10**6)
        assert is_spilled(later, 2 * 10**6)
        assert later.record.output_spill_error is None
        assert spilled_bytes > 8 * 10**6


async def test_a_failure_half_way_through_a_write_leaves_no_trace(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all = spill_file._write_all
    writes = 0

    def failing(descriptor: int, buffers: list[bytes], at: int) -> int:
        nonlocal writes
        writes += 1
        if writes % 3 == 0:
            write_all(descriptor, [buffers[0], buffers[1][: len(buffers[1]) // 2]], at)
            raise OSError(5, "injected")
        return write_all(descriptor, buffers, at)

    monkeypatch.setattr(spill_file, "_write_all", failing)
    process = await ended_process(supervisor, numbered_script(20 * 10**6))
    assert writes > 3
    assert process.record.output_spill_error == "injected"
    await check_kept(process)
    assert process.record.output_dropped_bytes == 0


async def test_what_was_moved_into_a_frame_that_cannot_be_completed_stays_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    failures = 0

    def failing(descriptor: int, data: bytes, at: int) -> int:
        nonlocal failures
        if len(data) == SIZE.size and not failures:
            failures += 1
            raise OSError(5, "injected")
        return pwrite(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", failing)
    limits = OutputLimits(memory_bytes=1000)
    with OutputStore(limits, tmp_path, outlives=True) as store:
        log = OutputLog(store)
        log.append("stdout", b"a" * 2000, 0)
        with pipe_with(b"b" * 5000) as pipe:
            await log.settle(lambda take: take("stdout", pipe, 65536))
        assert failures == 1
        assert log.spill_error == "injected"
        assert (log.end, log.kept_bytes, log.spilled_bytes) == (7000, 7000, 2000)
        log.append("stdout", b"c" * 2 * MIB, 1)
        await log.settle()
        assert log.spilled_bytes == log.end
        assert await log.read_all("stdout") == b"a" * 2000 + b"b" * 5000 + b"c" * 2 * MIB
        assert len(files_of(tmp_path)) == 2
        del log


async def test_a_file_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    with OutputStore(OutputLimits(memory_bytes=1000), tmp_path) as store:
        log = OutputLog(store, "log")
        there = tmp_path / "output" / "log.1"
        there.write_bytes(b"somebody's")
        log.append("stdout", bytes(2000), 0)
        await log.settle()
        assert log.spill_error == os.strerror(17)
        assert there.read_bytes() == b"somebody's"
        assert (log.kept_bytes, log.spilled_bytes) == (2000, 0)
        log.append("stdout", bytes(2 * MIB), 1)
        await log.settle()
        assert log.spilled_bytes == log.end
        assert there.read_bytes() == b"somebody's"
        del log


async def test_a_lack_of_descriptors_costs_no_output(supervisor: Supervisor) -> None:
    process = await ended_process(supervisor, numbered_script(3 * 10**6))
    with without_descriptors(), pytest.raises(OutOfDescriptors):
        await process.log.read_all("stdout")
    assert await process.log.read_all("stdout") == numbered(0, 3 * 10**6)
    assert process.record.output_dropped_bytes == 0


async def test_a_lack_of_descriptors_makes_no_tail_of_the_whole(supervisor: Supervisor) -> None:
    size = 3 * 10**6
    process = await ended_process(supervisor, numbered_script(size))
    lines = size // LINE_BYTES // 2
    with without_descriptors(), pytest.raises(OutOfDescriptors):
        await process.log.offsets_of_tail(lines)
    begin = await process.log.offsets_of_tail(lines)
    assert begin.stdout == size - lines * LINE_BYTES


# --- injected into a daemon -----------------------------------------------------


async def test_writes_that_fail_leave_the_process_the_output_and_the_daemon(
    state_dir: Path,
) -> None:
    size = 3 * 10**6
    async with serving("--state-dir", str(state_dir)) as (daemon, url):
        before = await ended_over_http(url, numbered_script(size))
        halves = f"{numbered_script(size)}; read go; {numbered_script(size, size)}"
        caught = await start_over_http(url, halves, stdin_mode="pipe")
        async with await connect(url) as connection:
            while (await connection.json("GET", f"/processes/{caught['pid']}"))[
                "output_kept_bytes"
            ] < size:
                pass
            async with injecting(daemon.process.pid, "pwritev2:error=EIO"):
                record = await ended_over_http(url, numbered_script(size))
                assert (record["status"], record["exit_code"]) == ("exited", 0)
                assert record["output_spill_error"] == os.strerror(5)
                assert record["output_kept_bytes"] == size
                assert record["output_spilled_bytes"] == 0
                assert await raw_stdout(connection, record["pid"]) == numbered(0, size)
                assert await raw_stdout(connection, before["pid"]) == numbered(0, size)
                await connection.request("POST", f"/processes/{caught['pid']}/stdin", 1)
                await connection.request("POST", f"/processes/{caught['pid']}/stdin/close")
                await connection.request("GET", f"/processes/{caught['pid']}/output/follow")
            assert await raw_stdout(connection, caught["pid"]) == numbered(0, 2 * size)
            record = await connection.json("GET", f"/processes/{caught['pid']}")
            assert record["output_spill_error"] == os.strerror(5)
            assert 0 < record["output_spilled_bytes"] < 2 * size == record["output_kept_bytes"]
        after = await ended_over_http(url, numbered_script(size))
        assert after["output_spill_error"] is None
        assert after["output_kept_bytes"] == size
        assert daemon.complaints == []


async def test_reads_that_fail_are_a_gap(state_dir: Path) -> None:
    size = 3 * 10**6
    async with serving("--state-dir", str(state_dir)) as (daemon, url):
        gets, follows, raws, spared = [
            await ended_over_http(url, numbered_script(size)) for _ in range(4)
        ]
        async with await connect(url) as connection:
            async with injecting(daemon.process.pid, "pread64:error=EIO"):
                with trio.fail_after(PATIENCE_SECONDS):
                    answer = await connection.json("GET", f"/processes/{gets['pid']}/stdout")
                    path = f"/processes/{follows['pid']}/output/follow"
                    *events, eof = await connection.events("GET", path)
                    data = await _raw_until_broken(url, raws["pid"])
                assert connection.status == 200
            dropped: list[int] = []
            for record in (gets, follows, raws):
                record = await connection.json("GET", f"/processes/{record['pid']}")
                assert record["output_spill_error"] == os.strerror(5)
                dropped.append(record["output_dropped_bytes"])
                assert size // 2 < dropped[-1] == size - record["output_kept_bytes"]
            assert answer["missing_bytes"] == dropped[0]
            assert answer["missing_lines"] == dropped[0] // LINE_BYTES
            kept = "".join(f"{line}\n" for line in answer["lines"]).encode()
            assert kept == numbered(dropped[0], size)
            gaps = [event.data for event in events if event.name == "gap"]
            assert [gap["missing_bytes"] for gap in gaps] == [dropped[1]]
            assert gaps[0]["missing_lines"] == dropped[1] // LINE_BYTES
            assert eof.name == "eof"
            assert data == numbered(0, len(data))
            assert await raw_stdout(connection, spared["pid"]) == numbered(0, size)
        (complaint,) = daemon.complaints  # Of the raw body.
        assert complaint["level"] == "warning"
        assert complaint["message"].startswith("an answer breaks off")
        assert "traceback" not in complaint


async def _raw_until_broken(url: str, pid: int) -> bytes:
    """A raw body that breaks off before its end."""
    async with await connect(url) as connection:
        await connection.stream.send_all(
            b"GET /api/v1/processes/%d/stdout/raw HTTP/1.1\r\nHost: localhost\r\n\r\n" % pid
        )
        answer = b"".join([data async for data in connection.stream])
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    (length,) = [
        int(line.partition(b":")[2])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    ]
    assert len(body) < length
    return body


async def test_a_disk_that_takes_its_time_holds_up_only_who_writes_to_it(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all = spill_file._write_all
    size = 10**7
    begun = trio.Event()
    served = threading.Event()
    token = trio.lowlevel.current_trio_token()
    in_time = []

    def slow(descriptor: int, buffers: list[bytes], at: int) -> int:
        token.run_sync_soon(begun.set)
        in_time.append(served.wait(PATIENCE_SECONDS))
        return write_all(descriptor, buffers, at)

    monkeypatch.setattr(spill_file, "_write_all", slow)
    process = await daemon.supervisor.start(shell_spec(numbered_script(size)))
    await begun.wait()
    async with await connect(daemon.url) as connection:
        for _ in range(20):  # All within one write.
            run = await connection.events("POST", "/processes/run", {"command": "true"})
            assert run[-1].data == {"reason": "exited", "exit_code": 0}
        assert process.status == "running"
        served.set()
        await process.wait()
        assert await raw_stdout(connection, process.pid) == numbered(0, size)
    assert all(in_time)
