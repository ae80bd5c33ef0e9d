"""What the command finds: streams, session, limits, its user, nothing left behind, its cgroups."""

import errno
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.orders import (
    Credentials,
    Failure,
    Limit,
    Stage,
)

from .conftest import (
    FOLDER,
    NATIVE,
    NOBODY,
    Outcome,
    as_root,
    deny,
    launch,
    limited,
    order,
    shell,
    status_of,
    with_resource_capability,
)

# --- Streams, session, terminal


def test_streams_are_kept_unless_ordered_otherwise(tmp_path: Path) -> None:
    with (
        open(tmp_path / "in", "w+b") as stdin,
        open(tmp_path / "out", "w+b") as stdout,
        open(tmp_path / "err", "w+b") as stderr,
    ):
        stdin.write(b"in\n")
        stdin.flush()

        def streams_after(**fields: Any) -> tuple[bytes, bytes]:
            for file in (stdin, stdout, stderr):
                file.seek(0)
            stdout.truncate()
            stderr.truncate()
            orders = shell("cat; echo out; echo err >&2", **fields)
            assert launch(orders, stdin=stdin, stdout=stdout, stderr=stderr) == Outcome(
                None, 0, b""
            )
            return os.pread(stdout.fileno(), 100, 0), os.pread(stderr.fileno(), 100, 0)

        assert streams_after() == (b"in\nout\n", b"err\n")
        assert streams_after(stdin="null") == (b"out\n", b"err\n")
        assert streams_after(stdout="null") == (b"", b"err\n")
        assert streams_after(stderr="null") == (b"in\nout\n", b"")
        assert streams_after(stderr="stdout") == (b"in\nout\nerr\n", b"")
        assert streams_after(stdout="null", stderr="stdout") == (b"", b"")


def test_null_replaces_streams_that_are_closed() -> None:
    def close_all() -> None:
        os.closerange(0, 3)

    script = 'for fd in 0 1 2; do [ "$(readlink /proc/$$/fd/$fd)" = /dev/null ] || exit 9; done'
    assert launch(
        shell(script, stdin="null", stdout="null", stderr="null"), preexec_fn=close_all
    ) == Outcome(None, 0, b"")


def process_stat(outcome: Outcome) -> dict[str, int]:
    pid, *_ = outcome.output.split()
    fields = outcome.output.rpartition(b")")[2].split()
    return {
        "pid": int(pid),
        "group": int(fields[2]),
        "session": int(fields[3]),
        "tty": int(fields[4]),
        "nice": int(fields[16]),
    }


@pytest.mark.parametrize("leads_already", [False, True])
def test_new_session_is_led_by_the_command(leads_already: bool) -> None:
    found = process_stat(
        launch(order(b"cat", b"/proc/self/stat", new_session=True), start_new_session=leads_already)
    )
    assert found["pid"] == found["group"] == found["session"]


def test_session_is_kept_without_an_order() -> None:
    assert process_stat(launch(order(b"cat", b"/proc/self/stat")))["session"] == os.getsid(0)


def test_terminal_on_stdin_becomes_that_of_the_session() -> None:
    ours, theirs = os.openpty()
    outcome = launch(
        order(b"cat", b"/proc/self/stat", new_session=True, controlling_tty=True), stdin=theirs
    )
    device = os.fstat(theirs).st_rdev
    assert (
        os.makedev(process_stat(outcome)["tty"] >> 8 & 0xFFF, process_stat(outcome)["tty"] & 0xFF)
        == device
    )
    os.close(ours)
    os.close(theirs)


# --- Resources


def test_umask_nice_and_oom_score_are_set() -> None:
    assert launch(shell("umask", umask=0o137)).output == b"0137\n"
    assert process_stat(launch(order(b"cat", b"/proc/self/stat", nice=7)))["nice"] == 7
    assert launch(order(b"cat", b"/proc/self/oom_score_adj", oom_score_adj=321)).output == b"321\n"


@as_root
def test_priority_is_raised_while_still_privileged() -> None:
    assert (
        process_stat(launch(order(b"cat", b"/proc/self/stat", credentials=NOBODY, nice=-3)))["nice"]
        == -3
    )


@with_resource_capability
def test_oom_score_is_lowered_while_still_privileged() -> None:
    assert (
        launch(
            order(b"cat", b"/proc/self/oom_score_adj", credentials=NOBODY, oom_score_adj=-321)
        ).output
        == b"-321\n"
    )


def limits_of(outcome: Outcome) -> dict[str, tuple[str, str]]:
    lines = outcome.output.decode().splitlines()[1:]
    return {line[:26].strip(): (line[26:47].strip(), line[47:68].strip()) for line in lines}


