"""Outputs on disk: files and who removes them, disks that are full or fail, and readers meanwhile."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import pytest
import trio

from supervisor import (
    Gap,
    Line,
    Offsets,
    OutOfDescriptors,
    OutputLimits,
    OutputLog,
    OutputPolicy,
    OutputStore,
    Process,
    ProcessSpec,
    Retention,
    StateDirUnusable,
    Supervisor,
    SupervisorConfig,
    open_supervisor,
    spill,
)
from supervisor.chunk import BEGINNING, STREAMS
from supervisor.lines import LineReader
from supervisor.spill import Take

from .conftest import PATIENCE_SECONDS, Daemon
from .injection import injecting
from .pipes import pipe_with
from .test_server import command, serving
from .wire import Connection, connect

_MIB = 1024 * 1024
_LINE_BYTES = 100
# Not above it in memory, with what a chunk takes besides its bytes.
_SMALL_BYTES = 60_000


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def config(state_dir: Path) -> SupervisorConfig:
    return SupervisorConfig(state_dir=state_dir, grace_seconds=0.2)


@contextmanager
def _mounted(directory: Path, *commands: str) -> Iterator[None]:
    """Run commands, of which the first mounts something at the directory; unmount it at the end."""
    try:
        for arguments in commands:
            subprocess.run([*arguments.split(), directory], check=True)
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


@contextmanager
def _small_disk(directory: Path) -> Iterator[None]:
    """A disk of 8 MiB at the directory."""
    directory.mkdir()
    with _mounted(directory, "mount -t tmpfs -o size=8m tmpfs"):
        yield


@contextmanager
def _read_only(state_dir: Path) -> Iterator[None]:
    """Nothing can be made or removed where the outputs are."""
    directory = state_dir / "output"
    with _mounted(
        directory, f"mount --bind {directory}", "mount -o remount,bind,ro"
    ):  # Of another mount: a file that is open for writing would prevent it.
        yield


def _numbered(begin: int, end: int) -> bytes:
    """What `_writer` writes between two offsets."""
    first = begin // _LINE_BYTES
    lines = b"".join([b"%099d\n" % number for number in range(first, -(-end // _LINE_BYTES))])
    return lines[begin - first * _LINE_BYTES : end - first * _LINE_BYTES]


def _script(size: int, begin: int = 0) -> str:
    """Writes numbered lines of 100 bytes."""
    lines = range(begin // _LINE_BYTES, (begin + size) // _LINE_BYTES)
    return f"seq -f %099.0f {lines.start} {lines.stop - 1}"


def _shell(script: str, *, stdin: bool = False, policy: OutputPolicy | None = None) -> ProcessSpec:
    return ProcessSpec(
        command="sh",
        args=("-c", script),
        stdin_mode="pipe" if stdin else "closed",
        output_policy=policy,
    )


async def _ended(
    supervisor: Supervisor, script: str, policy: OutputPolicy | None = None
) -> Process:
    process = await supervisor.start(_shell(script, policy=policy))
    with trio.fail_after(PATIENCE_SECONDS):
        await process.wait()
    return process


async def _written(process: Process, position: int) -> None:
    """Wait until the process has written so much, and as much as can be is on disk."""
    cursor = process.log.cursor(process.log.end)
    with trio.fail_after(PATIENCE_SECONDS):
        while process.log.end < position or not process.log.is_settled:
            if process.log.end < position:
                await cursor.read()
            else:
                await trio.lowlevel.checkpoint()
    assert process.log.end == position


def _is_spilled(process: Process, size: int) -> bool:
    """Whether all its output is kept, and what is only in memory is as little as it may be."""
    record = process.record
    only_in_memory = record.output_kept_bytes - record.output_spilled_bytes
    return record.output_kept_bytes == size and only_in_memory <= OutputLimits().memory_bytes


def _files(state_dir: Path) -> list[Path]:
    return sorted((state_dir / "output").iterdir())


async def _gone(state_dir: Path) -> None:
    """Wait until there is no file any more."""
    with trio.fail_after(PATIENCE_SECONDS):
        while _files(state_dir):
            await trio.lowlevel.checkpoint()


async def _check_lines(process: Process) -> tuple[int, int]:
    """A whole follow of numbered lines: everything is exact, gaps too. Missing bytes and lines."""
    place = missing_bytes = missing_lines = 0
    reader = process.lines(stream="stdout")
    is_over = False
    while not is_over:
        with trio.fail_after(PATIENCE_SECONDS):
            items = await reader.read(_MIB)
        if not items:
            is_over = True
            items = reader.rest()
        for item in items:
            end = item.resume.stdout
            if isinstance(item, Gap):
                assert item.missing_bytes == end - place
                assert item.missing_lines == end // _LINE_BYTES - place // _LINE_BYTES
                missing_bytes += item.missing_bytes
                missing_lines += item.missing_lines
            else:
                assert _numbered(place, end).removesuffix(b"\n") == item.text.encode()
            place = end
    assert place == process.log.end_offsets.stdout
    return missing_bytes, missing_lines


async def _check_kept(process: Process) -> None:
    """Whatever is kept is read, and exact, and adds up with what is missing."""
    record = process.record
    read = 0
    with trio.fail_after(PATIENCE_SECONDS):
        async for chunk in process.output():
            assert chunk.data == _numbered(chunk.offset, chunk.offset + len(chunk.data))
            read += len(chunk.data)
    assert read == record.output_kept_bytes
    assert record.output_kept_bytes + record.output_dropped_bytes == process.log.end
    missing_bytes, _ = await _check_lines(process)
    assert missing_bytes == record.output_dropped_bytes


# --- files ----------------------------------------------------------------------


async def test_a_small_output_needs_no_file(supervisor: Supervisor, state_dir: Path) -> None:
    process = await _ended(supervisor, _script(_SMALL_BYTES))
    assert _files(state_dir) == []
    assert process.record.output_spilled_bytes == 0
    assert process.record.output_kept_bytes == _SMALL_BYTES


async def test_a_large_output_is_in_files_for_nobody_else(
    supervisor: Supervisor, state_dir: Path
) -> None:
    process = await _ended(supervisor, _script(10 * 10**6))
    await _written(process, 10 * 10**6)
    files = _files(state_dir)
    assert len(files) > 1
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert (state_dir.stat().st_mode & 0o777) == 0o700
    assert _is_spilled(process, 10 * 10**6)
    assert process.record.output_spill_error is None
    await _check_kept(process)


async def test_files_go_when_a_process_is_forgotten(state_dir: Path) -> None:
    config = SupervisorConfig(state_dir=state_dir, retention=Retention(count=1))
    async with open_supervisor(config) as supervisor:
        await _ended(supervisor, _script(10**6))
        assert _files(state_dir)
        await _ended(supervisor, "true")
        await _gone(state_dir)


async def test_a_reader_reads_a_forgotten_process_to_its_end(state_dir: Path) -> None:
    config = SupervisorConfig(state_dir=state_dir, retention=Retention(count=0))
    size = 10 * 10**6
    async with open_supervisor(config) as supervisor:
        cursor = (await supervisor.start(_shell(_script(size)))).output()
        read = bytearray()
        with trio.fail_after(PATIENCE_SECONDS):
            while chunks := await cursor.read(10_000):
                if not supervisor.processes():
                    assert _files(state_dir)
                read += b"".join([chunk.data for chunk in chunks])
        assert read == _numbered(0, size)
        del cursor
        await _gone(state_dir)


async def test_files_go_with_the_supervisor_unless_somebody_holds_a_process(
    state_dir: Path,
) -> None:
    async with open_supervisor(SupervisorConfig(state_dir=state_dir)) as supervisor:
        process = await _ended(supervisor, _script(10**6))
        await _ended(supervisor, _script(10**6))
    del supervisor
    assert _files(state_dir)
    await _check_kept(process)
    del process
    await _gone(state_dir)


async def test_what_a_killed_daemon_has_left_is_there_until_it_is_forgotten(
    state_dir: Path,
) -> None:
    options = ("--state-dir", str(state_dir), "--retain-count", "1")
    async with serving(*options) as (daemon, url):
        record = await _ended_over_http(url, _script(10**6))
        left = _files(state_dir)
        assert left
        daemon.process.kill()
        await daemon.exited()
    assert _files(state_dir) == left
    async with serving(*options) as (daemon, url):
        async with await connect(url) as connection:
            assert await _raw(connection, record["pid"]) == _numbered(0, 10**6)
        await _ended_over_http(url, _script(10**6, 10**6))
        assert set(left).isdisjoint(kept := _files(state_dir))
        daemon.process.send_signal(signal.SIGTERM)
        assert await daemon.exited() == 0
        assert daemon.complaints == []
    assert _files(state_dir) == kept


async def test_what_a_killed_daemon_has_left_goes_with_one_that_does_not_survive(
    config: SupervisorConfig, state_dir: Path
) -> None:
    async with serving("--state-dir", str(state_dir)) as (daemon, url):
        await _ended_over_http(url, _script(10**6))
        daemon.process.kill()
        await daemon.exited()
    assert _files(state_dir)
    async with open_supervisor(config):
        assert _files(state_dir) == []


async def test_no_two_supervisors_share_a_state_directory(
    config: SupervisorConfig, state_dir: Path
) -> None:
    async with open_supervisor(config) as first:
        with pytest.raises(StateDirUnusable, match="another supervisor uses it"):
            async with open_supervisor(config):
                pass
        process = await _ended(first, _script(10**6))
        async with command("--bind", "127.0.0.1:0", "--state-dir", str(state_dir)) as daemon:
            assert await daemon.exited() == 1
        (entry,) = daemon.log
        assert entry["level"] == "error"
        assert str(state_dir) in entry["message"]
        assert "another supervisor uses it" in entry["message"]
        # And it has touched nothing.
        await _check_kept(process)
        assert process.record.output_dropped_bytes == 0
    async with open_supervisor(config) as second:
        assert _is_spilled(await _ended(second, _script(10**6)), 10**6)


async def test_a_process_of_a_supervisor_before_does_not_touch_the_files_of_the_next(
    config: SupervisorConfig,
) -> None:
    async with open_supervisor(config) as supervisor:
        old = await _ended(supervisor, _script(10**6))
        assert _is_spilled(old, 10**6)
    async with open_supervisor(config) as supervisor:
        new = await _ended(supervisor, _script(10**6, 10**6))
        # The new one was given an empty directory, so little is left of the old output.
        await _check_lines(old)
        del old
        assert await new.log.read_all("stdout") == _numbered(10**6, 2 * 10**6)


@pytest.mark.parametrize("is_file", [False, True])
async def test_a_state_directory_that_cannot_be_used_is_one_log_line_and_status_1(
    tmp_path: Path, is_file: bool
) -> None:
    if is_file:
        (tmp_path / "disk").write_text("a file")
        directory = tmp_path / "disk"
    else:
        directory = Path("/proc/creche")
    async with command("--bind", "127.0.0.1:0", "--state-dir", str(directory)) as daemon:
        assert await daemon.exited() == 1
    (entry,) = daemon.log
    assert entry["level"] == "error"
    assert str(directory) in entry["message"]


# --- a full disk ----------------------------------------------------------------


class TestFullDisk:
    """The state directory is on a disk of 8 MiB."""

    @pytest.fixture
    def state_dir(self, tmp_path: Path) -> Iterator[Path]:
        directory = tmp_path / "disk"
        with _small_disk(directory):
            yield directory

    @pytest.fixture
    def config(self, state_dir: Path) -> SupervisorConfig:
        return SupervisorConfig(state_dir=state_dir, output=OutputLimits(unspilled_bytes=_MIB))

    @pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest"])
    async def test_a_flood_runs_on_and_everybody_is_told_what_is_missing(
        self, daemon: Daemon, policy: OutputPolicy
    ) -> None:
        size = 100 * 10**6
        async with await connect(daemon.url) as connection:
            body = {"command": "sh", "args": ["-c", _script(size)], "output_policy": policy}
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
        assert record.output_spilled_bytes > 2 * _MIB
        assert record.output_dropped_bytes > size // 2
        await _check_kept(process)
        first = await anext(process.output())
        assert first.position == (0 if policy == "drop_newest" else process.log.start)
        missing_bytes, missing_lines = await _check_lines(process)
        assert missing_bytes == record.output_dropped_bytes
        assert abs(missing_lines * _LINE_BYTES - missing_bytes) < 100 * _LINE_BYTES
        answer = (await daemon.client.get(f"/processes/{process.pid}/stdout")).json()
        assert answer["missing_bytes"] == missing_bytes
        assert answer["missing_lines"] == missing_lines

    async def test_a_blocked_flood_loses_nothing(self, supervisor: Supervisor) -> None:
        size = 50 * 10**6
        process = await supervisor.start(_shell(_script(size), policy="block"))
        place = 0
        with trio.fail_after(PATIENCE_SECONDS):
            async for chunk in process.output():
                assert chunk.position == place
                place = chunk.end
                assert chunk.data == _numbered(chunk.position, chunk.end)
        assert place == size
        assert process.record.exit_code == 0

    @pytest.mark.parametrize("policy", get_args(OutputPolicy))
    async def test_without_any_room_memory_has_to_do_and_the_next_process_has_room_again(
        self, supervisor: Supervisor, state_dir: Path, policy: OutputPolicy
    ) -> None:
        filler = state_dir / "filler"
        subprocess.run(f"cat /dev/zero > {filler}", shell=True, stderr=subprocess.DEVNULL)
        size = 20 * 10**6
        process = await supervisor.start(_shell(_script(size), policy=policy))
        if policy == "block":
            async for chunk in process.output():
                assert chunk.data == _numbered(chunk.position, chunk.end)
        with trio.fail_after(PATIENCE_SECONDS):
            await process.wait()
        record = process.record
        assert (record.exit_code, process.log.end) == (0, size)
        assert record.output_spill_error == os.strerror(28)
        assert record.output_spilled_bytes == 0
        assert _MIB // 2 < record.output_kept_bytes < 3 * _MIB
        await _check_kept(process)

        filler.unlink()
        later = await _ended(supervisor, _script(2 * 10**6), policy)
        await _written(later, 2 * 10**6)
        assert later.record.output_spill_error is None
        assert _is_spilled(later, 2 * 10**6)
        await _check_kept(later)

    async def test_a_process_spills_again_when_there_is_room_again(
        self, supervisor: Supervisor, state_dir: Path
    ) -> None:
        filler = state_dir / "filler"
        subprocess.run(f"cat /dev/zero > {filler}", shell=True, stderr=subprocess.DEVNULL)
        script = f"{_script(3 * 10**6)}; read go; {_script(3 * 10**6, 3 * 10**6)}"
        process = await supervisor.start(_shell(script, stdin=True))
        await _written(process, 3 * 10**6)
        assert process.record.output_spilled_bytes == 0
        filler.unlink()
        await process.write_stdin(b"\n")
        await process.wait()
        assert process.record.output_spilled_bytes > 10**6
        assert process.record.output_spill_error == os.strerror(28)
        await _check_kept(process)

    async def test_memory_stays_bounded_however_long_the_disk_is_full(
        self, supervisor: Supervisor, state_dir: Path
    ) -> None:
        subprocess.run(
            f"cat /dev/zero > {state_dir / 'filler'}", shell=True, stderr=subprocess.DEVNULL
        )
        script = f"{_script(100 * 10**6)} & {_script(100 * 10**6)} >&2; wait"
        process = await _ended(supervisor, script, "drop_newest")
        assert process.log.end == 200 * 10**6
        assert process.record.output_kept_bytes < 4 * _MIB


async def test_room_that_is_less_than_what_waits_is_used_all_the_same(tmp_path: Path) -> None:
    directory = tmp_path / "disk"
    with _small_disk(directory):
        subprocess.run(
            f"cat /dev/zero > {directory / 'filler'}", shell=True, stderr=subprocess.DEVNULL
        )
        limits = OutputLimits(unspilled_bytes=32 * _MIB)
        async with open_supervisor(
            SupervisorConfig(state_dir=directory, output=limits)
        ) as supervisor:
            script = f"{_script(20 * 10**6)}; read go; {_script(5 * 10**6, 20 * 10**6)}"
            process = await supervisor.start(_shell(script, stdin=True))
            await _written(process, 20 * 10**6)
            assert process.record.output_kept_bytes == 20 * 10**6
            (directory / "filler").unlink()
            await process.write_stdin(b"\n")
            await process.wait()
            assert process.record.output_spilled_bytes > 2 * _MIB
            await _check_kept(process)
        del supervisor, process


# --- a disk that fails ----------------------------------------------------------


class TestReadOnly:
    """Files of 64 KiB, so that new ones are needed all the time."""

    @pytest.fixture
    def config(self, state_dir: Path) -> SupervisorConfig:
        output = OutputLimits(log_bytes=16 * _MIB, unspilled_bytes=4 * _MIB)
        return SupervisorConfig(state_dir=state_dir, output=output)

    async def test_a_directory_that_becomes_read_only_ends_nobody(
        self, supervisor: Supervisor, state_dir: Path
    ) -> None:
        parts = [_script(5 * 10**6, part * 5 * 10**6) for part in range(3)]
        process = await supervisor.start(_shell("; read go; ".join(parts), stdin=True))
        await _written(process, 5 * 10**6)
        assert process.record.output_spilled_bytes > 4 * 10**6
        with _read_only(state_dir):
            await process.write_stdin(b"\n")
            await _written(process, 10 * 10**6)
            assert process.status == "running"
            assert process.record.output_spill_error == os.strerror(30)
            other = await _ended(supervisor, _script(2 * 10**6))
            assert other.record.exit_code == 0
            assert other.record.output_spill_error == os.strerror(30)
            assert other.record.output_spilled_bytes == 0
            await _check_kept(other)
            assert other.record.output_dropped_bytes == 0
        await process.write_stdin(b"\n")
        await process.wait()
        spilled_bytes = process.record.output_spilled_bytes
        assert process.record.exit_code == 0
        await _check_kept(process)
        later = await _ended(supervisor, _script(2 * 10**6))
        await _written(later, 2 * 10**6)
        assert _is_spilled(later, 2 * 10**6)
        assert later.record.output_spill_error is None
        assert spilled_bytes > 8 * 10**6


async def test_a_failure_half_way_through_a_write_leaves_no_trace(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all = spill._write_all
    writes = 0

    def failing(descriptor: int, buffers: list[bytes], at: int) -> int:
        nonlocal writes
        writes += 1
        if writes % 3 == 0:
            write_all(descriptor, [buffers[0], buffers[1][: len(buffers[1]) // 2]], at)
            raise OSError(5, "injected")
        return write_all(descriptor, buffers, at)

    monkeypatch.setattr(spill, "_write_all", failing)
    process = await _ended(supervisor, _script(20 * 10**6))
    assert writes > 3
    assert process.record.output_spill_error == "injected"
    await _check_kept(process)
    assert process.record.output_dropped_bytes == 0


@contextmanager
def _without_descriptors() -> Iterator[None]:
    """Nothing can be opened within this block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


