"""Case 35: what a web page can send, by DNS rebinding, across origins, and with what no browser sends.

Besides, tests/test_guard.py has Host, Origin and Sec-Fetch-Site one by one, bodies
that a form can send, WebSockets, and that no answer gives leave to another origin.
"""

from __future__ import annotations

import pytest

from supervisor import Supervisor

from ..test_guard import served
from .callers import Answer, ask

BODY = b'{"command": "true"}'
JSON = "Content-Type: application/json"

# Request line (method and target), header lines, whether it may pass.
COMBINATIONS: list[tuple[str, str, list[str], bool]] = [
    ("POST", "/api/v1/processes", ["Host: localhost", JSON], True),
    ("POST", "/api/v1/processes", ["Host: sandbox.local", JSON], True),
    ("POST", "/api/v1/processes", ["Host: localhost", "Sec-Fetch-Site: none", JSON], True),
    # Rebound names, whatever else is said.
    ("POST", "/api/v1/processes", ["Host: evil.example", JSON], False),
    (
        "POST",
        "/api/v1/processes",
        ["Host: evil.example", "Origin: http://evil.example", JSON],
        False,
    ),
    (
        "POST",
        "/api/v1/processes",
        ["Host: evil.example", "Sec-Fetch-Site: same-origin", JSON],
        False,
    ),
    (
        "POST",
        "/api/v1/processes",
        ["Host: evil.example", "X-Forwarded-Host: localhost", JSON],
        False,
    ),
    ("POST", "/api/v1/processes", ["Host: evil.example", "Forwarded: host=localhost", JSON], False),
    (
        "POST",
        "/api/v1/processes",
        ["Host: evil.example", "X-Original-Host: 127.0.0.1", JSON],
        False,
    ),
    ("POST", "/api/v1/processes", ["Host: evil.example", "Authorization: Bearer x", JSON], False),
    ("POST", "http://localhost/api/v1/processes", ["Host: evil.example", JSON], False),
    ("POST", "//localhost/api/v1/processes", ["Host: evil.example", JSON], False),
    ("POST", "/api/v1/processes", ["Host: localhost.evil.example", JSON], False),
    ("POST", "/api/v1/processes", ["Host: 127.0.0.1.evil.example", JSON], False),
    ("POST", "/api/v1/processes", ["Host: localhost", "Host: evil.example", JSON], False),
    ("POST", "/api/v1/processes", [JSON], False),
    # Other origins.
    ("POST", "/api/v1/processes", ["Host: localhost", "Origin: http://evil.example", JSON], False),
    ("POST", "/api/v1/processes", ["Host: localhost", "Origin: null", JSON], False),
    ("POST", "/api/v1/processes", ["Host: localhost", "Origin: http://localhost:1", JSON], False),
    (
        "POST",
        "/api/v1/processes",
        ["Host: localhost", "Origin: http://evil.example", "Origin: http://localhost", JSON],
        False,
    ),
    (
        "POST",
        "/api/v1/processes",
        ["Host: localhost", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: none", JSON],
        False,
    ),
    ("POST", "/api/v1/processes", ["Host: localhost", "Sec-Fetch-Site: cross-site", JSON], False),
    (
        "OPTIONS",
        "/api/v1/processes",
        [
            "Host: localhost",
            "Origin: http://evil.example",
            "Access-Control-Request-Method: POST",
            "Access-Control-Request-Headers: content-type",
            "Access-Control-Request-Private-Network: true",
        ],
        False,
    ),
    # What needs no preflight.
    ("POST", "/api/v1/processes", ["Host: localhost", "Content-Type: text/plain"], False),
    ("POST", "/api/v1/processes", ["Host: localhost", f"Content-Type: text/plain; {JSON}"], False),
    ("POST", "/api/v1/processes", ["Host: localhost"], False),
]
UPGRADE = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQA"]


async def _send(url: str, method: str, target: str, lines: list[str], version: str) -> Answer:
    head = [f"{method} {target} HTTP/{version}", *lines, f"Content-Length: {len(BODY)}"]
    data = "\r\n".join([*head, "Connection: close", "\r\n"]).encode() + BODY
    return await ask(url, data)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize(("method", "target", "lines", "passes"), COMBINATIONS)
async def test_only_what_no_page_can_send_passes(
    supervisor: Supervisor, method: str, target: str, lines: list[str], passes: bool, version: str
) -> None:
    async with served(supervisor) as port:
        answer = await _send(f"http://127.0.0.1:{port}", method, target, lines, version)
    if passes:
        assert answer.status == 201
        assert supervisor.total == 1
    else:
        assert answer.status in (400, 403, 415)
        assert answer.code in (
            "HOST_REFUSED",
            "ORIGIN_REFUSED",
            "UNSUPPORTED_MEDIA_TYPE",
            "MALFORMED_HTTP",
        )
        assert supervisor.total == 0
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_there_is_no_other_protocol_to_go_around_it(supervisor: Supervisor) -> None:
    async with served(supervisor) as port:
        url = f"http://127.0.0.1:{port}"
        for host, status in (("evil.example", 403), ("localhost", 200)):
            lines = [f"Host: {host}", *UPGRADE, "\r\n"]
            head = "\r\n".join(["GET /api/v1/processes HTTP/1.1", *lines]).encode()
            # It goes on in HTTP/1.1, and ends by the second request.
            closing = b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            assert (await ask(url, head + closing)).status == status
        answer = await ask(url, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        assert answer.code == "MALFORMED_HTTP"
