"""The JSON of the contract, as msgspec structs: requests are validated by them, the OpenAPI document is made from them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from supervisor import Capabilities, ProcessRecord, ProcessSpec, Reason, Stream, Usage


class RunRequest(ProcessSpec, frozen=True, kw_only=True):
    """What to run. stdin is closed and both outputs are captured, whatever the modes say."""

    timeout: (
        Annotated[float, Meta(ge=0, description="Seconds; then the tree is killed.")] | None
    ) = None


class SignalRequest(Struct, frozen=True):
    """A signal by its number."""

    signal: Annotated[int, Meta(ge=-(2**31), lt=2**31)]


class ErrorBody(Struct, frozen=True, omit_defaults=True):
    """Every error answer. `field` names the part of the request that is at fault, if one is.

    `accepted_bytes` is there when input was refused half-way: so much of it was written.
    """

    error: str
    code: str
    field: str | None = None
    accepted_bytes: int | None = None


class ProcessList(Struct, frozen=True):
    """All remembered processes, oldest first."""

    processes: list[ProcessRecord]


class Success(Struct, frozen=True):
    """It was done."""

    success: Literal[True] = True


class OutputLines(Struct, frozen=True):
    """Captured lines: all so far, or as many as were asked for.

    `next` is where to go on (`?from=`): behind the last line that is whole.
    `missing_bytes` and `missing_lines` count what the bounds of outputs have cost here;
    the lines are null where nobody knows how many they were.
    """

    pid: int
    lines: list[str]
    line_count: int
    next: str
    missing_bytes: int
    missing_lines: int | None


class ProcessUsage(Struct, frozen=True):
    """What a process's unit has used, up to now or to its end; null without a cgroup."""

    handle: int
    pid: int
    usage: Usage | None
    oom_kills: int


class UsageList(Struct, frozen=True):
    """The usage of all running processes, oldest first."""

    processes: list[ProcessUsage]


class Health(Struct, frozen=True):
    """The daemon answers."""

    healthy: Literal[True] = True


class Info(Struct, frozen=True):
    """The daemon; `total_processes` counts every process that it ever started."""

    version: str
    uptime_secs: int
    running_processes: int
    total_processes: int
    capabilities: Capabilities


class OutputEvent(Struct, frozen=True):
    """One line, in a stream of events; `stream` is there where both streams are.

    `partial` is there, and true, for a part of a long line that is not its last.
    """

    line: str
    timestamp: int
    stream: Stream | UnsetType = UNSET
    partial: Literal[True] | UnsetType = UNSET


class GapEvent(Struct, frozen=True):
    """What is missing here of one stream, because the bounds of outputs have cost it.

    The lines are null where the reader came back to a place from before everything that is kept.
    """

    stream: Stream
    missing_bytes: int
    missing_lines: int | None


class RunStarted(Struct, frozen=True):
    """The first event of a run."""

    handle: int
    pid: int
    started_at: int


class RunExited(Struct, frozen=True, omit_defaults=True):
    """The last event of a run.

    It must never hold both `pid` and `started_at`: clients would take it for
    the first one.
    """

    reason: Reason
    exit_code: int | None = None
    signal: int | None = None
    oom_killed: bool = False
