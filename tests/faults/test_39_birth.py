"""What a child is born with: nothing that the daemon has done to itself, and what was asked for."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from supervisor import ProcessSpec, SpecError, Supervisor

from ..conftest import Daemon
from ..test_server import serving
from ..wire import Connection, connect
from .bystander import ended
from .test_38_secrets import _NOBODY

_STATUS = "grep -E '^(Umask|Sig(Blk|Ign)|NoNewPrivs|Seccomp):' /proc/self/status"
_BIRTH = f"{_STATUS}; ulimit -Sn; ulimit -Hn; nice; cut -d ' ' -f 5,6 /proc/$$/stat; echo $$"
# A shell that changes what is inherited, ignores and blocks signals, and becomes the daemon.
_TWISTED = (
    *("prlimit", "--nofile=300:2000"),
    *("env", "--ignore-signal=HUP,PIPE,USR1", "--block-signal=USR2,WINCH"),
    *("nice", "-n", "3"),
    *("sh", "-c", 'umask 027; exec "$@"', "sh"),
)


async def _birth(connection: Connection, **more: Any) -> list[str]:
    spec = {"command": "sh", "args": ["-c", _BIRTH], **more}
    started = await connection.json("POST", "/processes", spec)
    assert connection.status == 201, started
    await ended(connection, started["pid"])
    output = await connection.json("GET", f"/processes/{started['pid']}/output")
    lines = [line.replace("\t", " ") for line in output["lines"]]
    *rest, ids, pid = lines
    # Leads its own group and session.
    assert ids.split() == [pid, pid]
    return rest


@pytest.mark.parametrize("parked", ["0", "2"])
async def test_a_child_has_nothing_of_what_the_daemon_is(parked: str) -> None:
    options = ("--parked-launchers", parked)
    async with (
        serving(*options, under=_TWISTED) as (daemon, url),
        await connect(url) as connection,
    ):
        limits = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        assert limits == (2000 - 64, 2000)
        for user in ("root", "games"):
            assert await _birth(connection, user=user) == [
                "Umask: 0027",
                "SigBlk: 0000000000000000",
                "SigIgn: 0000000000000000",
                "NoNewPrivs: 0",
                "Seccomp: 0",
                "300",
                "2000",
                "3",
            ]


async def test_a_child_is_born_as_it_was_asked_for() -> None:
    async with serving(under=_TWISTED) as (_, url), await connect(url) as connection:
        more = {
            "umask": "007",
            "nice": 7,
            "no_new_privs": True,
            "limits": {"open_files": 100},
        }
        umask, *_, no_new_privs, _, soft, hard, nice = await _birth(connection, **more)
        assert (umask, no_new_privs) == ("Umask: 0007", "NoNewPrivs: 1")
        assert (soft, hard, nice) == ("100", "100", "7")
        spec = {"command": "cat", "args": ["/proc/self/oom_score_adj"], "oom_score_adj": 900}
        started = await connection.json("POST", "/processes", spec)
        await ended(connection, started["pid"])
        output = await connection.json("GET", f"/processes/{started['pid']}/output")
        assert output["lines"] == ["900"]


async def test_settings_hold_for_every_child() -> None:
    options = ("--umask", "077", "--no-new-privs")
    async with serving(*options) as (_, url), await connect(url) as connection:
        umask, *_, no_new_privs, _, _, _, _ = await _birth(connection, no_new_privs=False)
        assert (umask, no_new_privs) == ("Umask: 0077", "NoNewPrivs: 1")
        umask, *_ = await _birth(connection, umask="22")
        assert umask == "Umask: 0022"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("umask", value) for value in ("8", "1777", "", "0o22", "u=rwx", "22 ", "٢", 18, True)),
        *(("nice", value) for value in (-21, 20, 0.5, "1", 2**70, True)),
        *(("oom_score_adj", value) for value in (-1001, 1001, "0", 1e400)),
        *(("no_new_privs", value) for value in (1, "true", None)),
    ],
)
async def test_what_makes_no_sense_is_refused(daemon: Daemon, field: str, value: object) -> None:
    if value == 1e400:
        content = b'{"command": "true", "oom_score_adj": 1e400}'
        headers = {"content-type": "application/json"}
        answer = await daemon.client.post("/processes", content=content, headers=headers)
    else:
        answer = await daemon.client.post("/processes", json={"command": "true", field: value})
    assert answer.status_code in (400, 422)
    assert answer.json()["code"] in ("INVALID_REQUEST", "INVALID_SPEC", "MALFORMED_JSON")
    assert daemon.supervisor.processes() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("umask", "9"), ("umask", "22\n"), ("nice", -21), ("nice", 20), ("oom_score_adj", 1001)],
)
async def test_a_program_is_told_too(supervisor: Supervisor, field: str, value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        await supervisor.start(ProcessSpec(command="true", **{field: value}))
    assert caught.value.field == field


async def test_what_takes_privilege_is_refused_to_who_has_none() -> None:
    prefix = ("choom", "-n", "100", "--", *_NOBODY)
    async with (
        serving("--state-dir", "", under=prefix) as (_, url),
        await connect(url) as connection,
    ):
        for field, value in (("nice", -1), ("oom_score_adj", -1)):
            answer = await connection.json("POST", "/processes", {"command": "true", field: value})
            assert (connection.status, answer["code"]) == (403, "PERMISSION_DENIED")
            assert answer["field"] == field
