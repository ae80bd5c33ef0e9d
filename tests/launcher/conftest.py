"""Starting launchers and keepers directly: helpers and fixtures."""

import contextlib
import ctypes
import os
import platform
import re
import resource
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from supervisor import orders as launch_orders
from supervisor.orders import (
    Credentials,
    Failure,
    Orders,
    Stage,
    decode_answer,
    encode,
)

from .keepers import NATIVE_KEEPER, Pipe, Running, running

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
    cgroups: tuple[str, ...] = (),
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
        *cgroups,
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
    return struct.pack("<II", magic, len(body) if size is None else size) + body + b"\0"


TRUE = (record(Stage.COMMAND, b"/bin/true\0"), record(Stage.ARGUMENT, b"true\0"))


def status_of(**fields: Any) -> dict[str, str]:
    """Return /proc/self/status as a launched command finds it."""
    popen = fields.pop("popen", {})
    outcome = launch(order(b"cat", b"/proc/self/status", **fields), **popen)
    assert outcome.failure is None, outcome
    return dict(re.findall(r"(\w+):[ \t]*(.*?)[ \t]*\n", outcome.output.decode()))


def limited(which: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(which, (value, value))


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
    if not (NATIVE.exists() and NATIVE_KEEPER.exists()):
        pytest.fail("there is no launcher or no keeper; run python supervisor/launcher/build.py")


HOSTED_MAIN = '#include "launcher.c"\nint main(int argc, char **argv) { (void)argc; launch((long *)argv - 1); }\n'
HOSTED_KEEPER = (
    '#include "keeper.c"\nint main(int argc, char **argv) { (void)argc; keep((long *)argv - 1); }\n'
)
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
    """Compile a hosted program around launcher.c or keeper.c in which the first bad access or undefined operation is the end."""
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


_BUILDS = ("native", "sanitized", "aarch64 in qemu")


def _build(kind: str, program: str, main: str, folder: Path) -> Command:
    """That of this machine, the same source under sanitizers, or the other one, emulated."""
    if kind == "native":
        return (FOLDER / f"{program}-{platform.machine()}",)
    if kind == "sanitized":
        return (sanitized(folder, main),)
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    other = FOLDER / f"{program}-aarch64"
    if emulator is None or not other.exists() or platform.machine() == "aarch64":
        pytest.skip(f"needs qemu-aarch64 and a {program} for aarch64")
    return (emulator, other)


@pytest.fixture(scope="session", params=_BUILDS)
def launcher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Each launcher there is."""
    folder = tmp_path_factory.mktemp("launcher")
    return _build(request.param, "launcher", HOSTED_MAIN, folder)


@pytest.fixture(scope="session", params=_BUILDS)
def keeper_program(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Command:
    """Each keeper there is."""
    folder = tmp_path_factory.mktemp("keeper")
    return _build(request.param, "keeper", HOSTED_KEEPER, folder)


@pytest.fixture
def keeper(keeper_program: Command, tmp_path: Path) -> Iterator[Running]:
    with running(keeper_program, tmp_path) as keeper:
        yield keeper


@pytest.fixture
def native_keeper(tmp_path: Path) -> Iterator[Running]:
    with running((NATIVE_KEEPER,), tmp_path) as keeper:
        yield keeper


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    with contextlib.suppress(OSError):
        os.close(pipe.reader)
    os.close(pipe.writer)


def unheard(launcher: Command) -> int:
    """How a launcher ends to which nobody listens; qemu-user keeps that signal for itself."""
    return 125 if "qemu" in str(launcher[0]) else -signal.SIGRTMAX
