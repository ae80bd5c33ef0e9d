"""Sending whole answers by ASGI, for what answers without the framework."""

from __future__ import annotations

from collections.abc import Sequence

from hypercorn.typing import ASGISendCallable


async def send_whole(
    send: ASGISendCallable, status: int, headers: Sequence[tuple[str, str]], body: bytes
) -> None:
    """Send an answer at once; with a content-length unless the body is empty."""
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    if body:
        encoded.append((b"content-length", str(len(body)).encode()))
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": encoded,
            "trailers": False,
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})
