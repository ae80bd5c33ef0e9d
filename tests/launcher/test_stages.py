"""Every stage of failure, and how the command is found."""

import errno
import os
import re
import resource
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from supervisor.orders import (
    Failure,
    Limit,
    Orders,
    Stage,
    encode,
)

from .conftest import (
    FOLDER,
    NOBODY,
    TIMEOUT,
    TRUE,
    Command,
    Outcome,
    deny,
    launch,
    limited,
    message,
    order,
    record,
    script,
    unheard,
)

# --- Every stage of failure


def expect(
    stage: Stage, error: int, orders: Orders | bytes, status: int = 125, **popen: Any
) -> Any:
    return pytest.param(
        stage, error, orders, status, popen, id=f"{stage.name}-{errno.errorcode[error]}"
    )


def as_nobody() -> dict[str, Any]:
    return {"user": 65534, "group": 65534, "extra_groups": ()} if os.geteuid() == 0 else {}


FAILURES = [
    expect(Stage.JOIN, errno.EBADF, order(b"true", join_fds=(999,))),
    expect(Stage.JOIN, errno.EBADF, message(record(Stage.JOIN, struct.pack("<I", 1)), *TRUE)),
    expect(Stage.JOIN, errno.EBADF, message(record(Stage.JOIN, struct.pack("<i", -1)), *TRUE)),
    expect(Stage.NULL_STREAM, errno.EBADF, message(record(Stage.NULL_STREAM, struct.pack("<I", 3)), *TRUE)),
    expect(Stage.NULL_STREAM, errno.EPERM, order(b"true", stdin="null"), preexec_fn=deny("openat", errno.EPERM)),
    expect(Stage.NULL_STREAM, errno.EPERM, order(b"true", stdin="null"), preexec_fn=deny("dup3", errno.EPERM)),
    expect(Stage.STDERR_TO_STDOUT, errno.EBADF, order(b"true", stderr="stdout"), preexec_fn=lambda: os.close(1)),
    expect(Stage.NEW_SESSION, errno.EPERM, order(b"true", new_session=True), process_group=0),
    expect(Stage.CONTROLLING_TTY, errno.ENOTTY, order(b"true", new_session=True, controlling_tty=True)),
    expect(Stage.OOM_SCORE_ADJ, errno.EINVAL, order(b"true", oom_score_adj=1001)),
    expect(Stage.OOM_SCORE_ADJ, errno.EINVAL, message(record(Stage.OOM_SCORE_ADJ, b"\0"), *TRUE)),
    expect(Stage.OOM_SCORE_ADJ, errno.EACCES, order(b"true", oom_score_adj=-500), **as_nobody()),
    expect(Stage.NICE, errno.EACCES, order(b"true", nice=-5), **as_nobody()),
    expect(Stage.UMASK, errno.EPERM, order(b"true", umask=0o77), preexec_fn=deny("umask", errno.EPERM)),
    expect(Stage.LIMIT, errno.EINVAL, order(b"true", limits=(Limit(999, 0, 0),))),
    expect(Stage.LIMIT, errno.EINVAL, order(b"true", limits=(Limit(resource.RLIMIT_CORE, 2, 1),))),
    expect(Stage.LIMIT, errno.EPERM, order(b"true", limits=(Limit(resource.RLIMIT_NOFILE, 9, 2**30),)), **as_nobody()),
    expect(Stage.GROUPS, errno.EPERM, order(b"true", credentials=NOBODY), **as_nobody()),
    expect(Stage.GID, errno.EINVAL, message(record(Stage.GID, b"\xff" * 4), *TRUE)),
    expect(Stage.GID, errno.EPERM, message(record(Stage.GID, bytes(4)), *TRUE), **as_nobody()),
    expect(Stage.UID, errno.EINVAL, message(record(Stage.UID, b"\xff" * 4), *TRUE)),
    expect(Stage.UID, errno.EPERM, message(record(Stage.UID, bytes(4)), *TRUE), **as_nobody()),
    expect(Stage.NO_NEW_PRIVS, errno.ENOSYS, order(b"true", no_new_privs=True), preexec_fn=deny("prctl", errno.ENOSYS)),
    expect(Stage.DIRECTORY, errno.ENOENT, order(b"true", directory=b"/nonexistent")),
    expect(Stage.DIRECTORY, errno.ENOTDIR, order(b"true", directory=b"/etc/passwd")),
    expect(Stage.DIRECTORY, errno.ENOENT, order(b"true", directory=b"")),
    expect(Stage.COMMAND, errno.ENOENT, order(b"no such command"), 127),
    expect(Stage.COMMAND, errno.ENOENT, order(b""), 127),
    expect(Stage.COMMAND, errno.ENOENT, order(b"/nonexistent"), 127),
    expect(Stage.COMMAND, errno.ENOTDIR, order(b"/etc/passwd/x"), 127),
    expect(Stage.COMMAND, errno.EACCES, order(b"/etc/passwd"), 126),
    expect(Stage.COMMAND, errno.EISDIR, order(b"/etc"), 126),
    expect(Stage.COMMAND, errno.EISDIR, order(b"etc", environment=(b"PATH=/bin:/",)), 126),
    expect(Stage.COMMAND, errno.ENAMETOOLONG, order(b"x" * 5000), 126),
    expect(Stage.COMMAND, errno.ENAMETOOLONG, order(b"/" + b"x" * 5000), 126),
    expect(Stage.COMMAND, errno.E2BIG, order(b"/bin/true", b"x" * 200_000), 126),
    expect(Stage.ORDERS, errno.EBADMSG, b"garbage"),
    expect(Stage.MEMORY, errno.ENOMEM, order(b"true", b"x" * 2_000_000), preexec_fn=limited(resource.RLIMIT_AS, 1 << 20)),
    expect(Stage.SIGNALS, errno.EPERM, order(b"true"), preexec_fn=deny("rt_sigaction", errno.EPERM)),
    expect(Stage.SIGNALS, errno.EPERM, order(b"true"), preexec_fn=deny("rt_sigprocmask", errno.EPERM)),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "error", "orders", "status", "popen"), FAILURES)
