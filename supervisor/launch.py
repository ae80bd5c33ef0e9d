"""Launching: from a checked spec to a running leader, or a typed error and nothing left behind."""

from __future__ import annotations

import errno
import os
import signal
import stat
from types import TracebackType

import trio

from .accounts import Account
from .errors import (
    ArgumentListTooLong,
    CommandIsDirectory,
    CommandNotFound,
    InterpreterNotFound,
    LaunchError,
    NotExecutable,
    OutOfDescriptors,
    OutOfMemory,
    OutOfProcesses,
    PermissionDenied,
    WorkingDirNotADirectory,
    WorkingDirNotFound,
)
from .record import ExitStatus
from .spec import ProcessSpec


class Leader:
    """A started leader and its pidfd, until it is reaped. A context manager that owns both.

    The zombie is kept until `reap`, so that pid, group and session stay this
    process's own for as long as they are used.
    """

    __slots__ = ("_process", "pid", "pidfd")

    def __init__(self, process: trio.Process, pidfd: int) -> None:
        self._process = process
        self.pid = process.pid
        self.pidfd = pidfd

    def __enter__(self) -> Leader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.poll()  # Reaps, and closes Trio's own pidfd.
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


async def launch(
    spec: ProcessSpec,
    *,
    account: Account | None,
    environment: dict[str, str],
    stdin: int,
    stdout: int,
    stderr: int,
) -> Leader:
    """Start a leader in a session of its own and return once it has executed the command.

    Args:
      account: whom to become; None to stay who we are.
      environment: the whole environment of the child.
      stdin, stdout, stderr: descriptors, or `subprocess.DEVNULL`.

    Raises:
      LaunchError: one of its subclasses; the OSError is its cause.

    Cancellation: the launch itself is not interrupted, since it takes less than
    a millisecond. There is no checkpoint after the process has come into being.
    """
    _check_working_dir(spec)
    try:
        process = await trio.lowlevel.open_process(
            [spec.command, *spec.args],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=spec.working_dir,
            env=environment,
            start_new_session=True,
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else account.groups,
        )
    except OSError as error:
        raise _launch_error(error, spec, environment) from error
    except RuntimeError as error:
        # Trio starts processes in a worker thread; "can't start new thread"
        # is no OSError but the same EAGAIN.
        raise OutOfProcesses("no thread could be made to start the process") from error
    try:
        return Leader(process, os.pidfd_open(process.pid))
    except OSError as error:
        os.killpg(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()
        raise _launch_error(error, spec, environment) from error


def _check_working_dir(spec: ProcessSpec) -> None:
    # First of all: the kernel says ENOENT for a missing directory and for a
    # missing command alike.
    if spec.working_dir is None:
        return
    try:
        mode = os.stat(spec.working_dir).st_mode
    except FileNotFoundError as error:
        raise WorkingDirNotFound(
            f"working directory {spec.working_dir!r} does not exist", field="working_dir"
        ) from error
    except NotADirectoryError as error:
        raise WorkingDirNotADirectory(
            f"{spec.working_dir!r} leads through a file", field="working_dir"
        ) from error
    except OSError as error:
        raise PermissionDenied(
            f"working directory {spec.working_dir!r}: {error.strerror}", field="working_dir"
        ) from error
    if not stat.S_ISDIR(mode):
        raise WorkingDirNotADirectory(
            f"{spec.working_dir!r} is not a directory", field="working_dir"
        )


def _launch_error(error: OSError, spec: ProcessSpec, environment: dict[str, str]) -> LaunchError:
    command = spec.command
    match error.errno:
        case errno.E2BIG:
            return ArgumentListTooLong("arguments and environment are too long", field="args")
        case errno.EAGAIN:
            return OutOfProcesses("no more processes can be started: limit reached")
        case errno.EMFILE | errno.ENFILE:
            return OutOfDescriptors("no more file descriptors can be opened: limit reached")
        case errno.ENOMEM:
            return OutOfMemory("the kernel has no memory for another process")
        case errno.ENOENT | errno.ENOTDIR:
            if _find(command, spec.working_dir, environment) is not None:
                return InterpreterNotFound(
                    f"{command!r} names an interpreter that does not exist", field="command"
                )
            return CommandNotFound(f"command {command!r} was not found", field="command")
        case errno.ENOEXEC:
            return NotExecutable(
                f"{command!r} is not a program: it has no valid format", field="command"
            )
        case errno.EACCES | errno.EPERM:
            if spec.working_dir is not None and error.filename == spec.working_dir:
                return PermissionDenied(
                    f"working directory {spec.working_dir!r} may not be entered",
                    field="working_dir",
                )
            if error.filename is None:
                return PermissionDenied(f"the change of user was refused: {error.strerror}")
            found = _find(command, spec.working_dir, environment)
            if found is not None and os.path.isdir(found):
                return CommandIsDirectory(f"{command!r} is a directory", field="command")
            return NotExecutable(f"{command!r} may not be executed", field="command")
        case _:
            return LaunchError(f"{command!r} could not be started: {error.strerror or error}")


def _find(command: str, working_dir: str | None, environment: dict[str, str]) -> str | None:
    """Where the child found the command, as far as this process can see."""
    directories = [""] if "/" in command else os.get_exec_path(environment)
    for directory in directories:
        # A relative directory counts from where the child is.
        path = os.path.join(working_dir or "", directory, command)
        if os.path.exists(path):
            return path
    return None
