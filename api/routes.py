"""The table of all routes: what the app serves and what the OpenAPI document says, from one source."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

import supervisor
from supervisor import ProcessRecord, ProcessSpec

from . import direct, lists, outputs, problems, processes, raw, streams, system
from .schemas import (
    Health,
    Info,
    OutputLines,
    ProcessList,
    ProcessUsage,
    RunRequest,
    SignalRequest,
    Success,
    UsageList,
)

PREFIX = "/api/v1"


class Route(Struct, frozen=True, kw_only=True):
    """One operation.

    Attributes:
      method, path: as in OpenAPI; the path comes after `PREFIX`.
      summary: what it does, in one line.
      handler: an async function; of the supervisor, the request and the path's
        parameters, or for a direct route of the supervisor and the call.
      direct: whether it is served in front of Quart.
      parameters: names of its parameters in query and header, besides `handle`.
      request: the struct of the JSON body, or the media type of another body.
      status: of success.
      response: the struct of the JSON answer, a media type, or None for no body.
      errors: what may be raised, besides what any request may meet.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    summary: str
    handler: Any
    direct: bool = False
    parameters: tuple[str, ...] = ()
    request: type[Struct] | str | None = None
    status: int = 200
    response: type[Struct] | str | None = None
    errors: tuple[problems.ClientError, ...] = ()


_LAUNCH = (
    *(e for e in problems.STATUS if issubclass(e, (supervisor.SpecError, supervisor.LaunchError))),
    supervisor.SupervisorClosed,
)
_JSON = (
    problems.MalformedJson,
    problems.UnsupportedMediaType,
    problems.InvalidRequest,
    problems.BodyTooLarge,
    problems.BodyIncomplete,
    problems.BodyTimeout,
)
_FIND = (supervisor.ProcessNotFound, supervisor.PidReused, problems.InvalidQuery)
_ONE = "/processes/{pid_or_name}"
_EVENTS = "text/event-stream"

