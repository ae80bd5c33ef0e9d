"""Lines are the same wherever the bytes were cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from supervisor import Gap, Line, LineReader, OutputLog, Stream

from .test_output import _STREAMS


def _reader(*writes: tuple[Stream, bytes], limit_bytes: int = 10**9) -> LineReader:
    log = OutputLog(limit_bytes)
    for time, (stream, data) in enumerate(writes):
        log.append(stream, data, time)
    log.close()
    return LineReader(log.cursor())


def _lines(*writes: tuple[Stream, bytes]) -> list[Line | Gap]:
    reader = _reader(*writes)
    return [*reader.take(10**9), *reader.rest()]


def test_only_a_newline_ends_a_line() -> None:
    data = b"one\ntwo\r\n\nfour\rfour\x0cfour\xe2\x80\xa8four\r\r\nlast\r"
    assert [line.text for line in _lines(("stdout", data)) if isinstance(line, Line)] == [
        "one",
        "two",
        "",
        "four\rfour\x0cfour\u2028four\r",
        "last\r",
    ]


def test_a_character_cut_in_two_is_whole_and_a_broken_one_is_replaced() -> None:
    assert _lines(("stdout", b"\xc3"), ("stdout", b"\xa9\n\xff\xfe\n"), ("stdout", b"\xc3")) == [
        Line("é", 1, "stdout"),
        Line("\ufffd\ufffd", 1, "stdout"),
        Line("\ufffd", 2, "stdout"),
    ]


def test_lines_come_in_the_order_of_their_ends() -> None:
    assert _lines(
        ("stdout", b"begun "),
        ("stderr", b"whole\nopen"),
        ("stdout", b"later\nlast"),
        ("stderr", b"!"),
    ) == [
        Line("whole", 1, "stderr"),
        Line("begun later", 2, "stdout"),
        Line("last", 2, "stdout"),
        Line("open!", 3, "stderr"),
    ]


@given(
    st.lists(st.tuples(st.sampled_from(_STREAMS), st.text("ab\r\né", min_size=1)), min_size=1),
    st.data(),
)
def test_lines_do_not_depend_on_where_the_bytes_were_cut(
    writes: list[tuple[Stream, str]], data: st.DataObject
) -> None:
    pieces: list[tuple[Stream, bytes]] = []
    whole: dict[Stream, bytes] = {"stdout": b"", "stderr": b""}
    for stream, text in writes:
        raw = text.encode()
        whole[stream] += raw
        cut = data.draw(st.integers(0, len(raw)))
        pieces += [(stream, part) for part in (raw[:cut], raw[cut:]) if part]
    lines = _lines(*pieces)
    for stream in _STREAMS:
        expected = whole[stream].split(b"\n")
        ended, last = expected[:-1], expected[-1]
        texts = [raw.removesuffix(b"\r").decode("utf-8", "replace") for raw in ended]
        texts += [last.decode("utf-8", "replace")] if last else []
        assert [
            line.text for line in lines if isinstance(line, Line) and line.stream == stream
        ] == texts


def test_a_gap_ends_what_was_open_and_is_told() -> None:
    log = OutputLog(100)
    reader = LineReader(log.cursor())
    log.append("stdout", b"x\nopen", 0)
    assert reader.take(10**9) == [Line("x", 0, "stdout")]
    for time in range(1, 30):
        log.append("stdout", b"%09d\n" % time, time)
    open_line, gap, *rest = reader.take(10**9)
    assert open_line == Line("open", 0, "stdout")
    assert isinstance(gap, Gap)
    assert gap.missing_bytes == log.start - 6
    assert len(rest) * 10 == log.kept_bytes
    assert rest[-1] == Line("000000029", 29, "stdout")


async def test_iterating_gives_the_same_as_taking() -> None:
    writes: list[tuple[Stream, bytes]] = [("stdout", b"a\nb"), ("stderr", b"c"), ("stdout", b"d\n")]
    assert [item async for item in _reader(*writes)] == _lines(*writes)
