"""What one started process costs, counted: scheduler passes, tasks, thread hops, system calls, processor time.

Counts are those of our own program, from the request to the reaped process and
to the launcher that is parked for the next one. They hardly depend on the
machine, so two runs can be compared. Only the processor time can not.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from .daemons import Creche, Daemon
from .dialects import CONTRACT
from .setting import Setting
from .syscalls import Trace, is_possible, trace
from .tables import Cell, Table

_COMMAND = ("/bin/true",)
_TIMES = 300
_WARM_UP = 50


class Subject:
    """A counted program that does something when it is told to.

    Attributes:
      name: in the table.
      daemon: the program, for its processor time.
      do: it, so many times, one after the other.
    """

    def __init__(
        self, name: str, daemon: Daemon, do: Callable[[int], object], counts: IO[bytes]
    ) -> None:
        self.name = name
        self.daemon = daemon
        self.do = do
        self._counts = counts

    def counts(self) -> Counter[str]:
        """What Trio has done in it so far."""
        assert self.daemon.pid is not None
        os.kill(self.daemon.pid, signal.SIGUSR1)
        return Counter(json.loads(self._counts.readline()))

    def profile(self, times: int) -> list[tuple[str, int, float]]:
        """Functions, with their calls and own seconds, while it does that."""
        assert self.daemon.pid is not None
        os.kill(self.daemon.pid, signal.SIGRTMIN)
        self.do(times)
        self.daemon.settle()
        os.kill(self.daemon.pid, signal.SIGRTMIN)
        return [
            (name, calls, seconds) for name, calls, seconds in json.loads(self._counts.readline())
        ]


def budget(setting: Setting) -> list[Table]:
    """Per started process: over HTTP, run over HTTP, and embedded."""
    times = setting.scaled(_TIMES, least=50)
    general: list[dict[str, float]] = []
    calls: list[Trace] = []
    names = []
    for open_ in (_start, _run, _embedded):
        with open_() as subject:
            names.append(subject.name)
            subject.do(_WARM_UP)
            subject.daemon.settle()
            general.append(_count(subject, times))
            calls.append(_trace(subject, times))
            # Of these only the number, since the time is mostly the profiler's own.
            ((_, functions, _), *_) = subject.profile(times)
            general[-1]["calls of functions"] = functions / times
    tables = [_general(names, general, calls, times)]
    if is_possible():
        tables.append(_calls(names, [one.own for one in calls], times, "own system calls"))
        tables.append(
            _calls(names, [one.launchers for one in calls], times, "system calls of a launcher")
        )
    return tables


def profile(setting: Setting) -> list[Table]:
    """The functions that take the most time; each call looks dearer than it is."""
    times = setting.scaled(_TIMES, least=50)
    tables = []
    for open_ in (_start, _run, _embedded):
        with open_() as subject:
            subject.do(_WARM_UP)
            subject.daemon.settle()
            functions = subject.profile(times)
            rows = [
                (name, round(calls / times, 1), round(seconds / times * 1e6, 1))
                for name, calls, seconds in functions
            ]
        columns = ("calls", "own µs")
        tables.append(Table(title=f"{subject.name}, each", columns=columns, rows=tuple(rows)))
    return tables


def _count(subject: Subject, times: int) -> dict[str, float]:
    before, seconds = subject.counts(), subject.daemon.cpu_seconds()
    subject.do(times)
    subject.daemon.settle()
    seconds = subject.daemon.cpu_seconds() - seconds
    after = subject.counts()
    counted = {name: (after[name] - before[name]) / times for name in after}
    return {**counted, "own processor time, µs": seconds / times * 1e6}


def _trace(subject: Subject, times: int) -> Trace:
    if not is_possible():
        return Trace()
    assert subject.daemon.pid is not None
    with trace(subject.daemon.pid) as counted:
        subject.do(times)
        subject.daemon.settle()
    return counted


def _general(
    names: list[str], general: list[dict[str, float]], calls: list[Trace], times: int
) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (kind, *(round(one[kind], 1) for one in general)) for kind in general[0]
    ]
    if is_possible():
        rows.append(("own system calls", *(round(one.own.total() / times, 1) for one in calls)))
    return Table(
        title="per started process",
        columns=tuple(names),
        rows=tuple(rows),
        notes=(
            "A start and its end; the two overlap with the next where a client does not wait. "
            "A pass of the scheduler is one epoll_wait of Trio's.",
        ),
    )


def _calls(names: list[str], counts: list[Counter[str]], times: int, title: str) -> Table:
    total: Counter[str] = Counter()
    for one in counts:
        total += one
    rows: list[tuple[Cell, ...]] = [
        (name, *(round(one[name] / times, 2) for one in counts))
        for name, number in total.most_common()
        if number / times >= 0.05
    ]
    return Table(title=f"{title}, per started process", columns=tuple(names), rows=tuple(rows))


@contextmanager
def _start() -> Iterator[Subject]:
    with _counted_daemon() as (daemon, counts), daemon.connect() as client:
        request = daemon.dialect.start(_COMMAND)
        yield Subject("start", daemon, lambda times: client.time(request, times), counts)


@contextmanager
def _run() -> Iterator[Subject]:
    with _counted_daemon() as (daemon, counts), daemon.connect() as client:
        request = daemon.dialect.run(_COMMAND)
        yield Subject("run", daemon, lambda times: client.time(request, times), counts)


@contextmanager
def _counted_daemon() -> Iterator[tuple[Daemon, IO[bytes]]]:
    with _pipe() as (counts, write_end):
        counted = ("benchmarks.counted", str(write_end), "api.serve")
        with Creche(module=counted, inherits=(write_end,)).open() as daemon:
            yield daemon, counts


@contextmanager
def _embedded() -> Iterator[Subject]:
    with _pipe() as (counts, write_end):
        command = [sys.executable, "-m", "benchmarks.counted", str(write_end)]
        command += ["benchmarks.starter", "creche", "--cgroups", "--parked", "8"]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[write_end],
        ) as program:
            assert program.stdin is not None
            assert program.stdout is not None
            orders, answers = program.stdin, program.stdout

            def do(times: int) -> None:
                orders.write(b"%d 0\n" % times)
                orders.flush()
                answers.readline()

            itself = Daemon("embedded", CONTRACT, ("", 0), program.pid)
            yield Subject("embedded start", itself, do, counts)


@contextmanager
def _pipe() -> Iterator[tuple[IO[bytes], int]]:
    read_end, write_end = os.pipe()
    with open(read_end, "rb", buffering=0) as counts:
        try:
            yield counts, write_end
        finally:
            os.close(write_end)
