"""Launching: from a checked spec to a running leader, or a typed error and nothing left behind.

Every leader starts as the launcher (`launcher/launcher.c`), which gets its
orders over a socket, with them its stdin, carries them out in the child, and
executes the command. The socket closes by that very execution, so its end of file
is the moment at which the command runs; before it, a failure says which order
failed and why.

The launcher is born with nothing but three descriptors, and the first is that
socket. So nothing need be closed between fork and exec, where `subprocess` holds the
interpreter's lock, and would take 2 ms with 20,000 open. Our descriptors are all
close-on-exec; what others in the program have left inheritable, the launcher closes.
"""

from __future__ import annotations

import errno
import os
import platform
import signal
import socket
import struct
from contextlib import ExitStack, suppress
from pathlib import Path

import trio

from .accounts import Account
from .environment import Environment
from .errors import (
    ArgumentListTooLong,
    CommandIsDirectory,
    CommandNotFound,
    InterpreterNotFound,
    KilledBeforeExec,
    LaunchError,
    LimitNotPermitted,
    NotExecutable,
    OutOfProcesses,
    PermissionDenied,
    UserNotPermitted,
    WorkingDirNotADirectory,
    WorkingDirNotFound,
)
from .leader import Leader, take_from_trio
from .orders import ANSWER_SIZE, Credentials, Failure, Orders, Stage, decode_answer, encode
from .reaper import Children
from .shortages import SHORTAGES, resource_error
from .spec import ProcessSpec

# Popen holds the interpreter's lock from its vfork until the launcher is executed, so
# more threads would do nothing but fight for it, and the loop with them: of 64 clients
# the unlucky waited for 0.5 s.
_AT_A_TIME = 2
_FIRST = b"\0"
_DESCRIPTOR = struct.Struct("i")
_LAUNCHER = str(Path(__file__).parent / "launcher" / f"launcher-{platform.machine()}")


class Launcher:
    """A launcher that has been spawned, and waits for its orders.

    Whoever has one must `order` it and see it have `executed` them, or `dismiss` it.

    Args:
      leader: what it becomes.
      connection: on which it takes orders and answers, a socket that does not
        block; owned here from now on.

    Attributes:
      leader: from `order` on the caller's own.
    """

    __slots__ = ("_connection", "_failure", "_rest", "leader")

    def __init__(self, leader: Leader, connection: socket.socket) -> None:
        self.leader = leader
        self._connection = connection
        self._rest = memoryview(b"")
        self._failure: OSError | None = None

    def order(self, orders: bytes, stdin: int) -> None:
        """Give the orders, as far as they can be given at once.

        Args:
          stdin: a descriptor of what is to be its stdin; it stays the caller's.
        """
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(stdin))
        try:
            sent = self._connection.sendmsg((_FIRST, orders), (rights,)) - len(_FIRST)
            self._rest = memoryview(orders)[sent:]
        except OSError as error:
            self._failure = error  # Met by whoever waits.

    async def executed(self, spec: ProcessSpec) -> None:
        """Give the rest of the orders, and return once it has executed the command.

        Args:
          spec: what the orders come from, for the errors.

        Raises:
          LaunchError: one of its subclasses; the OSError is its cause.

        If cancelled, or if it raises, the leader is dead, but not reaped.
        """
        leader = self.leader
        try:
            try:
                is_heard = await self._send_rest()
                failure = await _receive_answer(self._connection)
            except ConnectionResetError:
                is_heard, failure = False, None
            finally:
                self._connection.close()
            if failure is not None:
                cause = OSError(failure.errno, os.strerror(failure.errno))
                raise _launch_error(failure, spec) from cause
            if not is_heard:
                raise KilledBeforeExec(
                    f"{spec.command!r} was not executed: the launcher was killed before, by "
                    "somebody or by the kernel (is a limit of memory too low?)"
                )
        except BaseException as error:
            # Not reaped, hence still the number of this very group, if it came to lead one.
            with suppress(ProcessLookupError):
                os.killpg(leader.pid, signal.SIGKILL)
            await leader.die()
            if isinstance(error, OSError):
                # Not told as a shortage, which would say that nothing has happened.
                raise LaunchError(
                    f"{spec.command!r} may have been executed, but was killed again: {error}"
                ) from error
            raise

    async def _send_rest(self) -> bool:
        """Send what is left of the orders; whether all were. A launcher that has failed takes no more."""
        try:
            if self._failure is not None:
                raise self._failure
            while self._rest:
                try:
                    self._rest = self._rest[self._connection.send(self._rest) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._connection)
        except (BrokenPipeError, ConnectionResetError):
            return False  # Its answer says why, if it gave one.
        except OSError as error:
            raise resource_error(error) from error
        return True

    async def dismiss(self) -> None:
        """Let it end without orders. Not interrupted by cancellation."""
        self._connection.close()
        with self.leader:
            await self.leader.die()  # It may be stopped, and would not end by itself.


