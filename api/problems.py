"""From errors to answers: one table of all codes and their HTTP statuses.

A 502, 503 or 504 makes clients send the request again. So 503 stands only
where provably nothing has happened.
"""

from __future__ import annotations

import logging
from typing import ClassVar, NamedTuple

import msgspec
import werkzeug.exceptions
from werkzeug.exceptions import HTTPException

import supervisor

from .schemas import ErrorBody

_logger = logging.getLogger(__name__)
_encoder = msgspec.json.Encoder()


class RequestError(Exception):
    """A request that is refused before it reaches the supervisor."""

    code: ClassVar[str] = "BAD_REQUEST"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class MalformedHttp(RequestError):
    """The bytes are no HTTP/1.1 request, or use a transfer coding other than chunked."""

    code = "MALFORMED_HTTP"


class HeadTooLarge(RequestError):
    """The request line and the headers, or the head of a chunk, are larger than the daemon takes."""

    code = "HEAD_TOO_LARGE"


class AmbiguousLength(RequestError):
    """The request has both Content-Length and Transfer-Encoding (RFC 9112, section 6.1)."""

    code = "AMBIGUOUS_LENGTH"


class MalformedJson(RequestError):
    """The body is not JSON in UTF-8."""

    code = "MALFORMED_JSON"


class InvalidRequest(RequestError):
    """The JSON has another shape than documented; `error` names the place."""

    code = "INVALID_REQUEST"


class InvalidHeader(RequestError):
    """A header has another form than documented."""

    code = "INVALID_HEADER"


class InvalidQuery(RequestError):
    """A query parameter has another form than documented."""

    code = "INVALID_QUERY"


class RangeNotSatisfiable(RequestError):
    """The range begins behind the last byte, or nothing of it is kept (RFC 9110, section 15.5.17).

    Args:
      length: how many bytes there are, kept or not.
    """

    code = "RANGE_NOT_SATISFIABLE"

    def __init__(self, message: str, length: int) -> None:
        super().__init__(message)
        self.length = length


class UnsupportedMediaType(RequestError):
    """The body must be sent as `application/json`."""

    code = "UNSUPPORTED_MEDIA_TYPE"


class BodyTooLarge(RequestError):
    """The JSON body is larger than the daemon takes."""

    code = "BODY_TOO_LARGE"


class BodyIncomplete(RequestError):
    """The connection ended before the JSON body did."""

    code = "BODY_INCOMPLETE"


class BodyTimeout(RequestError):
    """The JSON body did not come in time."""

    code = "BODY_TIMEOUT"


class Unauthorized(RequestError):
    """The daemon has a token and the request does not bear it."""

    code = "UNAUTHORIZED"


class HostRefused(RequestError):
    """The Host header is a name that could have been rebound to this address."""

    code = "HOST_REFUSED"


class OriginRefused(RequestError):
    """A browser sent the request for a page of another origin."""

    code = "ORIGIN_REFUSED"


class PeerRefused(RequestError):
    """The process at the other end of the Unix socket runs as a user that may not call."""

    code = "PEER_REFUSED"


class TooManyConnections(RequestError):
    """All connections that the daemon takes are answering requests; try again."""

    code = "TOO_MANY_CONNECTIONS"


class RouteNotFound(RequestError):
    """The daemon has nothing at that path."""

    code = "ROUTE_NOT_FOUND"


class MethodNotAllowed(RequestError):
    """The path is right but the method is not."""

    code = "METHOD_NOT_ALLOWED"


class Internal(RequestError):
    """A defect of the daemon; its log says more."""

    code = "INTERNAL"


class Broken(Exception):
    """The log has dropped what a body had promised; only breaking it off can tell."""


ClientError = type[RequestError] | type[supervisor.SupervisorError]

STATUS: dict[ClientError, int] = {
    MalformedHttp: 400,
    AmbiguousLength: 400,
    MalformedJson: 400,
    InvalidHeader: 400,
    InvalidQuery: 400,
    Unauthorized: 401,
    HostRefused: 403,
    OriginRefused: 403,
    PeerRefused: 403,
    RouteNotFound: 404,
    MethodNotAllowed: 405,
    BodyIncomplete: 400,
    BodyTimeout: 408,
    BodyTooLarge: 413,
    UnsupportedMediaType: 415,
    RangeNotSatisfiable: 416,
    InvalidRequest: 422,
    HeadTooLarge: 431,
    Internal: 500,
    TooManyConnections: 503,
    supervisor.SpecError: 400,
    supervisor.NulByte: 400,
    supervisor.InvalidText: 400,
    supervisor.BadEnvironmentName: 400,
    supervisor.InvalidUser: 400,
    supervisor.LimitUnavailable: 400,
    supervisor.LimitNotPermitted: 403,
    supervisor.CommandNotFound: 400,
    supervisor.InterpreterNotFound: 400,
    supervisor.NotExecutable: 400,
    supervisor.CommandIsDirectory: 400,
    supervisor.WorkingDirNotFound: 400,
    supervisor.WorkingDirNotADirectory: 400,
    supervisor.PermissionDenied: 403,
    supervisor.UserNotFound: 400,
    supervisor.UserNotPermitted: 403,
    supervisor.ArgumentListTooLong: 400,
    supervisor.LaunchError: 500,
    supervisor.KilledBeforeExec: 400,
    supervisor.OutOfProcesses: 503,
    supervisor.OutOfDescriptors: 503,
    supervisor.OutOfMemory: 503,
    supervisor.SupervisorClosed: 503,
    supervisor.ProcessNotFound: 404,
    supervisor.PidReused: 409,
    supervisor.KeyReused: 409,
    supervisor.ProcessNotRunning: 400,
    supervisor.InvalidSignal: 400,
    supervisor.SignalNotPermitted: 403,
    supervisor.StdinNotWritable: 400,
    supervisor.CgroupsUnavailable: 409,
}
"""Every error that a client can see, and its status."""


class Answer(NamedTuple):
    """An error answer, ready to be sent."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def answer(error: Exception) -> Answer:
    """The answer to a request that has failed with `error`; logs what nobody foresaw."""
    headers = [("content-type", "application/json")]
    if isinstance(error, HTTPException):
        if isinstance(error, werkzeug.exceptions.MethodNotAllowed) and error.valid_methods:
            headers.append(("allow", ", ".join(sorted(error.valid_methods))))
        error = _from_framework(error)
    if not isinstance(error, (RequestError, supervisor.SupervisorError)):
        _logger.error("unforeseen error in a request", exc_info=error)
        error = Internal("internal error; the daemon's log says more")
    status = STATUS[type(error)]
    if status == 401:
        headers.append(("www-authenticate", "Bearer"))
    if status == 503:
        headers.append(("retry-after", "1"))
    if isinstance(error, RangeNotSatisfiable):
        headers.append(("content-range", f"bytes */{error.length}"))
    body = ErrorBody(str(error), error.code, error.field)
    if isinstance(error, supervisor.StdinNotWritable):
        body = msgspec.structs.replace(body, accepted_bytes=error.accepted_bytes)
    return Answer(status, headers, _encoder.encode(body) + b"\n")


def _from_framework(error: HTTPException) -> Exception:
    match error.code:
        case 404:
            return RouteNotFound("there is nothing at this path")
        case 405:
            return MethodNotAllowed("this path does not take this method")
        case 408:
            return BodyTimeout("the body did not come in time")
        case 413:
            return BodyTooLarge("the body is too large")
        case _:
            return error
