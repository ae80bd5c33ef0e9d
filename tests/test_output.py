"""The log against a model: any writes, bounds, spills and failures, and readers at any position."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from trio.testing import wait_all_tasks_blocked

from supervisor import (
    Chunk,
    OutputLimits,
    OutputLog,
    OutputPolicy,
    OutputStore,
    Stream,
    output,
    spill_file,
)
from supervisor.chunk import STREAMS
from supervisor.cursor import Cursor
from supervisor.spill_file import Take

from .pipes import pipe_with

LIMITS = OutputLimits(
    memory_bytes=3000, unspilled_bytes=7000, log_bytes=30_000, total_memory_bytes=12_000
)


def log_of(writes: list[tuple[Stream, bytes]], limits: OutputLimits = OutputLimits()) -> OutputLog:
    """A log of these writes, a millisecond apart."""
    log = OutputLog(OutputStore(limits))
    for time, (stream, data) in enumerate(writes):
        log.append(stream, data, time)
    return log


class Reader:
    """A cursor that checks whatever it reads, and counts what it misses."""

    def __init__(self, model: LogModel, cursor: Cursor, stream: Stream | None) -> None:
        self.model = model
        self.cursor = cursor
        self.stream = stream
        self.read_bytes = 0

    async def read(self, max_bytes: int) -> bool:
        """Whether there was anything."""
        before = self.cursor.position
        chunks = await self.cursor.read(max_bytes)
        for chunk in chunks:
            assert self.stream in (None, chunk.stream)
            assert before <= chunk.position
            self.model.check(chunk)
            self.read_bytes += len(chunk.data)
            before = chunk.end
        assert before <= self.cursor.position
        return bool(chunks)


class LogModel(RuleBasedStateMachine):
    """The log beside everything that was ever written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.everything: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        # Of every byte that was ever written, its stream.
        self.order = bytearray()
        self.readers: list[Reader] = []
        self.time = 0

    @initialize(policy=st.sampled_from(["drop_oldest", "drop_newest"]), has_directory=st.booleans())
    def open(self, policy: OutputPolicy, has_directory: bool) -> None:
        state_dir = Path(self.directory.name) if has_directory else None
        self.store = OutputStore(LIMITS, state_dir)
        self.store.__enter__()
        self.log = OutputLog(self.store, "log", policy)
        self.policy = policy

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.log.close()
            trio.run(self.read_everything)
            self.readers.clear()
            del self.log
            self.store.__exit__()
            # Nothing is left of a log that nobody has any more.
            assert (self.store.memory_bytes, self.store.disk_bytes) == (0, 0)
            assert list(Path(self.directory.name).glob("output/*")) == []
        self.directory.cleanup()

    def note(self, stream: Stream, data: bytes) -> None:
        self.everything[stream] += data
        self.order += bytes([STREAMS.index(stream)]) * len(data)

    def check(self, chunk: Chunk) -> None:
        own = self.everything[chunk.stream]
        number = STREAMS.index(chunk.stream)
        assert chunk.data
        assert own[chunk.offset : chunk.offset + len(chunk.data)] == chunk.data
        assert chunk.offset == self.order.count(number, 0, chunk.position)
        assert chunk.newlines == own.count(b"\n", 0, chunk.offset)

    async def read_everything(self) -> None:
        for stream in (None, *STREAMS):
            reader = Reader(self, self.log.cursor(stream=stream, stop=self.log.end), stream)
            while await reader.read(700):
                pass
            if stream is None:
                assert reader.read_bytes == self.log.kept_bytes

    @rule(
        stream=st.sampled_from(STREAMS),
        size=st.integers(1, 900),
        newlines=st.integers(0, 3),
        passes=st.booleans(),
    )
    def write(self, stream: Stream, size: int, newlines: int, passes: bool) -> None:
        data = self.content(size, newlines)
        self.time += passes
        self.log.append(stream, data, self.time)
        self.note(stream, data)

    def content(self, size: int, newlines: int) -> bytes:
        data = bytearray((len(self.order) + i) % 251 | 16 for i in range(size))
        for i in range(newlines):
            data[i * size // 3] = 10
        return bytes(data)

    @rule(
        sizes=st.lists(st.integers(1, 700), max_size=4),
        works=st.sampled_from([0, 0, 0, errno.EIO, errno.ENOSPC]),
        after=st.integers(0, 2),
        outlives=st.booleans(),
    )
    def settle(self, sizes: list[int], works: int, after: int, outlives: bool) -> None:
        """Spill, and what comes meanwhile too; with the disk failing after some writes."""
        left = [("stdout" if size % 2 else "stderr", size) for size in sizes]
        self.store.disk.outlives = outlives

        def source(take: Take) -> int:
            if not left:
                return 0
            name, size = left.pop()
            stream: Stream = "stdout" if name == "stdout" else "stderr"
            data = self.content(size, 1)
            self.note(stream, data)
            with pipe_with(data) as pipe:
                return take(stream, pipe, 65536)

        writes = 0
        write_all = spill_file._write_all

        def failing(descriptor: int, buffers: list[bytes], at: int) -> int:
            nonlocal writes
            writes += 1
            if works and writes > after:
                write_all(descriptor, buffers[: len(buffers) // 2], at)  # A part of it is there.
                raise OSError(works, "injected")
            return write_all(descriptor, buffers, at)

        with (
            mock.patch.object(spill_file, "_write_all", failing),
            mock.patch.object(output, "_RETRY_BYTES", 1500),
        ):
            trio.run(self.log.settle, source)

    @rule()
    def relieve_memory(self) -> None:
        """Another log needs the memory."""
        if self.policy == "drop_oldest" and self.log.memory_to_drop:
            self.log.drop_memory()

    @rule()
    def relieve_disk(self) -> None:
        """Another log needs the disk."""
        if self.policy == "drop_oldest" and self.log.disk_to_drop:
            self.log.drop_disk()

    @rule(
        place=st.floats(0, 1),
        stream=st.sampled_from([None, *STREAMS]),
        is_live=st.booleans(),
    )
    def begin_to_read(self, place: float, stream: Stream | None, is_live: bool) -> None:
        position = int(place * self.log.end)
        cursor = self.log.cursor(position, stream=stream, stop=None if is_live else self.log.end)
        self.readers.append(Reader(self, cursor, stream))

    @rule(number=st.integers(0, 5), max_bytes=st.integers(1, 2000))
    def read(self, number: int, max_bytes: int) -> None:
        if number < len(self.readers):
            reader = self.readers[number]

            async def read() -> None:
                with trio.move_on_after(0.001):  # A live one may have to wait.
                    await reader.read(max_bytes)

            trio.run(read)

    @rule(stream=st.sampled_from(STREAMS), place=st.floats(0, 1))
    def look_up_an_offset(self, stream: Stream, place: float) -> None:
        """From its position on, nothing of the stream is left out that is kept."""
        offset = int(place * len(self.everything[stream]))
        position = self.log.position_of(stream, offset)
        assert self.order.count(STREAMS.index(stream), 0, position) <= max(
            offset, self.log.start_offsets.of(stream)
        )

    @invariant()
    def everything_adds_up(self) -> None:
        if not hasattr(self, "log"):
            return
        log = self.log
        assert log.end == len(self.order)
        for stream in STREAMS:
            assert log.end_offsets.of(stream) == len(self.everything[stream])
            assert log.newlines(stream) == self.everything[stream].count(b"\n")
        assert log.kept_bytes + log.dropped_bytes == log.end
        assert log.kept_bytes >= 0
        assert log.start <= log.end
        # The newest write and a pouring may lie above the bounds.
        assert self.store.disk_bytes <= LIMITS.log_bytes + 8000
        assert self.store.memory_bytes <= LIMITS.unspilled_bytes + LIMITS.memory_bytes + 4000
        trio.run(self.read_everything)


TestLogModel = LogModel.TestCase
TestLogModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


async def test_a_waiting_reader_wakes_for_output_and_for_the_end() -> None:
    log = log_of([])
    read: list[Chunk] = []

    async def follow() -> None:
        async for chunk in log.cursor():
            read.append(chunk)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await wait_all_tasks_blocked()
        assert read == []
        log.append("stdout", b"a", 5)
        await wait_all_tasks_blocked()
        assert read == [Chunk(0, 5, "stdout", b"a", 0, 0)]
        log.append("stderr", b"bc", 6)
        log.close()
    assert read == [
        Chunk(0, 5, "stdout", b"a", 0, 0),
        Chunk(1, 6, "stderr", b"bc", 0, 0),
    ]


async def test_a_reader_of_one_stream_ends_although_the_other_has_more() -> None:
    log = log_of([("stdout", b"a"), ("stderr", b"b"), ("stderr", b"c")])
    log.close()
    assert [chunk.data async for chunk in log.cursor(stream="stdout")] == [b"a"]
    assert [chunk.data async for chunk in log.cursor(stream="stderr")] == [b"b", b"c"]


async def test_a_cancelled_reader_loses_nothing() -> None:
    log = log_of([("stdout", b"first")])
    cursor = log.cursor()
    assert (await anext(cursor)).data == b"first"
    with trio.move_on_after(0):
        await anext(cursor)
    log.append("stdout", b"second", 1)
    with trio.move_on_after(0):
        await anext(cursor)
    assert (await anext(cursor)).data == b"second"


async def test_a_slow_reader_only_lags() -> None:
    log = log_of([])
    slow, fast = log.cursor(), log.cursor()
    for number in range(1000):
        log.append("stdout", b"%d\n" % number, number)
        assert (await anext(fast)).data == b"%d\n" % number
    assert (await anext(slow)).data == b"0\n"
    rest = b"".join([chunk.data for chunk in await slow.read(10**9)])
    assert slow.position == fast.position
    assert b"".join([b"%d\n" % number for number in range(1, 1000)]).endswith(rest)


async def test_writes_of_the_same_millisecond_take_little_memory() -> None:
    log = log_of([])
    for _ in range(100_000):
        log.append("stdout", b"x", 7)
    assert log.kept_bytes == 100_000
    assert log._store.memory_bytes < 110_000
    chunks = await log.cursor().read(10**9)
    assert {(chunk.stream, chunk.timestamp_ms) for chunk in chunks} == {("stdout", 7)}


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    return OutputStore(LIMITS, tmp_path)


async def _blocked(log: OutputLog) -> bool:
    """Whether the process would have to wait."""
    with trio.move_on_after(0.01) as patience:
        await log.settle()
    return patience.cancelled_caught


@pytest.mark.parametrize("spills", [False, True])
async def test_block_waits_for_a_reader_and_loses_nothing(tmp_path: Path, spills: bool) -> None:
    with OutputStore(LIMITS, tmp_path if spills else None) as store:
        log = OutputLog(store, "log", "block")
        written = 0
        while not await _blocked(log):
            log.append("stdout", b"%099d\n" % written, written)
            written += 1
        bound = LIMITS.log_bytes if spills else LIMITS.unspilled_bytes
        assert bound // 4 < log.end <= bound + 1000
        assert log.dropped_bytes == 0
        read = bytearray()

        async def write_on() -> None:
            for number in range(written, written + 1000):
                log.append("stdout", b"%099d\n" % number, number)
                await log.settle()
            log.close()

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_on)
                async for chunk in log.cursor():
                    read += chunk.data
        assert read == b"".join(b"%099d\n" % number for number in range(written + 1000))
        assert log.dropped_bytes > 0  # But only what had been read.


async def test_block_lets_go_only_what_was_read_of_both_streams() -> None:
    log = log_of([], OutputLimits(unspilled_bytes=3000, policy="block"))
    while not await _blocked(log):
        log.append("stderr", bytes(10), 0)
        log.append("stdout", bytes(300), 0)
    await log.cursor(stream="stdout", stop=log.end).read(10**9)
    assert await _blocked(log)
    await log.cursor(stream="stderr", stop=log.end).read(10**9)
    assert not await _blocked(log)


async def test_drop_newest_keeps_the_beginning_and_tells_of_the_end(tmp_path: Path) -> None:
    with OutputStore(LIMITS, tmp_path) as store:
        log = OutputLog(store, "log", "drop_newest")
        for number in range(1000):
            log.append("stdout", b"%099d\n" % number, number)
            await log.settle()
        kept = await log.read_all("stdout")
        assert LIMITS.log_bytes // 2 < len(kept) <= LIMITS.log_bytes
        assert kept == b"".join(b"%099d\n" % number for number in range(len(kept) // 100))
        assert log.dropped_bytes == 100_000 - len(kept)
        del log


async def test_all_logs_together_have_bounds_and_the_biggest_pays(tmp_path: Path) -> None:
    limits = OutputLimits(memory_bytes=1000, log_bytes=10**6, total_bytes=1_200_000)
    with OutputStore(limits, tmp_path) as store:
        small, big = OutputLog(store, "small"), OutputLog(store, "big")
        small.append("stdout", bytes(200_000), 0)
        await small.settle()
        for log, count in ((big, 900), (small, 400)):
            for number in range(count):
                log.append("stdout", bytes(1000), number)
                await log.settle()
                assert store.disk_bytes <= limits.total_bytes
        assert small.dropped_bytes == 0
        assert big.dropped_bytes > 0
        assert big.spill_error is None
        del log, small, big


def test_memory_of_all_logs_has_a_bound() -> None:
    limits = OutputLimits(memory_bytes=1000, total_memory_bytes=1_000_000)
    with OutputStore(limits) as store:
        logs = [OutputLog(store, str(number)) for number in range(50)]
        for _ in range(100):
            for log in logs:
                log.append("stdout", bytes(1000), 0)
                assert store.memory_bytes <= limits.total_memory_bytes + 2000
        assert all(log.kept_bytes > 0 for log in logs)
        del logs, log
        assert store.memory_bytes == 0
