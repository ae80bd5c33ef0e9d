"""Handlers that answer at once: start, list, get, delete, signal, stdin/close and the outputs."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from quart import Request, Response
from quart.wrappers.response import DataBody

from supervisor import Gap, Line, Process, ProcessSpec, Stream, Supervisor

from .requests import find, format_resume, read_json, read_number, read_resume
from .schemas import (
    OutputLines,
    ProcessList,
    ProcessUsage,
    SignalRequest,
    Success,
    UsageList,
)

_encoder = msgspec.json.Encoder()
_start_decoder = msgspec.json.Decoder(ProcessSpec)
_signal_decoder = msgspec.json.Decoder(SignalRequest)


async def start(supervisor: Supervisor, request: Request) -> Response:
    """POST /processes"""
    spec = await read_json(request, _start_decoder)
    process = await supervisor.start(spec)
    return json_response(process.record, 201)


async def list_all(supervisor: Supervisor, request: Request) -> Response:
    """GET /processes"""
    return json_response(ProcessList([process.record for process in supervisor.processes()]))


async def get(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """GET /processes/{pid_or_name}"""
    return json_response(find(supervisor, request, pid_or_name).record)


async def delete(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """DELETE /processes/{pid_or_name}"""
    process = find(supervisor, request, pid_or_name)
    grace_ms = read_number(request, "grace_ms", largest=3_600_000)
    if grace_ms is None:
        await process.kill()
    else:
        await process.stop(grace_ms / 1000)
    return no_content()


async def send_signal(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """POST /processes/{pid_or_name}/signal"""
    wanted = await read_json(request, _signal_decoder)
    find(supervisor, request, pid_or_name).send_signal(wanted.signal)
    return json_response(Success())


async def close_stdin(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """POST /processes/{pid_or_name}/stdin/close"""
    await find(supervisor, request, pid_or_name).close_stdin()
    return no_content()


async def freeze(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """POST /processes/{pid_or_name}/freeze"""
    await find(supervisor, request, pid_or_name).freeze()
    return json_response(Success())


async def thaw(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """POST /processes/{pid_or_name}/thaw"""
    await find(supervisor, request, pid_or_name).thaw()
    return json_response(Success())


async def usage(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """GET /processes/{pid_or_name}/usage"""
    return json_response(_usage(find(supervisor, request, pid_or_name)))


async def usage_of_all(supervisor: Supervisor, request: Request) -> Response:
    """GET /usage"""
    running = [process for process in supervisor.processes() if process.status == "running"]
    return json_response(UsageList([_usage(process) for process in running]))


def _usage(process: Process) -> ProcessUsage:
    return ProcessUsage(process.handle, process.pid, process.usage, process.oom_kills)


async def stdout(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """GET /processes/{pid_or_name}/stdout"""
    return _output_lines(supervisor, request, pid_or_name, "stdout")


async def stderr(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """GET /processes/{pid_or_name}/stderr"""
    return _output_lines(supervisor, request, pid_or_name, "stderr")


async def output(supervisor: Supervisor, request: Request, pid_or_name: str) -> Response:
    """GET /processes/{pid_or_name}/output"""
    return _output_lines(supervisor, request, pid_or_name, None)


def _output_lines(
    supervisor: Supervisor, request: Request, pid_or_name: str, stream: Stream | None
) -> Response:
    process = find(supervisor, request, pid_or_name)
    log = process.log
    reader = process.lines(stream=stream, resume=read_resume(request, log, stream))
    limit = read_number(request, "limit", largest=10**9)
    lines: list[str] = []
    missing_bytes = missing_lines = 0
    resume = reader.resume
    items = iter(reader.take(log.kept_bytes + 1))
    for item in items if limit is None else _lines_up_to(limit, items):
        resume = item.resume
        if isinstance(item, Gap):
            missing_bytes += item.missing_bytes
            missing_lines += item.missing_lines
        else:
            lines.append(item.text)
    if limit is None or len(lines) < limit:
        # Unterminated, and so part of what comes next while the process runs.
        for line in reader.rest():
            lines.append(line.text)
            if log.closed:
                resume = line.resume
    return json_response(
        OutputLines(
            process.pid,
            lines,
            len(lines),
            format_resume(resume),
            missing_bytes,
            missing_lines,
        )
    )


def _lines_up_to(limit: int, items: Iterator[Line | Gap]) -> Iterator[Line | Gap]:
    count = 0
    while count < limit and (item := next(items, None)) is not None:
        count += isinstance(item, Line)
        yield item


def json_response(body: msgspec.Struct, status: int = 200) -> Response:
    """An answer with a struct as JSON."""
    return Response(_encoder.encode(body) + b"\n", status, content_type="application/json")


def no_content() -> Response:
    """An answer without a body."""
    # Quart's own empty body needs an asyncio event loop.
    response = Response(DataBody(b""), 204)
    del response.headers["content-type"]
    return response
