"""The orders and the answer: read in any pieces, refused when they are not whole, parked."""

import errno
import fcntl
import os
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.orders import (
    MAX_SIZE,
    Credentials,
    Failure,
    Limit,
    Stage,
    decode_answer,
    encode,
)

from .conftest import (
    ANY_BYTES,
    HOSTED_PARSER,
    MAGIC,
    NATIVE,
    NOBODY,
    TIMEOUT,
    TRUE,
    Command,
    Outcome,
    launch,
    message,
    order,
    record,
    sanitized,
    shell,
    unheard,
)

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
    for size in range(1, len(orders) - 1, step):
        assert launch(orders[:size], launcher=launcher) == Outcome(
            Failure(Stage.ORDERS, errno.EBADMSG), 125, b""
        ), size


def test_without_the_last_byte_all_is_done_but_exec(launcher: Command, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    executed = tmp_path / "executed"
    orders = encode(shell(f"echo >{executed}", join_fds=(writer,)))
    assert launch(orders[:-1], launcher=launcher, pass_fds=(writer,)) == Outcome(
        Failure(Stage.ORDERS, errno.EBADMSG), 125, b""
    )
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == b"0"
    assert not executed.exists()


def test_one_that_is_killed_before_exec_resets_the_socket(launcher: Command) -> None:
    reader, writer = os.pipe()
    full_reader, full_writer = os.pipe()
    os.write(full_writer, bytes(fcntl.fcntl(full_writer, fcntl.F_GETPIPE_SZ)))
    ours, theirs = socket.socketpair()
    fd = str(theirs.fileno())
    orders = encode(order(b"true", join_fds=(writer, full_writer)))
    with (
        ours,
        subprocess.Popen(
            [*launcher, fd, fd], pass_fds=[theirs.fileno(), writer, full_writer]
        ) as process,
    ):
        theirs.close()
        ours.sendall(orders)
        # All but the last byte is read, then, and it comes no further.
        assert os.read(reader, 1) == b"0"
        process.kill()
        with pytest.raises(ConnectionResetError):
            ours.recv(100)
    for descriptor in (reader, writer, full_reader, full_writer):
        os.close(descriptor)


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
    )[8:-1]  # fmt: skip
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


def test_parked_launcher_ends_by_its_own_signal_when_nobody_will_give_orders(
    launcher: Command,
) -> None:
    assert launch(b"", launcher=launcher) == Outcome(None, unheard(launcher), b"")


def test_parked_launcher_joins_before_its_orders_come(launcher: Command, tmp_path: Path) -> None:
    directories = tmp_path / "first", tmp_path / "second"
    ours, theirs = socket.socketpair()
    for directory in directories:
        directory.mkdir()
        os.mkfifo(directory / "cgroup.procs")
    fd = str(theirs.fileno())
    command = [*launcher, fd, fd, *map(str, directories)]
    with ours, subprocess.Popen(command, pass_fds=(theirs.fileno(),)) as process:
        theirs.close()
        for directory in directories:
            with open(directory / "cgroup.procs", "rb") as fifo:
                # To its end: closed, so that the command will not have it.
                assert fifo.read() == b"0"
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
    ],
)
def test_command_line_without_an_answer_descriptor_ends_with_125(
    arguments: tuple[str, ...],
) -> None:
    assert subprocess.run([NATIVE, *arguments], check=False).returncode == 125


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
