"""The engine without HTTP, against what Trio and the standard library do without any engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack

from msgspec import Struct

from .contest import Contender, Result, compete, latencies
from .programs import open_program
from .setting import Setting
from .tables import Table

_ANOTHER = ("--user", "nobody")
_PARKED = ("--parked", "8")
_CGROUPS = ("--cgroups",)
_EVERYTHING = (*_ANOTHER, *_CGROUPS, *_PARKED)
_LARGE = ("--ballast-mib", "300")


class Starter(Struct, frozen=True):
    """A program that starts processes: its name, and its arguments."""

    name: str
    arguments: tuple[str, ...]

    def open(self, *options: str, pause_seconds: float = 0.0) -> AbstractContextManager[Contender]:
        """As a contender, for the length of a block."""
        command = [sys.executable, "-m", "benchmarks.starter", *self.arguments, *options]
        return open_program(self.name, command, pause_seconds=pause_seconds)


_STARTERS = (
    Starter("creche: user, cgroup, parked launchers", ("creche", *_EVERYTHING)),
    Starter("creche: neither, parked launchers", ("creche", *_PARKED)),
    Starter("creche: user and cgroup", ("creche", *_ANOTHER, *_CGROUPS)),
    Starter("creche: user", ("creche", *_ANOTHER)),
    Starter("creche: cgroup", ("creche", *_CGROUPS)),
    Starter("creche: neither", ("creche",)),
    Starter("subprocess.Popen: neither", ("popen",)),
    Starter("subprocess.Popen: user", ("popen", *_ANOTHER)),
    Starter("trio.lowlevel.open_process: neither", ("open_process",)),
    Starter("bare Trio, orders to a parked launcher: neither", ("parked-launcher",)),
    Starter("os.posix_spawn, no pipes", ("posix_spawn",)),
)

_BY_ITS_MEMORY = (
    Starter("creche: user, cgroup, parked", ("creche", *_EVERYTHING)),
    Starter("creche: user, cgroup, parked, 300 MiB", ("creche", *_EVERYTHING, *_LARGE)),
    Starter("creche: neither, parked, 300 MiB", ("creche", *_PARKED, *_LARGE)),
    Starter("creche: user, cgroup, 300 MiB", ("creche", *_ANOTHER, *_CGROUPS, *_LARGE)),
    Starter("subprocess.Popen: user", ("popen", *_ANOTHER)),
    Starter("subprocess.Popen: user, 300 MiB", ("popen", *_ANOTHER, *_LARGE)),
)

_RUNNERS = (
    Starter("creche: Supervisor.run", ("creche-run", *_CGROUPS, *_PARKED)),
    Starter("trio.run_process", ("run_process",)),
)


def embedded(setting: Setting) -> list[Table]:
    """`Supervisor.start`, one at a time, the contenders in turn; and `Supervisor.run`."""
    starts = _compete(_STARTERS, rounds=setting.scaled(300), times=1)
    runs = _compete(_RUNNERS, rounds=setting.scaled(100), times=3)
    return [
        latencies("embedded start, until it returns", starts),
        latencies("embedded run, to the end", runs),
    ]


def large(setting: Setting) -> list[Table]:
    """The same, by a program of 300 MiB."""
    results = _compete(_BY_ITS_MEMORY, rounds=setting.scaled(200), times=1)
    return [latencies("embedded start, by a program of 300 MiB", results)]


def cpu(setting: Setting) -> list[Table]:
    """The processor time of the parent alone, from a start to the reaped process."""
    results = _compete(_STARTERS, "--cpu", rounds=setting.scaled(12, least=4), times=25)
    note = "Of the starting program alone, without its children's; what is put off is included."
    return [latencies("own processor time, start to reaped", results, [note])]


def quiet(setting: Setting) -> list[Table]:
    """Starts after 5 s in which nothing happened."""
    some = (_STARTERS[0], _STARTERS[5], _STARTERS[6])
    results = _compete(some, rounds=setting.scaled(15, least=4), times=1, pause_seconds=5.0)
    return [latencies("embedded start, after 5 s of quiet", results)]


def _compete(
    starters: Sequence[Starter],
    *options: str,
    rounds: int,
    times: int,
    pause_seconds: float = 0.0,
) -> list[Result]:
    # Only root can change users.
    possible = [one for one in starters if os.geteuid() == 0 or "--user" not in one.arguments]
    with ExitStack() as stack:
        contenders = [
            stack.enter_context(starter.open(*options, pause_seconds=pause_seconds))
            for starter in possible
        ]
        return compete(contenders, rounds=rounds, times=times, warm_up=max(1, rounds // 10))
