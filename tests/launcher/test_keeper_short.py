"""The keeper when it runs short, and when it hears what it does not understand."""

import array
import contextlib
import errno
import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.keeper_process import (
    BUSY,
    DROP,
    END,
    HELD,
    PUT,
    REFUSED,
    TAKE,
    TAKEN,
    WELCOME,
    WITHHELD,
)

from .conftest import Command, as_root, limited
from .keepers import NATIVE_KEEPER, SOMEBODY, TIMEOUT, Pipe, Running, close_all, running

# --- Running short


def test_what_finds_no_descriptor_is_refused_and_one_is_left_for_others(
    tmp_path: Path, keeper_program: Command, pipe: Pipe
) -> None:
    limit = 40
    with running(
        keeper_program, tmp_path, preexec_fn=limited(resource.RLIMIT_NOFILE, limit)
    ) as keeper:
        keys = range(limit)
        for key in keys:
            keeper.first.put(key, [pipe.reader, pipe.reader])
        # What is refused in place of what was held, is held no more.
        keeper.first.put(0, [pipe.reader, pipe.reader, pipe.reader, pipe.reader])
        singles = range(200, 210)
        for key in singles:
            keeper.first.put(key, [pipe.reader])
        keeper.first.send(array.array("I", [TAKE, 0]).tobytes())
        refused, held = [], set()
        while (note := keeper.first.hear()) is not None and note.kind != TAKEN:
            if note.kind == REFUSED:
                assert note.number == errno.EMFILE
                refused.append(note.key)
            else:
                assert note.kind == HELD
                held.add(note.key)
                close_all({0: note})
        assert len(held) > 10
        assert set(refused) == {*keys, *singles} - held
        assert 0 in refused
        # There is one left for others, and there are more after a drop.
        with keeper.connect() as second:
            note = second.hear()
            assert note is not None
            assert note.kind == BUSY
        keeper.first.close()
        with keeper.next() as connection:
            taken = connection.take()
            close_all(taken)
            assert set(taken) == held
            dropped = min(held)
            connection.drop(dropped)
            connection.put(100, [pipe.reader, pipe.reader])
            taken = connection.take()
            close_all(taken)
            assert set(taken) == held - {dropped} | {100}


def test_what_the_kernel_cuts_off_is_refused(native_keeper: Running, pipe: Pipe) -> None:
    """The same where its limit was lowered behind its back."""
    native_keeper.first.put(1, [pipe.reader])
    close_all(native_keeper.first.take())
    resource.prlimit(native_keeper.pid, resource.RLIMIT_NOFILE, (7, 7))
    native_keeper.first.put(2, [pipe.reader] * 4)
    note = native_keeper.first.hear()
    assert note is not None
    assert (note.kind, note.number, note.key) == (REFUSED, errno.EMFILE, 2)
    # Nor is any left of what came before the cut.
    taken = native_keeper.first.take()
    close_all(taken)
    assert set(taken) == {1}
    assert len(os.listdir(f"/proc/{native_keeper.pid}/fd")) == 6


