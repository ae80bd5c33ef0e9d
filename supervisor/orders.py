"""The language of the launcher: what it is told to do, and its answer when it could not.

Theory of operation, the guarantee and the table of stages are in ``launcher/launcher.c``. This module turns `Orders` into bytes
and bytes into a `Failure`; it opens nothing and starts nothing.
"""

import enum
import struct
from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

import msgspec

MAX_SIZE: Final = 8 << 20
"""The launcher takes orders of at most this many bytes, header and last byte not counted."""

ANSWER_SIZE: Final = 8
_MAGIC: Final = 0x31524C43  # "CLR1"
_HEADER: Final = struct.Struct("<II")
_LAST: Final = b"\0"
_RECORD: Final = struct.Struct("<HHI")
_UNSIGNED: Final = struct.Struct("<I")
_SIGNED: Final = struct.Struct("<i")
_LIMIT: Final = struct.Struct("<IIQQ")
_ANSWER: Final = struct.Struct("<Ii")
_MAX_ID: Final = 2**32 - 2  # 2**32 - 1 is -1 to setresuid(2): "leave it as it is"
_INFINITY: Final = 2**64 - 1


class Stage(enum.IntEnum):
    """What the launcher was doing when it failed. Up to `ENVIRONMENT` also the tag of the record that orders it."""

    JOIN = 1
    NULL_STREAM = 2
    STDERR_TO_STDOUT = 3
    NEW_SESSION = 4
    CONTROLLING_TTY = 5
    OOM_SCORE_ADJ = 6
    NICE = 7
    UMASK = 8
    LIMIT = 9
    GROUPS = 10
    GID = 11
    UID = 12
    NO_NEW_PRIVS = 13
    DIRECTORY = 14
    COMMAND = 15
    ARGUMENT = 16
    ENVIRONMENT = 17
    ORDERS = 32
    MEMORY = 33
    SIGNALS = 34
    DESCRIPTORS = 35
    INTERPRETER = 36


class Limit(msgspec.Struct, frozen=True):
    """One resource limit; units are those of setrlimit(2), and ``resource.RLIM_INFINITY`` (-1) is no limit."""

    resource: int
    soft: int
    hard: int


class Credentials(msgspec.Struct, frozen=True):
    """Whom the child becomes. All three together, so that nobody can keep root's groups by mistake.

    `groups` are exactly the supplementary groups; the gid is not added to them.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What the launcher does, in the order that it does it. Strings are any bytes but NUL.

    A field that is None or empty, or False, or ``"keep"``, leaves that as the launcher inherited it.
    """

    join_fds: tuple[int, ...] = ()
    """Inherited descriptors, 3 or above, of ``cgroup.procs`` files open for writing. The launcher closes them."""
    stdin: Literal["keep", "null"] = "keep"
    stdout: Literal["keep", "null"] = "keep"
    stderr: Literal["keep", "null", "stdout"] = "keep"
    new_session: bool = False
    controlling_tty: bool = False
    """Take the terminal on stdin as the session's; needs `new_session`, or to lead a session already."""
    oom_score_adj: int | None = None
    nice: int | None = None
    umask: int | None = None
    limits: tuple[Limit, ...] = ()
    encoded_attributes: bytes = b""
    """Instead of the four above: what `encode_attributes` has made of them."""
    credentials: Credentials | None = None
    """None: the child stays the user that the launcher is, with its groups and capabilities."""
    no_new_privs: bool = False
    directory: bytes | None = None
    """Entered as the new user."""
    command: bytes
    """Sought in the PATH of `environment` unless it has a ``/``; without a PATH there, in /usr/local/bin:/usr/bin:/bin."""
    arguments: tuple[bytes, ...]
    """All of argv: at least ``argv[0]``."""
    environment: tuple[bytes, ...] = ()
    """All of the environment, each ``NAME=value``."""
    encoded_environment: bytes = b""
    """More of it, by `encode_environment`."""


class Failure(NamedTuple):
    """The launcher's answer: the command never ran."""

    stage: Stage
    errno: int


def encode(orders: Orders) -> bytes:
    """Return the orders as the launcher reads them.

    Raises ValueError if they cannot be said: a string with a NUL in it, a number out of range, no ``argv[0]``, or more than
    `MAX_SIZE` bytes in all. Whether they can be *done* is for the kernel to say.
    """
    if not orders.arguments:
        raise ValueError("arguments must begin with argv[0]")
    body = b"".join(_records(orders))
    if len(body) > MAX_SIZE:
        raise ValueError(
            f"command, arguments and environment take {len(body)} bytes; at most {MAX_SIZE} are possible"
        )
    return b"".join((_HEADER.pack(_MAGIC, len(body)), body, _LAST))


