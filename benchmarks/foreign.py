"""A contender in the peers' own Python: supervisord or circus, brought up and asked to start `/bin/true`.

    python -I foreign.py supervisord|circus

It is executed by its path, since PyPI's `supervisor` has the name of our engine.

Neither starts what it has not been told of before, so neither does quite what
we do. supervisord starts programs of its configuration, here one after the
other of a hundred; circus is told of a new one, which it starts at once.
"""

from __future__ import annotations

import importlib
import json
import socket
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

_SLOTS = 100
_READY_SECONDS = 30.0

_SUPERVISORD = """
[supervisord]
nodaemon = true
logfile = /dev/null
logfile_maxbytes = 0
pidfile = {directory}/pid
childlogdir = {directory}
[inet_http_server]
port = 127.0.0.1:{port}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[program:true]
command = /bin/true
process_name = %(program_name)s-%(process_num)03d
numprocs = {slots}
autostart = false
autorestart = false
startsecs = 0
startretries = 0
"""

_CIRCUS = """
[circus]
endpoint = tcp://127.0.0.1:{port}
pubsub_endpoint = ipc://{directory}/events
"""


@contextmanager
def supervisord() -> Iterator[Callable[[], float]]:
    """It is asked by XML-RPC, on one connection."""
    with (
        _daemon("supervisor.supervisord", "-c", _SUPERVISORD) as port,
        xmlrpc.client.ServerProxy(f"http://127.0.0.1:{port}/RPC2") as proxy,
    ):
        started = 0

        def once() -> float:
            nonlocal started
            name = f"true:true-{started % _SLOTS:03d}"
            started += 1
            began = time.perf_counter()
            proxy.supervisor.startProcess(name, False)
            return time.perf_counter() - began

        yield once


@contextmanager
def circus() -> Iterator[Callable[[], float]]:
    """It is asked by its own client."""
    with _daemon("circus.circusd", "", _CIRCUS) as port:
        client = importlib.import_module("circus.client").CircusClient(
            endpoint=f"tcp://127.0.0.1:{port}"
        )
        added = 0

        def once() -> float:
            nonlocal added
            name = f"true-{added}"
            added += 1
            order = {
                "name": name,
                "cmd": "/bin/true",
                "start": True,
                "waiting": True,
                "options": {"respawn": False},
            }
            began = time.perf_counter()
            answer = client.call({"command": "add", "properties": order})
            seconds = time.perf_counter() - began
            assert answer["started"], answer
            client.call({"command": "rm", "properties": {"name": name, "waiting": True}})
            return seconds

        try:
            yield once
        finally:
            client.stop()


@contextmanager
def _daemon(module: str, option: str, configuration: str) -> Iterator[int]:
    """The daemon for the length of the block; yields its port."""
    with tempfile.TemporaryDirectory(prefix="creche-benchmark-") as directory:
        with closing(socket.socket()) as listener:
            listener.bind(("127.0.0.1", 0))
            port: int = listener.getsockname()[1]
        path = Path(directory, "configuration.ini")
        path.write_text(configuration.format(directory=directory, port=port, slots=_SLOTS))
        command = [sys.executable, "-I", "-m", module, *([option] if option else []), str(path)]
        with (
            open(f"{directory}/log", "wb") as log,
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as daemon,
        ):
            try:
                _wait_until_ready(port)
                yield port
            finally:
                daemon.terminate()


def _wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            # Nobody tells us when a stranger listens.
            time.sleep(0.05)


def main() -> None:
    """Serve stdin, as `programs` says."""
    with {"supervisord": supervisord, "circus": circus}[sys.argv[1]]() as once:
        for line in sys.stdin:
            times, pause = line.split()
            seconds = []
            for _ in range(int(times)):
                time.sleep(float(pause))
                seconds.append(once())
            print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
