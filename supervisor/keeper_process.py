"""The keeper's process and what it says: finding it or starting it, and taking what it holds.

See `launcher/keeper.c` for the protocol.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import struct
import subprocess
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from .errors import LaunchError, OutOfProcesses, StateDirUnusable
from .shortages import resource_error

_logger = logging.getLogger(__name__)

_KEEPER = str(Path(__file__).parent / "launcher" / f"keeper-{platform.machine()}")

# In the state directory.
SOCKET = "keeper"
# Of one key.
MAX_DESCRIPTORS = 4

# The kinds of messages, and what it says. The highest byte is the version.
_MAGIC = 0x014B4300
PUT, DROP, TAKE, END = range(_MAGIC + 1, _MAGIC + 5)
WELCOME, BUSY, FORBIDDEN, REFUSED, HELD, WITHHELD, TAKEN = range(_MAGIC + 16, _MAGIC + 23)

_TAKE = struct.Struct("=II").pack(TAKE, 0)
_NOTE = struct.Struct(f"=IIQ{MAX_DESCRIPTORS}I")
_DESCRIPTOR_BYTES = 4
_RIGHTS_SPACE = socket.CMSG_SPACE(MAX_DESCRIPTORS * _DESCRIPTOR_BYTES)
# What a supervisor that was killed was just about to start has its connection
# for a moment more, between fork(2) and execve(2).
_DYING_SECONDS = 1.0
_RETRY_SECONDS = 0.01
_REFUSALS = {BUSY: "another supervisor is connected", FORBIDDEN: "it is another user's"}


@dataclass(frozen=True, slots=True)
class Note:
    """One thing that the keeper says; of kind 0, if this version does not understand it."""

    kind: int
    count: int
    key: int
    tags: tuple[int, ...]
    descriptors: tuple[int, ...]


@dataclass
class Contents:
    """What a keeper holds. The descriptors in it are the caller's own.

    Attributes:
      pid: of the keeper.
      held: by key, the descriptors by their tags.
      withheld: keys whose descriptors could not be had.
    """

    pid: int
    held: dict[int, dict[int, int]] = field(default_factory=dict)
    withheld: set[int] = field(default_factory=set)

    @property
    def keys(self) -> set[int]:
        """All that it holds."""
        return self.withheld.union(self.held)

    def close(self) -> None:
        """Close the descriptors."""
        for descriptors in self.held.values():
            for descriptor in descriptors.values():
                os.close(descriptor)


async def connect(directory: int) -> tuple[socket.socket, Contents]:
    """Connect to the keeper that lives, or else start one, and ask what it holds.

    Args:
      directory: a descriptor of the one in which its socket is.

    Raises:
      StateDirUnusable: it refuses to serve, or there can be no socket.
      LaunchError: it cannot be started.
    """
    try:
        connection, welcome = await _find(directory) or await _start(directory)
        deadline = trio.current_time() + _DYING_SECONDS
        while welcome.kind == BUSY and trio.current_time() < deadline:
            # Nothing tells when that is over.
            connection.close()
            await trio.sleep(_RETRY_SECONDS)
            connection, welcome = await _find(directory) or await _start(directory)
        with ExitStack() as on_failure:
            on_failure.enter_context(connection)
            if welcome.kind != WELCOME:
                reason = _REFUSALS.get(welcome.kind, "it is of another version")
                raise StateDirUnusable(f"the keeper refuses to serve: {reason}")
            contents = Contents(welcome.tags[0])
            await _take(connection, contents)
            on_failure.pop_all()
            return connection, contents
    except OSError as error:
        raise StateDirUnusable(f"the keeper cannot be used: {error}") from error


async def receive(connection: socket.socket) -> Note | None:
    """The next thing that the keeper says; None at the end. Its descriptors are the caller's."""
    while True:
        try:
            data, ancillary, _, _ = connection.recvmsg(
                2 * _NOTE.size, _RIGHTS_SPACE, socket.MSG_CMSG_CLOEXEC
            )
            break
        except BlockingIOError:
            await trio.lowlevel.wait_readable(connection)
        except ConnectionResetError:
            # It died before it had read everything. That is told once, before
            # what it had said itself (see keeper.c).
            continue
    if not data:
        return None
    descriptors: tuple[int, ...] = ()
    for level, kind, rights in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            count = len(rights) // _DESCRIPTOR_BYTES
            descriptors = struct.unpack(f"={count}i", rights[: count * _DESCRIPTOR_BYTES])
    if len(data) != _NOTE.size:
        return Note(0, 0, 0, (), descriptors)
    kind, count, key, *tags = _NOTE.unpack(data)
    return Note(kind, count, key, tuple(tags), descriptors)


