"""The daemon's settings: from the command line, from the environment, and wrong ones."""

from __future__ import annotations

import math
import os
import pwd
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from api import Settings, SettingsError, parse_settings
from supervisor import SupervisorConfig

_ROOT = Path(__file__).parent.parent


class Option(NamedTuple):
    """An option, two values that it may have, and where its value goes."""

    name: str
    values: tuple[str, str]
    read: Callable[[Settings], object]
    read_as: tuple[object, object]

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return "CRECHE_" + self.name.removeprefix("--").replace("-", "_").upper()


OPTIONS = [
    Option(
        "--bind",
        ("127.0.0.1:1", "unix:/run/creche.sock"),
        lambda settings: settings.bind,
        ("127.0.0.1:1", "unix:/run/creche.sock"),
    ),
    Option(
        "--default-user",
        ("root", "0:0"),
        lambda settings: settings.supervisor.default_user,
        ("root", "0:0"),
    ),
    Option(
        "--retain-count",
        ("0", "77"),
        lambda settings: settings.supervisor.retention.count,
        (0, 77),
    ),
    Option(
        "--retain-seconds",
        ("0", "1.5"),
        lambda settings: settings.supervisor.retention.seconds,
        (0.0, 1.5),
    ),
    Option(
        "--retain-output-bytes",
        ("0", "77"),
        lambda settings: settings.supervisor.retention.output_bytes,
        (0, 77),
    ),
    Option(
        "--output-limit-bytes",
        ("1", "77"),
        lambda settings: settings.supervisor.output.log_bytes,
        (1, 77),
    ),
    Option(
        "--output-memory-bytes",
        ("1", "77"),
        lambda settings: settings.supervisor.output.memory_bytes,
        (1, 77),
    ),
    Option(
        "--output-unspilled-bytes",
        ("1", "77"),
        lambda settings: settings.supervisor.output.unspilled_bytes,
        (1, 77),
    ),
    Option(
        "--output-total-bytes",
        ("1", "77"),
        lambda settings: settings.supervisor.output.total_bytes,
        (1, 77),
    ),
    Option(
        "--output-total-memory-bytes",
        ("1", "77"),
        lambda settings: settings.supervisor.output.total_memory_bytes,
        (1, 77),
    ),
    Option(
        "--output-policy",
        ("drop_newest", "block"),
        lambda settings: settings.supervisor.output.policy,
        ("drop_newest", "block"),
    ),
    Option(
        "--state-dir",
        ("/some/where", ""),
        lambda settings: settings.supervisor.state_dir,
        (Path("/some/where"), None),
    ),
    Option(
        "--umask",
        ("022", "7"),
        lambda settings: settings.supervisor.umask,
        ("022", "7"),
    ),
    Option(
        "--grace-seconds",
        ("0", "1e3"),
        lambda settings: settings.supervisor.grace_seconds,
        (0.0, 1000.0),
    ),
    Option(
        "--parked-launchers",
        ("0", "3"),
        lambda settings: settings.supervisor.parked_launchers,
        (0, 3),
    ),
    Option(
        "--max-connections",
        ("1", "77"),
        lambda settings: settings.max_connections,
        (1, 77),
    ),
    Option(
        "--log-level",
        ("debug", "WARNING"),
        lambda settings: settings.log_level,
        ("DEBUG", "WARNING"),
    ),
]

_FLAGS = ("--insecure", "--subreaper", "--no-new-privs")
_OTHER_OPTIONS = ("--token-file", "--socket-users", "--pass-environment", *_FLAGS)


def parse(*options: str, **environment: str) -> Settings:
    """The settings from these options and variables."""
    return parse_settings(["serve", *options], environment)


def refusal(capsys: pytest.CaptureFixture[str], *options: str, **environment: str) -> str:
    """What is said about wrong settings, for which the daemon exits with 2."""
    with pytest.raises((SettingsError, SystemExit)) as caught:
        parse(*options, **environment)
    error = caught.value
    if not isinstance(error, SystemExit):
        return str(error)
    assert error.code == 2
    return capsys.readouterr().err


# --- where a value comes from ---------------------------------------------------


