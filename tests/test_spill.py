"""Outputs on disk: the files, who removes them, and readers meanwhile."""

from __future__ import annotations

import hashlib
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from supervisor import (
    Line,
    OutputLimits,
    OutputLog,
    OutputStore,
    Retention,
    StateDirUnusable,
    Supervisor,
    SupervisorConfig,
    open_supervisor,
    spill_file,
)
from supervisor.chunk import STREAMS
from supervisor.spill_file import Take

from .conftest import PATIENCE_SECONDS, Daemon
from .pipes import pipe_with
from .spilling import (
    LINE_BYTES,
    MIB,
    SMALL_BYTES,
    all_written,
    check_kept,
    check_lines,
    ended_over_http,
    ended_process,
    files_gone,
    files_of,
    is_spilled,
    numbered,
    numbered_script,
    raw_stdout,
    shell_spec,
)
from .test_server import command, serving
from .wire import connect


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def config(state_dir: Path) -> SupervisorConfig:
    return SupervisorConfig(state_dir=state_dir, grace_seconds=0.2)


# --- files ----------------------------------------------------------------------


async def test_a_small_output_needs_no_file(supervisor: Supervisor, state_dir: Path) -> None:
    process = await ended_process(supervisor, numbered_script(SMALL_BYTES))
    assert files_of(state_dir) == []
    assert process.record.output_spilled_bytes == 0
    assert process.record.output_kept_bytes == SMALL_BYTES


async def test_a_large_output_is_in_files_for_nobody_else(
    supervisor: Supervisor, state_dir: Path
) -> None:
    process = await ended_process(supervisor, numbered_script(10 * 10**6))
    await all_written(process, 10 * 10**6)
    files = files_of(state_dir)
    assert len(files) > 1
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert (state_dir.stat().st_mode & 0o777) == 0o700
    assert is_spilled(process, 10 * 10**6)
    assert process.record.output_spill_error is None
    await check_kept(process)


async def test_output_is_spilled_also_if_nothing_comes_after_it(supervisor: Supervisor) -> None:
    process = await supervisor.start(shell_spec(f"{numbered_script(2 * SMALL_BYTES)}; sleep 1000"))
    with trio.fail_after(PATIENCE_SECONDS):
        while not is_spilled(process, 2 * SMALL_BYTES):
            await trio.lowlevel.checkpoint()
    assert process.status == "running"


async def test_files_go_when_a_process_is_forgotten(state_dir: Path) -> None:
    config = SupervisorConfig(state_dir=state_dir, retention=Retention(count=1))
    async with open_supervisor(config) as supervisor:
        await ended_process(supervisor, numbered_script(10**6))
        assert files_of(state_dir)
        await ended_process(supervisor, "true")
        await files_gone(state_dir)


async def test_a_reader_reads_a_forgotten_process_to_its_end(state_dir: Path) -> None:
    config = SupervisorConfig(state_dir=state_dir, retention=Retention(count=0))
    size = 10 * 10**6
    async with open_supervisor(config) as supervisor:
        cursor = (await supervisor.start(shell_spec(numbered_script(size)))).output()
        read = bytearray()
        with trio.fail_after(PATIENCE_SECONDS):
            while chunks := await cursor.read(10_000):
                if not supervisor.processes():
                    assert files_of(state_dir)
                read += b"".join([chunk.data for chunk in chunks])
        assert read == numbered(0, size)
        del cursor
        await files_gone(state_dir)


async def test_files_go_with_the_supervisor_unless_somebody_holds_a_process(
    state_dir: Path,
) -> None:
    async with open_supervisor(SupervisorConfig(state_dir=state_dir)) as supervisor:
        process = await ended_process(supervisor, numbered_script(10**6))
        await ended_process(supervisor, numbered_script(10**6))
    del supervisor
    assert files_of(state_dir)
    await check_kept(process)
    del process
    await files_gone(state_dir)


async def test_what_a_killed_daemon_has_left_is_there_until_it_is_forgotten(
    state_dir: Path,
) -> None:
    options = ("--state-dir", str(state_dir), "--retain-count", "1")
    async with serving(*options) as (daemon, url):
        record = await ended_over_http(url, numbered_script(10**6))
        left = files_of(state_dir)
        assert left
        daemon.process.kill()
        await daemon.exited()
    assert files_of(state_dir) == left
    async with serving(*options) as (daemon, url):
        async with await connect(url) as connection:
            assert await raw_stdout(connection, record["pid"]) == numbered(0, 10**6)
        await ended_over_http(url, numbered_script(10**6, 10**6))
        assert set(left).isdisjoint(kept := files_of(state_dir))
        daemon.process.send_signal(signal.SIGTERM)
        assert await daemon.exited() == 0
        assert daemon.complaints == []
    assert files_of(state_dir) == kept


async def test_what_a_killed_daemon_has_left_goes_with_one_that_does_not_survive(
    config: SupervisorConfig, state_dir: Path
) -> None:
    async with serving("--state-dir", str(state_dir)) as (daemon, url):
        await ended_over_http(url, numbered_script(10**6))
        daemon.process.kill()
        await daemon.exited()
    assert files_of(state_dir)
    async with open_supervisor(config):
        assert files_of(state_dir) == []


async def test_no_two_supervisors_share_a_state_directory(
    config: SupervisorConfig, state_dir: Path
) -> None:
    async with open_supervisor(config) as first:
        with pytest.raises(StateDirUnusable, match="another supervisor uses it"):
            async with open_supervisor(config):
                pass
        process = await ended_process(first, numbered_script(10**6))
        async with command("--bind", "127.0.0.1:0", "--state-dir", str(state_dir)) as daemon:
            assert await daemon.exited() == 1
        (entry,) = daemon.log
        assert entry["level"] == "error"
        assert str(state_dir) in entry["message"]
        assert "another supervisor uses it" in entry["message"]
        # And it has touched nothing.
        await check_kept(process)
        assert process.record.output_dropped_bytes == 0
    async with open_supervisor(config) as second:
        assert is_spilled(await ended_process(second, numbered_script(10**6)), 10**6)


