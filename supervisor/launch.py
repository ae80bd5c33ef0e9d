"""Launching: from a checked spec to a running leader, or a typed error and nothing left behind.

Every leader starts as the launcher (`launcher/launcher.c`), which gets its
orders over a socket, carries them out in the child, and executes the command.
The socket closes by that very execution, so its end of file is the moment at
which the command runs; before it, a failure says which order failed and why.
"""

from __future__ import annotations

import errno
import os
import platform
import resource
import signal
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

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
    OutOfDescriptors,
    OutOfMemory,
    OutOfProcesses,
    PermissionDenied,
    UserNotPermitted,
    WorkingDirNotADirectory,
    WorkingDirNotFound,
)
from .orders import ANSWER_SIZE, Credentials, Failure, Limit, Orders, Stage, decode_answer, encode
from .record import ExitStatus
from .spec import Limits, ProcessSpec

_LAUNCHER = str(Path(__file__).parent / "launcher" / f"launcher-{platform.machine()}")


class Leader:
    """A started leader, until it is reaped. A context manager that owns it.

    The zombie is kept until then, so that pid, group and session stay this
    process's own for as long as they are used.

    Raises:
      OSError: it cannot be held by a pidfd.
    """

    __slots__ = ("_owns_pidfd", "_process", "pid", "pidfd")

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self.pid = process.pid
        # Trio's own, where it has one: thousands of live processes should not
        # cost a second descriptor each. Trio opens it before anyone could have
        # reaped, and closes it when we do.
        trios = getattr(process, "_pidfd", None)
        self.pidfd: int = os.pidfd_open(process.pid) if trios is None else trios.fileno()
        self._owns_pidfd = trios is None

    def __enter__(self) -> Leader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.poll()  # Reaps, and closes Trio's pidfd.
        if self._owns_pidfd:
            os.close(self.pidfd)

    async def wait(self) -> None:
        """Wait until the leader has exited. It stays a zombie."""
        await trio.lowlevel.wait_readable(self.pidfd)

    def exit_status(self) -> ExitStatus:
        """How the leader, which has exited, ended; without reaping it."""
        try:
            info = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:
            # Something else in this program waits for children that are not
            # its own. subprocess would say 0 here, which would be invented.
            return ExitStatus(None, None)
        assert info is not None
        if info.si_code == os.CLD_EXITED:
            return ExitStatus(info.si_status, None)
        return ExitStatus(None, info.si_status)


