"""The one error hierarchy. Every class has a stable `code` that clients may test for.

Nothing that raises one of these has changed anything: a refused start has
started nothing, a refused signal has reached no one. Of input that is refused
half-way the error says how much was written.
"""

from __future__ import annotations

from typing import ClassVar


class SupervisorError(Exception):
    """Root of all errors that the supervisor raises on purpose.

    Attributes:
      code: stable, upper-case name of the kind of error.
      field: the part of the spec that is at fault, where there is one.
    """

    code: ClassVar[str] = "SUPERVISOR_ERROR"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


# --- what to start is at fault -------------------------------------------------


class SpecError(SupervisorError):
    """The spec asks for something that can never be started; change the spec."""

    code = "INVALID_SPEC"


class NulByte(SpecError):
    """A string holds a NUL byte, which no argument, variable or path can (execve(2))."""

    code = "NUL_BYTE"


class InvalidText(SpecError):
    """A string holds a lone surrogate, which stands for no bytes."""

    code = "INVALID_TEXT"


class BadEnvironmentName(SpecError):
    """An environment variable's name is empty or holds `=` (environ(7))."""

    code = "BAD_ENVIRONMENT_NAME"


class InvalidUser(SpecError):
    """`user` has none of the forms: name, uid, `uid:gid`, or an object of name or uid and gid."""

    code = "INVALID_USER"


class LimitUnavailable(SpecError):
    """A limit needs a cgroup controller that this supervisor does not have, or is out of its range."""

    code = "LIMIT_UNAVAILABLE"


# --- the kernel or the system refused ------------------------------------------


class LaunchError(SupervisorError):
    """The process could not be started; the cause is this error's `__cause__`."""

    code = "LAUNCH_FAILED"


class CommandNotFound(LaunchError):
    """No such command at that path, or in no directory of the child's PATH."""

    code = "COMMAND_NOT_FOUND"


class InterpreterNotFound(LaunchError):
    """The command is there, but the interpreter that it names (`#!` or ELF) is not."""

    code = "INTERPRETER_NOT_FOUND"


class NotExecutable(LaunchError):
    """The command is there but is not a program that its user may execute."""

    code = "NOT_EXECUTABLE"


class CommandIsDirectory(NotExecutable):
    """The command is a directory."""

    code = "COMMAND_IS_DIRECTORY"


class WorkingDirNotFound(LaunchError):
    """The working directory does not exist."""

    code = "WORKING_DIR_NOT_FOUND"


class WorkingDirNotADirectory(LaunchError):
    """The working directory is something else than a directory."""

    code = "WORKING_DIR_NOT_A_DIRECTORY"


class PermissionDenied(LaunchError):
    """The kernel refused: a directory that may not be entered, or a priority or OOM score that takes privilege."""

    code = "PERMISSION_DENIED"


class UserNotFound(LaunchError):
    """There is no account of that name."""

    code = "USER_NOT_FOUND"


class UserNotPermitted(LaunchError):
    """Only a supervisor that runs as root may start processes as another user."""

    code = "USER_NOT_PERMITTED"


class LimitNotPermitted(LaunchError):
    """A limit is above the supervisor's own hard limit, which only a privileged one may exceed."""

    code = "LIMIT_NOT_PERMITTED"


class ArgumentListTooLong(LaunchError):
    """Arguments and environment exceed the kernel's limit (E2BIG in execve(2))."""

    code = "ARGUMENT_LIST_TOO_LONG"


class KilledBeforeExec(LaunchError):
    """The launcher was killed before it could execute the command.

    By somebody, or by the kernel for memory, where a limit leaves no room even for that.
    """

    code = "KILLED_BEFORE_EXEC"


class OutOfResources(LaunchError):
    """The system has run short of something. Nothing was started: trying again is safe."""

    code = "OUT_OF_RESOURCES"


class OutOfProcesses(OutOfResources):
    """No process or thread could be made (EAGAIN in clone(2), pids limits included)."""

    code = "OUT_OF_PROCESSES"


class OutOfDescriptors(OutOfResources):
    """No file descriptor could be had (EMFILE or ENFILE)."""

    code = "OUT_OF_DESCRIPTORS"


class OutOfMemory(OutOfResources):
    """The kernel had no memory for the process (ENOMEM)."""

    code = "OUT_OF_MEMORY"


# --- what was asked of a process -----------------------------------------------


class ProcessNotFound(SupervisorError):
    """No process has that handle or pid, or it has been forgotten since."""

    code = "NOT_FOUND"


class PidReused(SupervisorError):
    """The pid belongs to another process than the one that the handle names."""

    code = "PID_REUSED"


class ProcessNotRunning(SupervisorError):
    """The process has ended, so it cannot be signalled."""

    code = "NOT_RUNNING"


class InvalidSignal(SupervisorError):
    """No signal has that number here (signal(7))."""

    code = "INVALID_SIGNAL"


class SignalNotPermitted(SupervisorError):
    """The process has become another user's, whom only a privileged supervisor may signal (kill(2))."""

    code = "SIGNAL_NOT_PERMITTED"


class CgroupsUnavailable(SupervisorError):
    """What was asked for needs a cgroup, and this supervisor has none; its capabilities say why."""

    code = "CGROUPS_UNAVAILABLE"


class StdinNotWritable(SupervisorError):
    """The process's stdin is not a pipe, was closed, or nobody reads it any more.

    Attributes:
      accepted_bytes: how much of what was to be written the pipe has taken all
        the same, from the beginning on. The process may not have read it.
    """

    code = "STDIN_NOT_WRITABLE"

    def __init__(self, message: str, *, accepted_bytes: int = 0) -> None:
        super().__init__(message, field="stdin")
        self.accepted_bytes = accepted_bytes


class SupervisorClosed(SupervisorError):
    """The supervisor is stopping and starts nothing any more."""

    code = "SHUTTING_DOWN"


# --- the supervisor's own settings -----------------------------------------------


class KeyReused(SupervisorError):
    """The key of a start belongs to a process that was started with another spec."""

    code = "IDEMPOTENCY_KEY_REUSED"


class StateDirUnusable(SupervisorError):
    """The state directory cannot be made or written, or another supervisor uses it."""

    code = "STATE_DIR_UNUSABLE"
