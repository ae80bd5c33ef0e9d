"""Reading requests: which process one addresses, and what its JSON says."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from quart import Request

from supervisor import Offsets, OutputLog, Process, ProcessNotFound, Stream, Supervisor
from supervisor.chunk import BEGINNING, STREAMS

from .problems import InvalidQuery, InvalidRequest, MalformedJson, UnsupportedMediaType

Body = TypeVar("Body")

MAX_JSON_BYTES = 4 * 1024 * 1024
"""Room for the kernel's 2 MiB of arguments and environment, escaped."""

BODY_SECONDS = 60.0
"""How long a JSON body may take to come."""

_LARGEST_PID_DIGITS = 10
_LARGEST_HANDLE_DIGITS = 18


def find(supervisor: Supervisor, request: Request, pid_or_name: str) -> Process:
    """The process that a path segment and the query's `handle` address.

    Raises:
      ProcessNotFound, PidReused: see `Supervisor.by_pid`.
      InvalidQuery: `handle` is not a number.
    """
    return find_by(supervisor, pid_or_name, request.args.get("handle"))


def find_by(supervisor: Supervisor, pid_or_name: str, handle: str | None) -> Process:
    """As `find`, from the segment and the parameter themselves."""
    if handle is not None and not (_is_digits(handle) and len(handle) <= _LARGEST_HANDLE_DIGITS):
        raise InvalidQuery("handle is not a number", field="handle")
    if not _is_digits(pid_or_name) or len(pid_or_name) > _LARGEST_PID_DIGITS:
        raise ProcessNotFound(f"there is no process {pid_or_name[:100]!r}")
    return supervisor.by_pid(int(pid_or_name), handle=None if handle is None else int(handle))


def read_number(request: Request, name: str, *, largest: int) -> int | None:
    """The value of a query parameter that is a number from 0 on, or None if it is not there.

    Raises:
      InvalidQuery: it is something else.
    """
    text = request.args.get(name)
    if text is None:
        return None
    if not _is_digits(text) or len(text) > _LARGEST_HANDLE_DIGITS or int(text) > largest:
        raise InvalidQuery(f"{name} is not a number from 0 to {largest}", field=name)
    return int(text)


def read_flag(request: Request, name: str) -> bool:
    """Whether a query parameter is `true`; it may be `false` or absent.

    Raises:
      InvalidQuery: it is something else.
    """
    text = request.args.get(name, "false")
    if text not in ("true", "false"):
        raise InvalidQuery(f"{name} is neither true nor false", field=name)
    return text == "true"


async def read_resume(request: Request, log: OutputLog, stream: Stream | None) -> Offsets:
    """Where the client wants to begin: `Last-Event-ID`, or `from` or `tail` in the query.

    An id is the offsets of both streams with a `-` in between, or of one
    stream alone where only one is read.

    Raises:
      InvalidQuery: it is something else, or lies beyond the end.
    """
    tail = read_number(request, "tail", largest=10**9)
    text = request.headers.get("last-event-id") or request.args.get("from")
    if text is None:
        return BEGINNING if tail is None else await log.offsets_of_tail(tail, stream)
    parts = text.split("-")
    if stream is not None and len(parts) == 1:
        parts = [text, "0"] if stream == "stdout" else ["0", text]
    if len(parts) != 2 or not all(
        _is_digits(part) and len(part) <= _LARGEST_HANDLE_DIGITS for part in parts
    ):
        raise InvalidQuery("from is not the id of an event", field="from")
    resume = Offsets(*map(int, parts))
    streams = STREAMS if stream is None else (stream,)
    if any(resume.of(name) > log.end_offsets.of(name) for name in streams):
        raise InvalidQuery("from lies beyond the end of the output", field="from")
    return resume


def format_resume(resume: Offsets) -> str:
    """The id that `read_resume` reads."""
    return f"{resume.stdout}-{resume.stderr}"


def _is_digits(text: str) -> bool:
    # str.isdigit alone also takes digits of other scripts, which int() would read.
    return text.isascii() and text.isdigit()


async def read_json(request: Request, decoder: msgspec.json.Decoder[Body]) -> Body:
    """The JSON body of a request.

    Raises:
      UnsupportedMediaType, MalformedJson, InvalidRequest: with the field named.
      werkzeug.exceptions.HTTPException: too large, or too slow.
    """
    check_content_type(request.mimetype)
    data = await request.get_data()
    assert isinstance(data, bytes)
    return decode_json(data, decoder)


def check_content_type(mimetype: str) -> None:
    """Raise `UnsupportedMediaType` unless it is JSON.

    This is also what keeps a web page from posting here unasked: a browser
    sends JSON to another origin only after a preflight.
    """
    if mimetype.lower() != "application/json":
        raise UnsupportedMediaType("send the body with content-type application/json")


def decode_json(data: bytes, decoder: msgspec.json.Decoder[Body]) -> Body:
    """The struct that a JSON text stands for.

    Raises:
      MalformedJson: it is not JSON, or not UTF-8, or nested too deeply.
      InvalidRequest: it is another shape, which the message names.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        _, _, place = str(error).partition(" - at `$.")
        raise InvalidRequest(str(error), field=place.rstrip("`") or None) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedJson(str(error)) from error