class Launchers:
    """Where launchers come from. A context manager that holds their program open.

    So it is there, and the one that we speak the language of, also while another
    version is being installed in its place.

    Args:
      children: those to add launchers to.

    Attributes:
      null: a descriptor of /dev/null.

    Raises:
      FileNotFoundError: this package was installed without its launcher.
    """

    def __init__(self, children: Children) -> None:
        self._children = children
        self._program = self.null = -1
        self._stack = ExitStack()
        self._turns = trio.Semaphore(_AT_A_TIME)

    def __enter__(self) -> Launchers:
        with ExitStack() as stack:
            self._program = os.open(_LAUNCHER, os.O_PATH | os.O_CLOEXEC)
            stack.callback(os.close, self._program)
            self.null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, self.null)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    async def spawn(self, *, cgroups: tuple[str, ...], stdout: int, stderr: int) -> Launcher:
        """Spawn one in a session of its own.

        Args:
          cgroups: directories that it makes, where they are not there yet, and joins first of all.
          stdout, stderr: descriptors, or `subprocess.DEVNULL`.

        Raises:
          LaunchError: one of its subclasses; nothing is left.

        Waits for its turn. Cancellation: the spawn itself is not interrupted, since it
        takes less than a millisecond. There is no checkpoint after the process has come
        into being.
        """
        try:
            self._turns.acquire_nowait()
        except trio.WouldBlock:
            await self._turns.acquire()
        try:
            return await self._spawn(cgroups, stdout, stderr)
        except OSError as error:
            raise resource_error(error) from error
        except RuntimeError as error:
            # Trio starts processes in a worker thread; "can't start new
            # thread" is no OSError but the same EAGAIN.
            raise OutOfProcesses("no thread could be made to start the process") from error
        finally:
            self._turns.release()

    async def _spawn(self, cgroups: tuple[str, ...], stdout: int, stderr: int) -> Launcher:
        ours, the_childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with the_childs, self._children.birth():
                ours.setblocking(False)
                process = await trio.lowlevel.open_process(
                    [_LAUNCHER, "0", "0", *cgroups],
                    executable=f"/proc/self/fd/{self._program}",
                    stdin=the_childs.fileno(),
                    stdout=stdout,
                    stderr=stderr,
                    env={},
                    close_fds=False,
                    # Here and not by an order: so it is never in our own group,
                    # where a terminal's Ctrl-C would reach it.
                    start_new_session=True,
                )
                leader = take_from_trio(process, self._children)
        except BaseException:
            ours.close()
            raise
        return Launcher(leader, ours)


