"""The launcher's promises, kept by real processes: every order, every stage of failure, nothing left behind."""

import contextlib
import ctypes
import errno
import os
import platform
import random
import re
import resource
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from supervisor import orders as launch_orders
from supervisor.orders import (
    MAX_SIZE,
    Credentials,
    Failure,
    Limit,
    Orders,
    Stage,
    decode_answer,
    encode,
)

FOLDER = Path(launch_orders.__file__).parent / "launcher"
NATIVE = FOLDER / f"launcher-{platform.machine()}"
MAGIC = 0x31524C43
NOBODY = Credentials(uid=65534, gid=65534, groups=())
ANY_BYTES = bytes(range(1, 256))
TIMEOUT = 60

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
CAP_SYS_RESOURCE = 24
has_resource_capability = (
    int(re.findall(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[0], 16)
    >> CAP_SYS_RESOURCE
    & 1
)
with_resource_capability = pytest.mark.skipif(
    not has_resource_capability, reason="needs CAP_SYS_RESOURCE"
)
Command = tuple[str | Path, ...]


class Outcome(NamedTuple):
    failure: Failure | None
    status: int
    output: bytes


def launch(
    orders: Orders | bytes,
    *,
    launcher: Command = (NATIVE,),
    join: str | None = None,
    pass_fds: tuple[int, ...] = (),
    **popen: Any,
) -> Outcome:
    """Start a launcher, give it the orders, and wait for its answer and its end."""
    orders_reader, orders_writer = os.pipe()
    answer_reader, answer_writer = os.pipe()
    command = [
        *launcher,
        str(orders_reader),
        str(answer_writer),
        *([join] if join is not None else []),
    ]
    popen = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        **popen,
    }
    with subprocess.Popen(
        command, pass_fds=(orders_reader, answer_writer, *pass_fds), **popen
    ) as process:
        os.close(orders_reader)
        os.close(answer_writer)
        # It may fail before it reads them.
        with contextlib.suppress(BrokenPipeError), open(orders_writer, "wb", buffering=0) as writer:
            writer.write(orders if isinstance(orders, bytes) else encode(orders))
        with open(answer_reader, "rb") as reader:
            answer = reader.read()
        output = process.communicate(timeout=TIMEOUT)[0] or b""
    return Outcome(decode_answer(answer), process.returncode, output)


def order(*arguments: bytes, **fields: Any) -> Orders:
    """Return orders for a command with an environment of PATH alone, unless told otherwise."""
    fields = {
        "command": arguments[0],
        "arguments": arguments,
        "environment": (b"PATH=/usr/bin:/bin",),
        **fields,
    }
    return Orders(**fields)


def shell(script: str, **fields: Any) -> Orders:
    return order(b"/bin/sh", b"-c", script.encode(), **fields)


def record(tag: int, value: bytes = b"", *, length: int | None = None, zero: int = 0) -> bytes:
    return (
        struct.pack("<HHI", tag, zero, len(value) if length is None else length)
        + value
        + bytes(-len(value) % 8)
    )


def message(*records: bytes, magic: int = MAGIC, size: int | None = None) -> bytes:
    body = b"".join(records)
    return struct.pack("<II", magic, len(body) if size is None else size) + body


TRUE = (record(Stage.COMMAND, b"/bin/true\0"), record(Stage.ARGUMENT, b"true\0"))


def status_of(**fields: Any) -> dict[str, str]:
    """Return /proc/self/status as a launched command finds it."""
    popen = fields.pop("popen", {})
    outcome = launch(order(b"cat", b"/proc/self/status", **fields), **popen)
    assert outcome.failure is None, outcome
    return dict(re.findall(r"(\w+):[ \t]*(.*?)[ \t]*\n", outcome.output.decode()))


