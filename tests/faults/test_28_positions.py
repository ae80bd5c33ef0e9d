"""Case 28, too: places to begin at, ranges and handles, by hypothesis, in every view of an output.

Whatever they say, the answer is a part of the output that is right, or an error
with a code; and it comes at once, since the process has ended.
"""

from __future__ import annotations

import http.client
import json
import re
from typing import Any
from urllib.parse import quote

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from ..heavy import amount
from ..test_server import serving
from ..wire import parse_events
from .callers import start
from .test_28_json import check_answer

# Lines of both streams, of several lengths, the last one of each without an end.
SCRIPT = (
    "for n in 1 2 3 4 5 6 7 8 9; do echo $n; echo e$n >&2; done; printf %s-%s a b; printf x >&2"
)
STDOUT = b"".join(b"%d\n" % n for n in range(1, 10)) + b"a-b"
STDERR = b"".join(b"e%d\n" % n for n in range(1, 10)) + b"x"
TOTAL = len(STDOUT) + len(STDERR)

_numbers = st.integers(0, TOTAL + 3).map(str) | st.sampled_from(
    ["", "-1", "+1", "1.0", "1e3", "0x1", "00", " 1", "1_0", "\u0661", "\xb2", "1" * 18, "1" * 19]
)
_odd = st.text(max_size=6) | st.sampled_from(["1" * 9000, "\0", "\xff", "%", "&", "true", "x-y"])
_places = (
    st.tuples(_numbers, _numbers).map("-".join)
    | _numbers
    | _odd
    | st.lists(_numbers, min_size=3, max_size=4).map("-".join)
)
_queries = st.dictionaries(
    st.sampled_from(["from", "tail", "limit", "follow", "handle"]),
    _places | _numbers | st.sampled_from(["true", "false", "0", "1"]),
    max_size=3,
)
_ranges = st.one_of(
    st.tuples(_numbers, _numbers).map(lambda pair: f"bytes={pair[0]}-{pair[1]}"),
    st.lists(st.tuples(_numbers, _numbers).map("-".join), max_size=3).map(
        lambda parts: "bytes=" + ",".join(parts)
    ),
    _numbers.map("lines={}-".format),
    _odd,
)
# What may stand in a header.
_header = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_headers = st.fixed_dictionaries(
    {},
    optional={
        "Last-Event-ID": _places.filter(_header.fullmatch),
        "Range": _ranges.filter(_header.fullmatch),
        "If-Range": st.just("x"),
    },
)
VIEWS = [
    f"{stream}{view}"
    for stream in ("stdout", "stderr", "output")
    for view in ("", "/follow", "/raw", "/frames")
    if stream == "output" or view != "/frames"
]


def _ask_everything(url: str, pid: int) -> set[tuple[str, int]]:
    """Ask for what hypothesis finds; the statuses by view."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    seen: set[tuple[str, int]] = set()

    @settings(
        max_examples=amount(800, heavy=10_000), deadline=None, derandomize=True, database=None
    )
    @given(st.sampled_from(VIEWS), _queries, _headers)
    def check(view: str, query: dict[str, str], headers: dict[str, str]) -> None:
        text = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
        path = f"/api/v1/processes/{pid}/{view}?{text}"
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        connection.request("GET", path, headers=encoded)
        answer = connection.getresponse()
        body = check_answer(answer)
        seen.add((view, answer.status))
        if answer.status < 400:
            _check_part(view, answer, body)

    try:
        check()
    finally:
        connection.close()
    return seen


def _check_part(view: str, answer: http.client.HTTPResponse, body: bytes) -> None:
    """Fail unless it is a part of the output, as the view shows it."""
    stream, _, kind = view.partition("/")
    wholes = {"stdout": [STDOUT], "stderr": [STDERR], "output": [STDOUT, STDERR]}[stream]
    match kind:
        case "raw" if stream != "output":
            assert body in wholes[0]
            if answer.status == 206 and body:
                content_range = answer.headers["content-range"]
                first, last, total = map(int, re.findall(r"\d+", content_range))
                assert (body, total) == (wholes[0][first : last + 1], len(wholes[0]))
        case "raw":
            assert len(body) <= TOTAL
        case "follow":
            events = parse_events(body)
            assert events[-1].name == "eof"
            _check_lines([event.data["line"] for event in events[:-1]], wholes)
        case "":
            content: dict[str, Any] = json.loads(body)
            assert content["line_count"] == len(content["lines"])
            _check_lines(content["lines"], wholes)
        case _:
            assert kind == "frames"


def _check_lines(lines: list[str], wholes: list[bytes]) -> None:
    """Fail unless each is a line, or the rest of one that was begun in its midst."""
    texts = {text for whole in wholes for text in whole.decode().split("\n")}
    for line in lines:
        assert any(text.endswith(line) for text in texts), line


async def test_every_place_to_begin_at_is_an_answer_or_an_error_with_a_code() -> None:
    async with serving("--parked-launchers", "0") as (daemon, url):
        pid = await start(url, "sh", "-c", SCRIPT)
        ended = await trio.to_thread.run_sync(_wait, url, pid)
        assert ended == STDOUT
        seen = await trio.to_thread.run_sync(_ask_everything, url, pid)
        assert {view for view, status in seen if status == 200} == set(VIEWS)
        assert {view for view, status in seen if status == 400} == set(VIEWS)
        assert {206, 409, 416} <= {status for _, status in seen}
        daemon.process.terminate()
        assert await daemon.exited() == 0
        assert daemon.complaints == []


def _wait(url: str, pid: int) -> bytes:
    """Wait for the end of the output."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    try:
        connection.request("GET", f"/api/v1/processes/{pid}/stdout/raw?follow=true")
        return connection.getresponse().read()
    finally:
        connection.close()
