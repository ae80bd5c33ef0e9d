"""What to start: frozen structs, checked once, without any I/O."""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal

from msgspec import Meta, Struct

from .errors import BadEnvironmentName, InvalidText, NulByte, SpecError

StdinMode = Literal["closed", "pipe"]
OutputMode = Literal["capture", "discard"]
Descendants = Literal["kill", "keep"]
OutputPolicy = Literal["drop_oldest", "drop_newest", "block"]

# (uid_t)-1 means "leave unchanged" to setresuid(2), so it is no id.
Umask = Annotated[str, Meta(pattern="^0?[0-7]{1,3}$")]
"""Permissions that new files do not get, in octal as everywhere else: `022`. JSON has no octal numbers."""

Nice = Annotated[int, Meta(ge=-20, le=19)]
OomScoreAdj = Annotated[int, Meta(ge=-1000, le=1000)]

AccountId = Annotated[int, Meta(ge=0, le=2**32 - 2)]


class User(Struct, frozen=True, kw_only=True):
    """Whom to run as: an account's `name`, or a `uid`; `gid` replaces the account's own group."""

    name: str | None = None
    uid: AccountId | None = None
    gid: AccountId | None = None


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a process may use; None is no limit of its own.

    The first group is of the whole unit and needs cgroups; the second is of
    each process in it (setrlimit(2), soft and hard).

    Attributes:
      memory_bytes: memory; beyond it the kernel kills.
      memory_swap_bytes: swap, on top of that.
      cpu: processors' worth of time, such as 0.5.
      pids: processes and threads.
      io_weight: share of the disks' time against others; 100 is usual.
      open_files: highest descriptor number plus one.
      core_bytes: size of a core dump; 0 for none.
      file_bytes: size of a file that is written.
    """

    memory_bytes: Annotated[int, Meta(ge=1, le=2**62)] | None = None
    memory_swap_bytes: Annotated[int, Meta(ge=0, le=2**62)] | None = None
    cpu: Annotated[float, Meta(gt=0, le=1_000_000)] | None = None
    pids: Annotated[int, Meta(ge=1, lt=2**22)] | None = None
    io_weight: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    open_files: Annotated[int, Meta(ge=3, lt=2**31)] | None = None
    core_bytes: Annotated[int, Meta(ge=0, le=2**62)] | None = None
    file_bytes: Annotated[int, Meta(ge=0, le=2**62)] | None = None

    def over(self, defaults: Limits) -> Limits:
        """These, and where they say nothing, the defaults."""
        return Limits(
            **{
                name: getattr(defaults, name) if (own := getattr(self, name)) is None else own
                for name in self.__struct_fields__
            }
        )


class ProcessSpec(Struct, frozen=True, kw_only=True, gc=False):
    """What to start.

    Strings become bytes by `os.fsencode`, so a Python caller can pass any
    bytes through `surrogateescape`.

    Attributes:
      command: path of a program, or a name to be looked up in the child's PATH.
      args: arguments after the command's own name.
      env: variables that are added to the supervisor's base environment.
      working_dir: directory to start in; the supervisor's own when None.
      user: account name, `"1000"`, `"1000:1000"` or `User`; the supervisor's
        default when None.
      stdin_mode: `closed` reads end-of-file at once, `pipe` is fed by `write_stdin`.
      stdout_mode: `capture` into the process's output log, or `discard`. The
        log takes everything at once: a slow reader does not slow the process,
        but may find that the log's bounds have cost the oldest bytes.
      stderr_mode: the same for stderr.
      limits: what it may use, over the supervisor's defaults.
      output_policy: what happens when its output reaches a bound, `drop_oldest`,
        `drop_newest` or `block` (see `OutputLimits`); the supervisor's when None.
      descendants: what happens to those that are alive when the leader exits:
        `kill`, or `keep` until they end by themselves, the process is killed,
        or the supervisor stops. What they write after the leader's end is
        read, so that it does not stop them, but not kept.
      umask: permissions that its new files do not get, in octal such as `022`; the
        supervisor's when None.
      nice: its priority, from -20 for the highest to 19 (setpriority(2)); the
        supervisor's own when None. Only a privileged supervisor can set a higher one
        than its own.
      oom_score_adj: how soon the kernel kills it for memory, from -1000 for never to
        1000 for first (proc_pid_oom_score_adj(5)); the supervisor's when None. Only a
        privileged supervisor can set a lower one than its own.
      no_new_privs: whether neither it nor a descendant can gain privileges by executing
        something, such as sudo (PR_SET_NO_NEW_PRIVS(2const)); always so where the
        supervisor wants it.
    """

    command: str
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    working_dir: str | None = None
    user: str | User | None = None
    stdin_mode: StdinMode = "closed"
    stdout_mode: OutputMode = "capture"
    stderr_mode: OutputMode = "capture"
    limits: Limits = Limits()
    output_policy: OutputPolicy | None = None
    descendants: Descendants = "kill"
    umask: Umask | None = None
    nice: Nice | None = None
    oom_score_adj: OomScoreAdj | None = None
    no_new_privs: bool = False

    def check(self) -> None:
        """Raise `SpecError` for what no kernel could start.

        Raises:
          NulByte, InvalidText, BadEnvironmentName, SpecError: with `field` set.
        """
        if not self.command:
            raise SpecError("command is empty", field="command")
        _check_text(self.command, "command")
        for index, argument in enumerate(self.args):
            _check_text(argument, f"args[{index}]")
        for name, value in self.env.items():
            if not name or "=" in name:
                raise BadEnvironmentName(
                    f"{name!r} cannot name an environment variable", field="env"
                )
            _check_text(name, "env")
            _check_text(value, f"env.{name}")
        if self.working_dir is not None:
            if not self.working_dir:
                raise SpecError("working_dir is empty", field="working_dir")
            _check_text(self.working_dir, "working_dir")
        if self.umask is not None and not is_umask(self.umask):
            raise SpecError(f"umask {self.umask!r} is not octal, such as 022", field="umask")
        _check_range(self.nice, "nice", -20, 19)
        _check_range(self.oom_score_adj, "oom_score_adj", -1000, 1000)


def is_umask(text: str) -> bool:
    """Whether this is an umask in octal."""
    return re.fullmatch(r"0?[0-7]{1,3}", text) is not None


def _check_range(value: int | None, field: str, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        raise SpecError(f"{field} is {value}; it must be {least} to {most}", field=field)


def _check_text(text: str, field: str) -> None:
    if "\0" in text:
        raise NulByte(f"{field} holds a NUL byte", field=field)
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise InvalidText(f"{field} holds a lone surrogate", field=field) from error
