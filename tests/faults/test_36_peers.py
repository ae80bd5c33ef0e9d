"""Case 36: who connects to a Unix socket. The kernel says as whom, whatever the socket's mode.

Besides, tests/test_server.py has the mode, and sockets in use and left over.
"""

from __future__ import annotations

import os
import pwd
import socket
import stat
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from ..test_server import command
from .callers import JSON, parse_answer, request, to_end

STRANGER = 65534
FRIEND = pwd.getpwnam("daemon").pw_uid


def _connect_as(uid: int, path: Path) -> socket.socket:
    """A socket that this user has connected: the credentials are those of that moment."""
    sock = socket.socket(socket.AF_UNIX)
    os.seteuid(uid)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        raise
    finally:
        os.seteuid(0)
    return sock


async def _post_as(uid: int, path: Path) -> str:
    """Start a process as this user; the status of the success, or the code of the error."""
    sock = _connect_as(uid, path)
    async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(request("POST", "/processes", JSON, body=b'{"command": "true"}'))
        answer = parse_answer(await to_end(stream), b"POST")
    return str(answer.status) if answer.status < 400 else answer.code


async def test_without_a_list_only_root_and_the_daemons_own_user_may_call(
    somewhere: Path,
) -> None:
    path = somewhere / "creche.sock"
    async with command("--bind", f"unix:{path}") as daemon:
        await daemon.logged("serving")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for uid in (STRANGER, FRIEND):
            with pytest.raises(PermissionError):
                _connect_as(uid, path)
            path.chmod(0o666)  # Somebody has opened it, by mistake.
            assert await _post_as(uid, path) == "PEER_REFUSED"
            path.chmod(0o600)
        assert await _post_as(0, path) == "201"
        assert daemon.complaints == []


@pytest.mark.parametrize("friend", ["daemon", str(FRIEND), f"{FRIEND},65533"])
async def test_with_a_list_those_on_it_may_call_too(somewhere: Path, friend: str) -> None:
    path = somewhere / "creche.sock"
    async with command("--bind", f"unix:{path}", "--socket-users", friend) as daemon:
        await daemon.logged("serving")
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert await _post_as(STRANGER, path) == "PEER_REFUSED"
        assert await _post_as(FRIEND, path) == "201"
        assert await _post_as(0, path) == "201"
        assert daemon.complaints == []


async def test_a_peer_needs_the_token_too(somewhere: Path) -> None:
    path = somewhere / "creche.sock"
    token = somewhere / "token"
    token.write_text("x")
    async with command("--bind", f"unix:{path}", "--token-file", str(token)) as daemon:
        await daemon.logged("serving")
        path.chmod(0o666)
        assert await _post_as(0, path) == "UNAUTHORIZED"
        assert await _post_as(STRANGER, path) == "PEER_REFUSED"