def test_the_defaults_are_those_of_the_supervisor() -> None:
    settings = parse()
    config = SupervisorConfig()
    assert settings.bind == "127.0.0.1:9501"
    assert settings.token is None
    assert not settings.insecure
    assert settings.log_level == "INFO"
    assert settings.supervisor.retention == config.retention
    assert settings.supervisor.output == config.output
    assert settings.supervisor.grace_seconds == config.grace_seconds
    assert settings.supervisor.subreaper == config.subreaper
    assert settings.supervisor.sole_parent  # The daemon starts nothing else.


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_a_value_comes_from_the_command_line_then_from_the_environment(option: Option) -> None:
    one, other = option.values
    as_one, as_other = option.read_as
    assert option.read(parse()) not in option.read_as
    for settings in (
        parse(option.name, one),
        parse(f"{option.name}={one}"),
        parse(**{option.variable: one}),
        parse(option.name, one, **{option.variable: other}),
        parse(option.name, other, option.name, one),
    ):
        assert option.read(settings) == as_one
        assert type(option.read(settings)) is type(as_one)
    assert option.read(parse(option.name, other, **{option.variable: one})) == as_other


def test_the_token_comes_from_a_file_by_either_way(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"secret one\n")
    other.write_bytes(b"\xff\xfe\n\n")
    assert parse("--token-file", str(one)).token == b"secret one"
    assert parse(CRECHE_TOKEN_FILE=str(other)).token == b"\xff\xfe"
    settings = parse("--token-file", str(one), CRECHE_TOKEN_FILE=str(other))
    assert settings.token == b"secret one"


@pytest.mark.parametrize(
    ("value", "is_true"),
    [
        ("", False),
        ("0", False),
        ("false", False),
        ("False", False),
        ("no", False),
        ("off", False),
        ("1", True),
        ("true", True),
        ("TRUE", True),
        ("yes", True),
        ("on", True),
    ],
)
def test_a_flag_is_what_its_variable_says(value: str, is_true: bool) -> None:
    assert parse(CRECHE_INSECURE=value).insecure is is_true
    assert parse(CRECHE_SUBREAPER=value).supervisor.subreaper is is_true
    # The option can only add to it.
    assert parse("--insecure", CRECHE_INSECURE=value).insecure
    assert parse("--subreaper", CRECHE_SUBREAPER=value).supervisor.subreaper


def test_no_new_privs_is_what_its_variable_says_or_the_option() -> None:
    assert not parse().supervisor.no_new_privs
    assert not parse(CRECHE_NO_NEW_PRIVS="no").supervisor.no_new_privs
    assert parse(CRECHE_NO_NEW_PRIVS="yes").supervisor.no_new_privs
    assert parse("--no-new-privs", CRECHE_NO_NEW_PRIVS="no").supervisor.no_new_privs


def test_processes_get_what_every_program_needs_and_what_is_named() -> None:
    needed = {"PATH": "/bin", "LANG": "C", "LANGUAGE": "de", "LC_ALL": "C", "TZ": "UTC"}
    own = {"HOME", "USER", "LOGNAME", "SHELL"}
    others = {"SECRET": "1", "JAVA_HOME": "/java", "JAVA_OPTS": "-x", "XPATH": "y"}
    for names, more in (
        (None, set()),
        ("", set()),
        ("JAVA_HOME", {"JAVA_HOME"}),
        ("JAVA_*, SECRET,", {"JAVA_HOME", "JAVA_OPTS", "SECRET"}),
        ("*", {*others}),
    ):
        options = () if names is None else ("--pass-environment", names)
        environment = parse(*options, **needed, **others).supervisor.environment
        assert environment is not None
        assert {*environment} == {*needed, *own, *more}
        assert environment.items() >= needed.items()
        if names is not None:
            variable = {"CRECHE_PASS_ENVIRONMENT": names}
            passed = parse(**needed, **others, **variable).supervisor.environment
            assert passed is not None
            assert passed == environment | (
                {"CRECHE_PASS_ENVIRONMENT": "*"} if names == "*" else {}
            )


def test_login_variables_are_of_the_account_and_not_what_the_daemon_was_given() -> None:
    environment = parse(HOME="/wrong", USER="wrong").supervisor.environment
    assert environment is not None
    account = pwd.getpwuid(os.geteuid())
    assert (environment["HOME"], environment["USER"]) == (account.pw_dir, account.pw_name)


def test_variables_of_others_are_not_looked_at() -> None:
    settings = parse(BIND="0.0.0.0:1", CRECHE_PORT="1", CRECHE_UNIT="x", PORT="1", TOKEN_FILE="/x")
    assert settings == parse()


# --- who can reach it -----------------------------------------------------------