def test_failure_is_answered(
    stage: Stage, error: int, orders: Orders | bytes, status: int, popen: dict[str, Any]
) -> None:
    assert launch(orders, **popen) == Outcome(Failure(stage, error), status, b"")


def test_every_stage_has_a_test_of_its_failure() -> None:
    elsewhere = {Stage.DESCRIPTORS, Stage.INTERPRETER}
    cannot_fail = {Stage.ARGUMENT, Stage.ENVIRONMENT}
    assert {parameters.values[0] for parameters in FAILURES} | elsewhere | cannot_fail == set(Stage)


def test_the_stages_of_both_languages_are_the_same() -> None:
    names = re.search(r"enum stage \{(.*?)\}", (FOLDER / "launcher.c").read_text(), re.DOTALL)[1]  # type: ignore[index]
    number, stages = 0, {}
    for name, _, start in (item.partition(" = ") for item in re.split(r",\s*", names.strip())):
        number = int(start) if start else number + 1
        stages[name] = number
    assert stages.pop("TAGS_END") == Stage.ENVIRONMENT + 1
    assert stages == {stage.name: stage.value for stage in Stage}


@pytest.mark.parametrize(
    ("directory", "number"),
    [
        ("", errno.ENOENT),
        ("/nonexistent/cgroup", errno.ENOENT),
        ("/dev/null", errno.ENOTDIR),
        ("/", errno.ENOENT),  # There already, but no cgroup.
        ("/" + "x" * 300, errno.ENAMETOOLONG),
        ("/" + "x/" * 3000, errno.ENAMETOOLONG),
    ],
)
def test_cgroup_that_cannot_be_made_and_joined_fails_as_join(directory: str, number: int) -> None:
    expected = Outcome(Failure(Stage.JOIN, number), 125, b"")
    assert launch(order(b"true"), cgroups=(directory,)) == expected


def test_join_of_what_is_not_open_for_writing_fails_as_join() -> None:
    with open("/dev/null", "rb") as file:
        fd = file.fileno()
        expected = Outcome(Failure(Stage.JOIN, errno.EBADF), 125, b"")
        assert launch(order(b"true", join_fds=(fd,)), pass_fds=(fd,)) == expected


def test_a_failure_that_nobody_hears_of_shows_in_the_signal_that_ends_it(launcher: Command) -> None:
    answer_reader, answer_writer = os.pipe()
    os.close(answer_reader)
    for command in (b"/nonexistent", b"/etc"):
        orders_reader, orders_writer = os.pipe()
        arguments = [*launcher, str(orders_reader), str(answer_writer)]
        with subprocess.Popen(arguments, pass_fds=(orders_reader, answer_writer)) as process:
            os.close(orders_reader)
            os.write(orders_writer, encode(order(command)))
            os.close(orders_writer)
            assert process.wait(TIMEOUT) == unheard(launcher)
    os.close(answer_writer)


