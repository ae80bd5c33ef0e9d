"""The end of a process: how soon a client sees it, and all of the output with it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from .contest import Contender, compete, latencies, repeat
from .daemons import Daemon, open_all
from .setting import Setting
from .sleepers import sleeper
from .tables import Table
from .wire import Client, body_of

_ECHO = ("/bin/echo", "done")
# As it is in answers of text, and of base64.
_FIRST_OUTPUT = (b'"done"', b"ZG9uZQo")


def follow(setting: Setting) -> list[Table]:
    """A start and its output: to the first line, and to the end."""
    with ExitStack() as stack:
        daemons = open_all(stack, setting.daemons)
        first = []
        whole = []
        for daemon in daemons:
            client = stack.enter_context(daemon.connect())
            first.append(Contender(daemon.name, repeat(partial(_first_line, daemon, client))))
            if daemon.dialect.output_ends:
                contender = Contender(
                    f"{daemon.name}: start, follow to eof",
                    repeat(partial(_follow_to_end, daemon, client)),
                )
            else:
                contender = Contender(
                    f"{daemon.name}: start, get until it has ended, get the output",
                    repeat(partial(_poll_to_end, daemon, client)),
                )
            whole.append(contender)
        rounds = setting.scaled(20)
        return [
            latencies(
                "start and follow, to the first line",
                compete(first, rounds=rounds, times=20, warm_up=2),
            ),
            latencies(
                "start and output, to the end",
                compete(whole, rounds=rounds, times=20, warm_up=2),
                notes=["A follow that does not end with the process is no way to see its end."],
            ),
        ]


def exit_(setting: Setting) -> list[Table]:
    """From the moment of a SIGKILL until a client has seen the end; peers must run on this machine."""
    with ExitStack() as stack:
        # It says that it is there: the head of an answer may come with the first output only.
        command = ("/bin/sh", "-c", 'echo done; exec "$@"', "", *stack.enter_context(sleeper()))
        contenders = []
        for daemon in open_all(stack, setting.daemons):
            client = stack.enter_context(daemon.connect())
            if daemon.dialect.output_ends:
                until_eof = repeat(partial(_killed_until_eof, daemon, client, command))
                contenders.append(Contender(f"{daemon.name}: a follow ends", until_eof))
            until_seen = repeat(partial(_killed_until_seen, daemon, client, command))
            contenders.append(Contender(f"{daemon.name}: get, over and over", until_seen))
        results = compete(contenders, rounds=setting.scaled(20), times=10, warm_up=2)
        return [latencies("exit, until it is visible", results)]


def _first_line(daemon: Daemon, client: Client) -> float:
    request = daemon.dialect.start(_ECHO)
    began = time.perf_counter()
    identity = daemon.dialect.identity(client.exchange(request))
    # A connection of its own, since it may not end.
    with daemon.connect() as follower:
        follower.send(daemon.dialect.follow(identity))
        follower.receive(lambda answer: any(text in answer for text in _FIRST_OUTPUT))
        return time.perf_counter() - began


def _follow_to_end(daemon: Daemon, client: Client) -> float:
    request = daemon.dialect.start(_ECHO)
    began = time.perf_counter()
    identity = daemon.dialect.identity(client.exchange(request))
    answer = client.exchange(daemon.dialect.follow(identity))
    seconds = time.perf_counter() - began
    assert _FIRST_OUTPUT[0] in answer
    return seconds


def _poll_to_end(daemon: Daemon, client: Client) -> float:
    request = daemon.dialect.start(_ECHO)
    began = time.perf_counter()
    identity = daemon.dialect.identity(client.exchange(request))
    get = daemon.dialect.get(identity)
    while not daemon.dialect.has_ended(client.exchange(get)):
        pass
    client.exchange(daemon.dialect.read_output(identity))
    return time.perf_counter() - began


def _start(daemon: Daemon, client: Client, command: Sequence[str]) -> tuple[str, int]:
    answer = client.exchange(daemon.dialect.start(command))
    return daemon.dialect.identity(answer), json.loads(body_of(answer))["pid"]


def _killed_until_eof(daemon: Daemon, client: Client, command: Sequence[str]) -> float:
    identity, pid = _start(daemon, client, command)
    client.send(daemon.dialect.follow(identity))
    client.receive(lambda answer: _FIRST_OUTPUT[0] in answer)
    began = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    client.receive_rest()
    return time.perf_counter() - began


def _killed_until_seen(daemon: Daemon, client: Client, command: Sequence[str]) -> float:
    identity, pid = _start(daemon, client, command)
    while not any(
        text in client.exchange(daemon.dialect.read_output(identity)) for text in _FIRST_OUTPUT
    ):
        pass
    get = daemon.dialect.get(identity)
    began = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    while not daemon.dialect.has_ended(client.exchange(get)):
        pass
    return time.perf_counter() - began
