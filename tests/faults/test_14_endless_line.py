"""A line without an end: chunked by bytes, needed whole nowhere.

`test_outputs` reads a line of 40 MB in every view of it; here it is as long as
FAULTS.md wants, of NUL bytes, and followed while it is written.
"""

from __future__ import annotations

import json

import trio

from ..conftest import PATIENCE_SECONDS
from ..heavy import amount, figure
from ..test_outputs import _ended_by_url, _forget_peak, _peak_bytes
from ..test_server import serving
from ..wire import connect
from .witness import undisturbed

_MIB = 1024 * 1024
_BYTES = amount(20_000_000, heavy=1_000_000_000)


async def test_a_line_without_end_is_followed_in_parts_of_a_bounded_size() -> None:
    body = {"command": "sh", "args": ["-c", f"head -c {_BYTES} /dev/zero | tr '\\0' x"]}
    limits = ("--output-limit-bytes", str(2 * _BYTES))
    async with serving(*limits) as (daemon, url), await connect(url) as connection:
        await _ended_by_url(connection, {"command": "seq", "args": ["100000"]})  # To warm up.
        before = _forget_peak(daemon)
        async with undisturbed(daemon, url):
            began = trio.current_time()
            pid = (await connection.json("POST", "/processes", body))["pid"]
            received = largest = 0
            rest = b""
            path = f"/processes/{pid}/stdout/follow"
            with trio.fail_after(PATIENCE_SECONDS * amount(1, heavy=5)):
                async with connection.stream_body("GET", path) as stream:
                    async for data in stream:
                        *events, rest = (rest + data).split(b"\n\n")
                        for event in events:
                            largest = max(largest, len(event))
                            received += _length(event)
            seconds = trio.current_time() - began
        grown = _peak_bytes(daemon) - before
    figure(f"{_BYTES / seconds / 1e6:.0f} MB/s, memory +{grown / _MIB:.0f} MiB")
    assert received == _BYTES
    assert largest < _MIB
    assert grown < 48 * _MIB


def _length(event: bytes) -> int:
    """How much of the line an event has, which must be nothing but x."""
    _, found, data = event.partition(b"data: ")
    line = json.loads(data).get("line", "") if found else ""
    assert line.count("x") == len(line)
    return len(line)