# --- Finding the command


def test_first_in_path_that_can_be_executed_is_taken(tmp_path: Path) -> None:
    for name, mode in (("a", 0o644), ("b", 0o755), ("c", 0o755)):
        (tmp_path / name).mkdir()
        script(tmp_path / name / "tool", f"#!/bin/sh\necho {name}\n", mode)
    path = f"PATH=/nonexistent:/etc/passwd:{tmp_path}/a:{tmp_path}/b:{tmp_path}/c"
    assert launch(order(b"tool", environment=(path.encode(), b"PATH=/bin"))) == Outcome(
        None, 0, b"b\n"
    )
    path = f"PATH={tmp_path}/a:/nonexistent"
    assert launch(order(b"tool", environment=(path.encode(),))).failure == Failure(
        Stage.COMMAND, errno.EACCES
    )


def test_path_element_that_is_too_long_is_passed_over() -> None:
    path = b"PATH=/" + b"x" * 5000 + b":/" + b"y" * 4090 + b":/usr/bin:/bin"
    assert launch(order(b"true", environment=(path,))) == Outcome(None, 0, b"")


@pytest.mark.parametrize("environment", [(), (b"PATHS=/nowhere", b"XPATH=/nowhere", b"PATH")])
def test_without_a_path_there_is_a_default(environment: tuple[bytes, ...]) -> None:
    assert launch(order(b"true", environment=environment)) == Outcome(None, 0, b"")


@pytest.mark.parametrize(
    "path", [b"PATH=", b"PATH=:/bin", b"PATH=/nonexistent:", b"PATH=/nonexistent::/bin"]
)
def test_empty_path_element_is_the_directory(path: bytes, tmp_path: Path) -> None:
    script(tmp_path / "tool", "#!/bin/sh\necho here\n")
    assert (
        launch(order(b"tool", environment=(path,), directory=os.fsencode(tmp_path))).output
        == b"here\n"
    )


def test_command_with_a_slash_is_not_sought_in_path(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    script(tmp_path / "sub" / "tool", "#!/bin/sh\necho here\n")
    path = (f"PATH={tmp_path}".encode(),)
    assert launch(order(b"sub/tool", environment=path)).failure == Failure(
        Stage.COMMAND, errno.ENOENT
    )
    assert (
        launch(order(b"sub/tool", environment=path, directory=os.fsencode(tmp_path))).output
        == b"here\n"
    )


def test_no_shell_runs_a_file_of_unknown_format(tmp_path: Path) -> None:
    file = script(tmp_path / "tool", "echo no\n")
    assert launch(order(os.fsencode(file))) == Outcome(
        Failure(Stage.COMMAND, errno.ENOEXEC), 126, b""
    )


def test_file_that_is_being_written_is_busy(tmp_path: Path) -> None:
    file = shutil.copy("/bin/true", tmp_path / "tool")
    with open(file, "r+b"):
        assert launch(order(os.fsencode(file))) == Outcome(
            Failure(Stage.COMMAND, errno.ETXTBSY), 126, b""
        )


@pytest.mark.parametrize(
    ("interpreter", "error"), [("/nonexistent", errno.ENOENT), ("/etc/passwd/x", errno.ENOTDIR)]
)
def test_missing_interpreter_is_told_from_a_missing_command(
    interpreter: str, error: int, tmp_path: Path
) -> None:
    file = script(tmp_path / "true", f"#!{interpreter}\n")
    expected = Outcome(Failure(Stage.INTERPRETER, error), 127, b"")
    assert launch(order(os.fsencode(file))) == expected
    assert launch(order(b"true", environment=(f"PATH={tmp_path}:/bin".encode(),))) == expected


def test_missing_loader_is_a_missing_interpreter(tmp_path: Path) -> None:
    image = Path("/bin/true").read_bytes()
    loader = re.search(rb"/lib[\w./-]*/ld-[\w.-]+", image)
    if loader is None:
        pytest.skip("/bin/true is static")
    file = tmp_path / "tool"
    file.write_bytes(image.replace(loader[0], b"/x" + loader[0][2:]))
    file.chmod(0o755)
    assert launch(order(os.fsencode(file))).failure == Failure(Stage.INTERPRETER, errno.ENOENT)
