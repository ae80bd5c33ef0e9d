"""The daemon: a supervisor, its app and its server, from start to a clean end."""

from __future__ import annotations

import gc
import logging
import os
import signal
import stat
import sys
from pathlib import Path

import msgspec
import trio

from supervisor import LaunchError, StateDirUnusable, Supervisor, open_supervisor

from .app import create_app
from .logs import configure_logging
from .protection import Inherited, protect
from .restart import restart, take_listener
from .server import Server
from .settings import Settings, SettingsError, parse_settings
from .signals import Signals
from .system import VERSION

_logger = logging.getLogger("creche")

_SWITCH_SECONDS = 0.0005
_COLLECTIONS_PER_FULL_ONE = 100
# Before it executes itself anew. Most answers take a few ms; the others are streams.
_ANSWERING_SECONDS = 0.3
# One takes some seven, while it is spawned. They are not to take up what little there is.
_DESCRIPTORS_PER_PARKED_LAUNCHER = 32


async def serve(
    settings: Settings,
    inherited: Inherited | None = None,
    listener: int | None = None,
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until SIGTERM or SIGINT; then drain and return.

    Draining: new starts are refused, processes get SIGTERM and after the grace
    period SIGKILL, followers get everything up to the end, and only then are
    the connections closed. A second signal ends the grace period.

    On SIGUSR2, execute this program anew, unless its processes would not survive
    that, or are being ended: requests are answered, streams break off where they
    are, and everything goes on in the next one, signals that come meanwhile
    included. Never returns then.

    Args:
      settings: the settings.
      inherited: what the daemon was started as, for a next one.
      listener: a socket that listens already, from an earlier one.

    Reports the addresses it listens on, once it does.

    Raises:
      OSError: the address cannot be bound.
    """
    with Signals((signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)) as signals:
        async with open_supervisor(settings.supervisor) as supervisor:
            app = create_app(
                supervisor,
                token=settings.token,
                any_host=settings.insecure or settings.on_unix_socket,
            )
            server = Server(
                app,
                settings.bind,
                max_connections=settings.max_connections,
                peers=settings.peers,
                listener=listener,
            )
            async with trio.open_nursery() as nursery:
                try:
                    addresses = await nursery.start(server.serve)
                except OSError:
                    # What has been taken over need not end for want of an address.
                    if settings.supervisor.survives:
                        supervisor.detach()
                    raise
                _logger.info("serving", extra={"addresses": addresses, "version": VERSION})
                _warn_of_missing_cgroups(supervisor)
                # What is there by now stays: full collections need not walk it.
                gc.collect()
                gc.freeze()
                task_status.started(addresses)
                await _serve_until_told_to_end(signals, server, supervisor, inherited)
                _logger.info("stopping", extra={"running": supervisor.running})
                async with trio.open_nursery() as draining:
                    draining.start_soon(_cut_short, signals, draining.cancel_scope)
                    await supervisor.stop()
                    draining.cancel_scope.cancel()
                await supervisor.stop(grace_seconds=0)
                server.stop()
    _logger.info("stopped")


async def _serve_until_told_to_end(
    signals: Signals,
    server: Server,
    supervisor: Supervisor,
    inherited: Inherited | None,
) -> None:
    while await signals.receive() == signal.SIGUSR2:
        if inherited is None or not supervisor.config.survives:
            _logger.warning("not restarting: nothing outlives this without a state directory")
            continue
        _logger.info("restarting", extra={"running": supervisor.running})
        restart(await server.hand_over(_ANSWERING_SECONDS), inherited)


def _warn_of_missing_cgroups(supervisor: Supervisor) -> None:
    reason = supervisor.capabilities.no_cgroups_because
    if reason is not None:
        _logger.warning(
            "no cgroups: trees are found by session, ancestry and environment, and limits of "
            "memory, cpu, pids and io are refused; run as root, or in a delegated cgroup "
            "(systemd: Delegate=yes)",
            extra={"reason": reason},
        )


def _warn_of_readable_token(path: Path | None) -> None:
    if path is not None and path.stat().st_mode & stat.S_IROTH:
        _logger.warning(
            "the token file %s can be read by every user, and so by processes that run as one; "
            "chmod it to 600",
            path,
        )


async def _cut_short(signals: Signals, grace: trio.CancelScope) -> None:
    while await signals.receive() == signal.SIGUSR2:
        _logger.warning("not restarting: everything is being ended")
    _logger.warning("second signal: killing what is left")
    grace.cancel()


def _with_inherited(settings: Settings, inherited: Inherited) -> Settings:
    """The same, with processes starting as the daemon was started where the settings say nothing."""
    config = settings.supervisor
    _, descriptors = inherited.descriptor_limits
    return msgspec.structs.replace(
        settings,
        supervisor=msgspec.structs.replace(
            config,
            umask=inherited.umask if config.umask is None else config.umask,
            oom_score_adj=inherited.oom_score_adj,
            descriptor_limits=inherited.descriptor_limits,
            parked_launchers=min(
                config.parked_launchers, descriptors // _DESCRIPTORS_PER_PARKED_LAUNCHER
            ),
        ),
    )


def main() -> int:
    """The `creche` command; returns its exit status."""
    try:
        settings = parse_settings(sys.argv[1:], os.environ)
    except SettingsError as error:
        print(f"creche: {error}", file=sys.stderr)
        return 2
    configure_logging(settings.log_level)
    listener = take_listener(os.environ)
    inherited = protect()
    settings = _with_inherited(settings, inherited)
    _warn_of_readable_token(settings.token_file)
    # A thread that pours a flood to disk gives the interpreter up at each system
    # call, and gets it back from a busy event loop only after this time; 5 ms,
    # Python's own choice, would slow it 80-fold.
    sys.setswitchinterval(_SWITCH_SECONDS)
    # A full collection walks all processes that are remembered, and nothing else is done
    # meanwhile: 0.1 s for ten thousand. What ends is freed without it, but for rare cycles.
    gc.set_threshold(*gc.get_threshold()[:2], _COLLECTIONS_PER_FULL_ONE)
    status = 0
    try:
        trio.run(serve, settings, inherited, listener)
    except* StateDirUnusable as errors:
        _logger.error(
            "%s; give another --state-dir, or an empty one to keep all in memory",
            errors.exceptions[0],
        )
        status = 1
    except* LaunchError as errors:
        _logger.error("cannot start: %s", errors.exceptions[0])
        status = 1
    except* OSError as errors:
        _logger.error("cannot serve on %s: %s", settings.bind, errors.exceptions[0])
        status = 1
    return status
