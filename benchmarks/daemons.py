"""The daemons under test: each is started as a program of its own, on a free port of the loopback, and ended with the benchmark."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from msgspec import Struct

from .dialects import CONTRACT, SANDBOX_AGENT, Dialect
from .wire import Address, Client, HttpError, encode_request

_READY_SECONDS = 30.0
_END_SECONDS = 30.0
_MANY = 100_000


class Daemon(Struct, frozen=True):
    """A daemon that runs.

    Attributes:
      name: in the tables.
      dialect: what it speaks.
      address: where it listens.
      pid: of its process; None if it is not ours.
    """

    name: str
    dialect: Dialect
    address: Address
    pid: int | None

    def connect(self) -> Client:
        """A new connection."""
        return Client(self.address)

    def resident_bytes(self) -> int:
        """The resident memory of the daemon itself, its children not counted."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(status.split("VmRSS:")[1].split()[0])

    def cpu_seconds(self) -> float:
        """The processor time that it has used, in all its threads; its children's is not counted."""
        assert self.pid is not None
        # The processor clock of another process (clock_getcpuclockid(3)), which
        # Python does not wrap: in nanoseconds, where /proc counts in ticks.
        return time.clock_gettime((~self.pid << 3) | 2)

    def settle(self) -> None:
        """Return when it has been idle for a moment: what it has put off is done."""
        if self.pid is None:
            return
        deadline = time.monotonic() + 10
        before = self.cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(0.05)  # A sample of how busy it is.
            now = self.cpu_seconds()
            if now - before < 0.001:
                return
            before = now


class Recipe(Protocol):
    """A kind of daemon that can be brought up, more than once."""

    @property
    def name(self) -> str:
        """Of the daemon, in the tables."""
        ...

    def open(self) -> AbstractContextManager[Daemon]:
        """The daemon, for the length of a block."""
        ...


class Creche(Struct, frozen=True):
    """Ours, with its defaults but for what is said here.

    Attributes:
      name: in the tables.
      options: of `creche serve`.
      module: what is executed, with its arguments.
      inherits: descriptors that it is given.
      checkout: the directory of another version of it; None for this one.
    """

    name: str = "creche"
    options: tuple[str, ...] = ()
    module: tuple[str, ...] = ("api",)
    inherits: tuple[int, ...] = ()
    checkout: Path | None = None

    @contextmanager
    def open(self) -> Iterator[Daemon]:
        """Serve until the block is left."""
        port = _free_port()
        with tempfile.TemporaryDirectory(prefix="creche-benchmark-") as directory:
            command = [sys.executable, "-m", *self.module, "serve"]
            command += ["--bind", f"127.0.0.1:{port}", *self.options]
            if _has_state(self.checkout):
                command += ["--state-dir", f"{directory}/state"]
            with _program(command, directory, self.inherits, self.checkout) as pid:
                daemon = Daemon(self.name, CONTRACT, ("127.0.0.1", port), pid)
                _wait_until_ready(daemon, directory)
                yield daemon


class SandboxAgent(Struct, frozen=True):
    """Rivet sandbox-agent, with its limit of 64 processes at once raised.

    Attributes:
      program: its path.
    """

    program: Path
    name: str = "sandbox-agent"

    @contextmanager
    def open(self) -> Iterator[Daemon]:
        """Serve until the block is left."""
        port = _free_port()
        with tempfile.TemporaryDirectory(prefix="creche-benchmark-") as directory:
            command = [str(self.program), "server", "--no-telemetry", "--no-token"]
            command += ["--host", "127.0.0.1", "--port", str(port)]
            with _program(command, directory) as pid:
                daemon = Daemon(self.name, SANDBOX_AGENT, ("127.0.0.1", port), pid)
                _wait_until_ready(daemon, directory)
                config = {
                    "maxConcurrentProcesses": _MANY,
                    "defaultRunTimeoutMs": 30_000,
                    "maxRunTimeoutMs": 300_000,
                    "maxOutputBytes": 1 << 20,
                    "maxLogBytesPerProcess": 10 << 20,
                    "maxInputBytesPerRequest": 1 << 16,
                }
                with daemon.connect() as client:
                    client.exchange(encode_request("POST", "/v1/processes/config", config))
                yield daemon


class ByUrl(Struct, frozen=True):
    """One that runs already, and speaks the contract."""

    name: str
    url: str

    @contextmanager
    def open(self) -> Iterator[Daemon]:
        """Nothing is started, so nothing is ended."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        yield Daemon(self.name, CONTRACT, (parts.hostname, parts.port or 80), None)


class Yardstick(Struct, frozen=True):
    """Not a daemon, but a program of ours that answers like one.

    Attributes:
      name: in the tables.
      module: what is executed, with the port as its argument.
    """

    name: str
    module: str

    @contextmanager
    def open(self) -> Iterator[Daemon]:
        """Serve until the block is left."""
        port = _free_port()
        with tempfile.TemporaryDirectory(prefix="creche-benchmark-") as directory:
            command = [sys.executable, "-m", self.module, str(port)]
            with _program(command, directory) as pid:
                daemon = Daemon(self.name, CONTRACT, ("127.0.0.1", port), pid)
                _wait_until_ready(daemon, directory)
                yield daemon


CANNED = Yardstick("canned answer, no process", "benchmarks.canned")
"""Answers everything alike and at once, which is the most that a load generator can see."""

FLOOR = Yardstick("bare Trio, starts and nothing else", "benchmarks.floor")
"""Starts processes, and does nothing else for them: the least that a daemon on Trio can take."""


def open_all(stack: ExitStack, recipes: Sequence[Recipe]) -> list[Daemon]:
    """Bring up one of each, for as long as the stack lasts."""
    return [stack.enter_context(recipe.open()) for recipe in recipes]


@cache
def _has_state(checkout: Path | None) -> bool:
    """Whether the daemon of this version keeps a state, which two daemons cannot share."""
    command = [sys.executable, "-m", "api", "serve", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=checkout)
    return "--state-dir" in said.stdout


def _free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def _program(
    command: Sequence[str],
    directory: str,
    inherits: Sequence[int] = (),
    working_directory: Path | None = None,
) -> Iterator[int]:
    """A program for the length of the block; what it says is in `directory`/log. Yields its pid."""
    # Its home is a place of its own: nobody's settings, and nothing left behind.
    environment = os.environ | {"HOME": directory}
    with (
        open(f"{directory}/log", "wb") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            pass_fds=inherits,
            cwd=working_directory,
        ) as program,
    ):
        try:
            yield program.pid
        finally:
            program.terminate()
            try:
                program.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                program.kill()


def _wait_until_ready(daemon: Daemon, directory: str) -> None:
    """Return once it answers.

    Raises:
      HttpError: it does not, or it has ended.
    """
    assert daemon.pid is not None
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            with daemon.connect() as client:
                client.exchange(encode_request("GET", daemon.dialect.health))
                return
        except ConnectionRefusedError:
            has_ended = os.waitid(os.P_PID, daemon.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if has_ended or time.monotonic() > deadline:
                said = Path(directory, "log").read_text(errors="replace")
                raise HttpError(f"{daemon.name} does not serve; it said: {said[-2000:]}") from None
            # Nobody tells us when a stranger listens.
            time.sleep(0.02)