async def test_a_lack_of_descriptors_costs_no_output(supervisor: Supervisor) -> None:
    process = await _ended(supervisor, _script(3 * 10**6))
    with _without_descriptors(), pytest.raises(OutOfDescriptors):
        await process.log.read_all("stdout")
    assert await process.log.read_all("stdout") == _numbered(0, 3 * 10**6)
    assert process.record.output_dropped_bytes == 0


# --- injected into a daemon -----------------------------------------------------


async def _start_over_http(url: str, script: str, **more: object) -> dict[str, Any]:
    async with await connect(url) as connection:
        body = {"command": "sh", "args": ["-c", script], **more}
        started: dict[str, Any] = await connection.json("POST", "/processes", body)
        assert connection.status == 201
        return started


async def _ended_over_http(url: str, script: str) -> dict[str, Any]:
    """The record of a process that has been started and has ended."""
    pid = (await _start_over_http(url, script))["pid"]
    async with await connect(url) as connection:
        path = f"/processes/{pid}/output/follow"
        async with connection.stream_body("GET", path) as body:
            with trio.fail_after(PATIENCE_SECONDS):
                async for _ in body:
                    pass
        # The last of it is spilled after the end.
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                record: dict[str, Any] = await connection.json("GET", f"/processes/{pid}")
                unspilled = record["output_kept_bytes"] - record["output_spilled_bytes"]
                is_spilled = unspilled <= OutputLimits().memory_bytes
                if is_spilled or record["output_spill_error"] is not None:
                    return record


