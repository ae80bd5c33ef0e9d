"""The daemon: a supervisor, its app and its server, from start to a clean end."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator

import trio

from supervisor import StateDirUnusable, Supervisor, open_supervisor

from .app import create_app
from .logs import configure_logging
from .server import Server
from .settings import Settings, SettingsError, parse_settings
from .system import VERSION

_logger = logging.getLogger("creche")

_SWITCH_SECONDS = 0.0005


async def serve(
    settings: Settings, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until SIGTERM or SIGINT; then drain and return.

    Draining: new starts are refused, processes get SIGTERM and after the grace
    period SIGKILL, followers get everything up to the end, and only then are
    the connections closed. A second signal ends the grace period.

    Reports the addresses it listens on, once it does.

    Raises:
      OSError: the address cannot be bound.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_supervisor(settings.supervisor) as supervisor:
            app = create_app(
                supervisor,
                token=settings.token,
                any_host=settings.insecure or settings.on_unix_socket,
            )
            server = Server(app, settings.bind)
            async with trio.open_nursery() as nursery:
                addresses = await nursery.start(server.serve)
                _logger.info("serving", extra={"addresses": addresses, "version": VERSION})
                _warn_of_missing_cgroups(supervisor)
                # What is there by now stays: full collections need not walk it.
                gc.collect()
                gc.freeze()
                task_status.started(addresses)
                await anext(signals)
                _logger.info("stopping", extra={"running": supervisor.running})
                async with trio.open_nursery() as draining:
                    draining.start_soon(_cut_short, signals, draining.cancel_scope)
                    await supervisor.stop()
                    draining.cancel_scope.cancel()
                await supervisor.stop(grace_seconds=0)
                server.stop()
    _logger.info("stopped")


def _warn_of_missing_cgroups(supervisor: Supervisor) -> None:
    reason = supervisor.capabilities.no_cgroups_because
    if reason is not None:
        _logger.warning(
            "no cgroups: trees are found by session, ancestry and environment, and limits of "
            "memory, cpu, pids and io are refused; run as root, or in a delegated cgroup "
            "(systemd: Delegate=yes)",
            extra={"reason": reason},
        )


async def _cut_short(signals: AsyncIterator[int], grace: trio.CancelScope) -> None:
    await anext(signals)
    _logger.warning("second signal: killing what is left")
    grace.cancel()


def main() -> int:
    """The `creche` command; returns its exit status."""
    try:
        settings = parse_settings(sys.argv[1:], os.environ)
    except SettingsError as error:
        print(f"creche: {error}", file=sys.stderr)
        return 2
    configure_logging(settings.log_level)
    # A thread that pours a flood to disk gives the interpreter up at each system
    # call, and gets it back from a busy event loop only after this time; 5 ms,
    # Python's own choice, would slow it 80-fold.
    sys.setswitchinterval(_SWITCH_SECONDS)
    status = 0
    try:
        trio.run(serve, settings)
    except* StateDirUnusable as errors:
        _logger.error(
            "%s; give another --state-dir, or an empty one to keep all in memory",
            errors.exceptions[0],
        )
        status = 1
    except* OSError as errors:
        _logger.error("cannot serve on %s: %s", settings.bind, errors.exceptions[0])
        status = 1
    return status
