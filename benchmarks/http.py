"""Start and run over HTTP: latencies of one client, back to back and with pauses, and rates of many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from .contest import Contender, Result, compete, latencies
from .daemons import Canned, Creche, Daemon, open_all
from .load import is_installed
from .rates import measure_rates
from .setting import Foreign, Setting
from .tables import Table

_COMMAND = ("/bin/true",)
_ANOTHER_USER = "nobody"
_GENERATOR = (
    "The canned answer is no daemon: it says what the load generator can do, "
    "and how much of every other row is the generator and the kernel's loopback."
)
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
    """A start with a change of user, against one without; only for daemons that can."""
    with ExitStack() as stack:
        able = [
            daemon
            for daemon in open_all(stack, (Creche(), *setting.others))
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
    with ExitStack() as stack:
        daemons = open_all(stack, (*setting.daemons, Canned()))
        notes = [_FOREIGN] if foreign else []

        def contest(pause_seconds: float, **effort: int) -> list[Result]:
            with ExitStack() as programs:
                contenders = _contenders(stack, daemons, request, pause_seconds=pause_seconds)
                contenders += [
                    programs.enter_context(one.open(pause_seconds=pause_seconds)) for one in foreign
                ]
                return compete(contenders, **effort)

        tables = [
            latencies(
                f"{what}, one client, back to back",
                contest(0.0, rounds=setting.scaled(40), times=50, warm_up=3),
                notes=[_GENERATOR, *notes],
            ),
            latencies(
                f"{what}, one client, 20 ms apart",
                contest(0.02, rounds=setting.scaled(20), times=20),
                notes=notes if is_installed() else [*notes, _NO_WRK],
            ),
        ]
        for number in connections if is_installed() else ():
            title = f"{what}, {number} client{'s' if number > 1 else ''}"
            tables.append(measure_rates(setting, daemons, request, title=title, connections=number))
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