async def _raw(connection: Connection, pid: int) -> bytes:
    data = await connection.request("GET", f"/processes/{pid}/stdout/raw")
    assert connection.status == 200
    return data


async def test_writes_that_fail_leave_the_process_the_output_and_the_daemon(
    state_dir: Path,
) -> None:
    size = 3 * 10**6
    async with serving("--state-dir", str(state_dir)) as (daemon, url):
        before = await _ended_over_http(url, _script(size))
        halves = f"{_script(size)}; read go; {_script(size, size)}"
        caught = await _start_over_http(url, halves, stdin_mode="pipe")
        async with await connect(url) as connection:
            while (await connection.json("GET", f"/processes/{caught['pid']}"))[
                "output_kept_bytes"
            ] < size:
                pass
            async with injecting(daemon.process.pid, "pwritev2:error=EIO"):
                record = await _ended_over_http(url, _script(size))
                assert (record["status"], record["exit_code"]) == ("exited", 0)
                assert record["output_spill_error"] == os.strerror(5)
                assert record["output_kept_bytes"] == size
                assert record["output_spilled_bytes"] == 0
                assert await _raw(connection, record["pid"]) == _numbered(0, size)
                assert await _raw(connection, before["pid"]) == _numbered(0, size)
                await connection.request("POST", f"/processes/{caught['pid']}/stdin", 1)
                await connection.request("POST", f"/processes/{caught['pid']}/stdin/close")
                await connection.request("GET", f"/processes/{caught['pid']}/output/follow")
            assert await _raw(connection, caught["pid"]) == _numbered(0, 2 * size)
            record = await connection.json("GET", f"/processes/{caught['pid']}")
            assert record["output_spill_error"] == os.strerror(5)
            assert 0 < record["output_spilled_bytes"] < 2 * size == record["output_kept_bytes"]
        after = await _ended_over_http(url, _script(size))
        assert after["output_spill_error"] is None
        assert after["output_kept_bytes"] == size
        assert daemon.complaints == []


