"""The launcher's second form: one socket on descriptor 0, over which what is to be descriptor 0 comes."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from supervisor.orders import Failure, Stage, decode_answer, encode

from .conftest import NATIVE, TIMEOUT, Command, deny, limited, order, unheard


@contextmanager
def _started(
    launcher: Command, **popen: Any
) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """Our end of its socket, and the launcher."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(TIMEOUT)
        with subprocess.Popen(
            [*launcher, "0", "0"], stdin=theirs.fileno(), stdout=subprocess.PIPE, **popen
        ) as process:
            theirs.close()
            yield ours, process


@contextmanager
def _readable(data: bytes) -> Iterator[int]:
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    try:
        yield reader
    finally:
        os.close(reader)


def test_the_command_has_the_descriptor_that_came_and_no_other(launcher: Command) -> None:
    others = tuple(os.dup(0) for _ in range(60))  # More than one getdents.
    orders = encode(order(b"sh", b"-c", b"cat; ls /proc/self/fd"))
    with (
        _readable(b"what came\n") as reader,
        _started(launcher, pass_fds=others) as (ours, process),
    ):
        socket.send_fds(ours, [b"\0" + orders], [reader])
        assert ours.recv(100) == b""
        output, _ = process.communicate(timeout=TIMEOUT)
    for descriptor in others:
        os.close(descriptor)
    assert process.returncode == 0
    assert output == b"what came\n0\n1\n2\n3\n"  # 3 is the directory that ls reads.


@pytest.mark.parametrize("close_range", ["as it is", "missing"])
def test_it_holds_nothing_that_is_not_its_own_while_it_waits(close_range: str) -> None:
    reader, writer = os.pipe()
    popen: dict[str, Any] = (
        {"preexec_fn": deny("close_range", errno.ENOSYS)} if close_range == "missing" else {}
    )
    with (
        _readable(b"") as stdin,
        _started((NATIVE,), pass_fds=(writer,), **popen) as (ours, process),
    ):
        os.close(writer)
        socket.send_fds(ours, [b"\0"], [stdin])
        assert os.read(reader, 1) == b""  # It has closed it, without any orders.
        ours.close()
        assert process.wait(TIMEOUT) == unheard((NATIVE,))
    os.close(reader)


def test_it_ends_by_its_own_signal_when_nothing_comes(launcher: Command) -> None:
    with _started(launcher) as (ours, process):
        ours.close()
        assert process.wait(TIMEOUT) == unheard(launcher)


@pytest.mark.parametrize(
    ("has_room", "number"), [(True, errno.EBADMSG), (False, errno.EMFILE)], ids=["none", "no room"]
)
def test_without_a_descriptor_it_fails_as_such(has_room: bool, number: int) -> None:
    # Descriptor 3 is its own; what comes would be the next.
    preexec = None if has_room else limited(resource.RLIMIT_NOFILE, 4)
    with _readable(b"") as reader, _started((NATIVE,), preexec_fn=preexec) as (ours, process):
        socket.send_fds(ours, [b"\0" + encode(order(b"true"))], [] if has_room else [reader])
        answer = ours.recv(100)
        assert process.wait(TIMEOUT) == 125
    assert decode_answer(answer) == Failure(Stage.DESCRIPTORS, number)


def test_one_that_is_killed_before_it_reads_resets_the_socket() -> None:
    # It stands before the launcher's own first instruction, for as long as it is not let go.
    stopped = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)")
    with _readable(b"") as reader, _started(stopped) as (ours, process):
        socket.send_fds(ours, [b"\0" + encode(order(b"true"))], [reader])
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        process.kill()
        with pytest.raises(ConnectionResetError):
            ours.recv(100)