def deny(call: str, error: int) -> Callable[[], None]:
    """Return a preexec_fn after which this system call fails with that error (seccomp(2)), also in the launcher."""
    machine = platform.machine()
    numbers = (FOLDER / "kernel.h").read_text().split(f"defined __{machine}__")[1]
    number = int(re.search(rf"SYS_{call} = (\d+)", numbers)[1])  # type: ignore[index]
    audit = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
    load, equal, answer = 0x20, 0x15, 0x06
    allow, fail = 0x7FFF0000, 0x00050000 | error
    program = b"".join(
        struct.pack("<HBBI", *instruction)
        for instruction in (
            (load, 0, 0, 4),
            (equal, 0, 3, audit),
            (load, 0, 0, 0),
            (equal, 0, 1, number),
            (answer, 0, 0, fail),
            (answer, 0, 0, allow),
        )
    )
    filter_ = ctypes.create_string_buffer(program)
    header = ctypes.create_string_buffer(
        struct.pack("@HP", len(program) // 8, ctypes.addressof(filter_))
    )
    prctl = ctypes.CDLL(None).prctl

    def install(_keep: object = filter_) -> None:
        if prctl(38, 1, 0, 0, 0) or prctl(22, 2, header, 0, 0):
            os._exit(99)

    return install


def script(path: Path, text: str, mode: int = 0o755) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture(scope="session", autouse=True)
def is_built() -> None:
    if not NATIVE.exists():
        pytest.fail("there is no launcher; run python supervisor/launcher/build.py")


HOSTED_MAIN = '#include "launcher.c"\nint main(int argc, char **argv) { (void)argc; launch((long *)argv - 1); }\n'
HOSTED_PARSER = """
#include <stdio.h>
#include <stdlib.h>
#include "launcher.c"
int main(void)  /* reads {u32 size, bytes} until the end; writes a 1 or a 0 for each: understood or not */
{
    uint32_t size;
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        char *body = malloc(size);
        size_t pointers = size / 16 + 1;
        struct program program = { 0, calloc(pointers, sizeof(char *)), calloc(pointers, sizeof(char *)) };
        if (fread(body, 1, size, stdin) != size)
            return 2;
        int understood = understand(body, size, &program);
        if (understood && (program.arguments[pointers - 1] || program.environment[pointers - 1]))
            return 3;  /* an array without an end */
        putchar('0' + understood);
        free(program.arguments), free(program.environment), free(body);
    }
    return 0;
}
"""


def sanitized(folder: Path, source: str) -> Path:
    """Compile a hosted program around launcher.c in which the first bad access or undefined operation is the end."""
    program = folder / "sanitized"
    compiler = next((name for name in ("gcc", "clang") if shutil.which(name)), None)
    if compiler is None:
        pytest.skip("a sanitizer needs gcc or clang")
    checks = (
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-Wall",
        "-Wextra",
        "-Werror",
    )
    command = [
        compiler,
        "-std=c11",
        "-O1",
        "-g",
        "-DHOSTED",
        *checks,
        f"-I{FOLDER}",
        "-xc",
        "-",
        "-o",
        str(program),
    ]
    result = subprocess.run(command, input=source.encode(), capture_output=True, check=False)
    if result.returncode and b"asan" in result.stderr:
        pytest.skip("this compiler has no sanitizer's library")
    assert result.returncode == 0, result.stderr.decode()
    return program


@pytest.fixture(scope="session", params=["native", "sanitized", "aarch64 in qemu"])
def launcher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Each launcher there is: that of this machine, the same source under sanitizers, and the other one, emulated."""
    if request.param == "native":
        return (NATIVE,)
    if request.param == "sanitized":
        return (sanitized(tmp_path_factory.mktemp("sanitized"), HOSTED_MAIN),)
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    other = FOLDER / "launcher-aarch64"
    if emulator is None or not other.exists() or platform.machine() == "aarch64":
        pytest.skip("needs qemu-aarch64 and a launcher for aarch64")
    return (emulator, other)


# --- The answer, and what reaches the command


def test_end_of_file_without_a_byte_means_that_the_command_runs(launcher: Command) -> None:
    assert launch(order(b"/bin/sh", b"-c", b"exit 7"), launcher=launcher) == Outcome(None, 7, b"")


def test_arguments_arrive_byte_for_byte(launcher: Command) -> None:
    strings = (ANY_BYTES, b"", b"x", "ü€🙂".encode(), b"%s\n'\"\\$(", b"y" * 100_000)
    outcome = launch(order(b"/usr/bin/printf", b"%s\\0", *strings), launcher=launcher)
    assert outcome == Outcome(None, 0, b"".join(text + b"\0" for text in strings))


def test_environment_arrives_byte_for_byte(launcher: Command) -> None:
    variables = (
        b"A=" + ANY_BYTES,
        b"EMPTY=",
        b"no equals sign",
        b"A=again",
        b"B=" + b"z" * 100_000,
    )
    outcome = launch(
        order(b"/bin/cat", b"/proc/self/environ", environment=variables), launcher=launcher
    )
    assert outcome == Outcome(None, 0, b"".join(text + b"\0" for text in variables))


def test_environment_may_be_empty(launcher: Command) -> None:
    assert (
        launch(order(b"/bin/cat", b"/proc/self/environ", environment=()), launcher=launcher).output
        == b""
    )


def test_argv0_need_not_be_the_command(launcher: Command) -> None:
    orders = shell(
        "echo $0", arguments=(b"another \xff name", b"-c", b"tr '\\0' '\\n' < /proc/$$/cmdline")
    )
    assert launch(orders, launcher=launcher).output.split(b"\n")[0] == b"another \xff name"


def test_three_megabytes_of_orders_arrive() -> None:
    strings = tuple(b"%07d" % number * 10 for number in range(20_000))
    inherited = resource.getrlimit(resource.RLIMIT_STACK)[1]
    limit = Limit(
        resource.RLIMIT_STACK, 64 << 20, inherited
    )  # exec allows a quarter of it for strings
    outcome = launch(order(b"/usr/bin/printf", b"%s\n", *strings, limits=(limit,)))
    assert outcome.failure is None
    assert outcome.output.splitlines() == list(strings)


def test_command_with_bytes_outside_utf8_is_found(tmp_path: Path) -> None:
    name = ANY_BYTES.replace(b"/", b"").replace(b":", b"")[:200]
    folder = os.fsencode(tmp_path) + b"/" + b"\xff\xfe dir"
    os.mkdir(folder)
    os.symlink(b"/bin/true", folder + b"/" + name)
    assert launch(
        order(name, environment=(b"PATH=/nowhere:" + folder,), directory=folder)
    ) == Outcome(None, 0, b"")


# --- Orders: read in any pieces, refused when they are not whole


@pytest.mark.parametrize("carrier", ["pipe", "socket"])
def test_orders_may_come_byte_by_byte_and_with_stops_in_between(carrier: str) -> None:
    ours, theirs = socket.socketpair()
    # With a timeout, a read that a stop interrupts gives EINTR and is not restarted (signal(7)).
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", TIMEOUT, 0))
    answer = theirs.fileno()
    reader, writer = os.pipe() if carrier == "pipe" else (os.dup(answer), os.dup(ours.fileno()))
    with (
        ours,
        subprocess.Popen([NATIVE, str(reader), str(answer)], pass_fds=(reader, answer)) as process,
    ):
        theirs.close()
        os.close(reader)
        for index, byte in enumerate(encode(order(b"/bin/sh", b"-c", b"exit 5"))):
            if index % 16 == 5:
                process.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, process.pid, os.WSTOPPED)
                process.send_signal(signal.SIGCONT)
                os.waitid(os.P_PID, process.pid, os.WCONTINUED)
            os.write(writer, bytes([byte]))
        os.close(writer)
        assert ours.recv(8) == b""
        assert process.wait(TIMEOUT) == 5


@pytest.mark.parametrize(
    ("command", "failure"),
    [(b"/bin/true", None), (b"/nonexistent", Failure(Stage.COMMAND, errno.ENOENT))],
)
def test_one_socket_can_carry_orders_and_answer(command: bytes, failure: Failure | None) -> None:
    ours, theirs = socket.socketpair()
    with (
        ours,
        subprocess.Popen(
            [NATIVE, str(theirs.fileno()), str(theirs.fileno())], pass_fds=[theirs.fileno()]
        ) as process,
    ):
        theirs.close()
        ours.sendall(encode(order(command)))
        assert decode_answer(ours.recv(100)) == failure
        assert process.wait(TIMEOUT) == (127 if failure else 0)


def test_every_truncation_is_refused(launcher: Command) -> None:
    orders = encode(
        order(
            b"true",
            b"x",
            join_fds=(99,),
            limits=(Limit(7, 1, 1),),
            credentials=NOBODY,
            directory=b"/",
        )
    )
    step = 1 if launcher == (NATIVE,) else 7
    for size in range(1, len(orders), step):
        assert launch(orders[:size], launcher=launcher) == Outcome(
            Failure(Stage.ORDERS, errno.EBADMSG), 125, b""
        ), size


MALFORMED = {
    "another magic": message(*TRUE, magic=MAGIC + 1),
    "no records": message(),
    "no command": message(record(Stage.ARGUMENT, b"true\0")),
    "no argument": message(TRUE[0]),
    "a size that is no multiple of 8": message(*TRUE, bytes(4)),
    "half a record header": message(*TRUE, size=sum(map(len, TRUE)) - 4),
    "tag 0": message(record(0), *TRUE),
    "a tag above the last": message(*TRUE, record(Stage.ENVIRONMENT + 1)),
    "a stage as a tag": message(*TRUE, record(Stage.ORDERS)),
    "tag 65535": message(*TRUE, record(65535)),
    "a reserved field in use": message(record(Stage.NEW_SESSION, zero=1), *TRUE),
    "descending tags": message(record(Stage.UID, bytes(4)), record(Stage.GID, bytes(4)), *TRUE),
    "arguments in two places": message(*TRUE, record(Stage.ENVIRONMENT, b"A=\0"), record(Stage.ARGUMENT, b"x\0")),
    "a length beyond the end": message(TRUE[0], record(Stage.ARGUMENT, b"true\0", length=9)),
    "a length of 2**32 - 1": message(TRUE[0], record(Stage.ARGUMENT, b"true\0", length=2**32 - 1)),
    "a length that wraps when padded": message(TRUE[0], record(Stage.ARGUMENT, b"true\0", length=2**32 - 7)),
    "a string without its NUL": message(TRUE[0], record(Stage.ARGUMENT, b"true")),
    "a string of no bytes": message(TRUE[0], record(Stage.ARGUMENT)),
    "groups of three bytes": message(record(Stage.GROUPS, bytes(3)), *TRUE),
    "a limit cut short": message(record(Stage.LIMIT, bytes(16)), *TRUE),
} | {
    f"two of {stage.name}": message(*sorted([record(stage, value), record(stage, value), *TRUE], key=lambda r: r[0]))
    for stage, value in [
        *((stage, b"") for stage in (Stage.STDERR_TO_STDOUT, Stage.NEW_SESSION, Stage.CONTROLLING_TTY, Stage.NO_NEW_PRIVS)),
        *((stage, bytes(4)) for stage in (Stage.NICE, Stage.UMASK, Stage.GROUPS, Stage.GID, Stage.UID)),
        *((stage, b"0\0") for stage in (Stage.OOM_SCORE_ADJ, Stage.DIRECTORY, Stage.COMMAND)),
    ]
} | {
    f"{stage.name} of {length} bytes": message(record(stage, bytes(length)), *TRUE)
    for stage in (Stage.JOIN, Stage.NULL_STREAM, Stage.NICE, Stage.UMASK, Stage.GID, Stage.UID)
    for length in (0, 3, 8)
} | {
    f"{stage.name} with a value": message(record(stage, bytes(4)), *TRUE)
    for stage in (Stage.STDERR_TO_STDOUT, Stage.NEW_SESSION, Stage.CONTROLLING_TTY, Stage.NO_NEW_PRIVS)
}  # fmt: skip


@pytest.mark.parametrize("orders", MALFORMED.values(), ids=MALFORMED)
def test_malformed_orders_are_refused(orders: bytes) -> None:
    assert launch(orders) == Outcome(Failure(Stage.ORDERS, errno.EBADMSG), 125, b"")


def test_nothing_is_carried_out_when_the_last_record_is_malformed() -> None:
    reader, writer = os.pipe()
    orders = message(
        record(Stage.JOIN, struct.pack("<I", writer)), *TRUE, record(Stage.ENVIRONMENT, b"no NUL")
    )
    assert launch(orders, pass_fds=(writer,)).failure == Failure(Stage.ORDERS, errno.EBADMSG)
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_orders_of_the_largest_size_are_understood_and_larger_ones_are_not() -> None:
    padding = record(Stage.ENVIRONMENT, b"x" * (MAX_SIZE - sum(map(len, TRUE)) - 9) + b"\0")
    assert launch(message(*TRUE, padding)).failure == Failure(Stage.COMMAND, errno.E2BIG)
    assert launch(message(*TRUE, size=MAX_SIZE + 8)).failure == Failure(
        Stage.ORDERS, errno.EMSGSIZE
    )
    assert launch(message(*TRUE, size=2**32 - 1)).failure == Failure(Stage.ORDERS, errno.EMSGSIZE)


def garbage(count: int) -> Iterator[bytes]:
    """Yield bodies: well-formed ones with bytes changed, cut, doubled or swapped, and pure noise. The same ones every time."""
    chance = random.Random(3)
    whole = encode(
        order(b"true", ANY_BYTES, b"", join_fds=(98, 99), stdin="null", stderr="stdout", new_session=True, oom_score_adj=3, 
              nice=1, umask=7, limits=(Limit(7, 1, 1),) * 2, credentials=Credentials(1, 2, (3, 4, 5)), no_new_privs=True,
              directory=b"/")
    )[8:]  # fmt: skip
    for _ in range(count):
        body = bytearray(whole)
        match chance.randrange(5):
            case 0:
                body = bytearray(chance.randbytes(chance.randrange(0, 200)))
            case 1:
                del body[chance.randrange(len(body)) :]
            case 2:
                at = chance.randrange(0, len(body), 8)
                body[at:at] = body[chance.randrange(0, len(body), 8) :][
                    : chance.randrange(0, 64, 8)
                ]
            case 3:
                at = chance.randrange(0, len(body), 8)
                body[at : at + 8] = struct.pack(
                    "<HHI",
                    chance.randrange(20),
                    0,
                    chance.choice([0, 1, 4, 8, 24, 2**31, 2**32 - 1]),
                )
            case _:
                for _ in range(chance.randrange(1, 4)):
                    body[chance.randrange(len(body))] = chance.choice([0, 1, 4, 16, 127, 128, 255])
        yield bytes(body)
    yield whole


def test_no_garbage_makes_the_parser_touch_what_is_not_its_own(tmp_path: Path) -> None:
    bodies = list(garbage(50_000))
    stream = b"".join(struct.pack("<I", len(body)) + body for body in bodies)
    result = subprocess.run(
        [sanitized(tmp_path, HOSTED_PARSER)], input=stream, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr.decode()
    assert len(result.stdout) == len(bodies)
    assert set(result.stdout) == set(b"01")
    assert result.stdout.endswith(b"1")


def test_no_garbage_crashes_the_launcher(launcher: Command) -> None:
    for body in garbage(150 if launcher == (NATIVE,) else 30):
        if (
            len(body) > 8 and body[0] == Stage.JOIN
        ):  # the descriptors 98 and 99 are not open: what is understood fails there
            outcome = launch(message(body), launcher=launcher)
            assert outcome.status in (125, 126, 127), (outcome, body)
            assert outcome.failure is not None


def test_valgrind_finds_nothing() -> None:
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        pytest.skip("needs valgrind")
    command = (valgrind, "--quiet", "--error-exitcode=99", NATIVE)
    orders = encode(order(b"nonexistent", b"x", limits=(Limit(4, 0, 0),), stdin="null"))
    assert launch(orders, launcher=command) == Outcome(
        Failure(Stage.COMMAND, errno.ENOENT), 127, b""
    )
    for size in (6, 12, len(orders) - 1):
        assert launch(orders[:size], launcher=command) == Outcome(
            Failure(Stage.ORDERS, errno.EBADMSG), 125, b""
        )


# --- Parked launchers


def test_parked_launcher_ends_silently_when_nobody_will_give_orders(launcher: Command) -> None:
    assert launch(b"", launcher=launcher) == Outcome(None, 0, b"")


def test_parked_launcher_joins_before_its_orders_come(launcher: Command) -> None:
    first_reader, first_writer = os.pipe()
    second_reader, second_writer = os.pipe()
    ours, theirs = socket.socketpair()
    fds = theirs.fileno(), theirs.fileno(), first_writer, second_writer
    command = [*launcher, str(fds[0]), str(fds[1]), f"{first_writer},{second_writer}"]
    with ours, subprocess.Popen(command, pass_fds=set(fds)) as process:
        theirs.close()
        for reader, writer in ((first_reader, first_writer), (second_reader, second_writer)):
            os.close(writer)
            assert os.read(reader, 100) == b"0"
            assert os.read(reader, 100) == b""  # closed: the command will not have it
            os.close(reader)
        ours.sendall(encode(order(b"true")))
        assert ours.recv(100) == b""
        assert process.wait(TIMEOUT) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("9",),
        ("9", "2"),
        ("9", "x"),
        ("9", ""),
        ("9", "-1"),
        ("9", "9" * 30),
        ("9", "8", "7", "6"),
    ],
)
def test_command_line_without_an_answer_descriptor_ends_with_125(
    arguments: tuple[str, ...],
) -> None:
    assert subprocess.run([NATIVE, *arguments], check=False).returncode == 125


# --- Every stage of failure


def expect(
    stage: Stage, error: int, orders: Orders | bytes, status: int = 125, **popen: Any
) -> Any:
    return pytest.param(
        stage, error, orders, status, popen, id=f"{stage.name}-{errno.errorcode[error]}"
    )


def as_nobody() -> dict[str, Any]:
    return {"user": 65534, "group": 65534, "extra_groups": ()} if os.geteuid() == 0 else {}


def limited(which: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(which, (value, value))


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
    "join", ["999", "1", "x", "999,", ",", "-1", "4294967299", "99999999999999999999"]
)
def test_join_before_orders_fails_as_join(join: str) -> None:
    assert launch(order(b"true"), join=join) == Outcome(Failure(Stage.JOIN, errno.EBADF), 125, b"")


def test_join_of_what_is_not_open_for_writing_fails_as_join() -> None:
    with open("/dev/null", "rb") as file:
        fd = file.fileno()
        expected = Outcome(Failure(Stage.JOIN, errno.EBADF), 125, b"")
        assert launch(order(b"true"), join=str(fd), pass_fds=(fd,)) == expected
        assert launch(order(b"true", join_fds=(fd,)), pass_fds=(fd,)) == expected


def test_join_cannot_name_the_answer() -> None:
    ours, theirs = socket.socketpair()
    fd = str(theirs.fileno())
    with (
        ours,
        theirs,
        subprocess.Popen([NATIVE, fd, fd, fd], pass_fds=[theirs.fileno()]) as process,
    ):
        assert decode_answer(ours.recv(8)) == Failure(Stage.JOIN, errno.EBADF)
        assert process.wait(TIMEOUT) == 125


def test_dead_reader_of_the_answer_changes_nothing(launcher: Command) -> None:
    answer_reader, answer_writer = os.pipe()
    os.close(answer_reader)
    for command, status in ((b"/nonexistent", 127), (b"/etc", 126)):
        orders_reader, orders_writer = os.pipe()
        arguments = [*launcher, str(orders_reader), str(answer_writer)]
        with subprocess.Popen(arguments, pass_fds=(orders_reader, answer_writer)) as process:
            os.close(orders_reader)
            os.write(orders_writer, encode(order(command)))
            os.close(orders_writer)
            assert process.wait(TIMEOUT) == status
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
    outcome = launch(orders, join=str(fd) if before_orders else "", pass_fds=(fd,))
    os.close(fd)
    assert f"/{cgroup.name}\n".encode() in outcome.output


# --- The encoder and the decoder


@pytest.mark.parametrize(
    "fields",
    [
        {"arguments": ()},
        {"command": b"a\0b"},
        {"arguments": (b"a", b"\0")},
        {"environment": (b"A=\0",)},
        {"directory": b"\0"},
        {"join_fds": (2,)},
        {"join_fds": (2**31,)},
        {"nice": 20},
        {"umask": -1},
        {"limits": (Limit(1, -2, 0),)},
        {"limits": (Limit(1, 0, 2**64),)},
        {"limits": (Limit(-1, 0, 0),)},
        {"credentials": Credentials(2**32 - 1, 0, ())},
        {"credentials": Credentials(0, -1, ())},
        {"credentials": Credentials(0, 0, (2**32 - 1,))},
        {"environment": (b"x" * MAX_SIZE,)},
    ],
    ids=str,
)
def test_orders_that_cannot_be_said_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        encode(order(b"true", **fields))


@pytest.mark.parametrize("answer", [b"x", bytes(7), bytes(9), bytes(8), struct.pack("<Ii", 18, 1)])
def test_answer_that_no_launcher_gives_is_refused(answer: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_answer(answer)


# --- The program as built


@pytest.mark.parametrize("name", ["launcher-x86_64", "launcher-aarch64"])
def test_program_is_small_static_and_without_executable_stack(name: str) -> None:
    if not (FOLDER / name).exists():
        pytest.skip("not built")
    image = (FOLDER / name).read_bytes()
    table, size, count = struct.unpack_from("<32xQ14xHH", image)
    segments = dict(
        struct.unpack_from("<II", image, table + index * size) for index in range(count)
    )
    interpreter, stack, executable = 3, 0x6474E551, 1
    assert len(image) < 16_384
    assert interpreter not in segments
    assert not segments[stack] & executable


def test_source_compiles_without_a_warning(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a compiler")
    strict = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wundef", "-Werror", "-pedantic")
    command = [
        compiler,
        "-std=c11",
        "-O2",
        "-ffreestanding",
        *strict,
        "-c",
        str(FOLDER / "launcher.c"),
        "-o",
        str(tmp_path / "launcher.o"),
    ]
    subprocess.run(command, check=True)


def test_build_by_hand_proves_what_it_builds() -> None:
    environment = {**os.environ, "CRECHE_LAUNCHER_CC": "tcc"}
    result = subprocess.run(
        [sys.executable, FOLDER / "build.py"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "can only be 'zig'" in result.stderr
