"""Start and run over HTTP: latencies of one client, back to back and with pauses, and rates of many."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from .contest import Contender, Result, compete, latencies
from .daemons import CANNED, FLOOR, Creche, Daemon, open_all
from .load import is_installed
from .rates import measure_rates
from .setting import Foreign, Setting
from .tables import Table

_COMMAND = ("/bin/true",)
_ANOTHER_USER = "nobody"
_FOREIGN = (
    "supervisord starts programs of its configuration only; circus is told of a new one. "
    "Both are asked in their own ways."
)
_NO_WRK = "Rates are left out: there is no wrk (Debian: apt-get install wrk)."

Request = Callable[[Daemon], bytes]


def start(setting: Setting) -> list[Table]:
    """POST /processes of /bin/true."""
    return _latencies_and_rates(
        setting,
        "start",
        lambda daemon: daemon.dialect.start(_COMMAND),
        (1, 16, 64),
        setting.foreign,
    )


def run(setting: Setting) -> list[Table]:
    """POST /processes/run of /bin/true: start, output, end and exit status in one request."""
    return _latencies_and_rates(
        setting, "run", lambda daemon: daemon.dialect.run(_COMMAND), (1, 16)
    )


def user(setting: Setting) -> list[Table]:
    """A start with a change of user, against one without; only for daemons that can, as root."""
    if os.geteuid() != 0:
        return []
    with ExitStack() as stack:
        able = [
            daemon
            for daemon in open_all(stack, (Creche(), *setting.speakers))
            if daemon.dialect.switches_users
        ]
        contenders = []
        for daemon in able:
            for name in (None, _ANOTHER_USER):
                client = stack.enter_context(daemon.connect())
                request = daemon.dialect.start(_COMMAND, user=name)
                label = daemon.name if name is None else f"{daemon.name}, as {name}"
                contenders.append(Contender(label, partial(client.time, request)))
        results = compete(contenders, rounds=setting.scaled(40), times=20, warm_up=3)
        return [latencies("start with a change of user", results)]


def quiet(setting: Setting) -> list[Table]:
    """Starts 5 s apart, as an agent that thinks in between makes them."""
    with ExitStack() as stack:
        daemons = open_all(stack, setting.daemons)
        contenders = _contenders(
            stack, daemons, lambda daemon: daemon.dialect.start(_COMMAND), pause_seconds=5.0
        )
        results = compete(contenders, rounds=setting.scaled(15, least=4))
        return [latencies("start, one client, 5 s apart", results)]


def _latencies_and_rates(
    setting: Setting,
    what: str,
    request: Request,
    connections: Sequence[int],
    foreign: Sequence[Foreign] = (),
) -> list[Table]:
    def contest(pause_seconds: float, **effort: int) -> list[Result]:
        with ExitStack() as clients:
            contenders = _contenders(
                clients, [*daemons, canned], request, pause_seconds=pause_seconds
            )
            contenders += [
                clients.enter_context(one.open(pause_seconds=pause_seconds)) for one in foreign
            ]
            return compete(contenders, **effort)

    def table(title: str, results: list[Result]) -> Table:
        """The canned answer is no contender: it tells what the client and the loopback take."""
        itself = results.pop(len(daemons))
        notes = [f"A canned answer, without any process, takes {itself.p50 * 1e6:.0f} µs."]
        if foreign:
            notes.append(_FOREIGN)
        return latencies(title, results, notes)

    with ExitStack() as stack:
        daemons = open_all(stack, (*setting.daemons, FLOOR))
        canned = stack.enter_context(CANNED.open())
        tables = [
            table(
                f"{what}, one client, back to back",
                contest(0.0, rounds=setting.scaled(40), times=50, warm_up=3),
            ),
            table(
                f"{what}, one client, 20 ms apart",
                contest(0.02, rounds=setting.scaled(20), times=20),
            ),
        ]
        if is_installed():
            tables += [
                measure_rates(
                    setting,
                    daemons,
                    request,
                    title=f"{what}, {number} client{'s' if number > 1 else ''}",
                    connections=number,
                    canned=canned,
                )
                for number in connections
            ]
        else:
            print(_NO_WRK, file=sys.stderr)
        return tables


def _contenders(
    stack: ExitStack,
    daemons: Sequence[Daemon],
    request: Request,
    *,
    pause_seconds: float = 0.0,
) -> list[Contender]:
    contenders = []
    for daemon in daemons:
        client = stack.enter_context(daemon.connect())
        turn = partial(client.time, request(daemon), pause_seconds=pause_seconds)
        contenders.append(Contender(daemon.name, turn))
    return contenders