def test_limits_are_set() -> None:
    limits = (
        Limit(resource.RLIMIT_CORE, 0, 0),
        Limit(resource.RLIMIT_NOFILE, 100, 200),
        Limit(resource.RLIMIT_FSIZE, 2**40 + 1, 2**62),
        Limit(resource.RLIMIT_CPU, 17, resource.getrlimit(resource.RLIMIT_CPU)[1]),
    )
    found = limits_of(launch(order(b"cat", b"/proc/self/limits", limits=limits)))
    assert found["Max core file size"] == ("0", "0")
    assert found["Max open files"] == ("100", "200")
    assert found["Max file size"] == (str(2**40 + 1), str(2**62))
    assert found["Max cpu time"][0] == "17"


@with_resource_capability
def test_limits_can_be_raised_for_another_user() -> None:
    limits = (
        Limit(resource.RLIMIT_MEMLOCK, -1, -1),
        Limit(resource.RLIMIT_NOFILE, 4096, 1_000_000),
    )
    orders = order(b"cat", b"/proc/self/limits", limits=limits, credentials=NOBODY)
    found = limits_of(launch(orders, preexec_fn=limited(resource.RLIMIT_NOFILE, 64)))
    assert found["Max locked memory"] == ("unlimited", "unlimited")
    assert found["Max open files"] == ("4096", "1000000")


def test_no_limit_fails_the_launcher_itself(tmp_path: Path) -> None:
    nothing = tuple(Limit(which, 0, 0) for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE))
    path = b"PATH=/nonexistent:" + os.fsencode(FOLDER)
    fields: dict[str, Any] = {
        "stdin": "null",
        "stderr": "stdout",
        "oom_score_adj": 1000,
        "directory": os.fsencode(tmp_path),
    }
    orders = order(os.fsencode(NATIVE.name), environment=(path,), limits=nothing, **fields)
    assert launch(orders) == Outcome(
        None, 125, b""
    )  # a launcher with no command line: static, so it needs nothing


def test_program_without_room_under_its_limits_is_killed_in_exec() -> None:
    outcome = launch(order(b"true", limits=(Limit(resource.RLIMIT_AS, 0, 0),)))
    assert outcome.failure is None
    assert outcome.status in (-signal.SIGKILL, -signal.SIGSEGV)


@as_root
def test_process_limit_counts_for_the_new_user_from_the_start() -> None:
    user = Credentials(uid=54321, gid=54321, groups=())
    limits = (Limit(resource.RLIMIT_NPROC, 1, 1),)
    assert launch(order(b"true", credentials=user, limits=limits)) == Outcome(None, 0, b"")
    cat: dict[str, Any] = {"args": ["cat"], "stdin": subprocess.PIPE, "user": 54321}
    with subprocess.Popen(**cat), subprocess.Popen(**cat):
        outcome = launch(order(b"true", credentials=user, limits=limits))
    assert outcome == Outcome(Failure(Stage.COMMAND, errno.EAGAIN), 126, b"")


# --- Nothing left behind


def test_signals_are_at_their_default_and_none_is_blocked() -> None:
    ignored = [signal.SIGUSR1, signal.SIGCHLD, signal.SIGHUP, signal.SIGRTMIN, signal.SIGRTMAX]
    handlers = {
        number: signal.signal(number, signal.SIG_IGN)
        for number in ignored
        if number != signal.SIGCHLD
    }
    mask = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGRTMAX - 1, signal.SIGUSR2}
    )
    try:
        bare = subprocess.run(
            ["cat", "/proc/self/status"], capture_output=True, restore_signals=False, check=True
        ).stdout
        status = status_of(popen={"restore_signals": False})
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert not re.search(rb"SigBlk:\s*0{16}\n", bare)
    assert not re.search(rb"SigIgn:\s*0{16}\n", bare)
    assert status["SigBlk"] == status["SigIgn"] == status["SigPnd"] == status["ShdPnd"] == "0" * 16


@pytest.mark.parametrize("close_range", ["as it is", "missing"])
def test_no_descriptor_above_2_is_left(close_range: str) -> None:
    fds = tuple(os.dup(0) for _ in range(60))  # more than one getdents
    high = 900
    os.dup2(0, high)
    popen: dict[str, Any] = (
        {"preexec_fn": deny("close_range", errno.ENOSYS)} if close_range == "missing" else {}
    )
    outcome = launch(order(b"ls", b"/proc/self/fd"), pass_fds=(*fds, high), **popen)
    bare = subprocess.run(
        ["ls", "/proc/self/fd"], pass_fds=(*fds, high), capture_output=True, check=True
    ).stdout.split()
    for fd in (*fds, high):
        os.close(fd)
    assert len(bare) == 65
    assert outcome.output.split() == [b"0", b"1", b"2", b"3"]  # 3 is the directory that ls reads