PRIVATE = [
    "127.0.0.1:0",
    "127.0.0.2:9501",
    "localhost:9501",
    "[::1]:9501",
    "unix:/run/creche.sock",
    "unix:relative.sock",
]
PUBLIC = [
    "0.0.0.0:9501",
    "[::]:9501",
    ":9501",
    "10.1.2.3:9501",
    "192.0.2.1:9501",
    "[2001:db8::1]:9501",
    "[::ffff:10.0.0.1]:9501",
    "creche.example:9501",
    "localhost.evil.example:9501",
    "127.0.0.1.evil.example:9501",
]


@pytest.mark.parametrize("bind", PRIVATE)
def test_a_private_address_needs_no_token(bind: str) -> None:
    settings = parse("--bind", bind)
    assert settings.bind == bind
    assert settings.on_unix_socket == bind.startswith("unix:")


@pytest.mark.parametrize("bind", PUBLIC)
def test_a_public_address_needs_a_token_or_insistence(bind: str, tmp_path: Path) -> None:
    for settings in (("--bind", bind), ()):
        environment = {} if settings else {"CRECHE_BIND": bind}
        with pytest.raises(SettingsError) as caught:
            parse(*settings, **environment)
        for word in (bind, "--token-file", "--insecure"):
            assert word in str(caught.value)
    with pytest.raises(SettingsError):
        parse("--bind", bind, CRECHE_INSECURE="false")
    token = tmp_path / "token"
    token.write_text("secret")
    assert parse("--bind", bind, "--token-file", str(token)).token == b"secret"
    assert parse("--bind", bind, "--insecure").token is None
    assert parse("--bind", bind, CRECHE_INSECURE="1").insecure


# --- wrong ones -----------------------------------------------------------------

WRONG = [
    *(("--retain-count", value) for value in ("", "x", "1.5", "-1", "1e3", "nan")),
    *(("--retain-seconds", value) for value in ("", "x", "-1", "nan")),
    *(("--retain-output-bytes", value) for value in ("", "x", "1.5", "-1", "64M")),
    *(("--output-limit-bytes", value) for value in ("", "x", "1.5", "-1", "0")),
    *(("--umask", value) for value in ("", "x", "8", "1777", "00022", "-1", "0o22", "22 ", "22\n")),
    *(("--grace-seconds", value) for value in ("", "x", "-1", "-0.5", "nan", "5s")),
    *(("--max-connections", value) for value in ("", "x", "1.5", "-1", "0")),
    *(("--parked-launchers", value) for value in ("", "x", "1.5", "-1")),
    *(("--log-level", value) for value in ("", "loud", "notset", "10")),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_refused_from_either_source(
    capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    variable = "CRECHE_" + name.removeprefix("--").replace("-", "_").upper()
    for message in (
        refusal(capsys, f"{name}={value}"),
        refusal(capsys, **{variable: value}) if value else name,
    ):
        assert name in message
        assert value.lower() in message.lower()


@pytest.mark.parametrize("value", ["maybe", "2", "insecure", "n o"])
@pytest.mark.parametrize("variable", ["CRECHE_INSECURE", "CRECHE_SUBREAPER"])
def test_a_flag_that_says_neither_is_refused(
    capsys: pytest.CaptureFixture[str], variable: str, value: str
) -> None:
    assert variable in refusal(capsys, **{variable: value})


@pytest.mark.parametrize(
    "bind",
    [
        "",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:x",
        "127.0.0.1:-1",
        "127.0.0.1:65536",
        "127.0.0.1:99999",
        "127.0.0.1:1.5",
        "localhost",
        "localhost:",
        "[::1]",
        "[::1]:x",
        "9501",
        "unix:",
        "unix",
        "fd://0",
    ],
)
@pytest.mark.parametrize("insecure", [False, True])
def test_an_address_that_is_none_is_refused(
    capsys: pytest.CaptureFixture[str], bind: str, insecure: bool
) -> None:
    options = ["--insecure"] if insecure else []
    message = refusal(capsys, f"--bind={bind}", *options)
    assert bind in message
    # Whoever is told this instead would look in the wrong place.
    assert "reached from other machines" not in message


def test_a_default_user_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nobody-here" in refusal(capsys, "--default-user", "nobody-here")


def test_the_users_of_a_unix_socket_are_names_or_uids_beside_the_daemons_own() -> None:
    assert parse("--bind", "unix:/run/creche.sock").peers is None
    for users in ("daemon,65534", " 65534 , daemon "):
        for settings in (
            parse("--bind", "unix:x", "--socket-users", users),
            parse("--bind", "unix:x", CRECHE_SOCKET_USERS=users),
        ):
            assert settings.peers == frozenset({os.geteuid(), pwd.getpwnam("daemon").pw_uid, 65534})


@pytest.mark.parametrize("users", ["nobody-here", "root,", "-1", "0x0", "root nobody"])
def test_users_of_a_unix_socket_that_are_not_there_are_refused(
    capsys: pytest.CaptureFixture[str], users: str
) -> None:
    message = refusal(capsys, "--bind", "unix:x", f"--socket-users={users}")
    assert "--socket-users" in message
    assert repr(users.rpartition(",")[2]) in message


def test_users_of_a_unix_socket_are_refused_where_there_is_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "Unix socket" in refusal(capsys, "--socket-users", "root")


def test_a_token_file_that_holds_no_token_is_refused(tmp_path: Path) -> None:
    empty, blank = tmp_path / "empty", tmp_path / "blank"
    empty.touch()
    blank.write_text(" \n\t\n")
    for path, words in (
        (tmp_path / "missing", "No such file"),
        (tmp_path, "Is a directory"),
        (empty, "is empty"),
        (blank, "is empty"),
        (empty / "below", "Not a directory"),
    ):
        for options, environment in (
            (("--token-file", str(path)), {}),
            ((), {"CRECHE_TOKEN_FILE": str(path)}),
            # Not even what would do without a token does with a wrong one.
            (("--insecure", "--token-file", str(path)), {}),
        ):
            with pytest.raises(SettingsError) as caught:
                parse(*options, **environment)
            assert str(path) in str(caught.value)
            assert words in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["start"],
        ["serve", "now"],
        ["serve", "--port", "1"],
        ["serve", "--token", "secret"],
        ["serve", "--bind"],
        ["serve", "--insecure=1"],
        ["--bind", "127.0.0.1:0", "serve"],
    ],
)
def test_arguments_that_mean_nothing_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_settings(arguments, {})
    assert caught.value.code == 2
    assert "usage: creche" in capsys.readouterr().err