class Launcher:
    """A launcher that has been spawned, and waits for its orders or has them already.

    Whoever has one must `carry_out` or `dismiss` it.
    """

    __slots__ = ("_connection", "_process", "_sent")

    def __init__(self, process: trio.Process, connection: socket.socket, sent: int) -> None:
        self._process = process
        self._connection = connection
        self._sent = sent

    async def carry_out(self, orders: bytes, spec: ProcessSpec) -> Leader:
        """Give the orders, and return the leader once it has executed the command.

        Args:
          orders: those that it was spawned with, if any.
          spec: what they come from, for the errors.

        Raises:
          LaunchError: one of its subclasses; the OSError is its cause.

        If cancelled, or if it raises, nothing is left.
        """
        try:
            with self._connection:
                await _send_rest(self._connection, orders, self._sent)
                failure = await _receive_answer(self._connection)
            if failure is not None:
                cause = OSError(failure.errno, os.strerror(failure.errno))
                raise _launch_error(failure, spec) from cause
            if _was_killed_before_exec(self._process.pid, spec.command):
                raise KilledBeforeExec(
                    f"{spec.command!r} was not executed: the launcher was killed before, by "
                    "somebody or by the kernel (is a limit of memory too low?)"
                )
            return Leader(self._process)
        except BaseException as error:
            # Not reaped, hence still the number of this very group.
            os.killpg(self._process.pid, signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await self._process.wait()
            if isinstance(error, OSError):
                raise resource_error(error) from error
            raise

    def is_waiting(self) -> bool:
        """Whether it is alive; for one that has no orders yet."""
        return self._process.poll() is None

    async def dismiss(self) -> None:
        """Let it end without orders. Not interrupted by cancellation."""
        self._connection.close()
        with trio.CancelScope(shield=True):
            await self._process.wait()


def _was_killed_before_exec(pid: int, command: str) -> bool:
    """Whether a child whose answer has ended still is the launcher, killed.

    The answer ends by the execution or by death, and a dead one keeps its name.
    """
    with suppress(ChildProcessError):  # Somebody has stolen it, but not its name.
        info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if info is None or info.si_code == os.CLD_EXITED:
            return False
    with open(f"/proc/{pid}/comm", "rb") as file:
        name = file.read().rstrip(b"\n")
    # The kernel cuts names to 15 bytes (PR_SET_NAME in prctl(2)).
    if name != os.fsencode(os.path.basename(_LAUNCHER))[:15]:
        return False
    return os.fsencode(os.path.basename(command))[:15] != name


async def spawn(
    *, joins: tuple[int, ...], stdin: int, stdout: int, stderr: int, orders: bytes = b""
) -> Launcher:
    """Spawn a launcher in a session of its own.

    Args:
      joins: descriptors of the `cgroup.procs` that it joins first of all.
      stdin, stdout, stderr: descriptors, or `subprocess.DEVNULL`.
      orders: what it is to carry out, if that is known already.

    Raises:
      LaunchError: one of its subclasses; nothing is left.

    Cancellation: the spawn itself is not interrupted, since it takes less than
    a millisecond. There is no checkpoint after the process has come into being.
    """
    try:
        ours, the_childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise resource_error(error) from error
    with the_childs, ExitStack() as on_failure:
        on_failure.enter_context(ours)
        ours.setblocking(False)
        # What fits is there before the launcher is, which then need not wait.
        sent = ours.send(orders) if orders else 0
        fd = str(the_childs.fileno())
        try:
            process = await trio.lowlevel.open_process(
                [_LAUNCHER, fd, fd, ",".join(map(str, joins))],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env={},
                pass_fds=(the_childs.fileno(), *joins),
                # Here and not by an order: so it is never in our own group,
                # where a terminal's Ctrl-C would reach it.
                start_new_session=True,
            )
        except OSError as error:
            raise resource_error(error) from error
        except RuntimeError as error:
            # Trio starts processes in a worker thread; "can't start new
            # thread" is no OSError but the same EAGAIN.
            raise OutOfProcesses("no thread could be made to start the process") from error
        on_failure.pop_all()
        return Launcher(process, ours, sent)


def orders_for(
    spec: ProcessSpec,
    *,
    account: Account | None,
    environment: Environment,
    limits: Limits,
    null_unused_pipes: bool,
) -> bytes:
    """What a launcher is to do for this spec.

    Args:
      account: whom to become; None to stay who we are.
      environment: the whole environment of the child.
      limits: of which those of setrlimit(2) are set.
      null_unused_pipes: whether the launcher has a pipe for every stream, so
        that those that the spec does not want must be replaced.

    Raises:
      ArgumentListTooLong: no launcher takes that much.
    """
    command = os.fsencode(spec.command)
    rlimits = (
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_CORE, limits.core_bytes),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
    )
    orders = Orders(
        stdin="null" if null_unused_pipes and spec.stdin_mode == "closed" else "keep",
        stdout="null" if null_unused_pipes and spec.stdout_mode == "discard" else "keep",
        stderr="null" if null_unused_pipes and spec.stderr_mode == "discard" else "keep",
        limits=tuple(Limit(kind, value, value) for kind, value in rlimits if value is not None),
        credentials=None
        if account is None
        else Credentials(account.uid, account.gid, account.groups),
        directory=None if spec.working_dir is None else os.fsencode(spec.working_dir),
        command=command,
        arguments=(command, *map(os.fsencode, spec.args)),
        encoded_environment=environment.encode(),
    )
    try:
        return encode(orders)
    except ValueError as error:
        raise ArgumentListTooLong(str(error), field="args") from error


async def _send_rest(connection: socket.socket, orders: bytes, sent: int) -> None:
    """Send the orders from `sent` on; a launcher that has failed takes no more."""
    try:
        while sent < len(orders):
            await trio.lowlevel.wait_writable(connection)
            sent += connection.send(orders[sent : sent + 65536])
    except (BrokenPipeError, ConnectionResetError):
        pass  # Its answer says why.
    else:
        connection.shutdown(socket.SHUT_WR)


async def _receive_answer(connection: socket.socket) -> Failure | None:
    answer = b""
    while True:
        await trio.lowlevel.wait_readable(connection)
        try:
            data = connection.recv(ANSWER_SIZE)
        except ConnectionResetError:
            # It ended with orders unread, as it does once it has failed.
            data = b""
        answer += data
        if not data or len(answer) == ANSWER_SIZE:
            return decode_answer(answer)


def resource_error(error: OSError) -> LaunchError:
    """What running short of something means, for whatever was to be made for a start."""
    match error.errno:
        case errno.EAGAIN:
            return OutOfProcesses("no more processes can be started: limit reached")
        case errno.EMFILE | errno.ENFILE:
            return OutOfDescriptors("no more file descriptors can be opened: limit reached")
        case errno.ENOMEM:
            return OutOfMemory("the kernel has no memory for another process")
        case _:
            return LaunchError(f"the process could not be started: {error}")


def _launch_error(failure: Failure, spec: ProcessSpec) -> LaunchError:
    stage, number = failure
    command = spec.command
    reason = os.strerror(number)
    if number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
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
