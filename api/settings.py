"""The daemon's settings: command line first, then environment, then defaults."""

from __future__ import annotations

import argparse
import os
import pwd
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import cast, get_args

from msgspec import Struct

from supervisor import OutputLimits, OutputPolicy, Retention, SupervisorConfig, SupervisorError
from supervisor.accounts import exists, look_up
from supervisor.spec import is_umask

from .environment import environment_of_children

_CONTRACT_USER = "tl-user"
_PARKED_LAUNCHERS = 8
_MAX_CONNECTIONS = 10_000


class SettingsError(Exception):
    """The settings contradict each other or name something that is not there."""


class Settings(Struct, frozen=True, kw_only=True):
    """What `creche serve` was told.

    Attributes:
      bind: `host:port` or `unix:path`.
      token: what requests must bear, or None.
      token_file: where that was read.
      peers: uids that may call on a Unix socket besides root, or None for the
        daemon's own alone.
      max_connections: how many connections there may be.
      insecure: whether callers that cannot be told apart are wanted all the same.
      log_level: name of the least level that is logged.
      supervisor: the settings of the supervisor.
    """

    bind: str
    token: bytes | None
    token_file: Path | None
    peers: frozenset[int] | None
    max_connections: int
    insecure: bool
    log_level: str
    supervisor: SupervisorConfig

    @property
    def on_unix_socket(self) -> bool:
        """Whether the address is a Unix socket."""
        return self.bind.startswith("unix:")


