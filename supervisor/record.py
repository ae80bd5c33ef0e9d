"""What became of a process: the structs that callers and clients see."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Status = Literal["running", "exited", "signaled", "oom_killed"]
Reason = Literal["exited", "signaled", "oom_killed", "timed_out"]


class ExitStatus(Struct, frozen=True):
    """How the leader ended, as the kernel told it to its parent (waitid(2)).

    Exactly one of the two is set, except that both are None when something
    else in the embedding program has stolen the exit status.
    """

    exit_code: int | None
    signal: int | None


class ProcessRecord(Struct, frozen=True, kw_only=True):
    """A snapshot of one process. Times are integer milliseconds since the epoch.

    Attributes:
      handle: unique in the supervisor's life and never reused.
      pid: the leader's process id, which the kernel reuses after its end.
      status: `running` until the end is complete: the leader reaped, the rest
        of its tree dead, and its output whole.
      exit_code: set only when `exited`.
      signal: set only when `signaled` or `oom_killed`.
      oom_killed: whether the kernel killed the leader for memory.
      stdin_writable: whether `write_stdin` can succeed.
      command: as requested.
      args: as requested.
      started_at: when the program was started.
      ended_at: when the leader exited; None while running.
      output_dropped_bytes: captured bytes that the log's limit has cost so far.
    """

    handle: int
    pid: int
    status: Status
    exit_code: int | None
    signal: int | None
    oom_killed: bool
    stdin_writable: bool
    command: str
    args: tuple[str, ...]
    started_at: int
    ended_at: int | None
    output_dropped_bytes: int


class RunResult(Struct, frozen=True, kw_only=True):
    """What `Supervisor.run` returns.

    Attributes:
      record: the process's final record.
      reason: why it ended; `timed_out` when the caller's timeout killed it.
      stdout: every captured byte of stdout that the log has kept.
      stderr: the same of stderr.
    """

    record: ProcessRecord
    reason: Reason
    stdout: bytes
    stderr: bytes

    @property
    def exit_code(self) -> int | None:
        """What the leader passed to exit(3), if it exited."""
        return self.record.exit_code

    @property
    def signal(self) -> int | None:
        """The signal that ended the leader, if one did."""
        return self.record.signal