async def test_a_process_of_a_supervisor_before_does_not_touch_the_files_of_the_next(
    config: SupervisorConfig,
) -> None:
    async with open_supervisor(config) as supervisor:
        old = await ended_process(supervisor, numbered_script(10**6))
        assert is_spilled(old, 10**6)
    async with open_supervisor(config) as supervisor:
        new = await ended_process(supervisor, numbered_script(10**6, 10**6))
        # The new one was given an empty directory, so little is left of the old output.
        await check_lines(old)
        del old
        assert await new.log.read_all("stdout") == numbered(10**6, 2 * 10**6)


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


# --- readers --------------------------------------------------------------------


async def test_readers_anywhere_get_the_exact_bytes_while_they_are_written(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    size = 16 * MIB
    contents = {
        "stdout": random.Random(1).randbytes(size),
        "stderr": random.Random(2).randbytes(size),
    }
    for stream, data in contents.items():
        (tmp_path / stream).write_bytes(data)
    script = f"cat {tmp_path}/stdout & cat {tmp_path}/stderr >&2; wait"
    process = await supervisor.start(shell_spec(script))
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
        while chunks := await cursor.read(chance.choice([1, 10_000, MIB])):
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
    data = random.Random(4).randbytes(4 * MIB)
    (tmp_path / "bytes").write_bytes(data)
    process = await supervisor.start(shell_spec(f"cat {tmp_path}/bytes | tee /dev/stderr"))
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
        process = await ended_process(supervisor, numbered_script(size))
        assert process.log.closed
        assert await process.log.read_all("stdout") == numbered(0, size)
        with trio.fail_after(3):
            assert await check_lines(process) == (0, 0)


async def test_a_descendant_with_the_pipe_holds_up_no_end(supervisor: Supervisor) -> None:
    size = 3 * 10**6
    process = await supervisor.start(shell_spec(f"sleep 1000 & {numbered_script(size)}"))
    with trio.fail_after(10):
        read = b"".join([chunk.data async for chunk in process.output()])
        await process.wait()
    assert read == numbered(0, size)
    assert process.record.members_killed == 1


async def test_iterating_lines_reads_the_disk_in_large_pieces(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 5 * 10**6
    process = await ended_process(supervisor, numbered_script(size))
    read = spill_file.read
    reads: list[int] = []

    def counting(path: Path, begin: int, wanted: int) -> Any:
        reads.append(wanted)
        return read(path, begin, wanted)

    monkeypatch.setattr(spill_file, "read", counting)
    lines = [item.text async for item in process.lines() if isinstance(item, Line)]
    assert len(lines) == size // LINE_BYTES
    assert size / len(reads) > 32 * 1024


# --- files that somebody removes -------------------------------------------------


async def test_removed_files_of_a_running_process_are_a_gap(
    daemon: Daemon, state_dir: Path
) -> None:
    size = 6 * 10**6
    script = f"{numbered_script(size)}; read go; {numbered_script(size, size)}"
    process = await daemon.supervisor.start(shell_spec(script, stdin=True))
    await all_written(process, size)
    for file in files_of(state_dir):
        file.unlink()
    with trio.fail_after(PATIENCE_SECONDS):
        answer = await daemon.client.get(f"/processes/{process.pid}/stdout")
        assert answer.status_code == 200
        kept = "".join(f"{line}\n" for line in answer.json()["lines"]).encode()
        assert kept == numbered(answer.json()["missing_bytes"], size)
        await process.write_stdin(b"\n")
        await process.wait()
        answer = await daemon.client.get(f"/processes/{process.pid}/stdout/follow")
    assert answer.status_code == 200
    assert answer.text.endswith("event: eof\ndata: {}\n\n")
    await check_kept(process)
    assert process.record.exit_code == 0
    assert 0 < process.record.output_dropped_bytes <= size


async def test_files_removed_while_they_are_written_cost_no_process_its_life(
    supervisor: Supervisor, state_dir: Path
) -> None:
    size = 100 * 10**6
    process = await supervisor.start(shell_spec(numbered_script(size)))
    log = process.log

    async def read() -> None:
        chance = random.Random(7)
        while not log.closed:
            cursor = log.cursor(chance.randrange(log.end + 1))
            with trio.move_on_after(0.01):
                for _ in range(3):
                    for chunk in await cursor.read(MIB):
                        assert chunk.data == numbered(chunk.position, chunk.end)

    async def remove() -> None:
        while not log.closed:
            for file in files_of(state_dir):
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
    await check_kept(process)
    assert supervisor._store.disk_bytes >= process.record.output_spilled_bytes
    assert supervisor._store.disk_bytes < process.record.output_spilled_bytes + MIB


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
    write_all = spill_file._write_all

    async def read() -> None:
        for file in files_of(state_dir):
            file.unlink()
        await log.cursor(stop=2000).read(100)

    def writing(descriptor: int, buffers: list[bytes], at: int) -> int:
        trio.from_thread.run(read)
        return write_all(descriptor, buffers, at)

    with monkeypatch.context() as patch:
        patch.setattr(spill_file, "_write_all", writing)
        log.append("stdout", bytes(2000), 1)
        await log.settle()
    assert len(await log.read_all("stdout")) == log.kept_bytes
    assert log.kept_bytes + log.dropped_bytes == 4000
    log.append("stdout", bytes(2000), 2)
    await log.settle()
    assert len(await log.read_all("stdout")) == log.kept_bytes >= 2000