def encode_attributes(
    *,
    oom_score_adj: int | None = None,
    nice: int | None = None,
    umask: int | None = None,
    limits: tuple[Limit, ...] = (),
) -> bytes:
    """Return the part of the orders that these are.

    Raises ValueError for a number out of range.
    """
    return b"".join(_attributes(oom_score_adj, nice, umask, limits))


def encode_environment(variables: Iterable[bytes]) -> bytes:
    """Return the part of the orders that is the environment, or a part of that. Each variable is ``NAME=value``.

    Raises ValueError for a NUL.
    """
    return b"".join([_string(Stage.ENVIRONMENT, variable) for variable in variables])


def decode_answer(answer: bytes) -> Failure | None:
    """Read all that came over the answer descriptor up to its end of file; None if that is nothing: exec has happened.

    Raises ValueError for bytes that no launcher writes.
    """
    if not answer:
        return None
    if len(answer) != ANSWER_SIZE:
        raise ValueError(f"the launcher's answer has {len(answer)} bytes, not {ANSWER_SIZE}")
    stage, errno = _ANSWER.unpack(answer)
    return Failure(Stage(stage), errno)


def _records(orders: Orders) -> Iterator[bytes]:
    """Yield the records, in ascending order of tag."""
    for fd in orders.join_fds:
        yield _number(Stage.JOIN, fd, minimum=3, maximum=2**31 - 1)
    for stream, mode in enumerate((orders.stdin, orders.stdout, orders.stderr)):
        if mode == "null":
            yield _number(Stage.NULL_STREAM, stream, minimum=0, maximum=2)
    if orders.stderr == "stdout":
        yield _record(Stage.STDERR_TO_STDOUT, b"")
    if orders.new_session:
        yield _record(Stage.NEW_SESSION, b"")
    if orders.controlling_tty:
        yield _record(Stage.CONTROLLING_TTY, b"")
    yield from _attributes(orders.oom_score_adj, orders.nice, orders.umask, orders.limits)
    yield orders.encoded_attributes
    if (credentials := orders.credentials) is not None:
        groups = (
            _checked(Stage.GROUPS, group, minimum=0, maximum=_MAX_ID)
            for group in credentials.groups
        )
        yield _record(Stage.GROUPS, b"".join(map(_UNSIGNED.pack, groups)))
        yield _number(Stage.GID, credentials.gid, minimum=0, maximum=_MAX_ID)
        yield _number(Stage.UID, credentials.uid, minimum=0, maximum=_MAX_ID)
    if orders.no_new_privs:
        yield _record(Stage.NO_NEW_PRIVS, b"")
    if orders.directory is not None:
        yield _string(Stage.DIRECTORY, orders.directory)
    yield _string(Stage.COMMAND, orders.command)
    for argument in orders.arguments:
        yield _string(Stage.ARGUMENT, argument)
    yield encode_environment(orders.environment)
    yield orders.encoded_environment


def _attributes(
    oom_score_adj: int | None, nice: int | None, umask: int | None, limits: tuple[Limit, ...]
) -> Iterator[bytes]:
    if oom_score_adj is not None:
        yield _string(Stage.OOM_SCORE_ADJ, b"%d" % oom_score_adj)
    if nice is not None:
        yield _record(Stage.NICE, _SIGNED.pack(_checked(Stage.NICE, nice, minimum=-20, maximum=19)))
    if umask is not None:
        yield _number(Stage.UMASK, umask, minimum=0, maximum=0o777)
    for limit in limits:
        resource = _checked(Stage.LIMIT, limit.resource, minimum=0, maximum=2**31 - 1)
        yield _record(
            Stage.LIMIT,
            _LIMIT.pack(resource, 0, _limit_value(limit.soft), _limit_value(limit.hard)),
        )


def _record(stage: Stage, value: bytes) -> bytes:
    return _RECORD.pack(stage, 0, len(value)) + value + bytes(-len(value) % 8)


def _string(stage: Stage, value: bytes) -> bytes:
    if 0 in value:
        raise ValueError(f"{stage.name.lower()} has a NUL in it: {value!r}")
    return _record(stage, value + b"\0")


def _number(stage: Stage, value: int, *, minimum: int, maximum: int) -> bytes:
    return _record(stage, _UNSIGNED.pack(_checked(stage, value, minimum=minimum, maximum=maximum)))


def _limit_value(value: int) -> int:
    return _INFINITY if value == -1 else _checked(Stage.LIMIT, value, minimum=0, maximum=_INFINITY)


def _checked(stage: Stage, value: int, *, minimum: int, maximum: int) -> int:
    if not minimum <= value <= maximum:
        raise ValueError(f"{stage.name.lower()} is {value}; it must be {minimum} to {maximum}")
    return value