async def _take(connection: socket.socket, contents: Contents) -> None:
    """Ask for all that it holds. If this raises, nothing is left open."""
    try:
        connection.send(_TAKE)
        while (note := await receive(connection)) is not None and note.kind != TAKEN:
            descriptors = dict(zip(note.tags, note.descriptors, strict=False))
            if note.kind == HELD and len(descriptors) == note.count:
                contents.held[note.key] = descriptors
                continue
            # Withheld there, or cut off here (MSG_CTRUNC) for lack of descriptors.
            for descriptor in note.descriptors:
                os.close(descriptor)
            contents.withheld.add(note.key)
        if note is None:
            raise LaunchError("the keeper has ended while it was asked what it holds")
    except BaseException:
        contents.close()
        raise
    if contents.withheld:
        _logger.error("of what the keeper holds, %d could not be had", len(contents.withheld))


async def _find(directory: int) -> tuple[socket.socket, Note] | None:
    """The connection to the keeper that lives, and what it says first; None if there is none."""
    with ExitStack() as on_failure:
        connection = on_failure.enter_context(_new_socket())
        try:
            connection.connect(_path(directory))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        welcome = await receive(connection)
        if welcome is None:
            # It has ended just now, which it does when it holds nothing.
            return None
        on_failure.pop_all()
        return connection, welcome


async def _start(directory: int) -> tuple[socket.socket, Note]:
    """Start a keeper; the first connection to it, and what it says first.

    Raises:
      OSError: there can be no socket.
      LaunchError: it cannot be started.
    """
    with suppress(FileNotFoundError):
        os.unlink(SOCKET, dir_fd=directory)
    with ExitStack() as on_failure:
        ours, the_keepers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        on_failure.enter_context(ours)
        ours.setblocking(False)
        with the_keepers, _new_socket() as listener:
            # Linux takes the file's mode from the socket (`unix_bind` in the
            # kernel's net/unix/af_unix.c): it never is anybody else's.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(_path(directory))
            listener.listen()
            await _spawn(the_keepers, listener, os.readlink(f"/proc/self/fd/{directory}"))
        welcome = await receive(ours)
        if welcome is None:
            raise LaunchError("the keeper has ended at once")
        on_failure.pop_all()
        return ours, welcome


async def _spawn(connection: socket.socket, listener: socket.socket, directory: str) -> None:
    try:
        process = await trio.lowlevel.open_process(
            # For those who look for it with ps(1).
            ["creche-keeper", directory],
            executable=_KEEPER,
            stdin=connection.fileno(),
            stdout=listener.fileno(),
            stderr=subprocess.DEVNULL,
            env={},
            start_new_session=True,
        )
    except OSError as error:
        raise resource_error(error) from error
    except RuntimeError as error:
        # Trio's thread, as in `launch.spawn`.
        raise OutOfProcesses("no thread could be made to start the keeper") from error
    with trio.CancelScope(shield=True):
        # It forks; the child, which nobody waits for, is the keeper.
        status = await process.wait()
    if status != 0:
        raise LaunchError(f"the keeper could not be started: status {status}")


def _path(directory: int) -> str:
    # Not that of the directory itself: it may be longer than an address (unix(7)).
    return f"/proc/self/fd/{directory}/{SOCKET}"


def _new_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
