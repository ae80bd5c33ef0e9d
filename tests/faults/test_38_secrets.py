"""Secrets of the daemon: not in a child's environment or command line, and not to be read out of the daemon."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ..test_server import serving
from ..wire import Connection, connect
from .bystander import ended

_TOKEN = "a-token-that-nobody-may-see"
_SECRETS = {
    "DATABASE_PASSWORD": "a-password-that-nobody-may-see",
    "CRECHE_SOMETHING": "a-setting-that-nobody-may-see",
    "LD_LIBRARY_PATH": "/nowhere",
    "PYTHONSTARTUP": "/nowhere",
    "BASH_ENV": "/nowhere",
    "LC_TIME": "C.UTF-8",
    "TZ": "Europe/Berlin",
    "LANG": "C.UTF-8",
    "HOME": "/home/of/the/daemon",
    "PATH": os.environ["PATH"],
}
_NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--")
# What it takes to see into another process (ptrace(2), "Ptrace access mode checking").
_PEEK = """
for name in environ mem maps auxv; do (: < /proc/$1/$name) 2> /dev/null && echo $name; done
for name in cwd exe; do readlink /proc/$1/$name > /dev/null && echo $name; done
ls /proc/$1/fd > /dev/null 2>&1 && echo fd
"""


async def _lines(connection: Connection, **spec: Any) -> list[str]:
    started = await connection.json("POST", "/processes", spec)
    assert connection.status == 201, started
    await ended(connection, started["pid"])
    output = await connection.json("GET", f"/processes/{started['pid']}/output")
    return list(output["lines"])


async def test_a_child_gets_what_is_on_the_list_and_what_it_is_given() -> None:
    async with serving(environment=_SECRETS) as (_, url), await connect(url) as connection:
        lines = await _lines(connection, command="env", env={"GIVEN": "1"}, user="games")
        variables = dict(line.split("=", 1) for line in lines)
        variables.pop("CRECHE_UNIT", None)  # Where there are no cgroups.
        assert variables == {
            "PATH": _SECRETS["PATH"],
            "LC_TIME": "C.UTF-8",
            "TZ": "Europe/Berlin",
            "LANG": "C.UTF-8",
            "HOME": "/usr/games",
            "USER": "games",
            "LOGNAME": "games",
            "SHELL": "/usr/sbin/nologin",
            "GIVEN": "1",
        }
        # Who has no account has no home; above all not that of the daemon.
        lines = await _lines(connection, command="env", user="54321")
        assert {line.partition("=")[0] for line in lines} - {"CRECHE_UNIT"} == {
            "PATH",
            "LC_TIME",
            "LANG",
            "TZ",
        }
        (home,) = await _lines(connection, command="sh", args=["-c", "echo $HOME"])
        assert home == "/root"


async def test_more_names_can_be_passed_on() -> None:
    options = ("--pass-environment", "DATABASE_*,BASH_ENV")
    async with (
        serving(*options, environment=_SECRETS) as (_, url),
        await connect(url) as connection,
    ):
        lines = await _lines(connection, command="env")
        assert "DATABASE_PASSWORD=a-password-that-nobody-may-see" in lines
        assert {line.partition("=")[0] for line in lines} >= {"DATABASE_PASSWORD", "BASH_ENV"}
        assert not [line for line in lines if line.startswith(("LD_", "CRECHE_SOME"))]


@pytest.mark.parametrize("is_root", [True, False])
async def test_a_child_cannot_look_into_the_daemon(tmp_path: Path, is_root: bool) -> None:
    # As root, a child that is another user; otherwise one that is the same user,
    # for whom only the kernel's flag makes a difference.
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    for path in (state_dir, tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.getuid() and path not in (Path("/"), Path("/tmp")):
            path.chmod(0o755)
    os.chown(state_dir, 65534, 65534)
    options = ("--state-dir", str(state_dir))
    prefix = () if is_root else _NOBODY
    async with serving(*options, under=prefix) as (daemon, url), await connect(url) as connection:
        spec = {"command": "sh", "args": ["-c", _PEEK, "sh", str(daemon.process.pid)]}
        assert await _lines(connection, **spec, user="nobody") == []
        # The very same sees all that of a process that does not protect itself.
        waiting = {"command": "sleep", "args": ["1000"], "user": "nobody"}
        other = await connection.json("POST", "/processes", waiting)
        spec["args"] = ["-c", _PEEK, "sh", str(other["pid"])]
        seen = await _lines(connection, **spec, user="nobody")
        assert seen == ["environ", "mem", "maps", "auxv", "cwd", "exe", "fd"]
        # Without cgroups nobody else ends it when the daemon is killed.
        await connection.request("DELETE", f"/processes/{other['pid']}")
        assert connection.status == 204


async def test_the_token_is_nowhere_in_proc(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(_TOKEN)
    token.chmod(0o600)
    async with serving("--token-file", str(token)) as (daemon, url), await connect(url) as wire:
        spec = {"command": "sleep", "args": ["1000"]}
        bearer = {"authorization": f"Bearer {_TOKEN}"}
        pid = (await wire.json("POST", "/processes", spec, headers=bearer))["pid"]
        assert wire.status == 201
        for process in (pid, daemon.process.pid):
            for name in ("cmdline", "environ"):
                assert _TOKEN.encode() not in Path(f"/proc/{process}/{name}").read_bytes()
        await wire.request("DELETE", f"/processes/{pid}", headers=bearer)
        assert wire.status == 204
        assert daemon.complaints == []


async def test_a_token_that_others_can_read_is_complained_of(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(_TOKEN)
    token.chmod(0o644)
    async with serving("--token-file", str(token)) as (daemon, _):
        (complaint,) = daemon.complaints
        assert complaint["level"] == "warning"
        assert "token file" in complaint["message"]
