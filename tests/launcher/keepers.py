"""A supervisor's side of the keeper's protocol, byte for byte, and keepers to try it on."""

from __future__ import annotations

import array
import contextlib
import os
import platform
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from supervisor import keeper_process
from supervisor.keeper_process import DROP, PUT, TAKE, TAKEN, WELCOME

NATIVE_KEEPER = Path(keeper_process.__file__).parent / "launcher" / f"keeper-{platform.machine()}"
NOTE_SIZE = 32
TIMEOUT = 60
SOMEBODY: dict[str, Any] = {"user": 65_533, "group": 65_533, "extra_groups": ()}


class Note(NamedTuple):
    kind: int
    number: int
    key: int
    tags: tuple[int, ...]
    fds: tuple[int, ...]


class Connection(socket.socket):
    """A supervisor's side of a connection."""

    def hear(self) -> Note | None:
        """Return what the keeper says next; None at the end."""
        try:
            data, ancillary, _, _ = self.recvmsg(100, 1000)
        except ConnectionResetError:
            # It hung up with something unread, which is told before what it had said.
            return self.hear()
        if not data:
            return None
        words = array.array("I", data)
        assert len(data) == NOTE_SIZE
        fds = array.array("i", b"".join(rights for _, _, rights in ancillary))
        return Note(words[0], words[1], words[2] | words[3] << 32, tuple(words[4:]), tuple(fds))

    def put(self, key: int, fds: list[int], tags: tuple[int, ...] = (0, 0, 0, 0)) -> None:
        header = array.array("I", [PUT, len(fds), key & 0xFFFFFFFF, key >> 32, *tags])
        socket.send_fds(self, [header.tobytes()], fds)

    def drop(self, *keys: int) -> None:
        self.send(array.array("I", [DROP, len(keys)]).tobytes() + array.array("Q", keys).tobytes())

    def take(self) -> dict[int, Note]:
        """Return all that is held, by key."""
        self.send(array.array("I", [TAKE, 0]).tobytes())
        taken = {}
        while (note := self.hear()) is not None and note.kind != TAKEN:
            assert note.key not in taken
            taken[note.key] = note
        assert note is not None
        return taken


def connection_of(made: socket.socket) -> Connection:
    made.settimeout(TIMEOUT)
    connection = Connection(made.family, made.type, made.proto, made.detach())
    connection.settimeout(TIMEOUT)
    return connection


class Running:
    """A keeper, its first connection, and where others connect."""

    def __init__(self, command: tuple[str | Path, ...], address: Path, **popen: Any) -> None:
        self.address = address
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(address))
            listener.listen()
            listener.setblocking(False)
            subprocess.run(
                [*command, "for", "ps"],
                stdin=its.fileno(),
                stdout=listener.fileno(),
                check=True,
                timeout=TIMEOUT,
                **popen,
            )
        self.first = connection_of(ours)
        welcome = self.first.hear()
        assert welcome is not None
        assert welcome[:3] == (WELCOME, 0, 0)
        self.pid = welcome.tags[0]
        self.pidfd = os.pidfd_open(self.pid)

    def connect(self) -> Connection:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made.connect(str(self.address))
        return connection_of(made)

    def next(self) -> Connection:
        """Return a connection that is served, after the last one was closed."""
        connection = self.connect()
        welcome = connection.hear()
        assert welcome is not None
        assert welcome.kind == WELCOME
        return connection

    def status(self) -> dict[str, str]:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def signal(self, number: int) -> None:
        signal.pidfd_send_signal(self.pidfd, number)

    def has_ended(self, within: float = TIMEOUT) -> bool:
        return select.select([self.pidfd], [], [], within)[0] != []

    def finish(self) -> None:
        self.first.close()
        if not self.has_ended(0):
            self.signal(signal.SIGKILL)
            assert self.has_ended()
        os.close(self.pidfd)


@contextlib.contextmanager
def running(command: tuple[str | Path, ...], folder: Path, **popen: Any) -> Iterator[Running]:
    """Run a keeper. One that is sanitized leaves its report, if any, in the folder."""
    report = f"log_path={folder}/report"
    environment = {"ASAN_OPTIONS": report, "UBSAN_OPTIONS": report}
    keeper = Running(command, folder / "keeper", env=environment, **popen)
    try:
        yield keeper
    finally:
        keeper.finish()
        assert [path.read_text() for path in folder.glob("report*")] == []


class Pipe:
    """A pipe; what it is can be told from any copy of an end."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.inode = os.fstat(self.reader).st_ino

    def close(self, *ends: int) -> None:
        for end in ends or (self.reader, self.writer):
            os.close(end)

    def has_readers(self, within: float) -> bool:
        """Whether any copy of the read end is left when that time is over."""
        poll = select.poll()
        poll.register(self.writer, 0)
        return not poll.poll(within * 1000)


def close_all(taken: dict[int, Note]) -> None:
    for note in taken.values():
        for fd in note.fds:
            os.close(fd)
