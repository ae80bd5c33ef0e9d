"""What became of a process: the structs that callers and clients see.

Those that are kept of every process are none of the garbage collector's business,
as in `chunk`: they hold nothing that could refer back to them.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Status = Literal["running", "exited", "signaled", "oom_killed"]
Reason = Literal["exited", "signaled", "oom_killed", "timed_out", "unknown"]


class ExitStatus(Struct, frozen=True, gc=False):
    """How the leader ended, as the kernel told it to its parent (waitid(2)).

    Exactly one of code and signal is set, except that both are None when that
    is unknown: something else in the embedding program has stolen the exit
    status, or it ended while no supervisor was there.
    `oom_killed` says that the signal came from the kernel, for memory.
    """

    exit_code: int | None
    signal: int | None
    oom_killed: bool = False


class Usage(Struct, frozen=True, kw_only=True, gc=False):
    """What a unit has used, its descendants included; None where no controller counts it.

    Attributes:
      cpu_user_us, cpu_system_us: processor time in microseconds.
      memory_peak_bytes: the most that was charged at one time.
      read_bytes, written_bytes: to and from block devices.
      page_faults, major_page_faults: faults, and those that had to read.
    """

    cpu_user_us: int
    cpu_system_us: int
    memory_peak_bytes: int | None
    read_bytes: int | None
    written_bytes: int | None
    page_faults: int | None
    major_page_faults: int | None


class End(Struct, frozen=True, kw_only=True, gc=False):
    """Everything that became final with a process's end.

    Attributes:
      exit_status: how the leader ended.
      timed_out: whether its timeout came before its end.
      oom_kills: how often the kernel killed in the unit for memory.
      members_killed: how many descendants were alive at the end and were killed.
      usage: what the unit has used, where it had a cgroup.
    """

    exit_status: ExitStatus
    timed_out: bool
    oom_kills: int
    members_killed: int
    usage: Usage | None


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
      stdin_accepted_bytes: how many bytes its stdin pipe has taken.
      command: as requested.
      args: as requested.
      started_at: when the program was started.
      ended_at: when the leader exited; None while running.
      duration_us: from start to exit on the monotonic clock, in microseconds;
        None while running.
      output_kept_bytes: captured bytes that can be read.
      output_dropped_bytes: captured bytes that the bounds of outputs have cost so far.
      output_spilled_bytes: kept bytes that are in the state directory.
      output_spill_error: why not all that should be there could be put there, the
        newest reason; None if nothing went wrong. Such output stays in memory, as
        far as its bounds allow.
      reason: why it ended: as `status`, or `timed_out`, or `unknown` for one that
        counts as `exited` though nobody knows how it ended; None while running.
      signaled_by: who sent the deadly signal: `supervisor` for one of its own
        (kill, signal, stop, timeout), else `other`; None if no signal did.
      oom_kills: how often the kernel has killed in the unit for memory so far.
      members_killed: descendants that were alive at the end and were killed;
        None while running.
      usage: what the unit used to its end; None while running and without a cgroup.
    """

    handle: int
    pid: int
    status: Status
    exit_code: int | None
    signal: int | None
    oom_killed: bool
    stdin_writable: bool
    stdin_accepted_bytes: int
    command: str
    args: tuple[str, ...]
    started_at: int
    ended_at: int | None
    duration_us: int | None
    output_kept_bytes: int
    output_dropped_bytes: int
    output_spilled_bytes: int
    output_spill_error: str | None
    reason: Reason | None
    signaled_by: Literal["supervisor", "other"] | None
    oom_kills: int
    members_killed: int | None
    usage: Usage | None


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
