"""All output before the exit, in the order in which it was written, and every exit code.

`test_load` has a thousand runs, and a thousand starts and follows, over HTTP
with one code. Here each has its own, with fewer and more bytes before it.
"""

from __future__ import annotations

import pytest
import trio

from supervisor import Line, ProcessSpec, Supervisor, SupervisorConfig

from ..heavy import amount

_PROCESSES = amount(256, heavy=1024)


@pytest.fixture(params=[0, 4], ids=["fresh", "parked"])
def config(request: pytest.FixtureRequest) -> SupervisorConfig:
    return SupervisorConfig(parked_launchers=request.param)


async def test_nothing_is_missing_when_the_exit_is_seen(supervisor: Supervisor) -> None:
    left = iter(range(_PROCESSES))
    wrong = []

    async def one() -> None:
        for number in left:
            # From less than a line to more than a pipe holds.
            script = f"echo a; echo b >&2; head -c {number * 300} /dev/zero; exit {number % 256}"
            process = await supervisor.start(ProcessSpec(command="sh", args=("-c", script)))
            seen = []
            async for item in process.lines(max_line_bytes=1_000_000):
                assert isinstance(item, Line)
                seen.append((item.stream, item.text))
            # The end of the lines is the exit.
            expected = [("stdout", "a"), ("stderr", "b")]
            if number:
                expected.append(("stdout", "\0" * (number * 300)))
            if (seen, process.exit_code) != (expected, number % 256):
                wrong.append((number, process.exit_code))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(one)
    assert wrong == []
