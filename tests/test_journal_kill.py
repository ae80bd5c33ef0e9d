"""The writer of a journal is killed: what it had spliced is there, and the rest still in the pipe."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.journal import read_journal

from .heavy import amount
from .journal import BOOT, entries_in, pipe_ends
from .journal_steps import HEAD, SPLICED, STATUS, run_steps
from .journal_writer import pieces_in

_ROOT = Path(__file__).parent.parent
_KILLS = amount(30, heavy=300)
_LATEST_KILL_SECONDS = 0.012

# Numbered lines of 16 bytes, in writes of all sizes, so that every byte says where it belongs.
_COUNTER = """
import os, random
number, waiting = 0, b""
while True:
    size = random.choice((1, 10, 100, 1000, 10000))
    while len(waiting) < size:
        waiting += b"".join([b"%015d\\n" % n for n in range(number, number + 1000)])
        number += 1000
    waiting = waiting[os.write(1, waiting[:size]):]
"""


def _numbered(begin: int, size: int) -> bytes:
    """What the counter writes between two places."""
    lines = range(begin // 16, (begin + size) // 16 + 1)
    return b"".join([b"%015d\n" % number for number in lines])[begin % 16 :][:size]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    with pipe_ends() as ends:
        yield ends


def test_a_writer_that_is_killed_at_any_time_loses_and_doubles_no_byte(tmp_path: Path) -> None:
    counter = subprocess.Popen([sys.executable, "-c", _COUNTER], stdout=subprocess.PIPE)
    assert counter.stdout is not None
    pipe = counter.stdout.fileno()
    os.set_blocking(pipe, False)
    writers = subprocess.Popen(
        [sys.executable, "-m", "tests.journal_writer", str(tmp_path), str(pipe)],
        pass_fds=[pipe],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=_ROOT,
    )
    assert writers.stdin is not None
    assert writers.stdout is not None
    end, moved, opened, torn = 0, 0, 0, 0
    with counter, writers, open(tmp_path / "spilled", "w+b", buffering=0) as spilled:
        checked = 0
        for number in range(_KILLS):
            writers.stdin.write(b"late\n" if number % 2 else b"\n")
            writers.stdin.flush()
            pid = int(writers.stdout.readline())
            time.sleep(random.uniform(0, _LATEST_KILL_SECONDS))  # It may be killed at any time.
            os.kill(pid, signal.SIGKILL)
            assert writers.stdout.readline() == b"-9\n"
            # What has been spilled, and from there on, or before, what is in the journal.
            data = os.pread(spilled.fileno(), 1 << 30, checked)
            assert data == _numbered(checked, len(data))
            checked += len(data)
            recovered = read_journal(tmp_path, BOOT)
            # Of a write of many pages, as of a state, there may be a part.
            torn += recovered.ignored_bytes > 0
            recovered_end = checked
            for position, data in pieces_in(recovered.entries):
                assert data == _numbered(position, len(data))
                if position + len(data) > checked:
                    assert position == recovered_end or position < checked == recovered_end
                    recovered_end = position + len(data)
            assert recovered_end >= end
            moved += recovered_end > end
            end = recovered_end
            opened += len(entries_in(tmp_path, "another boot").get(1, [])) < len(
                recovered.entries.get(1, [])
            )
        counter.kill()
        counter.wait()
        # What the last one has left in the pipe is what comes next.
        writers.stdin.close()
        assert writers.wait() == 0
        rest = b""
        while data := os.read(pipe, 1 << 20):
            rest += data
        assert rest == _numbered(end, len(rest))
    assert moved >= _KILLS // 2
    print(f"{_KILLS} kills, {moved} after splicing, {opened} open and {torn} torn, {end} bytes")


@pytest.mark.parametrize(
    "instant",
    [
        *(f"pwrite64:when={number}" for number in (*range(1, 9), 40, 41)),
        "splice:when=1",
        "splice:when=2",
        "pread64:when=1",
        "pread64:when=2",
        "openat:when=3",
        "unlink:when=1",
        "unlink:when=2",
    ],
)
def test_at_every_call_there_is_nothing_to_lose(
    tmp_path: Path, pipe: tuple[int, int], instant: str
) -> None:
    stream = os.urandom(4000)
    os.write(pipe[1], stream)
    run = run_steps(tmp_path, pipe[0], (instant.replace(":", ":signal=KILL:"),))
    assert run.returncode == -signal.SIGKILL, run.log
    recovered = read_journal(tmp_path, BOOT)
    assert recovered.ignored_bytes == 0
    spliced = [payload[len(HEAD) :] for _, payload in recovered.entries.get(SPLICED, [])]
    told = [payload[len(HEAD) :] for _, payload in run.live.get(SPLICED, [])]
    # All that it knew of, and at most the one it was at.
    assert spliced[: len(told)] == told
    assert len(spliced) <= len(told) + 1
    statuses = [payload for _, payload in recovered.entries.get(STATUS, [])]
    assert len(statuses) <= 1
    before = [payload for _, payload in run.live.get(STATUS, [])]
    assert statuses == before or int(statuses[0]) == len(told) - 1
    try:
        left = os.read(pipe[0], 65536)
    except BlockingIOError:
        left = b""
    assert b"".join(spliced) + left == stream


def test_an_open_entry_counts_only_during_the_boot_in_which_it_was_written(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    os.write(pipe[1], bytes(1000))
    run = run_steps(tmp_path, pipe[0], ("pread64:signal=KILL:when=3",))
    assert run.returncode == -signal.SIGKILL
    assert len(entries_in(tmp_path)[SPLICED]) == 3
    without = entries_in(tmp_path, "another boot")
    assert len(without[SPLICED]) == 2
    # Its header is as well protected as any other.
    (newest,) = [path for path in tmp_path.iterdir() if path.read_bytes().endswith(bytes(100))]
    content = bytearray(newest.read_bytes())
    for place in range(len(content) - 100 - len(HEAD) - 20, len(content) - 100):
        for bit in range(8):
            content[place] ^= 1 << bit
            newest.write_bytes(content)
            assert entries_in(tmp_path) == without
            content[place] ^= 1 << bit
