"""Who may call: the token, and against web pages the Host and the Origin."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import h11
import pytest
import trio

from api import Server, create_app, guard
from supervisor import Supervisor

from .conftest import PATIENCE_SECONDS

TOKEN = b"a-long-secret"

type_json = (b"Content-Type", b"application/json")
Headers = list[tuple[bytes, bytes]]


class Answer(NamedTuple):
    """What came back."""

    status: int
    code: str | None
    headers: dict[bytes, bytes]


@asynccontextmanager
async def served(
    supervisor: Supervisor, *, token: bytes | None = None, any_host: bool = False
) -> AsyncIterator[int]:
    """A server with these rules; its port on 127.0.0.1."""
    app = create_app(supervisor, token=token, any_host=any_host)
    server = Server(app, "127.0.0.1:0", graceful_seconds=0.2)
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(server.serve)
        yield int(addresses[0].rpartition(":")[2])
        server.stop()


async def ask(
    port: int,
    headers: Headers,
    *,
    method: bytes = b"GET",
    path: bytes = b"/api/v1/processes",
    body: bytes = b"",
) -> Answer:
    """Send exactly these headers, which no well-behaved client would send, and read the answer."""
    lines = [
        b"%b %b HTTP/1.1" % (method, path),
        *(b"%b: %b" % header for header in headers),
        b"Content-Length: %d" % len(body),
    ]
    with trio.fail_after(PATIENCE_SECONDS):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"\r\n".join(lines) + b"\r\n\r\n" + body)
            reader = h11.Connection(h11.CLIENT)
            reader.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
            reader.send(h11.EndOfMessage())
            answer: h11.Response | None = None
            content = b""
            while True:
                event = reader.next_event()
                if event is h11.NEED_DATA:
                    reader.receive_data(await stream.receive_some(65536))
                elif isinstance(event, h11.Response):
                    answer = event
                elif isinstance(event, h11.Data):
                    content += event.data
                else:
                    assert isinstance(event, h11.EndOfMessage), event
                    break
    assert answer is not None
    code = None
    if answer.status_code >= 400 and content:
        code = json.loads(content)["code"]
    return Answer(answer.status_code, code, dict(answer.headers))


# --- without a token: Host ------------------------------------------------------

SAFE_HOSTS = [
    "127.0.0.1:PORT",
    "127.0.0.1",
    "127.0.0.1.:PORT",
    "127.0.0.1:1",  # The port is of no interest: a rebound name is still a name.
    "127.8.8.8",
    "192.0.2.7:9501",  # An address can be reached under, but not be rebound.
    "localhost:PORT",
    "localhost",
    "localhost.",
    "LocalHost:PORT",
    "LOCALHOST.:80",
    "sbx-1234.local",
    "sbx-1234.local:PORT",
    "SBX.LOCAL.",
    "a.b.local",
    "app.localhost:3000",
    "[::1]:PORT",
    "[::1]",
    "[0:0:0:0:0:0:0:1]:80",
    "[::ffff:127.0.0.1]",
    "[fe80::1]",
]

UNSAFE_HOSTS = [
    "",
    " ",
    ".",
    ":PORT",
    "evil.example",
    "evil.example:PORT",
    "evil.example.:PORT",
    "EVIL.EXAMPLE",
    "localhost.evil.example",
    "127.0.0.1.evil.example:PORT",
    "127.0.0.1.nip.io",
    "local",
    "local.",
    "notlocal",
    "xlocalhost",
    "sbx.local.evil.example",
    "sbx.localx",
    "evil.example#.local:80",
    "localhost@evil.example",
    "127.0.0.1@evil.example",
    "127.0.0.1%00.evil.example",
    "127.1",
    "2130706433",
    "0x7f.0.0.1",
    "127.0.0.1x",
    "[evil.example]:PORT",
    "[::1.evil.example]",
    "::1",  # An address of six is in brackets (RFC 3986).
    "\u0661\u0662\u0667.0.0.1",  # Digits of another script.
    "loc\xadalhost",
]


@pytest.mark.parametrize("host", SAFE_HOSTS)
async def test_a_host_that_cannot_be_rebound_is_served(supervisor: Supervisor, host: str) -> None:
    async with served(supervisor) as port:
        answer = await ask(port, [(b"Host", host.replace("PORT", str(port)).encode())])
    assert answer.status == 200


@pytest.mark.parametrize("host", UNSAFE_HOSTS)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_host_that_may_have_been_rebound_is_refused(
    supervisor: Supervisor, host: str, method: str
) -> None:
    async with served(supervisor) as port:
        headers = [(b"Host", host.replace("PORT", str(port)).encode()), type_json]
        answer = await ask(port, headers, method=method.encode(), body=b'{"command": "true"}')
    assert (answer.status, answer.code) == (403, "HOST_REFUSED")
    assert supervisor.total == 0


async def test_two_hosts_are_refused(supervisor: Supervisor) -> None:
    async with served(supervisor) as port:
        answer = await ask(port, [(b"Host", b"localhost"), (b"Host", b"evil.example")])
    assert answer.status == 400


@pytest.mark.parametrize(
    "path",
    [
        b"/api/v1/health",
        b"/api/v1/openapi.json",
        b"/api/v1/docs",
        b"/api/v1/processes/run",
        b"/api/v1/processes/1/stdin",
        b"/api/v1/processes/1/output/follow",
        b"/nothing",
        b"*",
        b"http://localhost/api/v1/health",
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"POST", b"DELETE", b"OPTIONS", b"HEAD", b"BREW"])
async def test_no_path_and_no_method_is_outside_the_guard(
    supervisor: Supervisor, path: bytes, method: bytes
) -> None:
    async with served(supervisor) as port:
        answer = await ask(port, [(b"Host", b"evil.example")], method=method, path=path)
        assert answer.status == 403
    async with served(supervisor, token=TOKEN) as port:
        answer = await ask(port, [(b"Host", b"localhost")], method=method, path=path)
        assert answer.status == 401


async def test_any_host_is_served_where_that_is_wanted(supervisor: Supervisor) -> None:
    async with served(supervisor, any_host=True) as port:
        assert (await ask(port, [(b"Host", b"evil.example")])).status == 200
        # But still no web page of another origin.
        headers = [(b"Host", b"evil.example"), (b"Origin", b"https://other.example")]
        assert (await ask(port, headers)).code == "ORIGIN_REFUSED"


# --- without a token: Origin and Sec-Fetch-Site ---------------------------------


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Origin": "http://localhost:PORT"}, True),
        ({"Origin": "http://localhost:PORT", "Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),  # Typed by the user.
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),  # Another port of localhost.
        ({"Sec-Fetch-Site": " cross-site "}, False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, False),
        ({"Origin": "null"}, False),  # A sandboxed frame, or file:.
        ({"Origin": ""}, False),
        ({"Origin": "localhost:PORT"}, False),
        ({"Origin": "://localhost:PORT.evil.example"}, False),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "http://localhost"}, False),  # Another port.
        ({"Origin": "http://localhost:1"}, False),
        ({"Origin": "http://127.0.0.1:PORT"}, False),  # Another name.
        ({"Origin": "http://localhost:PORT.evil.example"}, False),
        ({"Origin": "http://evil.example/localhost:PORT"}, False),
        ({"Origin": "http://evil.example://localhost:PORT"}, False),
        ({"Origin": "http://localhost:PORT@evil.example"}, False),
        ({"Origin": "http://localhost:PORT", "Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"}, False),
        ({"Origin": "chrome-extension://abcdefgh"}, False),
        ({"oRIGIN": "https://evil.example"}, False),
        ({"SEC-FETCH-SITE": "cross-site"}, False),
        ({"Origin": "http://loc\xadalhost:PORT"}, False),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_web_pages_of_other_origins_are_refused(
    supervisor: Supervisor, headers: dict[str, str], allowed: bool, method: str
) -> None:
    async with served(supervisor) as port:
        sent: Headers = [(b"Host", b"localhost:%d" % port), type_json]
        sent += [
            (name.encode(), value.replace("PORT", str(port)).encode("latin-1"))
            for name, value in headers.items()
        ]
        answer = await ask(port, sent, method=method.encode(), body=b'{"command": "true"}')
        if allowed:
            assert answer.status == {"GET": 200, "POST": 201, "OPTIONS": 405}[method]
        else:
            assert (answer.status, answer.code) == (403, "ORIGIN_REFUSED")
            assert supervisor.total == 0
        # Nobody gets leave to read answers across origins.
        assert not [name for name in answer.headers if name.startswith(b"access-control")]


@pytest.mark.parametrize(
    "content_type",
    [b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x", b""],
)
@pytest.mark.parametrize("path", [b"/api/v1/processes", b"/api/v1/processes/run"])
async def test_what_a_form_or_a_simple_request_can_send_starts_nothing(
    supervisor: Supervisor, content_type: bytes, path: bytes
) -> None:
    # Old browsers send neither Origin nor Sec-Fetch-Site with these.
    async with served(supervisor) as port:
        headers = [(b"Host", b"localhost"), (b"Content-Type", content_type)]
        answer = await ask(port, headers, method=b"POST", path=path, body=b'{"command": "true"}')
    assert (answer.status, answer.code) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert supervisor.total == 0


# --- with a token ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("authorization", "allowed"),
    [
        ([b"Bearer " + TOKEN], True),
        ([b"bearer " + TOKEN], True),
        ([b"BEARER " + TOKEN], True),
        ([b"bEaReR " + TOKEN], True),
        ([b"Bearer   " + TOKEN + b"  "], True),
        ([], False),
        ([b""], False),
        ([b"Bearer"], False),
        ([b"Bearer "], False),
        ([TOKEN], False),
        ([b"Bearer" + TOKEN], False),
        ([b"Basic " + TOKEN], False),
        ([b"Bearer " + TOKEN[:-1]], False),
        ([b"Bearer " + TOKEN[:1]], False),
        ([b"Bearer " + TOKEN + b"x"], False),
        ([b"Bearer " + TOKEN + b" " + TOKEN], False),
        ([b"Bearer " + TOKEN + b",Bearer x"], False),
        ([b"Bearer " + TOKEN.upper()], False),
        ([b"Bearer wrong"], False),
        ([b'Bearer "' + TOKEN + b'"'], False),
        ([b"Bearer " + TOKEN[:-1] + b"\xff"], False),
        ([b"Bearer \xff\xfe\x80"], False),
        (["Bearer gehe\xedm".encode()], False),
        ([b"Bearer " + b"x" * 30_000], False),
        ([b"Bearer " + TOKEN * 1000], False),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
async def test_only_the_whole_token_opens(
    supervisor: Supervisor, authorization: list[bytes], allowed: bool, method: str
) -> None:
    async with served(supervisor, token=TOKEN) as port:
        headers: Headers = [(b"Host", b"localhost"), type_json]
        headers += [(b"Authorization", value) for value in authorization]
        answer = await ask(port, headers, method=method.encode(), body=b'{"command": "true"}')
    if allowed:
        assert answer.status == {"GET": 200, "POST": 201, "HEAD": 200}[method]
    else:
        assert answer.status == 401
        assert answer.code == (None if method == "HEAD" else "UNAUTHORIZED")
        assert answer.headers[b"www-authenticate"] == b"Bearer"
        assert supervisor.total == 0


async def test_a_token_of_any_bytes_can_be_used(supervisor: Supervisor) -> None:
    token = "gehe\xedm-\u20ac".encode()
    async with served(supervisor, token=token) as port:
        headers = [(b"Host", b"localhost"), (b"Authorization", b"Bearer " + token)]
        assert (await ask(port, headers)).status == 200
        headers = [(b"Host", b"localhost"), (b"Authorization", b"Bearer " + token[:-1])]
        assert (await ask(port, headers)).status == 401


async def test_with_a_token_names_and_origins_do_not_matter(supervisor: Supervisor) -> None:
    async with served(supervisor, token=TOKEN) as port:
        strange: Headers = [
            (b"Host", b"creche.example"),
            (b"Origin", b"https://page.example"),
            (b"Sec-Fetch-Site", b"cross-site"),
        ]
        assert (await ask(port, [*strange, (b"Authorization", b"Bearer " + TOKEN)])).status == 200
        assert (await ask(port, strange)).status == 401


async def test_without_a_token_any_authorization_is_ignored(supervisor: Supervisor) -> None:
    # SDKs always send one.
    async with served(supervisor) as port:
        for value in (b"Bearer whatever", b"Basic eDp5", b"\xff", b""):
            headers = [(b"Host", b"sbx.local"), (b"Authorization", value)]
            assert (await ask(port, headers)).status == 200


def test_the_token_is_only_compared_in_constant_time() -> None:
    tree = ast.parse(inspect.getsource(guard))
    uses = [
        node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "_token"
    ]
    stored = [node for node in uses if isinstance(node.ctx, ast.Store)]
    compared = [
        argument
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "hmac.compare_digest"
        for argument in node.args
        if argument in uses
    ]
    none_checks = [
        node.left
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and ast.unparse(node).endswith(("is None", "is not None"))
        and node.left in uses
    ]
    assert len(stored) == len(compared) == 1
    assert len(uses) == len(stored) + len(compared) + len(none_checks)


# --- WebSockets -----------------------------------------------------------------

HANDSHAKE: Headers = [
    (b"Upgrade", b"websocket"),
    (b"Connection", b"Upgrade"),
    (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"Sec-WebSocket-Version", b"13"),
]


@pytest.mark.parametrize("path", [b"/api/v1/processes", b"/api/v1/processes/run", b"/nothing"])
@pytest.mark.parametrize(
    ("token", "headers", "status"),
    [
        (None, [(b"Host", b"evil.example")], 403),
        (None, [(b"Host", b"localhost"), (b"Origin", b"http://evil.example")], 403),
        (None, [(b"Host", b"localhost"), (b"Origin", b"null")], 403),
        (None, [(b"Host", b"localhost"), (b"Sec-Fetch-Site", b"cross-site")], 403),
        (TOKEN, [(b"Host", b"localhost")], 401),
        (TOKEN, [(b"Host", b"localhost"), (b"Authorization", b"Bearer wrong")], 401),
    ],
)
async def test_a_websocket_is_refused_by_the_same_rules(
    supervisor: Supervisor,
    path: bytes,
    token: bytes | None,
    headers: Headers,
    status: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(supervisor, token=token) as port:
        answer = await ask(port, headers + HANDSHAKE, path=path)
    assert answer.status == status
    assert answer.code in ("HOST_REFUSED", "ORIGIN_REFUSED", "UNAUTHORIZED")
    assert caplog.records == []


@pytest.mark.parametrize("handshake", [HANDSHAKE, HANDSHAKE[:2]])
@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (b"/api/v1/processes", 200, None),
        (b"/api/v1/processes/1", 404, "NOT_FOUND"),
        (b"/nothing", 404, "ROUTE_NOT_FOUND"),
    ],
)
async def test_a_handshake_is_the_plain_request_that_it_is(
    supervisor: Supervisor,
    handshake: Headers,
    path: bytes,
    status: int,
    code: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(supervisor) as port:
        answer = await ask(port, [(b"Host", b"localhost"), *handshake], path=path)
    assert (answer.status, answer.code) == (status, code)
    assert caplog.records == []
