"""Other users: a process is what its account says, and nothing of the daemon besides.

The forms of `user`, capabilities and the login environment are in `test_accounts`.
Here are a daemon that itself has groups, and unknown users over HTTP.
"""

from __future__ import annotations

import os
import pwd

import pytest

from ..conftest import Daemon
from ..test_server import serving
from ..wire import connect
from .bystander import ended


@pytest.mark.parametrize("parked", ["0", "2"])
async def test_groups_of_the_daemon_are_nobody_elses(parked: str) -> None:
    account = pwd.getpwnam("games")
    expected = {
        None: set(os.getgrouplist("root", 0)),
        "root": set(os.getgrouplist("root", 0)),
        "games": set(os.getgrouplist("games", account.pw_gid)),
        f"{account.pw_uid}:7": {7},
        "54321": {54321},
    }
    prefix = ("setpriv", "--groups", "4,24,20,1234", "--")
    async with (
        serving("--default-user", "", "--parked-launchers", parked, under=prefix) as (_, url),
        await connect(url) as connection,
    ):
        for user, groups in expected.items():
            spec = {"command": "id", "args": ["-G"]} | ({} if user is None else {"user": user})
            started = await connection.json("POST", "/processes", spec)
            await ended(connection, started["pid"])
            output = await connection.json("GET", f"/processes/{started['pid']}/output")
            assert {*map(int, output["lines"][0].split())} == groups


@pytest.mark.parametrize("user", ["no-such-user", "", {"name": "no-such-user"}, {"uid": -1}])
async def test_an_unknown_user_is_refused(daemon: Daemon, user: object) -> None:
    answer = await daemon.client.post("/processes", json={"command": "true", "user": user})
    assert answer.status_code in (400, 422)
    assert answer.json()["field"].startswith("user")
    assert daemon.supervisor.processes() == []
