"""The journal on disks that are full or fail, and without descriptors."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from supervisor.journal import read_journal

from .journal import BOOT, KIB, Live, add, entries_in, names_in, opened, pipe_ends
from .journal_steps import SPLICED, run_steps


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    with pipe_ends() as ends:
        yield ends


@contextmanager
def _small_disk(directory: Path) -> Iterator[None]:
    """A disk of 8 MiB at the directory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


def _fill(path: Path, but: int = 0) -> None:
    """Take all that is left of a disk, or nearly."""
    with open(path, "wb", buffering=0) as file:
        block = b"\0" * 4096
        try:
            while file.write(block):
                pass
        except OSError:
            assert not os.statvfs(path).f_bavail
        file.truncate(file.tell() - but)


def test_a_full_disk_refuses_and_takes_nothing_and_later_all_is_well(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    read_end, write_end = pipe
    live: Live = {}
    directory = tmp_path / "disk"
    directory.mkdir()
    with _small_disk(directory), opened(directory, live.get, 256 * KIB) as journal:
        add(journal, live, 1, b"before")
        _fill(directory / "filler", but=5 * 4096)
        with pytest.raises(OSError, match="No space"):
            journal.append(1, 1, b"y" * 30_000)
        add(journal, live, 1, b"less than what there was of that")
        assert read_journal(directory, BOOT).ignored_bytes == 0
        stream = os.urandom(60_000)
        os.write(write_end, stream)
        spliced = b""

        def splice() -> None:
            nonlocal spliced
            data = journal.splice(1, 2, b"head", read_end, 65536)
            live[1].append((2, b"head" + data))
            spliced += data

        splice()
        with pytest.raises(OSError, match="No space"):
            splice()
        assert 0 < len(spliced) < len(stream)
        with pytest.raises(OSError, match="No space"):
            journal.append(1, 1, b"y" * 30_000)
        with pytest.raises(OSError, match="No space"):
            journal.append(2, 1, b"y" * 30_000)
        assert spliced + os.read(read_end, 65536) == stream
        assert read_journal(directory, BOOT).ignored_bytes == 0
        assert entries_in(directory) == live
        os.unlink(directory / "filler")
        os.write(write_end, b"more")
        assert journal.splice(1, 2, b"", read_end, 65536) == b"more"
        live[1].append((2, b"more"))
        for _ in range(20):
            add(journal, live, 2, os.urandom(30_000))
        assert read_journal(directory, BOOT).ignored_bytes == 0
        assert entries_in(directory) == live


def test_a_full_disk_stops_compaction_but_loses_nothing(tmp_path: Path) -> None:
    live: Live = {}
    directory = tmp_path / "disk"
    directory.mkdir()
    with _small_disk(directory), opened(directory, live.get, 64 * KIB) as journal:
        for key in range(100):
            add(journal, live, key, os.urandom(10_000), begins=True)
        _fill(directory / "filler")
        refused = set()
        for round_ in range(300):
            key = round_ % 100
            live_before = live[key]
            try:
                add(journal, live, key, os.urandom(10_000), begins=True)
            except OSError as error:
                refused.add(error.errno)
                live[key] = live_before
        assert refused == {errno.ENOSPC}
        assert entries_in(directory) == live
        os.unlink(directory / "filler")
        for round_ in range(300):
            add(journal, live, round_ % 100, os.urandom(10_000), begins=True)
        assert entries_in(directory) == live


def test_without_a_descriptor_for_a_new_segment_the_old_one_goes_on(tmp_path: Path) -> None:
    live: Live = {}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with opened(tmp_path, live.get, 4 * KIB) as journal:
        add(journal, live, 1, b"x")
        lowest_free = os.open("/", os.O_RDONLY)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            for _ in range(100):
                add(journal, live, 1, b"x" * 200)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert names_in(tmp_path) == ["journal.1"]
        add(journal, live, 1, b"y")
        assert len(names_in(tmp_path)) == 2
    assert entries_in(tmp_path) == live


# --- failures of single calls, by strace ---


@pytest.mark.parametrize(
    ("failures", "errors"),
    [
        # Of records of segments, headers, completions and entries, one at a time: an
        # entry may stay open, and another segment need not begin.
        *(((f"pwrite64:error=EIO:when={number}",), 1) for number in (1, 2, 4, 5)),
        (("pwrite64:error=EIO:when=3",), 0),
        (("pwrite64:error=EIO:when=7",), 0),
        (("pwrite64:error=EIO:when=2+3",), 42),
        (("pwrite64:error=ENOSPC:when=5..9",), 5),
        # What was written cannot be removed.
        (("pwrite64:error=EIO:when=4", "ftruncate:error=EIO:when=1"), 1),
        (("splice:error=EIO:when=2", "ftruncate:error=EIO:when=1"), 1),
        (("splice:error=EIO:when=2..4",), 3),
        (("openat:error=EMFILE:when=2..5",), 0),
        (("unlink:error=EIO:when=1..9",), 0),
        (("unlink:error=EIO:when=2..3",), 0),
    ],
)
def test_a_call_that_fails_costs_nothing_but_itself(
    tmp_path: Path, pipe: tuple[int, int], failures: tuple[str, ...], errors: int
) -> None:
    stream = os.urandom(4000)
    os.write(pipe[1], stream)
    run = run_steps(tmp_path, pipe[0], failures)
    assert run.returncode == 0, run.log
    assert run.log.count("INJECTED") >= len(failures)
    assert len(run.errors) == errors
    assert run.taken == stream
    recovered = read_journal(tmp_path, BOOT)
    assert recovered.ignored_bytes == 0
    assert recovered.entries == run.live


def test_nothing_is_written_over_what_cannot_be_removed(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    os.write(pipe[1], bytes(4000))
    failures = (
        "splice:error=EIO:when=2",
        "ftruncate:error=EIO:when=1",
        "pwrite64:signal=KILL:when=8",  # The first entry after these.
    )
    run = run_steps(tmp_path, pipe[0], failures)
    assert (run.returncode, len(run.errors)) == (-signal.SIGKILL, 1)
    recovered = read_journal(tmp_path, BOOT)
    assert recovered.ignored_bytes == 0
    assert recovered.entries[SPLICED] == run.live[SPLICED]


@pytest.mark.parametrize("failures", [(), ("ftruncate:error=EIO:when=1",)])
def test_where_splice_is_refused_bytes_are_read_and_appended(
    tmp_path: Path, pipe: tuple[int, int], failures: tuple[str, ...]
) -> None:
    stream = os.urandom(4000)
    os.write(pipe[1], stream)
    run = run_steps(tmp_path, pipe[0], ("splice:error=EINVAL:when=3", *failures))
    assert (run.returncode, run.errors, run.taken) == (0, [], stream)
    assert run.log.count("SPLICE_F_NONBLOCK") == 3
    assert run.log.count("splice(2) is refused") == 1
    assert entries_in(tmp_path) == run.live


def test_what_cannot_be_read_back_is_in_the_journal_no_more_than_with_its_reader(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    stream = os.urandom(4000)
    os.write(pipe[1], stream)
    run = run_steps(tmp_path, pipe[0], ("pread64:error=EIO:when=3",))
    assert (run.returncode, len(run.errors)) == (0, 1)
    assert run.taken == stream[:200] + stream[300:]
    assert "100 bytes of output are lost" in run.log
    assert entries_in(tmp_path) == run.live