def parse_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Read the settings.

    Raises:
      SettingsError: see there.
      SystemExit: the arguments are wrong, or ask for help.
    """
    options = _parser(environment).parse_args(arguments)
    _check_address(options.bind)
    token = None
    if options.token_file is not None:
        token = _read_token(options.token_file)
    settings = Settings(
        bind=options.bind,
        token=token,
        token_file=options.token_file,
        peers=_peers(options.socket_users),
        max_connections=options.max_connections,
        insecure=options.insecure,
        log_level=options.log_level.upper(),
        supervisor=SupervisorConfig(
            default_user=_default_user(options.default_user),
            retention=Retention(
                count=options.retain_count,
                seconds=options.retain_seconds,
                output_bytes=options.retain_output_bytes,
            ),
            output=OutputLimits(
                memory_bytes=options.output_memory_bytes,
                unspilled_bytes=options.output_unspilled_bytes,
                log_bytes=options.output_limit_bytes,
                total_memory_bytes=options.output_total_memory_bytes,
                total_bytes=options.output_total_bytes,
                policy=options.output_policy,
            ),
            state_dir=options.state_dir,
            survives=options.state_dir is not None,
            environment=environment_of_children(environment, options.pass_environment),
            umask=options.umask,
            no_new_privs=options.no_new_privs,
            grace_seconds=options.grace_seconds,
            parked_launchers=options.parked_launchers,
            # Nobody else would take them in.
            subreaper=options.subreaper or os.getpid() == 1,
            sole_parent=True,
        ),
    )
    if settings.peers is not None and not settings.on_unix_socket:
        raise SettingsError(f"--socket-users means a Unix socket, and {settings.bind} is none")
    if token is None and not settings.insecure and not _is_private(settings):
        raise SettingsError(
            f"{settings.bind} can be reached from other machines: "
            "give a --token-file, or --insecure to let everyone run commands here"
        )
    return settings


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="creche",
        description="A process supervisor with an HTTP API.",
        epilog="Each option has an environment variable: --token-file is CRECHE_TOKEN_FILE.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"creche {version('creche')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the daemon", allow_abbrev=False)

    def option(name: str, kind: Callable[[str], object], default: object, text: str) -> None:
        variable = _variable(name)
        serve.add_argument(
            name, type=kind, default=environment.get(variable, default), help=f"{text} [{variable}]"
        )

    def flag(name: str, text: str) -> None:
        variable = _variable(name)
        default = _is_true(environment.get(variable, ""), variable)
        serve.add_argument(name, action="store_true", default=default, help=f"{text} [{variable}]")

    retention = Retention()
    config = SupervisorConfig()
    output = OutputLimits()
    option("--bind", str, "127.0.0.1:9501", "host:port or unix:path (default 127.0.0.1:9501)")
    option("--token-file", Path, None, "file whose content every request must bear as a token")
    option(
        "--socket-users",
        str,
        "",
        "users who may call on a Unix socket besides root and the daemon's own, by names or uids "
        "with commas in between; the socket's mode lets everyone connect then, and the others "
        "are refused (default: none)",
    )
    option(
        "--max-connections",
        _positive,
        _MAX_CONNECTIONS,
        "connections at a time, of which the longest idle gives way to one more (%(default)s)",
    )
    option(
        "--default-user",
        str,
        None,
        f"user of processes that name none (default: {_CONTRACT_USER} where that account exists "
        "and the daemon is root, else the daemon's own)",
    )
    option(
        "--pass-environment",
        _names,
        (),
        "more of the daemon's variables that processes get, with commas in between; * stands "
        "for anything (default: PATH, LANG, LANGUAGE, LC_* and TZ alone)",
    )
    option(
        "--umask",
        _umask,
        None,
        "umask of processes, in octal (default: that which the daemon was started with)",
    )
    option("--retain-count", _count, retention.count, "finished processes to keep (%(default)s)")
    option(
        "--retain-seconds",
        _seconds,
        retention.seconds,
        "how long to keep finished ones (%(default)s)",
    )
    option(
        "--retain-output-bytes",
        _count,
        retention.output_bytes,
        "output that all finished ones keep together (%(default)s)",
    )
    option(
        "--state-dir",
        _directory,
        _state_dir(environment),
        "where outputs and records are kept, for this daemon alone; empty for none (%(default)s)",
    )
    option(
        "--output-memory-bytes",
        _positive,
        output.memory_bytes,
        "output of one process that stays in memory; the rest goes to the state directory "
        "(%(default)s)",
    )
    option(
        "--output-unspilled-bytes",
        _positive,
        output.unspilled_bytes,
        "output of one process that is kept in memory where the state directory cannot take it "
        "(%(default)s)",
    )
    option(
        "--output-limit-bytes",
        _positive,
        output.log_bytes,
        "output of one process that is kept in all (%(default)s)",
    )
    option(
        "--output-total-memory-bytes",
        _positive,
        output.total_memory_bytes,
        "output of all processes that is kept in memory (%(default)s)",
    )
    option(
        "--output-total-bytes",
        _positive,
        output.total_bytes,
        "output of all processes that is kept in the state directory (%(default)s)",
    )
    option(
        "--output-policy",
        _output_policy,
        output.policy,
        "past these bounds: drop_oldest, drop_newest, or block the process until somebody has "
        "read its oldest output (%(default)s)",
    )
    option(
        "--grace-seconds",
        _seconds,
        config.grace_seconds,
        "between SIGTERM and SIGKILL at the end (%(default)s)",
    )
    option(
        "--parked-launchers",
        _count,
        _PARKED_LAUNCHERS,
        "launches kept prepared, to make starts quicker (%(default)s)",
    )
    option("--log-level", _log_level, "info", "debug, info, warning or error (%(default)s)")
    flag("--no-new-privs", "let no process gain privileges, such as by sudo")
    flag("--insecure", "serve other machines without a token")
    flag(
        "--subreaper",
        "take in the orphans that processes leave, and reap them; always so as PID 1",
    )
    return parser


def _variable(option: str) -> str:
    return "CRECHE_" + option.removeprefix("--").replace("-", "_").upper()


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is less than 0")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is less than 1")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time")
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.strip()))


def _umask(text: str) -> str:
    if not is_umask(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not octal, such as 022")
    return text


def _directory(text: str) -> Path | None:
    return Path(text) if text else None


def _output_policy(text: str) -> OutputPolicy:
    for policy in get_args(OutputPolicy):
        if text == policy:
            return cast("OutputPolicy", policy)
    raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(get_args(OutputPolicy))}")


def _log_level(text: str) -> str:
    if text.lower() not in ("debug", "info", "warning", "error"):
        raise argparse.ArgumentTypeError(f"{text!r} is none of debug, info, warning and error")
    return text


def _is_true(text: str, variable: str) -> bool:
    match text.lower():
        case "" | "0" | "false" | "no" | "off":
            return False
        case "1" | "true" | "yes" | "on":
            return True
    raise SettingsError(f"{variable}={text!r} is neither true nor false")


def _check_address(bind: str) -> None:
    if bind.startswith("unix:") and bind != "unix:":
        return
    match = re.fullmatch(r"(?:\[[^\[\]]+\]|[^:\[\]]*):([0-9]{1,5})", bind, re.ASCII)
    if match is None or int(match[1]) > 65535:
        raise SettingsError(f"{bind!r} is neither host:port nor unix:path")


def _read_token(path: Path) -> bytes:
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"the token file {path} cannot be read: {error.strerror}") from error
    if not token:
        raise SettingsError(f"the token file {path} is empty")
    return token


def _peers(users: str) -> frozenset[int] | None:
    if not users:
        return None
    return frozenset({os.geteuid(), *(_uid(user.strip()) for user in users.split(","))})


def _uid(user: str) -> int:
    if re.fullmatch("[0-9]{1,10}", user, re.ASCII):
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise SettingsError(f"--socket-users: there is no user {user!r}") from None


def _default_user(wanted: str | None) -> str | None:
    if wanted:
        try:
            look_up(wanted)
        except SupervisorError as error:
            raise SettingsError(f"--default-user: {error}") from error
        return wanted
    return _CONTRACT_USER if os.geteuid() == 0 and exists(_CONTRACT_USER) else None


def _state_dir(environment: Mapping[str, str]) -> str:
    """Where daemons keep their state: the system's place, or the user's (XDG Base Directory)."""
    if os.geteuid() == 0:
        return "/var/lib/creche"
    home = environment.get("HOME", "")
    parent = environment.get("XDG_STATE_HOME") or (home and f"{home}/.local/state")
    return f"{parent}/creche" if parent else ""


def _is_private(settings: Settings) -> bool:
    if settings.on_unix_socket:
        return True
    host = settings.bind.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