async def test_reads_that_fail_are_a_gap(state_dir: Path) -> None:
    size = 3 * 10**6
    async with serving("--state-dir", str(state_dir)) as (daemon, url):
        gets, follows, raws, spared = [await _ended_over_http(url, _script(size)) for _ in range(4)]
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
            assert answer["missing_lines"] == dropped[0] // _LINE_BYTES
            kept = "".join(f"{line}\n" for line in answer["lines"]).encode()
            assert kept == _numbered(dropped[0], size)
            gaps = [event.data for event in events if event.name == "gap"]
            assert [gap["missing_bytes"] for gap in gaps] == [dropped[1]]
            assert gaps[0]["missing_lines"] == dropped[1] // _LINE_BYTES
            assert eof.name == "eof"
            assert data == _numbered(0, len(data))
            assert await _raw(connection, spared["pid"]) == _numbered(0, size)
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
    write_all = spill._write_all
    size = 10**6

    def slow(descriptor: int, buffers: list[bytes], at: int) -> int:
        time.sleep(0.1)
        return write_all(descriptor, buffers, at)

    monkeypatch.setattr(spill, "_write_all", slow)
    process = await daemon.supervisor.start(_shell(_script(size)))
    async with await connect(daemon.url) as connection:
        began = trio.current_time()
        answers = 0
        while process.status == "running":
            run = await connection.events("POST", "/processes/run", {"command": "true"})
            assert run[-1].data == {"reason": "exited", "exit_code": 0}
            answers += 1
        # Many within one write.
        assert trio.current_time() - began > 0.2
        assert answers / (trio.current_time() - began) > 15
        assert await _raw(connection, process.pid) == _numbered(0, size)


