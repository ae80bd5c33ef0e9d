"""System calls of a running program, by strace: its own, and those of its children on their way to exec."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_DETACH_SECONDS = 30.0
_LINE = re.compile(r"^(\d+) +(\w+)\(")


class Trace:
    """What has been counted, complete when the block of `trace` is left.

    Attributes:
      own: of all threads of the program.
      launchers: of its new children, from their birth to the command's execution.
    """

    def __init__(self) -> None:
        self.own: Counter[str] = Counter()
        self.launchers: Counter[str] = Counter()


def is_possible() -> bool:
    """Whether strace is installed."""
    return shutil.which("strace") is not None


@contextmanager
def trace(pid: int) -> Iterator[Trace]:
    """Count the system calls of a program and its new children while the block lasts."""
    counted = Trace()
    with tempfile.NamedTemporaryFile("r", prefix="creche-benchmark-") as file:
        command = ["strace", "-f", "-s", "8", "-o", file.name, "-p", str(pid)]
        threads = _threads(pid)
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            assert strace.stderr is not None
            try:
                # "Process 1 attached", or "Process 1 attached with 2 threads".
                first = strace.stderr.readline()
                if "attached" not in first:
                    raise RuntimeError(first.strip())
                yield counted
            finally:
                threads |= _threads(pid)
                strace.send_signal(signal.SIGINT)  # It detaches.
                try:
                    strace.communicate(timeout=_DETACH_SECONDS)
                except subprocess.TimeoutExpired:
                    # A vfork that is under way can neither stop nor, stopped, go on.
                    strace.kill()
                    raise
        _count(file, threads, counted)


def _threads(pid: int) -> set[str]:
    return set(os.listdir(f"/proc/{pid}/task"))


def _count(lines: Iterable[str], threads: set[str], into: Trace) -> None:
    executed: Counter[str] = Counter()
    for line in lines:
        if (match := _LINE.match(line)) is None:
            continue  # A signal, an exit, or the second half of a call.
        thread, name = match.groups()
        if thread in threads:
            into.own[name] += 1
        # The launcher is executed first, and executes the command.
        elif executed[thread] < 2:
            into.launchers[name] += 1
            if name == "execve":
                executed[thread] += 1