def orders_for(
    spec: ProcessSpec,
    *,
    account: Account | None,
    environment: Environment,
    attributes: bytes,
    no_new_privs: bool,
    null_unused_pipes: bool,
) -> bytes:
    """What a launcher is to do for this spec.

    Args:
      account: whom to become; None to stay who we are.
      environment: the whole environment of the child.
      attributes: encoded ones.
      no_new_privs: whether executing anything can give it no privileges.
      null_unused_pipes: whether the launcher has a pipe for every stream, so
        that those that the spec does not want must be replaced.

    Raises:
      ArgumentListTooLong: no launcher takes that much.
    """
    command = os.fsencode(spec.command)
    orders = Orders(
        stdout="null" if null_unused_pipes and spec.stdout_mode == "discard" else "keep",
        stderr="null" if null_unused_pipes and spec.stderr_mode == "discard" else "keep",
        encoded_attributes=attributes,
        credentials=None
        if account is None
        else Credentials(account.uid, account.gid, account.groups),
        no_new_privs=no_new_privs,
        directory=None if spec.working_dir is None else os.fsencode(spec.working_dir),
        command=command,
        arguments=(command, *map(os.fsencode, spec.args)),
        encoded_environment=environment.encode(),
    )
    try:
        return encode(orders)
    except ValueError as error:
        raise ArgumentListTooLong(str(error), field="args") from error


async def _receive_answer(connection: socket.socket) -> Failure | None:
    """Why it failed; None if it has executed the command.

    Raises:
      ConnectionResetError: it died before it had heard all of its orders.
    """
    answer = b""
    while True:
        await trio.lowlevel.wait_readable(connection)
        try:
            data = connection.recv(ANSWER_SIZE)
        except BlockingIOError:
            continue  # For nothing; see `readiness`.
        answer += data
        if not data or len(answer) == ANSWER_SIZE:
            return decode_answer(answer)


def _launch_error(failure: Failure, spec: ProcessSpec) -> LaunchError:
    stage, number = failure
    command = spec.command
    reason = os.strerror(number)
    if number in SHORTAGES:
        return resource_error(OSError(number, reason))
    match stage, number:
        case Stage.DIRECTORY, errno.EACCES:
            return PermissionDenied(
                f"working directory {spec.working_dir!r} may not be entered", field="working_dir"
            )
        case Stage.DIRECTORY, errno.ENOTDIR:
            return WorkingDirNotADirectory(
                f"{spec.working_dir!r} is not a directory", field="working_dir"
            )
        case Stage.DIRECTORY, _:
            return WorkingDirNotFound(
                f"working directory {spec.working_dir!r}: {reason}", field="working_dir"
            )
        case ((Stage.GROUPS | Stage.GID | Stage.UID), errno.EAGAIN):
            return OutOfProcesses("the user has too many processes")
        case ((Stage.GROUPS | Stage.GID | Stage.UID), _):
            return UserNotPermitted(f"the change of user was refused: {reason}", field="user")
        case Stage.NICE, (errno.EACCES | errno.EPERM):
            return PermissionDenied(
                f"nice {spec.nice} is a higher priority than the supervisor may give", field="nice"
            )
        case Stage.OOM_SCORE_ADJ, (errno.EACCES | errno.EPERM):
            return PermissionDenied(
                f"oom_score_adj {spec.oom_score_adj} is lower than the supervisor may set",
                field="oom_score_adj",
            )
        case Stage.LIMIT, errno.EPERM:
            return LimitNotPermitted(
                "a limit exceeds the supervisor's own, which it may not raise", field="limits"
            )
        case Stage.INTERPRETER, _:
            return InterpreterNotFound(
                f"{command!r} names an interpreter that does not exist", field="command"
            )
        case Stage.COMMAND, (errno.ENOENT | errno.ENOTDIR | errno.ENAMETOOLONG | errno.ELOOP):
            return CommandNotFound(f"command {command!r} was not found", field="command")
        case Stage.COMMAND, errno.EISDIR:
            return CommandIsDirectory(f"{command!r} is a directory", field="command")
        case Stage.COMMAND, errno.E2BIG:
            return ArgumentListTooLong("arguments and environment are too long", field="args")
        case Stage.COMMAND, errno.EAGAIN:
            return OutOfProcesses("the user has too many processes")
        case Stage.COMMAND, _:
            return NotExecutable(f"{command!r} may not be executed: {reason}", field="command")
        case _:
            return LaunchError(f"the launcher failed at {stage.name}: {reason}")