# --- files that somebody removes -------------------------------------------------


async def test_removed_files_of_a_running_process_are_a_gap(
    daemon: Daemon, state_dir: Path
) -> None:
    size = 6 * 10**6
    script = f"{_script(size)}; read go; {_script(size, size)}"
    process = await daemon.supervisor.start(_shell(script, stdin=True))
    await _written(process, size)
    for file in _files(state_dir):
        file.unlink()
    with trio.fail_after(PATIENCE_SECONDS):
        answer = await daemon.client.get(f"/processes/{process.pid}/stdout")
        assert answer.status_code == 200
        kept = "".join(f"{line}\n" for line in answer.json()["lines"]).encode()
        assert kept == _numbered(answer.json()["missing_bytes"], size)
        await process.write_stdin(b"\n")
        await process.wait()
        answer = await daemon.client.get(f"/processes/{process.pid}/stdout/follow")
    assert answer.status_code == 200
    assert answer.text.endswith("event: eof\ndata: {}\n\n")
    await _check_kept(process)
    assert process.record.exit_code == 0
    assert 0 < process.record.output_dropped_bytes <= size


async def test_files_removed_while_they_are_written_cost_no_process_its_life(
    supervisor: Supervisor, state_dir: Path
) -> None:
    size = 100 * 10**6
    process = await supervisor.start(_shell(_script(size)))
    log = process.log

    async def read() -> None:
        chance = random.Random(7)
        while not log.closed:
            cursor = log.cursor(chance.randrange(log.end + 1))
            with trio.move_on_after(0.01):
                for _ in range(3):
                    for chunk in await cursor.read(_MIB):
                        assert chunk.data == _numbered(chunk.position, chunk.end)

    async def remove() -> None:
        while not log.closed:
            for file in _files(state_dir):
                file.unlink(missing_ok=True)
            await trio.sleep(0.002)  # To be fair to those who read and write.

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(read)
            nursery.start_soon(remove)
    assert process.record.exit_code == 0
    assert process.log.end == size
    async for _ in process.output():
        pass  # Only who wants to read them finds that the last files are gone.
    await _check_kept(process)
    assert supervisor._store.disk_bytes >= process.record.output_spilled_bytes
    assert supervisor._store.disk_bytes < process.record.output_spilled_bytes + _MIB


