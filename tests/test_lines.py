"""Lines are the same wherever the bytes were cut."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from supervisor import Gap, Line, LineReader, Offsets, OutputLimits, OutputLog, OutputStore, Stream
from supervisor.chunk import BEGINNING, STREAMS


def _reader(*writes: tuple[Stream, bytes]) -> LineReader:
    log = OutputLog(OutputStore())
    for time, (stream, data) in enumerate(writes):
        log.append(stream, data, time)
    log.close()
    return LineReader(log)


async def _lines(*writes: tuple[Stream, bytes]) -> list[Line | Gap]:
    return await _rest_of(_reader(*writes))


async def _rest_of(reader: LineReader) -> list[Line | Gap]:
    items: list[Line | Gap] = []
    while batch := await reader.read(1000):
        items += batch
    return [*items, *reader.rest()]


async def test_only_a_newline_ends_a_line() -> None:
    data = b"one\ntwo\r\n\nfour\rfour\x0cfour\xe2\x80\xa8four\r\r\nlast\r"
    assert [line.text for line in await _lines(("stdout", data)) if isinstance(line, Line)] == [
        "one",
        "two",
        "",
        "four\rfour\x0cfour\u2028four\r",
        "last\r",
    ]


async def test_a_character_cut_in_two_is_whole_and_a_broken_one_is_replaced() -> None:
    assert await _lines(
        ("stdout", b"\xc3"), ("stdout", b"\xa9\n\xff\xfe\n"), ("stdout", b"\xc3")
    ) == [
        Line("é", 1, "stdout", Offsets(3, 0)),
        Line("\ufffd\ufffd", 1, "stdout", Offsets(6, 0)),
        Line("\ufffd", 2, "stdout", Offsets(7, 0)),
    ]


async def test_lines_come_in_the_order_of_their_ends() -> None:
    assert await _lines(
        ("stdout", b"begun "),
        ("stderr", b"whole\nopen"),
        ("stdout", b"later\nlast"),
        ("stderr", b"!"),
    ) == [
        Line("whole", 1, "stderr", Offsets(0, 6)),
        Line("begun later", 2, "stdout", Offsets(12, 6)),
        Line("last", 2, "stdout", Offsets(16, 6)),
        Line("open!", 3, "stderr", Offsets(16, 11)),
    ]


@given(
    st.lists(st.tuples(st.sampled_from(STREAMS), st.text("ab\r\né", min_size=1)), min_size=1),
    st.data(),
)
async def test_lines_do_not_depend_on_where_the_bytes_were_cut(
    writes: list[tuple[Stream, str]], data: st.DataObject
) -> None:
    pieces: list[tuple[Stream, bytes]] = []
    whole: dict[Stream, bytes] = {"stdout": b"", "stderr": b""}
    for stream, text in writes:
        raw = text.encode()
        whole[stream] += raw
        cut = data.draw(st.integers(0, len(raw)))
        pieces += [(stream, part) for part in (raw[:cut], raw[cut:]) if part]
    lines = await _lines(*pieces)
    for stream in STREAMS:
        expected = whole[stream].split(b"\n")
        ended, last = expected[:-1], expected[-1]
        texts = [raw.removesuffix(b"\r").decode("utf-8", "replace") for raw in ended]
        texts += [last.decode("utf-8", "replace")] if last else []
        assert [
            line.text for line in lines if isinstance(line, Line) and line.stream == stream
        ] == texts


async def test_a_gap_ends_what_was_open_and_is_told() -> None:
    log = OutputLog(OutputStore(OutputLimits(unspilled_bytes=1000)))
    reader = LineReader(log)
    log.append("stdout", b"x\nopen", 0)
    assert await reader.read(10**9) == [Line("x", 0, "stdout", Offsets(2, 0))]
    for time in range(1, 30):
        log.append("stdout", b"%09d\n" % time, time)
    open_line, gap, *rest = await reader.read(10**9)
    assert open_line == Line("open", 0, "stdout", Offsets(6, 0))
    missing = log.start - 6
    assert gap == Gap("stdout", missing, missing // 10, Offsets(log.start, 0))
    assert len(rest) * 10 == log.kept_bytes
    last = rest[-1]
    assert isinstance(last, Line)
    assert (last.text, last.resume) == ("000000029", log.end_offsets)


_texts = st.lists(st.tuples(st.sampled_from(STREAMS), st.text("ab\né", min_size=1)), min_size=1)


@given(_texts, st.data())
async def test_whoever_resumes_gets_each_line_once(
    writes: list[tuple[Stream, str]], data: st.DataObject
) -> None:
    log = OutputLog(OutputStore())
    for time, (stream, text) in enumerate(writes):
        log.append(stream, text.encode(), time)
    log.close()
    everything = await _rest_of(LineReader(log))
    read: list[Line | Gap] = []
    resume = BEGINNING
    # Reconnecting after any number of lines, until all are there.
    while len(read) < len(everything):
        lines = await _rest_of(LineReader(log, resume=resume))
        count = data.draw(st.integers(1, len(lines)))
        read += lines[:count]
        resume = lines[count - 1].resume
    assert read == everything
    assert resume == log.end_offsets


@given(_texts, st.integers(0, 12), st.sampled_from([None, *STREAMS]))
@example([("stdout", "a"), ("stderr", "b")], 1, None)
async def test_a_tail_is_the_last_lines(
    writes: list[tuple[Stream, str]], count: int, stream: Stream | None
) -> None:
    log = OutputLog(OutputStore())
    for time, (name, text) in enumerate(writes):
        log.append(name, text.encode(), time)
    log.close()
    everything = await _rest_of(LineReader(log, stream=stream))
    resume = await log.offsets_of_tail(count, stream)
    tail = await _rest_of(LineReader(log, stream=stream, resume=resume))
    wanted = everything[max(0, len(everything) - count) :]
    assert _texts_of(tail) == _texts_of(wanted)


def _texts_of(items: list[Line | Gap]) -> list[str]:
    return [item.text for item in items if isinstance(item, Line)]


@given(st.text("aé€😀", min_size=1, max_size=200), st.integers(4, 50), st.data())
async def test_a_long_line_comes_in_parts_cut_between_characters(
    text: str, size: int, data: st.DataObject
) -> None:
    raw = text.encode()
    log = OutputLog(OutputStore())
    left = raw
    while left:
        cut = data.draw(st.integers(1, len(left)))
        log.append("stdout", left[:cut], 0)
        left = left[cut:]
    log.append("stdout", b"\nnext\n", 1)
    log.close()
    reader = LineReader(log, max_line_bytes=size)
    *parts, last, following = await _rest_of(reader)
    assert isinstance(last, Line)
    assert last.is_whole
    assert isinstance(following, Line)
    assert following.text == "next"
    joined = last.text
    for part in reversed(parts):
        assert isinstance(part, Line)
        assert not part.is_whole
        assert len(part.text.encode()) <= size
        joined = part.text + joined
    assert joined == text
    # And from any part on.
    for part in parts:
        rest = (await LineReader(log, resume=part.resume).read(10**9))[0]
        assert isinstance(rest, Line)
        assert raw.decode().endswith(rest.text)


async def test_iterating_gives_the_same_as_taking() -> None:
    writes: list[tuple[Stream, bytes]] = [("stdout", b"a\nb"), ("stderr", b"c"), ("stdout", b"d\n")]
    assert [item async for item in _reader(*writes)] == await _lines(*writes)
