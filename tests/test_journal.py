"""The journal: what counts, what is spliced, and what it takes. More in `test_journal_*`."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest

from supervisor import StateDirUnusable
from supervisor.journal import Journal, read_journal

from .journal import (
    BOOT,
    KIB,
    MIB,
    Live,
    add,
    assert_all_live,
    entries_in,
    names_in,
    nothing,
    opened,
    pipe_ends,
    size_on_disk,
)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    with pipe_ends() as ends:
        yield ends


# --- what counts ---


def test_entries_come_back_in_order_with_kinds_and_exact_bytes(tmp_path: Path) -> None:
    payloads = [b"", b"\0", b"a" * 7, os.urandom(300), b"\xff" * 65536]
    live: Live = {}
    with opened(tmp_path, live.get) as journal:
        for kind, payload in enumerate(payloads):
            for key in (0, 2**64 - 1):
                add(journal, live, key, payload, kind=kind + 251)
    assert entries_in(tmp_path) == live
    assert [*live.values()] == 2 * [[*enumerate(payloads, 251)]]


def test_an_entry_that_begins_voids_what_came_before_and_an_end_voids_all(tmp_path: Path) -> None:
    with opened(tmp_path, nothing) as journal:
        journal.append(1, 1, b"old")
        journal.append(2, 1, b"ended")
        journal.append(3, 1, b"ended, too")
        journal.append(1, 2, b"new", begins=True)
        journal.append(1, 3, b"newer")
        journal.end(2)
        journal.end(3)
        journal.append(3, 1, b"again")
        journal.end(4)
    assert entries_in(tmp_path) == {1: [(2, b"new"), (3, b"newer")], 3: [(1, b"again")]}


def test_a_key_that_is_rewritten_has_what_its_writer_knows_of_it(tmp_path: Path) -> None:
    known: Live = {1: [(1, b"all"), (2, b"that counts")], 3: [(1, b"never appended")]}
    with opened(tmp_path, known.get) as journal:
        journal.append(1, 1, b"a part")
        journal.append(2, 1, b"of which nothing counts any more")
        for key in (1, 2, 3, 4):
            journal.rewrite(key)
        journal.append(1, 3, b"more")
    assert entries_in(tmp_path) == {1: [*known[1], (3, b"more")], 3: known[3]}


def test_a_directory_without_a_journal_has_no_entries(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / "journal.x").touch()
    (tmp_path / "journal.01").touch()
    recovered = read_journal(tmp_path, BOOT)
    assert (recovered.entries, recovered.ignored_bytes) == ({}, 0)


def test_a_writer_begins_a_segment_and_leaves_those_of_others_alone(tmp_path: Path) -> None:
    live: Live = {}
    with opened(tmp_path, live.get) as journal:
        add(journal, live, 1, b"first")
    before = (tmp_path / "journal.1").read_bytes()
    with opened(tmp_path, live.get) as journal:
        add(journal, live, 1, b"second")
        with pytest.raises(FileExistsError):
            os.open(tmp_path / "journal.2", os.O_CREAT | os.O_EXCL)
    assert (tmp_path / "journal.1").read_bytes() == before
    assert entries_in(tmp_path) == {1: [(1, b"first"), (1, b"second")]}


def test_a_segment_of_another_version_is_refused_unless_that_is_damage(tmp_path: Path) -> None:
    with opened(tmp_path, nothing) as journal:
        journal.append(1, 1, b"x")
    path = tmp_path / "journal.1"
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 8, 2)
    path.write_bytes(data)
    recovered = read_journal(tmp_path, BOOT)
    assert (recovered.entries, recovered.ignored_bytes) == ({}, len(data))
    struct.pack_into("<I", data, 60, crc32(data[:60]))
    path.write_bytes(data)
    with pytest.raises(StateDirUnusable, match="format 2"):
        read_journal(tmp_path, BOOT)


def test_what_cannot_be_opened_is_an_unusable_state_directory(tmp_path: Path) -> None:
    with pytest.raises(StateDirUnusable):
        read_journal(tmp_path / "none", BOOT)
    recovered = read_journal(tmp_path, BOOT)
    journal = Journal(tmp_path / "none", nothing, recovered)
    with journal, pytest.raises(FileNotFoundError):
        journal.append(1, 1, b"")
    (tmp_path / "journal.1").mkdir()
    with pytest.raises(StateDirUnusable):
        read_journal(tmp_path, BOOT)


def test_entries_whose_beginning_is_lost_are_ignored_and_later_segments_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live: Live = {}
    with opened(tmp_path, live.get) as journal:
        add(journal, live, 1, b"kept")
        add(journal, live, 2, b"damaged")
        add(journal, live, 3, b"behind it")
    with opened(tmp_path, live.get) as journal:
        for key in (1, 2, 4):
            add(journal, live, key, b"later")
    path = tmp_path / "journal.1"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"damaged", b"dAmaged"))
    recovered = read_journal(tmp_path, BOOT)
    assert recovered.entries == {1: [(1, b"kept"), (1, b"later")], 4: [(1, b"later")]}
    assert recovered.ignored_bytes == len(data) - 64 - 24
    assert ["journal.1" in record.message for record in caplog.records] == [True]


# --- splicing ---


def test_what_is_spliced_is_returned_and_comes_back(tmp_path: Path, pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    with opened(tmp_path, nothing) as journal:
        os.write(write_end, b"x" * 100)
        assert journal.splice(1, 2, b"head", read_end, 60) == b"x" * 60
        assert journal.splice(1, 2, b"", read_end, 60) == b"x" * 40
        journal.append(1, 1, b"between")
        flood = os.urandom(65536)
        os.write(write_end, flood)
        assert journal.splice(1, 3, b"h" * 65535, read_end, 1 << 20) == flood
    assert entries_in(tmp_path) == {
        1: [(2, b"head" + b"x" * 60), (2, b"x" * 40), (1, b"between"), (3, b"h" * 65535 + flood)]
    }


def test_an_empty_pipe_and_its_end_leave_nothing_behind(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    read_end, write_end = pipe
    ended, other = os.pipe2(os.O_NONBLOCK)
    os.close(other)
    with opened(tmp_path, nothing) as journal:
        journal.append(1, 1, b"before")
        size = size_on_disk(tmp_path)
        with pytest.raises(BlockingIOError):
            journal.splice(1, 2, b"a longer head than the next one", read_end, 100)
        assert journal.splice(1, 2, b"a longer head than the next one", ended, 100) == b""
        assert size_on_disk(tmp_path) <= size + 7  # Padding.
        os.write(write_end, b"data")
        assert journal.splice(1, 2, b"", read_end, 100) == b"data"
        with pytest.raises(BlockingIOError):
            journal.splice(2, 2, b"head", read_end, 100)
    os.close(ended)
    recovered = read_journal(tmp_path, BOOT)
    assert (recovered.entries, recovered.ignored_bytes) == ({1: [(1, b"before"), (2, b"data")]}, 0)


# --- compaction ---


def _live_bytes(live: Live) -> int:
    return sum(20 + sum(5 + len(payload) for _, payload in entries) for entries in live.values())


@pytest.mark.parametrize("flood_bytes", [100, 16 * KIB])
def test_churn_takes_about_twice_what_lives_and_two_segments(
    tmp_path: Path, flood_bytes: int
) -> None:
    segment = 64 * KIB
    live: Live = {}
    most = 0.0
    with opened(tmp_path, live.get, segment) as journal:
        for key in range(100):
            add(journal, live, key, os.urandom(4000), begins=True)
        for round_ in range(3000):
            # One floods, of which little counts; one comes and goes; the others sleep.
            live[0] = live[0][-2:]
            add(journal, live, 0, os.urandom(flood_bytes))
            add(journal, live, 1000 + round_, os.urandom(300), begins=True)
            if round_ >= 50:
                del live[1000 + round_ - 50]
                journal.end(1000 + round_ - 50)
            # While large appends flood in, compaction has only twice as much to spend.
            factor = 2.5 if flood_bytes > 4 * KIB else 2.1
            bound = factor * _live_bytes(live) + 2 * segment
            most = max(most, size_on_disk(tmp_path) / bound)
    assert 0.5 < most <= 1
    assert_all_live(entries_in(tmp_path), live)


def test_what_was_appended_bit_by_bit_is_compacted_as_well(tmp_path: Path) -> None:
    segment = 64 * KIB
    live: Live = {}
    with opened(tmp_path, live.get, segment) as journal:
        for _ in range(20):
            for key in range(50):
                add(journal, live, key, os.urandom(1000))
                bound = 2.1 * _live_bytes(live) + 2 * segment
                assert size_on_disk(tmp_path) <= bound
        for key in range(1, 50):
            del live[key]
            journal.end(key)
        for _ in range(100):
            add(journal, live, 50, b"")
        assert size_on_disk(tmp_path) <= 2 * _live_bytes(live) + 2 * segment
    assert entries_in(tmp_path) == live


def test_one_call_rewrites_no_more_than_about_twice_its_bytes(tmp_path: Path) -> None:
    live: Live = {}
    with opened(tmp_path, live.get, 16 * KIB) as journal:
        for key in range(500):
            add(journal, live, key, os.urandom(500), begins=True)
        written = []
        for _ in range(3000):
            live[0] = []
            before = _written_bytes()
            add(journal, live, 0, b"x" * 300)
            written.append(_written_bytes() - before)
    rewritten = [size - 320 for size in written]
    # The last state may exceed it, and there may be records of segments.
    assert 500 < max(rewritten) <= 2 * 300 + 4096 + 600 + 3 * 64


def _written_bytes() -> int:
    with open("/proc/self/io", "rb") as file:
        return int(file.read().split(b"wchar: ")[1].split()[0])


def test_a_key_that_is_not_alive_goes_with_its_segment(tmp_path: Path) -> None:
    live: Live = {}
    with opened(tmp_path, live.get, 4 * KIB) as journal:
        journal.append(1, 1, b"not known to be alive")
        for _ in range(100):
            live[2] = []
            add(journal, live, 2, b"x" * 200)
        assert "journal.1" not in names_in(tmp_path)
    assert set(entries_in(tmp_path)) == {2}


def test_many_restarts_do_not_leave_many_segments(tmp_path: Path) -> None:
    live: Live = {}
    with opened(tmp_path, live.get) as journal:
        add(journal, live, 4, b"always there")
    for number in range(100):
        with opened(tmp_path, live.get) as journal:
            add(journal, live, number % 3, b"%d" % number, begins=True)
        assert len(names_in(tmp_path)) <= 20
    assert entries_in(tmp_path) == live


def test_long_payloads_and_states_survive_compaction(tmp_path: Path) -> None:
    live: Live = {}
    with opened(tmp_path, live.get) as journal:
        for key in range(3):
            add(journal, live, key, os.urandom(5 * MIB), begins=True)
            add(journal, live, key, b"started")
        for _ in range(12):
            live[3] = []
            add(journal, live, 3, os.urandom(3 * MIB))
        assert "journal.1" not in names_in(tmp_path)
        assert size_on_disk(tmp_path) <= 2.5 * _live_bytes(live) + 2 * 6 * MIB
    assert_all_live(entries_in(tmp_path), live)