# --- the command ----------------------------------------------------------------


async def creche(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the command to its end: its status and outputs."""
    result = await trio.run_process(
        [sys.executable, "-m", "api", *arguments],
        cwd=_ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        check=False,
        capture_stdout=True,
        capture_stderr=True,
    )
    return result.returncode, result.stdout.decode(), result.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (("serve", "--bind", "0.0.0.0:0"), {}, "--token-file"),
        (("serve",), {"CRECHE_BIND": "[::]:0"}, "--token-file"),
        (("serve", "--token-file", "/nowhere/token"), {}, "/nowhere/token"),
        (("serve", "--log-level", "loud"), {}, "loud"),
        (("serve",), {"CRECHE_LOG_LEVEL": "loud"}, "loud"),
        (("serve", "--retain-count", "few"), {}, "--retain-count"),
        (("serve", "--bind", "127.0.0.1:99999"), {}, "127.0.0.1:99999"),
        (("serve", "--nonsense"), {}, "--nonsense"),
        ((), {}, "COMMAND"),
    ],
)
async def test_the_command_says_what_is_wrong_in_a_line_and_exits_with_2(
    arguments: tuple[str, ...], environment: dict[str, str], words: str
) -> None:
    status, stdout, stderr = await creche(*arguments, **environment)
    assert status == 2
    assert stdout == ""
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith(("creche: ", "creche serve: "))
    assert words in stderr.splitlines()[-1]


async def test_help_names_every_option_its_variable_and_its_default() -> None:
    status, stdout, stderr = await creche("serve", "--help")
    assert (status, stderr) == (0, "")
    text = re.sub(r"\s+", " ", stdout)
    for name in (*(option.name for option in OPTIONS), *_OTHER_OPTIONS):
        assert f" {name} " in text
        assert f"[CRECHE_{name.removeprefix('--').replace('-', '_').upper()}]" in text
    # And no option is missing from these tests.
    assert set(re.findall(r"--[a-z-]+", text)) == {
        *(option.name for option in OPTIONS),
        *_OTHER_OPTIONS,
        "--help",
    }
    config = SupervisorConfig()
    for default in ("127.0.0.1:9501", config.output.log_bytes, config.retention.count):
        assert str(default) in text
    assert not math.isnan(config.grace_seconds)
