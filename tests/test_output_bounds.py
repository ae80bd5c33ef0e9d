"""The bounds of outputs: what goes, what waits, and for whom, by each policy."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import trio

from supervisor import (
    Gap,
    Line,
    Offsets,
    OutputLimits,
    OutputLog,
    OutputStore,
    SupervisorConfig,
    open_supervisor,
)
from supervisor.chunk import BEGINNING
from supervisor.lines import LineReader

from .conftest import PATIENCE_SECONDS
from .pipes import pipe_with
from .spilling import (
    LINE_BYTES,
    MIB,
    check_kept,
    ended_process,
    files_of,
    numbered_script,
    shell_spec,
)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


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


async def test_drop_newest_takes_nothing_from_a_flood_behind_what_it_has_dropped(
    tmp_path: Path,
) -> None:
    """The bound is reached within the turn after which the thread is to take what there is."""
    limits = OutputLimits(memory_bytes=1000, log_bytes=64_000, policy="drop_newest")
    with OutputStore(limits, tmp_path) as store:
        log = OutputLog(store)
        timestamps = itertools.count()
        while log.end < 57_000:
            log.append("stdout", bytes(500), next(timestamps))
            await log.settle()
        while not log.dropped_bytes:
            log.append("stdout", bytes(500), next(timestamps))
        assert not log.is_settled
        kept = log.kept_bytes
        with pipe_with(b"y" * 100) as pipe:
            await log.settle(lambda take: take("stdout", pipe, 100))
        assert log.spilled_bytes == log.kept_bytes == kept
        del log


# --- bounds ---------------------------------------------------------------------


async def test_many_floods_at_once_stay_within_the_bounds_of_all(state_dir: Path) -> None:
    limits = OutputLimits(
        total_bytes=8 * MIB, total_memory_bytes=4 * MIB, log_bytes=4 * MIB, unspilled_bytes=MIB
    )
    size = 5 * 10**6
    async with open_supervisor(SupervisorConfig(state_dir=state_dir, output=limits)) as supervisor:
        processes = [await supervisor.start(shell_spec(numbered_script(size))) for _ in range(20)]
        most = 0
        with trio.fail_after(PATIENCE_SECONDS):
            while any(process.status == "running" for process in processes):
                most = max(most, _size(state_dir))
                assert supervisor._store.memory_bytes < limits.total_memory_bytes + 20 * MIB // 4
                await trio.sleep(0.001)
        # What is being written at a time lies above the bound.
        assert most < limits.total_bytes + 4 * MIB
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert _size(state_dir) <= limits.total_bytes
        assert supervisor._store.disk_bytes == _size(state_dir)
        for process in processes:
            assert (process.record.exit_code, process.log.end) == (0, size)
            await check_kept(process)
        assert sum(process.record.output_dropped_bytes for process in processes) > 80 * 10**6


def _size(state_dir: Path) -> int:
    """What all files hold."""
    size = 0
    for file in files_of(state_dir):
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


async def _full_log() -> OutputLog:
    """One that holds up its process, with lines of 50 bytes in chunks of several."""
    log = OutputLog(OutputStore(OutputLimits(unspilled_bytes=4000, policy="block")))
    while log.is_settled:
        lines = range(log.end // 50, log.end // 50 + 10)
        log.append("stdout", b"".join([b"%049d\n" % number for number in lines]), log.end)
    assert await _waits(log)
    return log


async def test_of_an_iteration_that_ends_early_only_what_it_gave_has_been_read() -> None:
    log = await _full_log()
    assert log.readership is not None
    chunk = await anext(aiter(log.cursor()))
    assert log.readership.read_to == (chunk.end, 0)
    async for line in LineReader(log, resume=Offsets(chunk.end, 0)):
        assert isinstance(line, Line)
        assert log.readership.read_to == (line.resume.stdout, 0)
        if int(line.text) == 12:
            break
    # Whoever goes on behind that goes on with what counts.
    reader = LineReader(log, resume=line.resume)
    while log.readership.read_to[0] < log.end:
        await reader.read(1)
    assert not await _waits(log)


async def test_who_begins_in_the_midst_has_not_read_what_is_before() -> None:
    log = await _full_log()
    assert log.readership is not None
    for begin in (50, 125, log.end - 50):
        await LineReader(log, resume=Offsets(begin, 0), follow=False).read(10**6)
    assert log.readership.read_to == (0, 0)
    assert await _waits(log)
    assert log.dropped_bytes == 0


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
    limits = OutputLimits(log_bytes=MIB)
    async with open_supervisor(SupervisorConfig(state_dir=state_dir, output=limits)) as supervisor:
        process = await ended_process(supervisor, numbered_script(5 * 10**6))
        begin = 1234 * LINE_BYTES
        items = [item async for item in process.lines(resume=Offsets(begin, 0))]
        gap = items[0]
        assert isinstance(gap, Gap)
        assert gap.missing_bytes == process.log.start_offsets.stdout - begin
        assert gap.missing_lines is None
        assert gap.resume.stdout == process.log.start_offsets.stdout
        rest = process.lines(resume=items[1].resume)
        assert [item async for item in rest] == items[2:]
