"""Handlers that answer at once: delete, signal, stdin/close, freeze and usage."""

from __future__ import annotations

import msgspec
from quart import Request, Response
from quart.wrappers.response import DataBody

from supervisor import Supervisor

from .lists import describe_usage
from .requests import find, read_json, read_number
from .schemas import SignalRequest, Success

_encoder = msgspec.json.Encoder()
_signal_decoder = msgspec.json.Decoder(SignalRequest)


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
    return json_response(describe_usage(find(supervisor, request, pid_or_name)))


def json_response(body: msgspec.Struct, status: int = 200) -> Response:
    """An answer with a struct as JSON."""
    return Response(_encoder.encode(body) + b"\n", status, content_type="application/json")


def no_content() -> Response:
    """An answer without a body."""
    # Quart's own empty body needs an asyncio event loop.
    response = Response(DataBody(b""), 204)
    del response.headers["content-type"]
    return response