async def test_what_drop_newest_keeps_has_no_hole(tmp_path: Path) -> None:
    limits = OutputLimits(memory_bytes=1000, log_bytes=4000, policy="drop_newest")
    with OutputStore(limits, tmp_path) as store:
        log = OutputLog(store)
        timestamps = itertools.count()
        while not log.dropped_bytes:
            log.append("stdout", b"x", next(timestamps))
        kept = log.kept_bytes
        # Short lines take much less on disk than in memory.
        await log.settle()
        assert log.spilled_bytes == kept
        log.append("stdout", b"y", next(timestamps))
        assert log.kept_bytes == kept
        assert log.dropped_bytes == 2


async def test_a_reader_that_finds_a_file_unreadable_leaves_it_to_its_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader comes while a thread writes to that file."""
    store = OutputStore(OutputLimits(memory_bytes=1000), tmp_path)
    with store:
        await _read_while_writing(OutputLog(store, "log"), tmp_path, monkeypatch)
        assert store.disk_bytes == 0


async def _read_while_writing(
    log: OutputLog, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append("stdout", bytes(2000), 0)
    await log.settle()
    write_all = spill._write_all

    async def read() -> None:
        for file in _files(state_dir):
            file.unlink()
        await log.cursor(stop=2000).read(100)

    def writing(descriptor: int, buffers: list[bytes], at: int) -> int:
        trio.from_thread.run(read)
        return write_all(descriptor, buffers, at)

    with monkeypatch.context() as patch:
        patch.setattr(spill, "_write_all", writing)
        log.append("stdout", bytes(2000), 1)
        await log.settle()
    assert len(await log.read_all("stdout")) == log.kept_bytes
    assert log.kept_bytes + log.dropped_bytes == 4000
    log.append("stdout", bytes(2000), 2)
    await log.settle()
    assert len(await log.read_all("stdout")) == log.kept_bytes >= 2000


# --- readers --------------------------------------------------------------------


async def test_readers_anywhere_get_the_exact_bytes_while_they_are_written(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    size = 16 * _MIB
    contents = {
        "stdout": random.Random(1).randbytes(size),
        "stderr": random.Random(2).randbytes(size),
    }
    for stream, data in contents.items():
        (tmp_path / stream).write_bytes(data)
    script = f"cat {tmp_path}/stdout & cat {tmp_path}/stderr >&2; wait"
    process = await supervisor.start(_shell(script))
    chance = random.Random(3)

    async def read(number: int) -> None:
        """From some place on to the end."""
        while number and process.log.end < number * 2 * size // 12:
            await process.log.cursor(process.log.end).read()
        stream = chance.choice([None, *STREAMS])
        begin = chance.randrange(process.log.end + 1) if number else 0
        cursor = process.output(begin, stream=stream)
        before: dict[str, int] = {}
        read = 0
        last = begin
        while chunks := await cursor.read(chance.choice([1, 10_000, _MIB])):
            for chunk in chunks:
                assert chunk.position >= last
                assert stream is not None or chunk.position == last
                last = chunk.end
                offset = before.setdefault(chunk.stream, chunk.offset)
                assert chunk.offset == offset
                before[chunk.stream] = offset + len(chunk.data)
                data = contents[chunk.stream][chunk.offset : before[chunk.stream]]
                assert chunk.data == data
                read += len(chunk.data)
        if stream is None:
            assert read == 2 * size - begin
        else:
            assert before.get(stream, size) == size

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(read, number)
        with trio.fail_after(PATIENCE_SECONDS):
            await process.wait()
    for stream in STREAMS:
        data = await process.log.read_all(stream)
        assert hashlib.sha256(data).digest() == hashlib.sha256(contents[stream]).digest()
        assert process.log.newlines(stream) == contents[stream].count(b"\n")
    assert process.record.output_spilled_bytes > size


async def test_lines_from_anywhere_are_the_same_lines(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    data = random.Random(4).randbytes(4 * _MIB)
    (tmp_path / "bytes").write_bytes(data)
    process = await supervisor.start(_shell(f"cat {tmp_path}/bytes | tee /dev/stderr"))
    live = [item async for item in process.lines()]
    await process.wait()
    for stream in STREAMS:
        own = [item for item in live if item.stream == stream]
        raw = data.split(b"\n")
        assert [item.text for item in own if isinstance(item, Line)] == [
            line.removesuffix(b"\r").decode("utf-8", "replace") for line in raw if line or raw[-1]
        ][: len(own)]
        assert len(own) == len(raw) - (not raw[-1])
        ends = [item.resume.of(stream) for item in own]
        assert ends == sorted(ends)
        assert ends[-1] == len(data)
    chance = random.Random(5)
    for number in chance.sample(range(len(live)), 8):
        rest = [item async for item in process.lines(resume=live[number].resume)]
        assert rest == live[number + 1 :]


async def test_a_reader_in_what_is_in_memory_too_misses_nothing(tmp_path: Path) -> None:
    with OutputStore(OutputLimits(), tmp_path) as store:
        log = OutputLog(store)
        for time in range(5):
            log.append("stdout", b"a" * 20_000, time)
        poured = [b"b" * 50_000]

        def source(take: Take) -> int:
            if not poured:
                return 0
            with pipe_with(poured.pop()) as pipe:
                return take("stdout", pipe, 65536)

        await log.settle(source)
        log.append("stdout", b"c" * 100, 11)
        assert log.dropped_bytes == 0
        for begin in range(0, 150_000, 10_000):
            cursor = log.cursor(begin, stop=log.end)
            read = b"".join([chunk.data async for chunk in cursor])
            assert read == (b"a" * 100_000 + b"b" * 50_000 + b"c" * 100)[begin:]
        del log, cursor


async def test_output_is_complete_and_readable_when_wait_returns(supervisor: Supervisor) -> None:
    for size in (10**5, 10**6, 3 * 10**6) * 4:
        process = await _ended(supervisor, _script(size))
        assert process.log.closed
        assert await process.log.read_all("stdout") == _numbered(0, size)
        with trio.fail_after(3):
            assert await _check_lines(process) == (0, 0)


async def test_a_descendant_with_the_pipe_holds_up_no_end(supervisor: Supervisor) -> None:
    size = 3 * 10**6
    process = await supervisor.start(_shell(f"sleep 1000 & {_script(size)}"))
    with trio.fail_after(10):
        read = b"".join([chunk.data async for chunk in process.output()])
        await process.wait()
    assert read == _numbered(0, size)
    assert process.record.members_killed == 1


async def test_iterating_lines_reads_the_disk_in_large_pieces(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 5 * 10**6
    process = await _ended(supervisor, _script(size))
    read = spill._read
    reads: list[int] = []

    def counting(path: Path, begin: int, wanted: int) -> Any:
        reads.append(wanted)
        return read(path, begin, wanted)

    monkeypatch.setattr(spill, "_read", counting)
    lines = [item.text async for item in process.lines() if isinstance(item, Line)]
    assert len(lines) == size // _LINE_BYTES
    assert size / len(reads) > 32 * 1024


# --- bounds ---------------------------------------------------------------------


async def test_many_floods_at_once_stay_within_the_bounds_of_all(state_dir: Path) -> None:
    limits = OutputLimits(
        total_bytes=8 * _MIB, total_memory_bytes=4 * _MIB, log_bytes=4 * _MIB, unspilled_bytes=_MIB
    )
    size = 5 * 10**6
    async with open_supervisor(SupervisorConfig(state_dir=state_dir, output=limits)) as supervisor:
        processes = [await supervisor.start(_shell(_script(size))) for _ in range(20)]
        most = 0
        with trio.fail_after(PATIENCE_SECONDS):
            while any(process.status == "running" for process in processes):
                most = max(most, _size(state_dir))
                assert supervisor._store.memory_bytes < limits.total_memory_bytes + 20 * _MIB // 4
                await trio.sleep(0.001)
        # What is being written at a time lies above the bound.
        assert most < limits.total_bytes + 4 * _MIB
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert _size(state_dir) <= limits.total_bytes
        assert supervisor._store.disk_bytes == _size(state_dir)
        for process in processes:
            assert (process.record.exit_code, process.log.end) == (0, size)
            await _check_kept(process)
        assert sum(process.record.output_dropped_bytes for process in processes) > 80 * 10**6


def _size(state_dir: Path) -> int:
    """What all files hold."""
    size = 0
    for file in _files(state_dir):
        try:
            size += file.stat().st_size
        except FileNotFoundError:
            continue
    return size


async def _waits(log: OutputLog) -> bool:
    """Whether the process has to wait."""
    with trio.move_on_after(0.05) as patience:
        await log.settle()
    return patience.cancelled_caught


async def test_a_blocked_process_waits_until_there_is_room(tmp_path: Path) -> None:
    limits = OutputLimits(memory_bytes=1000, log_bytes=64_000, policy="block")
    with OutputStore(limits, tmp_path) as store:
        log = OutputLog(store)
        for time_ms in range(100):
            log.append("stdout", bytes(1000), time_ms)
        assert await _waits(log)
        cursor = log.cursor()
        for position, is_over_the_bound in ((10_000, True), (25_000, True), (60_000, False)):
            while cursor.position < position:
                await cursor.read(1000)
            assert await _waits(log) == is_over_the_bound
        del cursor, log


async def test_what_waits_for_the_disk_is_not_what_the_disk_cannot_take(tmp_path: Path) -> None:
    limits = OutputLimits(memory_bytes=1000, unspilled_bytes=2000)
    with OutputStore(limits, tmp_path) as store:
        log = OutputLog(store)
        for time_ms in range(100):
            log.append("stdout", bytes(1000), time_ms)  # All in one turn.
        await log.settle()
        assert (log.kept_bytes, log.dropped_bytes) == (100_000, 0)
        assert len(await log.read_all("stdout")) == 100_000
        del log


async def test_who_begins_further_on_makes_nobody_else_lose_anything(tmp_path: Path) -> None:
    limits = OutputLimits(unspilled_bytes=4000, policy="block")
    log = OutputLog(OutputStore(limits))
    time = 0
    while log.is_settled:
        log.append("stdout", bytes(100), time)
        time += 1
    await log.cursor(log.end - 50, stop=log.end).read()
    assert await _waits(log)
    assert log.dropped_bytes == 0
    await log.cursor(stop=log.end).read()
    assert not await _waits(log)
    assert log.dropped_bytes > 0


async def test_a_line_that_is_open_is_still_there_for_who_comes_back() -> None:
    log = OutputLog(OutputStore(OutputLimits(unspilled_bytes=4000, policy="block")))
    text = b"".join(b"%049d\n" % number for number in range(1000))

    def write_until_full() -> None:
        # Never up to the end of a line: that is at a multiple of 50.
        log.append("stdout", text[log.end :][: 121 if log.end == 0 else 120], 0)
        while log.is_settled:
            log.append("stdout", text[log.end :][:120], 0)

    resume = BEGINNING
    lines: list[Line] = []
    for _ in range(5):
        write_until_full()
        assert await _waits(log)
        reader = LineReader(log, resume=resume, follow=False)
        while items := await reader.read(1000):
            lines += [item for item in items if isinstance(item, Line)]
            assert not any(isinstance(item, Gap) for item in items)
        # A line has been begun, and will come again.
        assert log.end % 50
        assert lines[-1].resume.stdout == log.end // 50 * 50
        resume = lines[-1].resume
        assert not await _waits(log)
    assert [int(line.text) for line in lines] == list(range(len(lines)))
    assert log.dropped_bytes > 0


async def test_a_line_that_is_longer_than_all_bounds_holds_up_nobody_for_ever() -> None:
    log = OutputLog(OutputStore(OutputLimits(unspilled_bytes=4000, policy="block")))
    reader = LineReader(log)
    async with trio.open_nursery() as nursery:
        lines: list[Line | Gap] = []

        async def read() -> None:
            lines.extend([item async for item in reader])

        nursery.start_soon(read)
        with trio.fail_after(PATIENCE_SECONDS):
            for _ in range(1000):
                log.append("stdout", b"x" * 1000, 0)
                await log.settle()
        log.close()
    (line,) = lines
    assert isinstance(line, Line)
    assert len(line.text) == 1_000_000


async def test_a_resume_from_before_what_is_kept_is_a_gap_of_unknown_lines(state_dir: Path) -> None:
    limits = OutputLimits(log_bytes=_MIB)
    async with open_supervisor(SupervisorConfig(state_dir=state_dir, output=limits)) as supervisor:
        process = await _ended(supervisor, _script(5 * 10**6))
        begin = 1234 * _LINE_BYTES
        items = [item async for item in process.lines(resume=Offsets(begin, 0))]
        gap = items[0]
        assert isinstance(gap, Gap)
        assert gap.missing_bytes == process.log.start_offsets.stdout - begin
        assert gap.missing_lines is None
        assert gap.resume.stdout == process.log.start_offsets.stdout
        rest = process.lines(resume=items[1].resume)
        assert [item async for item in rest] == items[2:]