def test_a_connection_for_which_there_is_no_descriptor_is_served_once_there_is(
    native_keeper: Running, pipe: Pipe
) -> None:
    native_keeper.first.put(1, [pipe.reader])
    close_all(native_keeper.first.take())
    _, hard = resource.prlimit(native_keeper.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(native_keeper.pid, resource.RLIMIT_NOFILE, (4, hard))
    with native_keeper.connect() as second:
        second.settimeout(0.3)
        with pytest.raises(TimeoutError):
            second.hear()
        resource.prlimit(native_keeper.pid, resource.RLIMIT_NOFILE, (hard, hard))
        second.settimeout(TIMEOUT)
        note = second.hear()
        assert note is not None
        assert note.kind == BUSY


# Has as many descriptors on their way as it is told, until its input ends.
HOARD = """
import os, socket, sys
user, count = map(int, sys.argv[1:])
os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)
one, other = socket.socketpair()
for _ in range(count):
    socket.send_fds(one, [b"x"], [0])
print("ready", flush=True)
sys.stdin.read()
"""


@as_root
def test_what_cannot_be_sent_is_withheld_and_still_held(somewhere: Path, pipe: Pipe) -> None:
    """Descriptors on their way are counted for each user, against the limit of whoever sends (unix(7))."""
    copied = Path(shutil.copy(NATIVE_KEEPER, somewhere / "program"))
    limit = 64
    with running(
        (copied,), somewhere, preexec_fn=limited(resource.RLIMIT_NOFILE, limit), **SOMEBODY
    ) as keeper:
        for key in range(4):
            keeper.first.put(key, [pipe.reader] * 4)
        hoard = [sys.executable, "-c", HOARD, str(SOMEBODY["user"]), str(limit + 1)]
        with subprocess.Popen(hoard, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hoarder:
            assert hoarder.stdout is not None
            assert hoarder.stdout.readline() == b"ready\n"
            taken = keeper.first.take()
        assert [taken[key][:3] for key in range(4)] == [
            (WITHHELD, errno.ETOOMANYREFS, key) for key in range(4)
        ]
        taken = keeper.first.take()
        close_all(taken)
        assert [taken[key][:3] for key in range(4)] == [(HELD, 4, key) for key in range(4)]


# --- Garbage

PRECIOUS = 0xFEEDFACE_12345678

_headers = st.tuples(
    st.sampled_from([PUT - 1, PUT, DROP, TAKE, END, END + 1, HELD, WELCOME]),
    st.one_of(st.integers(0, 6), st.sampled_from([255, 256, 257, 2**31, 2**32 - 1])),
).map(lambda header: array.array("I", header).tobytes())
_messages = st.one_of(
    st.binary(max_size=70),
    st.integers(0, 3000).map(bytes),
    st.builds(bytes.__add__, _headers, st.binary(max_size=40)),
    st.builds(bytes.__add__, _headers, st.integers(0, 300).map(lambda count: bytes(8 * count))),
)


def descriptors_of(keeper: Running) -> int:
    return len(os.listdir(f"/proc/{keeper.pid}/fd"))


@pytest.mark.parametrize("length", [*range(72), *range(2040, 2072), 4096, 100_000])
def test_zeros_of_any_length_end_the_connection_and_cost_nothing(
    native_keeper: Running, pipe: Pipe, length: int
) -> None:
    native_keeper.first.put(PRECIOUS, [pipe.reader])
    native_keeper.first.send(bytes(length))
    assert native_keeper.first.hear() is None
    with native_keeper.next() as connection:
        taken = connection.take()
        close_all(taken)
        assert set(taken) == {PRECIOUS}


def test_garbage_costs_nothing_that_is_held(
    keeper: Running, keeper_program: Command, pipe: Pipe
) -> None:
    """Whether it ends the connection, or means something by chance; and none of its descriptors stays."""
    keeper.first.put(PRECIOUS, [pipe.reader])
    close_all(keeper.first.take())
    expected = descriptors_of(keeper)
    keeper.first.close()
    end = array.array("I", [END, 0]).tobytes()
    # An emulator leaks what the kernel would have cut off.
    most = 6 if len(keeper_program) == 1 else 4

    @settings(max_examples=150, deadline=None, database=None)
    @given(said=st.lists(st.tuples(_messages, st.integers(0, most)), max_size=4))
    def say(said: list[tuple[bytes, int]]) -> None:
        with keeper.next() as connection:
            with contextlib.suppress(ConnectionError):
                for message, count in said:
                    if message != end:
                        socket.send_fds(connection, [message], [pipe.reader] * count)
                connection.send(array.array("I", [TAKE, 0]).tobytes())
            while (note := connection.hear()) is not None and note.kind != TAKEN:
                close_all({0: note})
        with keeper.next() as connection:
            taken = connection.take()
            close_all(taken)
            assert PRECIOUS in taken
            for key in set(taken) - {PRECIOUS}:
                connection.drop(key)
            close_all(connection.take())
            assert descriptors_of(keeper) == expected

    say()