ROUTES = (
    Route(
        method="POST",
        path="/processes",
        summary="Start a process",
        handler=direct.start,
        direct=True,
        request=ProcessSpec,
        status=201,
        response=ProcessRecord,
        parameters=("Idempotency-Key",),
        errors=(*_JSON, *_LAUNCH, problems.InvalidHeader, supervisor.KeyReused),
    ),
    Route(
        method="GET",
        path="/processes",
        summary="List all remembered processes",
        handler=lists.list_all,
        response=ProcessList,
    ),
    Route(
        method="POST",
        path="/processes/run",
        summary="Run a command and stream its output and exit as events",
        handler=direct.run,
        direct=True,
        request=RunRequest,
        response=_EVENTS,
        errors=_JSON + _LAUNCH,
    ),
    Route(
        method="GET",
        path=_ONE,
        summary="Get a process",
        handler=direct.get,
        direct=True,
        response=ProcessRecord,
        errors=_FIND,
    ),
    Route(
        method="DELETE",
        path=_ONE,
        summary="Kill a process and its whole tree, and answer when it is dead",
        handler=processes.delete,
        parameters=("grace_ms",),
        status=204,
        errors=_FIND,
    ),
    Route(
        method="POST",
        path=_ONE + "/signal",
        summary="Send a signal to a process's group",
        handler=processes.send_signal,
        request=SignalRequest,
        response=Success,
        errors=(
            *_JSON,
            *_FIND,
            supervisor.ProcessNotRunning,
            supervisor.InvalidSignal,
            supervisor.SignalNotPermitted,
        ),
    ),
    Route(
        method="POST",
        path=_ONE + "/stdin",
        summary="Write to a process's stdin",
        handler=direct.write_stdin,
        direct=True,
        request="application/octet-stream",
        status=204,
        errors=(*_FIND, supervisor.StdinNotWritable),
    ),
    Route(
        method="POST",
        path=_ONE + "/stdin/close",
        summary="Close a process's stdin",
        handler=processes.close_stdin,
        status=204,
        errors=(*_FIND, supervisor.StdinNotWritable),
    ),
    Route(
        method="POST",
        path=_ONE + "/freeze",
        summary="Stop a process's whole tree where it is",
        handler=processes.freeze,
        response=Success,
        errors=(*_FIND, supervisor.ProcessNotRunning, supervisor.CgroupsUnavailable),
    ),
    Route(
        method="POST",
        path=_ONE + "/thaw",
        summary="Let a frozen tree go on",
        handler=processes.thaw,
        response=Success,
        errors=(*_FIND, supervisor.ProcessNotRunning, supervisor.CgroupsUnavailable),
    ),
    Route(
        method="GET",
        path=_ONE + "/usage",
        summary="What a process and its descendants have used",
        handler=processes.usage,
        response=ProcessUsage,
        errors=_FIND,
    ),
    Route(
        method="GET",
        path="/usage",
        summary="What every running process has used",
        handler=lists.usage_of_all,
        response=UsageList,
    ),
    Route(
        method="GET",
        path=_ONE + "/stdout",
        summary="The lines of stdout so far",
        handler=outputs.stdout,
        parameters=("from", "tail", "limit"),
        response=OutputLines,
        errors=_FIND,
    ),
    Route(
        method="GET",
        path=_ONE + "/stderr",
        summary="The lines of stderr so far",
        handler=outputs.stderr,
        parameters=("from", "tail", "limit"),
        response=OutputLines,
        errors=_FIND,
    ),
    Route(
        method="GET",
        path=_ONE + "/output",
        summary="The lines of both streams so far, in arrival order",
        handler=outputs.output,
        parameters=("from", "tail", "limit"),
        response=OutputLines,
        errors=_FIND,
    ),
    Route(
        method="GET",
        path=_ONE + "/stdout/follow",
        summary="Follow stdout from its beginning to the process's end",
        handler=streams.follow_stdout,
        parameters=("from", "tail"),
        response=_EVENTS,
        errors=_FIND,
    ),
    Route(
        method="GET",
        path=_ONE + "/stderr/follow",
        summary="Follow stderr from its beginning to the process's end",
        handler=streams.follow_stderr,
        parameters=("from", "tail"),
        response=_EVENTS,
        errors=_FIND,
    ),
    Route(
        method="GET",
        path=_ONE + "/output/follow",
        summary="Follow both streams, in arrival order",
        handler=streams.follow_output,
        parameters=("from", "tail"),
        response=_EVENTS,
        errors=_FIND,
    ),
    Route(
        method="GET",
        path=_ONE + "/stdout/raw",
        summary="The exact bytes of stdout; takes Range",
        handler=raw.stdout_raw,
        parameters=("follow",),
        response=raw.RAW,
        errors=(*_FIND, problems.RangeNotSatisfiable),
    ),
    Route(
        method="GET",
        path=_ONE + "/stderr/raw",
        summary="The exact bytes of stderr; takes Range",
        handler=raw.stderr_raw,
        parameters=("follow",),
        response=raw.RAW,
        errors=(*_FIND, problems.RangeNotSatisfiable),
    ),
    Route(
        method="GET",
        path=_ONE + "/output/raw",
        summary="The exact bytes of both streams, in arrival order; takes Range",
        handler=raw.output_raw,
        parameters=("follow",),
        response=raw.RAW,
        errors=(*_FIND, problems.RangeNotSatisfiable),
    ),
    Route(
        method="GET",
        path=_ONE + "/output/frames",
        summary="Both streams as MessagePack arrays of position, timestamp, stream and bytes",
        handler=raw.output_frames,
        parameters=("from", "follow"),
        response=raw.FRAMES,
        errors=_FIND,
    ),
    Route(
        method="GET",
        path="/health",
        summary="Whether the daemon answers",
        handler=system.health,
        response=Health,
    ),
    Route(
        method="GET",
        path="/info",
        summary="The daemon's version, uptime and numbers of processes",
        handler=system.info,
        response=Info,
    ),
)
