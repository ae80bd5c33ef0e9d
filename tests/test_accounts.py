"""Users in all their forms, and what a process of theirs looks like to the kernel."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from uuid import uuid4

import pytest
import trio

from supervisor import (
    InvalidUser,
    ProcessSpec,
    Supervisor,
    SupervisorConfig,
    User,
    UserNotFound,
    open_supervisor,
)


@pytest.fixture(scope="module")
def member() -> Iterator[pwd.struct_passwd]:
    """An account of its own with two supplementary groups."""
    name = f"creche-{uuid4().hex[:8]}"
    subprocess.run(
        ["useradd", "--no-create-home", "--shell", "/bin/bash", "-G", "daemon,games", name],
        check=True,
    )
    try:
        yield pwd.getpwnam(name)
    finally:
        subprocess.run(["userdel", name], check=True)


async def _ids(supervisor: Supervisor, user: str | User | None) -> dict[str, list[int]]:
    """Uid, Gid (real, effective, saved, filesystem) and Groups of a process, and its capabilities."""
    result = await supervisor.run(
        ProcessSpec(
            command="grep",
            args=("-E", "^(Uid|Gid|Groups|CapPrm|CapEff|CapAmb):", "/proc/self/status"),
            user=user,
        )
    )
    found = {}
    for line in result.stdout.decode().splitlines():
        name, _, values = line.partition(":")
        base = 16 if name.startswith("Cap") else 10
        found[name] = sorted(int(value, base) for value in values.split())
    return found


async def test_every_form_of_user(supervisor: Supervisor, member: pwd.struct_passwd) -> None:
    uid, gid = member.pw_uid, member.pw_gid
    own_groups = sorted({gid, grp.getgrnam("daemon").gr_gid, grp.getgrnam("games").gr_gid})
    for user in (
        member.pw_name,
        str(uid),
        User(name=member.pw_name),
        User(uid=uid),
    ):
        ids = await _ids(supervisor, user)
        assert ids["Uid"] == [uid] * 4
        assert ids["Gid"] == [gid] * 4
        assert ids["Groups"] == own_groups
        assert ids["CapPrm"] == ids["CapEff"] == ids["CapAmb"] == [0]
    for user in (f"{uid}:7", User(uid=uid, gid=7), User(name=member.pw_name, gid=7)):
        ids = await _ids(supervisor, user)
        assert ids["Uid"] == [uid] * 4
        assert ids["Gid"] == [7] * 4
        assert ids["Groups"] == []


async def test_a_uid_without_an_account(supervisor: Supervisor) -> None:
    for user in ("54321", User(uid=54321)):
        ids = await _ids(supervisor, user)
        assert ids["Uid"] == [54321] * 4
        assert ids["Gid"] == [54321] * 4
        assert ids["Groups"] == []


async def test_changes_of_the_account_files_are_noticed(
    supervisor: Supervisor, member: pwd.struct_passwd
) -> None:
    name = f"creche-{uuid4().hex[:8]}"
    with pytest.raises(UserNotFound):
        await _ids(supervisor, name)
    before = await _ids(supervisor, member.pw_name)
    subprocess.run(["useradd", "--no-create-home", name], check=True)
    try:
        subprocess.run(["usermod", "-a", "-G", "audio", member.pw_name], check=True)
        assert (await _ids(supervisor, name))["Uid"] == [pwd.getpwnam(name).pw_uid] * 4
        after = await _ids(supervisor, member.pw_name)
        audio = grp.getgrnam("audio").gr_gid
        assert after["Groups"] == sorted({*before["Groups"], audio})
        subprocess.run(["gpasswd", "-d", member.pw_name, "audio"], check=True)
        assert await _ids(supervisor, member.pw_name) == before
    finally:
        subprocess.run(["userdel", name], check=True)
    with pytest.raises(UserNotFound):
        await _ids(supervisor, name)


async def test_a_process_has_its_users_login_environment(
    supervisor: Supervisor, member: pwd.struct_passwd
) -> None:
    spec = ProcessSpec(
        command="sh", args=("-c", "echo $HOME $USER $LOGNAME $SHELL"), user=member.pw_name
    )
    result = await supervisor.run(spec)
    name = member.pw_name
    assert result.stdout.decode().split() == [f"/home/{name}", name, name, "/bin/bash"]


async def test_the_default_user_is_a_setting(member: pwd.struct_passwd) -> None:
    async with open_supervisor(SupervisorConfig(default_user=member.pw_name)) as supervisor:
        assert (await _ids(supervisor, None))["Uid"] == [member.pw_uid] * 4
        assert (await _ids(supervisor, "root"))["Uid"] == [0] * 4


async def test_no_user_means_the_supervisors_own(supervisor: Supervisor) -> None:
    assert (await _ids(supervisor, None))["Uid"] == [os.getuid()] * 4


@pytest.mark.parametrize(
    "user",
    ["", "  ", User(), User(name="root", uid=0), User(name=" "), "4294967295", "0:4294967295"],
)
async def test_what_is_no_user_is_refused(supervisor: Supervisor, user: str | User) -> None:
    with pytest.raises(InvalidUser):
        await supervisor.start(ProcessSpec(command="true", user=user))


@pytest.mark.parametrize("user", ["no-such-user", "-1", "1.5", "a:b", "0:x", "x\0y", "\ud800", "٣"])
async def test_an_unknown_user_is_told(supervisor: Supervisor, user: str) -> None:
    with pytest.raises(UserNotFound) as caught:
        await supervisor.start(ProcessSpec(command="true", user=user))
    assert caught.value.field == "user"


_UNPRIVILEGED = """
import os, trio
from supervisor import *
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
async def main():
    async with open_supervisor() as supervisor:
        for user in (None, "65534", "nobody", "65534:65534"):
            result = await supervisor.run(ProcessSpec(command="id", args=("-u",), user=user))
            print(result.stdout.decode().strip())
        for user in ("root", "0", "65534:0"):
            try:
                await supervisor.start(ProcessSpec(command="id", user=user))
            except UserNotPermitted as error:
                print(error.code)
trio.run(main)
"""


async def test_who_is_not_root_may_only_be_itself() -> None:
    result = await trio.run_process([sys.executable, "-c", _UNPRIVILEGED], capture_stdout=True)
    assert result.stdout.decode().split() == ["65534"] * 4 + ["USER_NOT_PERMITTED"] * 3