@pytest.mark.parametrize("call", ["openat", "getdents64", "fcntl"])
def test_descriptors_that_cannot_be_marked_fail_as_such(call: str) -> None:
    without_close_range, without_this = deny("close_range", errno.ENOSYS), deny(call, errno.EPERM)

    def preexec() -> None:
        without_close_range()
        without_this()

    outcome = launch(order(b"true"), preexec_fn=preexec)
    assert outcome == Outcome(Failure(Stage.DESCRIPTORS, errno.EPERM), 125, b"")


@as_root
@pytest.mark.parametrize("no_new_privs", [False, True])
def test_no_privilege_is_left(no_new_privs: bool) -> None:
    user = Credentials(uid=1234, gid=2345, groups=(7, 2**32 - 2, 2345))
    status = status_of(credentials=user, no_new_privs=no_new_privs)
    assert status["Uid"].split() == ["1234"] * 4
    assert status["Gid"].split() == ["2345"] * 4
    assert status["Groups"].split() == ["7", "2345", str(2**32 - 2)]
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == str(int(no_new_privs))
    assert status["Seccomp"] == "0"
    assert status["SigBlk"] == status["SigIgn"] == "0" * 16


@as_root
def test_groups_can_be_none_at_all() -> None:
    assert status_of(credentials=NOBODY)["Groups"] == ""


@as_root
def test_root_stays_root_unless_ordered_otherwise() -> None:
    bare = Path("/proc/self/status").read_text()
    status = status_of()
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert f"{name}:\t{status[name]}\n" in bare
    assert status["Uid"].split() == ["0"] * 4


CAPABILITIES = "+setuid,+setgid,+net_raw,+kill"


@as_root
@pytest.mark.parametrize(
    "securebits",
    ["+noroot", "+no_setuid_fixup,+noroot", "+keep_caps_locked,+no_setuid_fixup_locked"],
)
@pytest.mark.parametrize("daemon", ["root", "another user with ambient capabilities"])
def test_no_capability_survives_whatever_the_daemon_has(daemon: str, securebits: str) -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("needs setpriv")
    user = () if daemon == "root" else ("--reuid=999", "--regid=999", "--clear-groups")
    wrapper = (
        setpriv,
        *user,
        f"--securebits={securebits}",
        f"--inh-caps={CAPABILITIES}",
        f"--ambient-caps={CAPABILITIES}",
    )
    bare = subprocess.run(
        [*wrapper, "grep", "Cap[EA]", "/proc/self/status"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert not re.search(r"0{16}", bare), (
        "the wrapper gives no capabilities, so the test shows nothing"
    )
    status = status_of(credentials=NOBODY, popen={"launcher": (*wrapper, NATIVE)})
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4


@as_root
def test_directory_is_entered_as_the_new_user(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & stat.S_IXOTH == 0 and folder.owner() == "root":
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
    orders = order(b"pwd", directory=os.fsencode(private), credentials=NOBODY)
    assert launch(orders).failure == Failure(Stage.DIRECTORY, errno.EACCES)
    os.chown(private, 65534, 65534)
    assert launch(orders).output == os.fsencode(private) + b"\n"


def test_unprivileged_launcher_calls_no_setgroups() -> None:
    outcome = launch(order(b"true"), preexec_fn=deny("setgroups", errno.EPERM))
    assert outcome == Outcome(None, 0, b"")


# --- Real cgroups


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A fresh cgroup in any hierarchy where this process may make one."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, kind = line.split()[4], line.split(" - ")[1].split()[0]
        folder = Path(mount) / f"test-launcher-{os.getpid()}"
        if kind == "cgroup2" or (kind == "cgroup" and mount.endswith(("pids", "memory"))):
            try:
                folder.mkdir()
            except OSError:
                continue
            yield folder
            folder.rmdir()
            return
    pytest.skip("no cgroup can be made here")


@pytest.mark.parametrize("before_orders", [False, True])
def test_command_is_born_in_its_cgroup(cgroup: Path, before_orders: bool) -> None:
    fd = os.open(cgroup / "cgroup.procs", os.O_WRONLY)
    orders = order(b"cat", b"/proc/self/cgroup", join_fds=() if before_orders else (fd,))
    outcome = launch(orders, cgroups=(str(cgroup),) if before_orders else (), pass_fds=(fd,))
    os.close(fd)
    assert f"/{cgroup.name}\n".encode() in outcome.output


def test_launcher_makes_its_cgroup(cgroup: Path) -> None:
    new = cgroup / "new"
    outcome = launch(order(b"cat", b"/proc/self/cgroup"), cgroups=(str(new),))
    new.rmdir()
    assert f"/{cgroup.name}/new\n".encode() in outcome.output
