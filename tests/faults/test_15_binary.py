"""Binary output: exact wherever bytes are asked for, and lines of replacement characters elsewhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from supervisor import OutputLimits, SupervisorConfig

from ..conftest import Daemon
from ..heavy import amount
from ..test_outputs import _frames
from ..wire import connect

_BYTES = amount(4_000_000, heavy=64_000_000)


@pytest.fixture
def config(tmp_path: Path) -> SupervisorConfig:
    return SupervisorConfig(state_dir=tmp_path / "state", output=OutputLimits())


async def test_random_bytes_are_the_same_in_every_view(daemon: Daemon) -> None:
    # Its stderr is the digest of its stdout, as it was written.
    script = f"head -c {_BYTES} /dev/urandom | tee /dev/fd/3 | sha256sum >&2"
    body = {"command": "bash", "args": ["-c", f"exec 3>&1; {script}"]}
    async with await connect(daemon.url) as connection:
        pid = (await connection.json("POST", "/processes", body))["pid"]
        raw = await connection.request("GET", f"/processes/{pid}/stdout/raw?follow=true")
        assert len(raw) == _BYTES
        error = await connection.request("GET", f"/processes/{pid}/stderr/raw?follow=true")
        assert hashlib.sha256(raw).hexdigest() == error.split()[0].decode()
        frames = list(_frames(await connection.request("GET", f"/processes/{pid}/output/frames")))
        for stream, expected in (("stdout", raw), ("stderr", error)):
            data = [frame.data for frame in frames if frame.stream == stream]
            assert b"".join(part for part in data if isinstance(part, bytes)) == expected
        lines = (await connection.json("GET", f"/processes/{pid}/stdout"))["lines"]
        # A line end of two characters is one, too.
        parts = raw.removesuffix(b"\n").split(b"\n")
        assert lines == [part.removesuffix(b"\r").decode(errors="replace") for part in parts]
