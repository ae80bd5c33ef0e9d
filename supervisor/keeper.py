"""The keeper's client: descriptors that outlive this supervisor, in a small process that does too.

The guarantee, and the protocol, are at the top of `launcher/keeper.c`. What
is here adds three things:

- The keeper of a state directory is found, or started (`keeper_process`).
- A keeper that is killed is replaced, and the new one gets everything again.
- Nobody waits for a keeper that is stopped: what it does not take now, it gets
  once it takes something again.

For the last two, `Keeper.run` asks its caller what there is to keep *now*. So
nothing is remembered here but keys, and no descriptor is duplicated.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import trio

from .errors import LaunchError, StateDirUnusable
from .keeper_process import (
    DROP,
    END,
    MAX_DESCRIPTORS,
    PUT,
    REFUSED,
    SOCKET,
    Contents,
    connect,
    receive,
)

_logger = logging.getLogger(__name__)

# Descriptors by their tags, which say what each of them is; 1 to 4 of them.
Descriptors = Mapping[int, int]

_MAX_KEYS = 256

_DROP_ONE = struct.Struct("=IIQ")
_END = struct.Struct("=II").pack(END, 0)
# By the number of descriptors.
_COUNTS = range(MAX_DESCRIPTORS + 1)
_PUTS = tuple(struct.Struct(f"=IIQ{n}I{4 * (MAX_DESCRIPTORS - n)}x") for n in _COUNTS)
_RIGHTS = tuple(struct.Struct(f"={n}i") for n in _COUNTS)

# The keeper takes nothing now, or is dead: it or the one that replaces it is told later.
_LATER = (errno.EAGAIN, errno.EPIPE, errno.ECONNRESET)

# A keeper that dies again and again is replaced less and less often.
_STEADY_SECONDS = 60.0
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 30.0
# Longer than the rest that it takes.
_ENDING_SECONDS = 1.0


class Keeper:
    """A connection to the keeper; see `open_keeper`.

    Never put the write end of an output pipe: its reader would wait for an
    end that no longer comes.

    Attributes:
      pid: of the keeper.
      held: what it held for a supervisor before this one. These descriptors,
        all close-on-exec, are the caller's own, who must close them. The keeper
        goes on holding its own until they are dropped.
      withheld: keys that it holds as well, but whose descriptors could not be
        had, since there are too few here, or too many on the way.
    """

    def __init__(self, directory: int, connection: socket.socket, contents: Contents) -> None:
        self._directory = directory
        self._connection = connection
        self.pid = contents.pid
        self.held = contents.held
        self.withheld = contents.withheld
        # The keys that it may have; and of these and of those that it should
        # have, those of which it must yet be told.
        self._kept = contents.keys
        self._late: set[int] = set()
        self._becomes_late = trio.lowlevel.ParkingLot()
        self._is_told = trio.lowlevel.ParkingLot()

    def put(self, key: int, descriptors: Descriptors) -> None:
        """Have these kept as `key`, in place of what was.

        They are as soon as this returns, even if this supervisor is killed
        then; unless the keeper takes nothing or is dead. Then `run` puts them
        once it can. Raises nothing: what cannot be kept is logged.
        """
        if self._late:
            self._late.add(key)
            return
        count = len(descriptors)
        assert 1 <= count <= MAX_DESCRIPTORS
        note = _PUTS[count].pack(PUT, count, key, *descriptors)
        rights = _RIGHTS[count].pack(*descriptors.values())
        try:
            self._connection.sendmsg((note,), ((socket.SOL_SOCKET, socket.SCM_RIGHTS, rights),))
        except OSError as error:
            if error.errno in _LATER:
                self._be_late(key)
            else:
                # ETOOMANYREFS, for one: too many are on their way (unix(7)).
                _logger.error("what is to be kept as %d would not outlive us: %s", key, error)
                self.drop(key)
        else:
            self._kept.add(key)

    def drop(self, *keys: int) -> None:
        """Have these kept no longer. Raises nothing; keys that are not kept do no harm."""
        if len(keys) != 1:
            kept = [key for key in keys if key in self._kept]
            self._late.difference_update(set(keys).difference(kept))
            for start in range(0, len(kept), _MAX_KEYS):
                batch = kept[start : start + _MAX_KEYS]
                self._send_drop(batch, struct.pack(f"=II{len(batch)}Q", DROP, len(batch), *batch))
        elif keys[0] in self._kept:
            self._send_drop(keys, _DROP_ONE.pack(DROP, 1, keys[0]))
        elif self._late:
            self._late.discard(keys[0])

    async def run(self, current: Callable[[], Iterable[tuple[int, Descriptors]]]) -> None:
        """See to it that there is a keeper and that it has everything, until cancelled.

        Args:
          current: what is to be kept now: every key from its `put` to its
            `drop`, and its descriptors, which are open.

        A keeper that dies is replaced at once; if that fails, or happens again
        and again, after a pause of at most half a minute.
        """
        pause = 0.0
        while True:
            since = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._catch_up, current)
                await self._listen()
                nursery.cancel_scope.cancel()
            _logger.warning("the keeper, process %d, has ended and is replaced", self.pid)
            if trio.current_time() - since > _STEADY_SECONDS:
                pause = 0.0
            while True:
                await trio.sleep(pause)
                pause = min(max(2 * pause, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
                try:
                    connection, contents = await connect(self._directory)
                    break
                except (StateDirUnusable, LaunchError) as error:
                    _logger.error("nothing would outlive us: %s", error)
            self._connection.close()
            self._connection = connection
            self.pid = contents.pid
            self._kept = contents.keys
            self._late = set()
            # It holds nothing yet, unless the old one has not died but hung up on us.
            contents.close()
            now = dict(current())
            self.drop(*self._kept.difference(now))
            for key, descriptors in now.items():
                self.put(key, descriptors)
            _logger.info("the keeper is process %d now", self.pid)
            self._is_told.unpark_all()

    async def settle(self) -> None:
        """Wait until the keeper has been told everything. Needs `run`.

        There is something to wait for only if it was found to be stopped, slow
        or dead.
        """
        while self._late:
            await self._is_told.park()

    async def end(self) -> None:
        """End the keeper with all that it holds, and wait for it. Not while `run` does.

        It is the last thing to be done here.
        """
        with trio.move_on_after(_ENDING_SECONDS) as patience:
            await trio.lowlevel.wait_writable(self._connection)
            with suppress(BrokenPipeError, ConnectionResetError):
                self._connection.send(_END)
            while await receive(self._connection) is not None:
                pass
        if patience.cancelled_caught:
            # It is stopped. Its connection is not at its end, so it is still there.
            _logger.warning("the keeper, process %d, does not end and is killed", self.pid)
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            while await receive(self._connection) is not None:
                pass
        with suppress(FileNotFoundError):
            os.unlink(SOCKET, dir_fd=self._directory)

    # --- behind `put` and `drop`

    def _send_drop(self, keys: Iterable[int], note: bytes) -> None:
        if self._late:
            self._late.update(keys)
            return
        try:
            self._connection.send(note)
        except OSError:
            self._be_late(*keys)
        else:
            self._kept.difference_update(keys)

    def _be_late(self, *keys: int) -> None:
        self._late.update(keys)
        self._becomes_late.unpark_all()

    async def _catch_up(self, current: Callable[[], Iterable[tuple[int, Descriptors]]]) -> None:
        while True:
            if not self._late:
                await self._becomes_late.park()
            await trio.lowlevel.wait_writable(self._connection)
            late, self._late = self._late, set()
            now = dict(current())
            for key in late:
                if key in now:
                    self.put(key, now[key])
                else:
                    self.drop(key)
            if not self._late:
                self._is_told.unpark_all()

    async def _listen(self) -> None:
        """Listen to the keeper until it has ended."""
        while (note := await receive(self._connection)) is not None:
            if note.kind == REFUSED:
                reason = os.strerror(note.count)
                _logger.error(
                    "the keeper, process %d, cannot keep %d: %s", self.pid, note.key, reason
                )


@asynccontextmanager
async def open_keeper(directory: Path | int) -> AsyncIterator[Keeper]:
    """Connect to the keeper of a state directory, which is started if there is none, and take what it holds.

    At the end of the block the connection is closed, and no more. A keeper
    that holds anything then lives on, as it does if this process is killed.
    One that holds nothing ends.

    Args:
      directory: where its socket is; a path, or a descriptor of it. Where no
        keeper lives, no two supervisors may do this at a time: it is for the
        caller to hold a lock.

    Raises:
      StateDirUnusable: another supervisor is connected, the keeper is another
        user's, or there can be no socket.
      LaunchError: it cannot be started.

    Waits for a keeper that is stopped, and can be cancelled.
    """
    with ExitStack() as stack:
        try:
            descriptor = (
                os.dup(directory)
                if isinstance(directory, int)
                else os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            )
        except OSError as error:
            raise StateDirUnusable(f"{directory} cannot be used: {error.strerror}") from error
        stack.callback(os.close, descriptor)
        keeper = Keeper(descriptor, *await connect(descriptor))
        # Not this connection, but the last.
        stack.callback(lambda: keeper._connection.close())
        yield keeper
