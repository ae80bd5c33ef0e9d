"""The log against a model, and cursors that neither lose, repeat nor disturb."""

from __future__ import annotations

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from supervisor import Chunk, OutputLog, Stream
from supervisor.output import STREAMS

_writes = st.lists(st.tuples(st.sampled_from(STREAMS), st.binary(min_size=1, max_size=40)))


def _log(writes: list[tuple[Stream, bytes]], limit_bytes: int = 10**9) -> OutputLog:
    log = OutputLog(limit_bytes)
    for time, (stream, data) in enumerate(writes):
        log.append(stream, data, time)
    return log


@given(_writes, st.integers(1, 100), st.sampled_from([None, *STREAMS]), st.integers(0, 500))
def test_a_cursor_reads_every_byte_from_its_position_once(
    writes: list[tuple[Stream, bytes]], batch: int, stream: Stream | None, position: int
) -> None:
    log = _log(writes)
    everything = [(s, byte) for s, data in writes for byte in data]
    position = min(position, len(everything))
    cursor = log.cursor(position, stream=stream)
    read: list[tuple[Stream, int]] = []
    while cursor.position < log.end:
        before = cursor.position
        for chunk in cursor.take(batch):
            assert chunk.data
            own = [byte for s, byte in everything[: chunk.position] if s == chunk.stream]
            assert (chunk.offset, chunk.newlines) == (len(own), own.count(10))
            assert everything[chunk.position : chunk.end] == [(chunk.stream, b) for b in chunk.data]
            read += [(chunk.stream, b) for b in chunk.data]
        assert cursor.position > before
    assert read == [e for e in everything[position:] if stream in (None, e[0])]


@given(_writes, st.integers(1, 200), st.lists(st.integers(0, 60), max_size=5))
def test_past_the_limit_the_oldest_go_and_readers_know(
    writes: list[tuple[Stream, bytes]], limit: int, reads: list[int]
) -> None:
    log = OutputLog(limit)
    cursor = log.cursor()
    everything = b""
    read: list[bytes] = []
    position = missed = 0
    for index, (stream, data) in enumerate(writes):
        log.append(stream, data, index)
        everything += data
        # The newest chunk always stays, so it alone may be over the limit.
        assert log.kept_bytes <= max(limit, len(data))
        assert log.start + log.kept_bytes == log.end == len(everything)
        assert b"".join(c.data for c in log.cursor().take(10**9)) == everything[log.start :]
        if index in reads:
            taken = cursor.take(10**9)
            if taken:
                missed += taken[0].position - position
                position = taken[-1].end
            read += [chunk.data for chunk in taken]
            for chunk in taken:
                assert everything[chunk.position : chunk.end] == chunk.data
    for chunk in cursor.take(10**9):
        missed += chunk.position - position
        position = chunk.end
        read.append(chunk.data)
    assert len(b"".join(read)) + missed == len(everything)
    assert log.dropped_bytes == log.start


@given(_writes, st.sampled_from(STREAMS), st.integers(0, 300))
def test_a_position_leaves_nothing_of_a_stream_out(
    writes: list[tuple[Stream, bytes]], stream: Stream, offset: int
) -> None:
    log = _log(writes)
    offset = min(offset, log.end_offsets.of(stream))
    position = log.position_of(stream, offset)
    read = b"".join(c.data for c in log.cursor(position, stream=stream).take(10**9))
    own = b"".join(data for s, data in writes if s == stream)
    assert read.endswith(own[offset:])


async def test_a_waiting_reader_wakes_for_output_and_for_the_end() -> None:
    log = OutputLog(10**9)
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
    log = _log([("stdout", b"a"), ("stderr", b"b"), ("stderr", b"c")])
    log.close()
    assert [chunk.data async for chunk in log.cursor(stream="stdout")] == [b"a"]
    assert [chunk.data async for chunk in log.cursor(stream="stderr")] == [b"b", b"c"]


async def test_a_cancelled_reader_loses_nothing() -> None:
    log = _log([("stdout", b"first")])
    cursor = log.cursor()
    assert (await anext(cursor)).data == b"first"
    with trio.move_on_after(0):
        await anext(cursor)
    log.append("stdout", b"second", 1)
    with trio.move_on_after(0):
        await anext(cursor)
    assert (await anext(cursor)).data == b"second"


async def test_a_slow_reader_only_lags() -> None:
    log = OutputLog(10**9)
    slow, fast = log.cursor(), log.cursor()
    for number in range(1000):
        log.append("stdout", b"%d\n" % number, number)
        assert (await anext(fast)).data == b"%d\n" % number
    assert (await anext(slow)).data == b"0\n"
    assert b"".join(c.data for c in slow.take(10**9)).split() == [b"%d" % n for n in range(1, 1000)]
