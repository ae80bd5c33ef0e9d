"""Requests that are wrong in every way: each gets its own code, as JSON, and starts nothing."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, NamedTuple

import httpx
import pytest
import trio

from api.problems import STATUS
from api.requests import MAX_JSON_BYTES
from supervisor import Process

from .conftest import Daemon

STARTS = ("/processes", "/processes/run")
ONE = (
    ("GET", "/processes/{}"),
    ("DELETE", "/processes/{}"),
    ("POST", "/processes/{}/stdin"),
    ("POST", "/processes/{}/stdin/close"),
    ("POST", "/processes/{}/freeze"),
    ("POST", "/processes/{}/thaw"),
    ("GET", "/processes/{}/usage"),
    ("GET", "/processes/{}/stdout"),
    ("GET", "/processes/{}/stderr"),
    ("GET", "/processes/{}/output"),
    ("GET", "/processes/{}/stdout/follow"),
    ("GET", "/processes/{}/stderr/follow"),
    ("GET", "/processes/{}/output/follow"),
    ("POST", "/processes/{}/signal"),
)
STATUS_OF = {error.code: status for error, status in STATUS.items()}


class Problem(NamedTuple):
    """An error answer."""

    status: int
    code: str
    field: str | None
    error: str


def problem(answer: httpx.Response) -> Problem:
    """The error that an answer is; fails if it is not one of the documented ones."""
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body.keys() <= {"error", "code", "field", "accepted_bytes"}
    assert isinstance(body["error"], str)
    assert body["error"]
    assert STATUS_OF[body["code"]] == answer.status_code < 500
    return Problem(answer.status_code, body["code"], body.get("field"), body["error"])


async def post(
    daemon: Daemon, path: str, content: bytes, content_type: str | None = "application/json"
) -> httpx.Response:
    """Post these bytes."""
    headers = {} if content_type is None else {"content-type": content_type}
    return await daemon.client.post(path, content=content, headers=headers)


async def start(daemon: Daemon, **body: object) -> Process:
    """Start a process over HTTP."""
    answer = await daemon.client.post("/processes", json=body)
    assert answer.status_code == 201, answer.text
    return daemon.supervisor.by_pid(answer.json()["pid"])


# --- JSON -----------------------------------------------------------------------

MALFORMED = {
    "empty": b"",
    "white space": b" \n",
    "no JSON": b"command=true",
    "half": b'{"command": "tr',
    "unclosed": b'{"command": "true"',
    "trailing comma": b'{"command": "true",}',
    "two values": b'{"command": "true"} {"command": "true"}',
    "single quotes": b"{'command': 'true'}",
    "comment": b'{"command": "true" /* ! */}',
    "NaN": b'{"command": "true", "timeout": NaN}',
    "Infinity": b'{"command": "true", "timeout": Infinity}',
    "-Infinity": b'{"command": "true", "x": -Infinity}',
    "leading zero": b'{"command": "true", "timeout": 01}',
    "plus": b'{"command": "true", "timeout": +1}',
    "BOM": b'\xef\xbb\xbf{"command": "true"}',
    "UTF-16": '{"command": "true"}'.encode("utf-16"),
    "UTF-32": '{"command": "true"}'.encode("utf-32-le"),
    "bad UTF-8": b'{"command": "\xff\xfe"}',
    "overlong UTF-8": b'{"command": "\xc0\xaf"}',
    "UTF-8 surrogate": b'{"command": "\xed\xa0\x80"}',
    "truncated UTF-8": b'{"command": "\xe2\x82"}',
    "control character": b'{"command": "a\nb"}',
    "bare NUL": b'{"command": "a\0b"}',
    "NUL after the end": b'{"command": "true"}\0',
    "bad escape": b'{"command": "\\x41"}',
    "half escape": b'{"command": "\\u12"}',
    "100k arrays": b"[" * 100_000,
    "100k closed arrays": b'{"command": "true", "args": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100k objects": b'{"x":' * 100_000 + b"1" + b"}" * 100_000,
    "gzip": bytes.fromhex("1f8b0800000000000203"),
}


@pytest.mark.parametrize("path", [*STARTS, "/processes/1/signal"])
@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_not_json_is_refused(daemon: Daemon, path: str, name: str) -> None:
    with trio.fail_after(5):
        answer = await post(daemon, path, MALFORMED[name])
    found = problem(answer)
    if found.code == "INVALID_REQUEST":
        # The parser stops at a wrong shape, when it comes before the error.
        assert "arrays" in name or "objects" in name or path.endswith("signal")
    else:
        assert found.code == "MALFORMED_JSON"
    assert daemon.supervisor.total == 0


@pytest.mark.parametrize("path", STARTS)
@pytest.mark.parametrize("content", [b"[]", b"null", b"1", b'"true"', b"true", b'["true"]', b"{}"])
async def test_json_of_another_shape_is_refused(daemon: Daemon, path: str, content: bytes) -> None:
    found = problem(await post(daemon, path, content))
    assert (found.status, found.code) == (422, "INVALID_REQUEST")
    if content == b"{}":
        assert "command" in found.error
    assert daemon.supervisor.total == 0


WRONG_TYPES: list[tuple[str, Any]] = [
    ("command", None),
    ("command", 1),
    ("command", ["true"]),
    ("args", None),
    ("args", "x"),
    ("args", {"0": "x"}),
    ("args[0]", [1]),
    ("args[2]", ["a", "b", None]),
    ("env", None),
    ("env", ["A=1"]),
    ("env[...]", {"A": 1}),
    ("env[...]", {"A": None}),
    ("working_dir", 1),
    ("user", 1000),
    ("user", []),
    ("user.name", {"name": 1}),
    ("user.uid", {"uid": "1"}),
    ("user.uid", {"uid": -1}),
    ("user.uid", {"uid": 2**32}),
    ("user.gid", {"uid": 1, "gid": 1.5}),
    ("stdin_mode", "open"),
    ("stdin_mode", None),
    ("stdin_mode", True),
    ("stdout_mode", "pipe"),
    ("stderr_mode", "CAPTURE"),
    ("limits", None),
    ("limits", []),
    ("limits.memory_bytes", {"memory_bytes": 0}),
    ("limits.memory_bytes", {"memory_bytes": "1G"}),
    ("limits.memory_swap_bytes", {"memory_swap_bytes": -1}),
    ("limits.cpu", {"cpu": 0}),
    ("limits.cpu", {"cpu": "1"}),
    ("limits.pids", {"pids": 0}),
    ("limits.pids", {"pids": 1.5}),
    ("limits.io_weight", {"io_weight": 10_001}),
    ("limits.open_files", {"open_files": 2}),
    ("limits.core_bytes", {"core_bytes": True}),
    ("limits.file_bytes", {"file_bytes": 2**63}),
    ("descendants", "leave"),
    ("descendants", None),
]


@pytest.mark.parametrize("path", STARTS)
@pytest.mark.parametrize(("field", "value"), WRONG_TYPES)
async def test_a_field_of_the_wrong_type_is_named(
    daemon: Daemon, path: str, field: str, value: object
) -> None:
    top = field.partition(".")[0].partition("[")[0]
    found = problem(await daemon.client.post(path, json={"command": "true", top: value}))
    assert found[:3] == (422, "INVALID_REQUEST", field)
    assert field in found.error
    assert daemon.supervisor.total == 0


@pytest.mark.parametrize("timeout", [b'"1"', b"-1", b"-0.001", b"[]", b"true", b"1e400", b"-1e400"])
async def test_a_wrong_timeout_is_named(daemon: Daemon, timeout: bytes) -> None:
    answer = await post(daemon, "/processes/run", b'{"command": "true", "timeout": %b}' % timeout)
    assert problem(answer)[:3] == (422, "INVALID_REQUEST", "timeout")


@pytest.mark.parametrize("timeout", [b"null", b"3600", b"1e308", b"1E+2", b"9" * 100])
async def test_a_long_timeout_is_taken(daemon: Daemon, timeout: bytes) -> None:
    answer = await post(daemon, "/processes/run", b'{"command": "true", "timeout": %b}' % timeout)
    assert '"exit_code":0' in answer.text


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"signal": None},
        {"signal": "15"},
        {"signal": "SIGTERM"},
        {"signal": 15.5},
        {"signal": 2**31},
        {"signal": -(2**31) - 1},
        {"signal": 10**30},
        {"signal": [15]},
        {"Signal": 15},
    ],
)
async def test_a_signal_that_is_no_number_is_refused(
    daemon: Daemon, body: dict[str, object]
) -> None:
    process = await start(daemon, command="sleep", args=["1000"])
    answer = await daemon.client.post(f"/processes/{process.pid}/signal", json=body)
    assert problem(answer)[:2] == (422, "INVALID_REQUEST")
    assert process.status == "running"


@pytest.mark.parametrize("signum", [65, 1000, 2**31 - 1, -1, -9, -(2**31), 32, 33])
async def test_a_signal_that_does_not_exist_is_refused(daemon: Daemon, signum: int) -> None:
    process = await start(daemon, command="sleep", args=["1000"])
    answer = await daemon.client.post(f"/processes/{process.pid}/signal", json={"signal": signum})
    assert problem(answer)[:3] == (400, "INVALID_SIGNAL", "signal")
    assert process.status == "running"


async def test_unknown_fields_are_ignored(daemon: Daemon) -> None:
    unknown = {"shell": True, "Command": 1, "": None, "restart_policy": {"a": [1, {"b": 2}]}}
    process = await start(daemon, command="echo", args=["hi"], **unknown)
    await process.wait()
    assert await process.log.read_all("stdout") == b"hi\n"
    answer = await daemon.client.post("/processes/run", json={"command": "true", **unknown})
    assert '"exit_code":0' in answer.text
    # As large as JSON allows and a float does not.
    assert (await post(daemon, "/processes", b'{"command": "true", "x": 1e400}')).is_success
    process = await start(daemon, command="sleep", args=["1000"])
    body = {"signal": 9, "pid": 1, "x": {}}
    assert (
        await daemon.client.post(f"/processes/{process.pid}/signal", json=body)
    ).status_code == 200
    assert (await process.wait()).signal == 9


async def test_of_a_key_that_comes_twice_the_last_one_counts(daemon: Daemon) -> None:
    content = b'{"command": "false", "args": ["x"], "args": [], "command": "true"}'
    answer = await post(daemon, "/processes", content)
    assert answer.status_code == 201
    assert (answer.json()["command"], answer.json()["args"]) == ("true", [])


async def test_json_may_be_escaped_and_spaced_as_json_may_be(daemon: Daemon) -> None:
    content = b'\t\r\n {"\\u0063ommand":\n"\\u0065cho",\t"args":["\\ud83d\\ude00\\u00e9\\/"] } \n'
    answer = await post(daemon, "/processes/run", content)
    assert "\U0001f600\xe9/" in answer.text


# --- what no kernel could start -------------------------------------------------

ODD: list[tuple[dict[str, Any], int, str, str]] = [
    ({"command": ""}, 400, "INVALID_SPEC", "command"),
    ({"command": "a\0b"}, 400, "NUL_BYTE", "command"),
    ({"command": "\0"}, 400, "NUL_BYTE", "command"),
    ({"command": "true", "args": ["", "a\0"]}, 400, "NUL_BYTE", "args[1]"),
    ({"command": "true", "env": {"A": "\0"}}, 400, "NUL_BYTE", "env.A"),
    ({"command": "true", "env": {"A\0": ""}}, 400, "NUL_BYTE", "env"),
    ({"command": "true", "working_dir": "/\0"}, 400, "NUL_BYTE", "working_dir"),
    ({"command": "true", "env": {"": "x"}}, 400, "BAD_ENVIRONMENT_NAME", "env"),
    ({"command": "true", "env": {"A=B": "x"}}, 400, "BAD_ENVIRONMENT_NAME", "env"),
    ({"command": "true", "env": {"=": "x"}}, 400, "BAD_ENVIRONMENT_NAME", "env"),
    ({"command": "true", "working_dir": ""}, 400, "INVALID_SPEC", "working_dir"),
    ({"command": "true", "user": ""}, 400, "INVALID_USER", "user"),
    ({"command": "true", "user": {}}, 400, "INVALID_USER", "user"),
    ({"command": "true", "user": {"name": "root", "uid": 0}}, 400, "INVALID_USER", "user"),
    ({"command": "true", "user": "nobody\0"}, 400, "USER_NOT_FOUND", "user"),
    ({"command": "true", "args": ["x" * 3_000_000]}, 400, "ARGUMENT_LIST_TOO_LONG", "args"),
    ({"command": "true", "args": ["x"] * 600_000}, 400, "ARGUMENT_LIST_TOO_LONG", "args"),
    ({"command": "x" * 5000}, 400, "COMMAND_NOT_FOUND", "command"),
    ({"command": "/" + "x" * 300}, 400, "COMMAND_NOT_FOUND", "command"),
    ({"command": "no such command"}, 400, "COMMAND_NOT_FOUND", "command"),
    ({"command": "/"}, 400, "COMMAND_IS_DIRECTORY", "command"),
    ({"command": "true", "working_dir": "/nowhere"}, 400, "WORKING_DIR_NOT_FOUND", "working_dir"),
    (
        {"command": "true", "working_dir": "/" + "x" * 300},
        400,
        "WORKING_DIR_NOT_FOUND",
        "working_dir",
    ),
    ({"command": "true", "working_dir": "x/" * 3000}, 400, "WORKING_DIR_NOT_FOUND", "working_dir"),
]


@pytest.mark.parametrize("path", STARTS)
@pytest.mark.parametrize(("body", "status", "code", "field"), ODD)
async def test_what_cannot_be_started_is_refused_with_its_code(
    daemon: Daemon, path: str, body: dict[str, Any], status: int, code: str, field: str
) -> None:
    found = problem(await daemon.client.post(path, json=body))
    assert found[:3] == (status, code, field)
    assert len(found.error) < 20_000
    assert daemon.supervisor.total == 0


@pytest.mark.parametrize("path", STARTS)
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (rb'"command": "\ud800"', "command"),
        (rb'"command": "true", "args": ["\udc80"]', "args[0]"),
        (rb'"command": "true", "env": {"A": "\udfff"}', "env.A"),
        (rb'"command": "true", "env": {"\ud800": ""}', "env"),
        (rb'"command": "true", "working_dir": "/\ud800"', "working_dir"),
        (rb'"command": "true", "user": "\ud800"', "user"),
        (rb'"command": "\udc80\ud800"', "command"),
    ],
)
async def test_half_a_surrogate_pair_is_refused(
    daemon: Daemon, path: str, fields: bytes, field: str
) -> None:
    # msgspec may refuse it as JSON already, in which case no field is known.
    found = problem(await post(daemon, path, b"{%b}" % fields))
    assert found[:3] in (
        (400, "MALFORMED_JSON", None),
        (400, "INVALID_TEXT", field),
        (400, "USER_NOT_FOUND", field),
    )
    assert daemon.supervisor.total == 0


async def test_no_arguments_and_empty_arguments_are_fine(daemon: Daemon) -> None:
    process = await start(daemon, command="printf", args=["[%s]", "", "a", ""])
    await process.wait()
    assert await process.log.read_all("stdout") == b"[][a][]"
    process = await start(daemon, command="true", args=[], env={"EMPTY": ""})
    assert (await process.wait()).exit_code == 0


# --- content types and sizes ----------------------------------------------------


@pytest.mark.parametrize("path", [*STARTS, "/processes/1/signal"])
@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "text/json",
        "application/json5",
        "application/jsonx",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=application/json",
        "text/plain; application/json",
        "application/json, text/plain",
        "application / json",
    ],
)
async def test_another_content_type_is_refused(
    daemon: Daemon, path: str, content_type: str | None
) -> None:
    answer = await post(daemon, path, b'{"command": "true", "signal": 9}', content_type)
    assert problem(answer)[:2] == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert daemon.supervisor.total == 0


@pytest.mark.parametrize("path", STARTS)
@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "application/json ; x=y",
    ],
)
async def test_json_by_any_spelling_is_taken(daemon: Daemon, path: str, content_type: str) -> None:
    assert (await post(daemon, path, b'{"command": "true"}', content_type)).is_success


def _padded(size: int) -> bytes:
    """A good body of this size."""
    content = b'{"command": "true", "x": "%b"}'
    return content % (b"x" * (size - len(content) + 2))


@pytest.mark.parametrize("path", STARTS)
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [MAX_JSON_BYTES + 1, MAX_JSON_BYTES * 5])
async def test_a_body_over_the_limit_is_refused_and_the_client_learns_it(
    daemon: Daemon, path: str, chunked: bool, size: int
) -> None:
    async def pieces() -> Any:
        content = _padded(size)
        for begin in range(0, size, 65536):
            yield content[begin : begin + 65536]

    content = pieces() if chunked else _padded(size)
    with trio.fail_after(10):
        answer = await daemon.client.post(
            path, content=content, headers={"content-type": "application/json"}
        )
        assert problem(answer)[:2] == (413, "BODY_TOO_LARGE")
        # The daemon and this client go on.
        assert (await daemon.client.get("/health")).status_code == 200
    assert daemon.supervisor.total == 0


@pytest.mark.parametrize("path", STARTS)
async def test_a_body_of_just_the_limit_is_taken(daemon: Daemon, path: str) -> None:
    answer = await post(daemon, path, _padded(MAX_JSON_BYTES))
    assert answer.is_success


@pytest.mark.parametrize(
    ("path", "content_type", "status"),
    [
        ("/processes", "text/plain", 415),
        ("/processes/run", "text/plain", 415),
        ("/processes/999999999/stdin", "application/octet-stream", 404),
        ("/processes/999999999", "application/json", 405),
        ("/nothing", "application/json", 404),
    ],
)
async def test_a_large_body_that_is_refused_early_does_not_cost_the_answer(
    daemon: Daemon, path: str, content_type: str, status: int
) -> None:
    with trio.fail_after(10):
        answer = await post(daemon, path, bytes(20_000_000), content_type)
        assert problem(answer).status == status
        assert (await daemon.client.get("/health")).status_code == 200


async def _raw(daemon: Daemon, data: bytes) -> bytes:
    """Send bytes; what comes back until the other side closes, which it must be asked to or want."""
    host, _, port = daemon.url.removeprefix("http://").rpartition(":")
    answer = b""
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        with trio.fail_after(10):
            with suppress(trio.BrokenResourceError):  # Refused before its end.
                await stream.send_all(data)
            with suppress(trio.BrokenResourceError):
                async for piece in stream:
                    answer += piece
    return answer


_POST = b"POST /api/v1/processes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: 1e3\r\n\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        b"Content-Length: 99999999999999999999999\r\n\r\n",
        b"Transfer-Encoding: gzip\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 100_000,
        b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
        b"Bad Header: x\r\n\r\n",
        b"Bad\0: x\r\n\r\n",
        b"X: a\0b\r\n\r\n",
        b": x\r\n\r\n",
    ],
)
async def test_a_request_that_lies_about_itself_is_refused(daemon: Daemon, rest: bytes) -> None:
    answer = await _raw(daemon, _POST + rest)
    assert answer[:12] in (
        b"HTTP/1.1 400",
        b"HTTP/1.1 413",
        b"HTTP/1.1 431",
        b"HTTP/1.1 501",
    )
    assert daemon.supervisor.total == 0


async def test_a_length_beside_chunks_closes_the_connection(daemon: Daemon) -> None:
    # RFC 9112 6.1: what counts is the chunks, and after them nothing: somebody
    # in between may have gone by the length.
    chunk = b'{"command": "true"}'
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(chunk), chunk)
    smuggled = b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n" % len(body + smuggled)
    answer = await _raw(daemon, _POST + head + body + smuggled)
    assert answer[:12] in (b"HTTP/1.1 201", b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_headers_without_end_are_refused(daemon: Daemon) -> None:
    head = (
        b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n" + b"X: %b\r\n" % (b"x" * 1000) * 300
    )
    answer = await _raw(daemon, head)
    assert answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))


# --- paths, handles, methods ----------------------------------------------------

ODD_SEGMENTS = [
    "nobody",
    "-1",
    "+1",
    "1.0",
    "0x1",
    "1e3",
    "1_0",
    "%201",
    "1%20",
    "1%0A",
    "1%00",
    "%00",
    "%2B1",
    "%E2%82%AC",
    "web%20%C3%A9%201",
    "%D9%A1%D9%A2",  # Digits of another script.
    "%EF%BC%91",
    "%C2%B2",
    "%FF%FE",
    "%",
    "%zz",
    "..%2f",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e",
    "1%2f..",
    "..;",
    "a" * 10_000,
    "1" * 10_000,
    "0" * 20 + "1",
    "99999999999",
    "9999999999",
    "4294967297",
    "0",
    "%27%20or%201=1",
]


@pytest.mark.parametrize("segment", ODD_SEGMENTS)
async def test_an_odd_segment_is_nobody(daemon: Daemon, segment: str) -> None:
    await start(daemon, command="sleep", args=["1000"])
    host = daemon.url.removeprefix("http://").encode()
    for method, path in ONE:
        target = f"/api/v1{path.format(segment)}".encode()
        body = b'{"signal": 9}' if path.endswith("/signal") else b""
        answer = await _raw(
            daemon,
            b"%b %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\nConnection: close\r\n\r\n%b"
            % (method.encode(), target, host, len(body), body),
        )
        head, _, content = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 404 "), (method, target[:100], head)
        assert b"content-type: application/json" in head.lower()
        found = json.loads(content)
        # A segment with a slash in it is another path.
        assert found["code"] in ("NOT_FOUND", "ROUTE_NOT_FOUND")
        assert len(found["error"]) < 1000
    assert daemon.supervisor.running == 1


@pytest.mark.parametrize(
    "path",
    ["", "/", "/nothing", "/processes/1/nothing", "/processes/1/stdout/follow/more", "/health/x"],
)
async def test_a_path_that_is_not_there_is_404(daemon: Daemon, path: str) -> None:
    for method in ("GET", "POST", "DELETE", "PUT"):
        answer = await daemon.client.request(method, f"{daemon.url}/api/v1{path}")
        assert problem(answer)[:2] == (404, "ROUTE_NOT_FOUND")


@pytest.mark.parametrize(
    "path", ["/api//v1/health", "/api/v1/../v1/health", "/api/v1/./health", "/"]
)
async def test_paths_are_not_made_similar(daemon: Daemon, path: str) -> None:
    answer = await _raw(
        daemon, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b'"code":"ROUTE_NOT_FOUND"' in answer


@pytest.mark.parametrize(
    "before", ["http://localhost", "HTTPS://any.name:1", "http://[::1]:80/", "/", "//", "/%2F"]
)
async def test_every_path_may_be_spelled_so(daemon: Daemon, before: str) -> None:
    process = await start(daemon, command="sleep", args=["1000"])
    for path in ("/health", f"/processes/{process.pid}", f"/processes/{process.pid}/usage?x=http:"):
        target = f"{before}/api/v1{path}"
        for method in ("GET", "HEAD"):  # Plain, and not.
            head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            assert (await _raw(daemon, head.encode())).startswith(b"HTTP/1.1 200 "), target


@pytest.mark.parametrize(
    "target", ["http:", "http://", "http:///api/v1/health", "%68ttp://a/api/v1/health", "a/b", "@"]
)
async def test_what_is_no_target_is_refused(daemon: Daemon, target: str) -> None:
    answer = await _raw(daemon, f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"MALFORMED_HTTP"' in answer


@pytest.mark.parametrize(("method", "path"), ONE)
async def test_the_right_handle_is_taken(daemon: Daemon, method: str, path: str) -> None:
    process = await start(daemon, command="cat", stdin_mode="pipe")
    if "follow" in path:
        await process.close_stdin()
    answer = await daemon.client.request(
        method,
        path.format(process.pid),
        params={"handle": process.handle},
        json={"signal": 9} if path.endswith("/signal") else None,
    )
    if daemon.supervisor.capabilities.cgroups is None and path.endswith(("/freeze", "/thaw")):
        assert problem(answer)[:2] == (409, "CGROUPS_UNAVAILABLE")
    else:
        assert answer.is_success


@pytest.mark.parametrize(("method", "path"), ONE)
async def test_another_handle_is_refused_and_touches_nothing(
    daemon: Daemon, method: str, path: str
) -> None:
    other = await start(daemon, command="true")
    process = await start(daemon, command="cat", stdin_mode="pipe")
    for handle in (other.handle, process.handle + 1, 0, 10**18 - 1):
        answer = await daemon.client.request(
            method,
            path.format(process.pid),
            params={"handle": handle},
            json={"signal": 9} if path.endswith("/signal") else None,
        )
        assert problem(answer)[:2] == (409, "PID_REUSED")
    assert process.status == "running"
    assert process.stdin_writable


@pytest.mark.parametrize(("method", "path"), ONE)
@pytest.mark.parametrize(
    "handle",
    ["", "x", "-1", "1.0", "+1", "%201", "1e3", "%D9%A1", "1" * 19, "1" * 9000, "%00", "%FF"],
)
async def test_a_handle_that_is_no_number_is_refused(
    daemon: Daemon, method: str, path: str, handle: str
) -> None:
    process = await start(daemon, command="cat", stdin_mode="pipe")
    answer = await daemon.client.request(
        method,
        f"{path.format(process.pid)}?handle={handle}",
        json={"signal": 9} if path.endswith("/signal") else None,
    )
    assert problem(answer)[:3] == (400, "INVALID_QUERY", "handle")
    assert process.status == "running"
    assert process.stdin_writable


@pytest.mark.parametrize(
    "grace", ["", "x", "-1", "0.5", "3600001", "1e3", "1" * 19, "1" * 9000, "%00", "%D9%A1"]
)
async def test_a_grace_that_is_no_number_of_milliseconds_is_refused(
    daemon: Daemon, grace: str
) -> None:
    process = await start(daemon, command="cat", stdin_mode="pipe")
    answer = await daemon.client.delete(f"/processes/{process.pid}?grace_ms={grace}")
    assert problem(answer)[:3] == (400, "INVALID_QUERY", "grace_ms")
    assert process.status == "running"


ALLOWED = {
    "/processes": {"GET", "HEAD", "POST"},
    "/processes/run": {"GET", "HEAD", "DELETE", "POST"},  # It may also be a process's name.
    "/processes/{}": {"GET", "HEAD", "DELETE"},
    "/processes/{}/signal": {"POST"},
    "/processes/{}/stdin": {"POST"},
    "/processes/{}/stdin/close": {"POST"},
    "/processes/{}/freeze": {"POST"},
    "/processes/{}/thaw": {"POST"},
    "/processes/{}/usage": {"GET", "HEAD"},
    "/usage": {"GET", "HEAD"},
    "/processes/{}/stdout": {"GET", "HEAD"},
    "/processes/{}/output/follow": {"GET", "HEAD"},
    "/health": {"GET", "HEAD"},
    "/info": {"GET", "HEAD"},
    "/openapi.json": {"GET", "HEAD"},
    "/docs": {"GET", "HEAD"},
}


@pytest.mark.parametrize("path", ALLOWED)
async def test_another_method_is_405_with_what_is_allowed(daemon: Daemon, path: str) -> None:
    process = await start(daemon, command="cat", stdin_mode="pipe")
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY", "BREW"):
        if method in ALLOWED[path]:
            continue
        answer = await daemon.client.request(method, path.format(process.pid))
        assert problem(answer)[:2] == (405, "METHOD_NOT_ALLOWED")
        assert set(answer.headers["allow"].split(", ")) == ALLOWED[path]
    assert process.status == "running"
    assert daemon.supervisor.total == 1


@pytest.mark.parametrize("method", ["get", "Get", "head", "post", "delete"])
async def test_a_method_in_lower_case_is_another(daemon: Daemon, method: str) -> None:
    process = await start(daemon, command="sleep", args=["1000"])
    for path in ("/health", f"/processes/{process.pid}"):
        head = f"{method} /api/v1{path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        answer = await _raw(daemon, head.encode())
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"code":"MALFORMED_HTTP"' in answer
    assert process.status == "running"


@pytest.mark.parametrize("stream", ["stdout", "stderr", "output"])
async def test_head_of_a_follow_returns_at_once(daemon: Daemon, stream: str) -> None:
    process = await start(daemon, command="cat", stdin_mode="pipe")
    with trio.fail_after(5):
        for _ in range(3):  # On one connection, so it has stayed in order.
            answer = await daemon.client.head(f"/processes/{process.pid}/{stream}/follow")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
    assert process.status == "running"


async def test_head_is_like_get_without_a_body(daemon: Daemon) -> None:
    process = await start(daemon, command="echo", args=["hi"])
    await process.wait()
    one = f"/processes/{process.pid}"
    for path in (
        one,
        f"{one}/stdout",
        "/processes",
        "/health",
        "/docs",
        "/nothing",
        "/processes/x",
    ):
        get, head = await daemon.client.get(path), await daemon.client.head(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        for name in ("content-type", "content-length"):
            assert head.headers[name] == get.headers[name]


# --- what is asked of a process -------------------------------------------------


async def test_stdin_that_is_no_open_pipe_is_refused(daemon: Daemon) -> None:
    closed = await start(daemon, command="sleep", args=["1000"])
    ended = await start(daemon, command="true", stdin_mode="pipe")
    shut = await start(daemon, command="sleep", args=["1000"], stdin_mode="pipe")
    deaf = await start(
        daemon, command="sh", args=["-c", "exec <&-; echo; exec sleep 1000"], stdin_mode="pipe"
    )
    await ended.wait()
    await shut.close_stdin()
    await anext(aiter(deaf.lines()))
    for process in (closed, ended, shut, deaf):
        for content in (b"", b"x", bytes(1_000_000)):
            if process is deaf and not content:
                continue  # Nothing is written, so nothing fails.
            answer = await daemon.client.post(f"/processes/{process.pid}/stdin", content=content)
            assert problem(answer)[:3] == (400, "STDIN_NOT_WRITABLE", "stdin")
    answer = await daemon.client.post(f"/processes/{closed.pid}/stdin/close")
    assert problem(answer)[:3] == (400, "STDIN_NOT_WRITABLE", "stdin")
    for process in (ended, shut):
        answer = await daemon.client.post(f"/processes/{process.pid}/stdin/close")
        assert answer.status_code == 204


async def test_a_signal_for_a_process_that_has_ended_is_refused(daemon: Daemon) -> None:
    process = await start(daemon, command="true")
    await process.wait()
    answer = await daemon.client.post(f"/processes/{process.pid}/signal", json={"signal": 15})
    assert problem(answer)[:2] == (400, "NOT_RUNNING")
    assert (await daemon.client.delete(f"/processes/{process.pid}")).status_code == 204


async def test_an_empty_answer_has_neither_body_nor_length_nor_type(daemon: Daemon) -> None:
    process = await start(daemon, command="cat", stdin_mode="pipe")
    one = f"/processes/{process.pid}"
    for method, path in (("POST", f"{one}/stdin"), ("POST", f"{one}/stdin/close"), ("DELETE", one)):
        answer = await daemon.client.request(method, path)
        assert (answer.status_code, answer.content) == (204, b"")
        # RFC 9110 8.6: no Content-Length with 204.
        assert (
            answer.headers.keys() & {"content-length", "transfer-encoding", "content-type"} == set()
        )


async def test_a_defect_is_a_500_that_says_nothing_and_a_log_that_says_all(
    daemon: Daemon, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Something that cannot happen: there is no registry.
    with monkeypatch.context() as patch:
        patch.setattr(daemon.supervisor, "_registry", None)
        answer = await daemon.client.get("/processes")
    assert answer.status_code == 500
    assert answer.json().keys() == {"error", "code"}
    assert answer.json()["code"] == "INTERNAL"
    assert "NoneType" not in answer.text
    assert "NoneType" in caplog.text
