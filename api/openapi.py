"""The OpenAPI 3.1 document and a page for people, both made from the routes and their structs."""

from __future__ import annotations

import html
import inspect
import re
from typing import Any

import msgspec
from msgspec import Struct

from .problems import (
    STATUS,
    AmbiguousLength,
    ClientError,
    HeadTooLarge,
    HostRefused,
    Internal,
    MalformedHttp,
    OriginRefused,
    PeerRefused,
    TooManyConnections,
    Unauthorized,
)
from .routes import PREFIX, ROUTES, Route
from .schemas import (
    ErrorBody,
    GapEvent,
    OutputEvent,
    RunExited,
    RunStarted,
)
from .system import VERSION

_REFERENCE = "#/components/schemas/{name}"
_ANYWHERE: tuple[ClientError, ...] = (
    MalformedHttp,
    AmbiguousLength,
    Unauthorized,
    HostRefused,
    OriginRefused,
    PeerRefused,
    HeadTooLarge,
    Internal,
    TooManyConnections,
)
_EVENTS: tuple[type[Struct], ...] = (RunStarted, OutputEvent, GapEvent, RunExited)
_PARAMETERS = {
    "pid_or_name": {
        "name": "pid_or_name",
        "in": "path",
        "required": True,
        "description": "The pid of a process; it means the newest process that had it.",
        "schema": {"type": "string", "minLength": 1},
    },
    "handle": {
        "name": "handle",
        "in": "query",
        "description": "The handle of the process that is meant; the call fails with 409 if the "
        "pid now belongs to another.",
        "schema": {"type": "integer", "minimum": 0, "maximum": 10**18 - 1},
    },
    "from": {
        "name": "from",
        "in": "query",
        "description": "Begin behind the event with this id; the header Last-Event-ID does the same.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,18}(-[0-9]{1,18})?$"},
    },
    "follow": {
        "name": "follow",
        "in": "query",
        "description": "Go on until the end of the output.",
        "schema": {"type": "boolean"},
    },
    "tail": {
        "name": "tail",
        "in": "query",
        "description": "Begin this many lines before the end.",
        "schema": {"type": "integer", "minimum": 0, "maximum": 10**9},
    },
    "limit": {
        "name": "limit",
        "in": "query",
        "description": "At most this many lines.",
        "schema": {"type": "integer", "minimum": 0, "maximum": 10**9},
    },
    "Idempotency-Key": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Of the client's choice. A request with the key of an earlier one starts "
        "nothing, and is answered with the process that that one has started, as long as it is "
        "remembered.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    },
    "grace_ms": {
        "name": "grace_ms",
        "in": "query",
        "description": "Send SIGTERM first, and SIGKILL only after this many milliseconds.",
        "schema": {"type": "integer", "minimum": 0, "maximum": 3_600_000},
    },
}


def document() -> dict[str, Any]:
    """The OpenAPI document of all routes."""
    structs = {
        part
        for route in ROUTES
        for part in (route.request, route.response)
        if isinstance(part, type)
    }
    _, components = msgspec.json.schema_components(
        [*structs, *_EVENTS, ErrorBody], ref_template=_REFERENCE
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(PREFIX + route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Creche",
            "version": VERSION,
            "description": "Starts, watches, streams, signals and reaps processes.",
        },
        "security": [{}, {"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.handler.__module__.rpartition('.')[2]}_{route.handler.__name__}",
        "responses": _responses(route),
    }
    names = re.findall(r"\{(\w+)\}", route.path)
    if parameters := (*names, *(("handle",) if names else ()), *route.parameters):
        operation["parameters"] = [_PARAMETERS[name] for name in parameters]
    if route.request is not None:
        operation["requestBody"] = {"required": True, "content": _content(route.request)}
    return operation


def _responses(route: Route) -> dict[str, Any]:
    success: dict[str, Any] = {"description": "Success"}
    if route.response is not None:
        success["content"] = _content(route.response)
    responses = {str(route.status): success}
    by_status: dict[int, list[ClientError]] = {}
    for error in (*route.errors, *_ANYWHERE):
        by_status.setdefault(STATUS[error], []).append(error)
    for status, errors in sorted(by_status.items()):
        codes = sorted(error.code for error in errors)
        responses[str(status)] = {
            "description": ", ".join(f"`{code}`" for code in codes),
            "content": _content(ErrorBody),
        }
    return responses


def _content(part: type[Struct] | str) -> dict[str, Any]:
    match part:
        case "text/event-stream":
            events = [{"$ref": _REFERENCE.format(name=event.__name__)} for event in _EVENTS]
            return {
                part: {
                    "schema": {"type": "string"},
                    "x-events": events,
                }
            }
        case str():
            return {part: {"schema": {"type": "string", "format": "binary"}}}
        case _:
            reference = _REFERENCE.format(name=part.__name__)
            return {"application/json": {"schema": {"$ref": reference}}}


def page() -> str:
    """The routes, the error codes and what is said in JSON, as a page of HTML without scripts."""
    rows = "".join(
        f"<tr><td><code>{route.method}</code><td><code>{PREFIX}{html.escape(route.path)}</code>"
        f"<td>{html.escape(route.summary)}<td>{_type_name(route.request)}"
        f"<td>{route.status} {_type_name(route.response)}"
        for route in ROUTES
    )
    errors = "".join(
        f"<tr><td><code>{error.code}</code><td>{status}"
        f"<td>{html.escape((inspect.getdoc(error) or '').partition(chr(10) * 2)[0])}"
        for error, status in STATUS.items()
    )
    schemas = "".join(
        f"<h3 id={name}>{name}</h3><pre>{html.escape(schema['description'])}</pre>"
        for name, schema in document()["components"]["schemas"].items()
        if "description" in schema
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Creche</title>"
        "<style>body{font:16px/1.5 system-ui;margin:2rem auto;max-width:70rem;padding:0 1rem}"
        "table{border-collapse:collapse;width:100%}"
        "td,th{border-bottom:1px solid #ccc;padding:.3rem;text-align:left;vertical-align:top}"
        "</style>"
        f"<h1>Creche {html.escape(VERSION)}</h1>"
        f'<p>The same for programs: <a href="{PREFIX}/openapi.json">openapi.json</a>.'
        "<h2>Operations</h2><table><tr><th>Method<th>Path<th>What it does<th>Request<th>Answer"
        f"{rows}</table>"
        "<h2>Errors</h2><p>Every error answer is <code>{&quot;error&quot;, &quot;code&quot;}</code>."
        f"<table><tr><th>Code<th>Status<th>Meaning{errors}</table>"
        f"<h2>Requests and answers</h2>{schemas}</html>"
    )


def _type_name(part: type[Struct] | str | None) -> str:
    if part is None:
        return ""
    if isinstance(part, str):
        return f"<code>{html.escape(part)}</code>"
    return f"<a href=#{part.__name__}><code>{part.__name__}</code></a>"
