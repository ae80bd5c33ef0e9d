"""Accounts: from the forms of `user` to uid, gid, groups and login environment."""

from __future__ import annotations

import os
import pwd
import re
from contextlib import ExitStack

from msgspec import Struct

from .errors import InvalidUser, UserNotFound, UserNotPermitted
from .spec import User

LOGIN_VARIABLES = ("HOME", "USER", "LOGNAME", "SHELL")
"""What an account says of a process's environment."""

_UID = re.compile(r"[0-9]{1,10}", re.ASCII)
_UID_GID = re.compile(r"([0-9]{1,10}):([0-9]{1,10})", re.ASCII)
_LARGEST_ID = 2**32 - 2
_FILES = ("/etc/passwd", "/etc/group", "/etc/nsswitch.conf")
_REMEMBERED = 1000
_DESCRIPTORS_FOR_A_LOOK = 4


class Account(Struct, frozen=True):
    """Whom a process runs as.

    Attributes:
      uid, gid: real, effective and saved ids of the process.
      groups: its supplementary groups, exactly these.
      environment: HOME, USER, LOGNAME and SHELL of the account; empty when
        the uid has no account.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    environment: dict[str, str]

    @property
    def is_own(self) -> bool:
        """Whether a child that changes nothing already runs as this account."""
        return (
            self.uid == os.geteuid() == os.getuid()
            and self.gid == os.getegid() == os.getgid()
            and set(self.groups) | {self.gid} == set(os.getgroups()) | {self.gid}
        )


class Accounts:
    """Looks accounts up, and remembers what it found until the account files change.

    Reading the files takes longer than the rest of becoming a user. Sources
    other than files (LDAP and the like, nsswitch.conf(5)) are remembered as
    long as the files stay as they are.
    """

    def __init__(self) -> None:
        self._found: dict[str | User, Account] = {}
        self._version: tuple[tuple[int, int], ...] = ()

    def look_up(self, user: str | User) -> Account:
        """The account that `user` means; see the module's `look_up`.

        Raises: as there.
          OSError: the files cannot be read now.
        """
        version = tuple(_version_of(path) for path in _FILES)
        if version != self._version:
            self._found.clear()
            self._version = version
        account = self._found.get(user)
        if account is None:
            _require_descriptors()
            account = look_up(user)
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            self._found[user] = account
        return account


def _require_descriptors() -> None:
    """Raise OSError without a few descriptors to spare.

    Without one the C library finds no account and no groups, and says no more than that.
    """
    with ExitStack() as stack:
        for _ in range(_DESCRIPTORS_FOR_A_LOOK):
            stack.callback(os.close, os.open("/", os.O_PATH | os.O_CLOEXEC))


def _version_of(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    # A file that was replaced has another inode, one that was edited another time.
    return (status.st_ino, status.st_mtime_ns)


def look_up(user: str | User) -> Account:
    """Find the account that `user` means.

    A uid without an account is allowed: its gid is the same number and it has
    no supplementary groups. With an explicit gid there are no supplementary
    groups either. A name that is all digits is a uid.

    Raises:
      InvalidUser: `user` has none of the documented forms.
      UserNotFound: no account has that name.
      UserNotPermitted: it is another user and the supervisor is not root.
    """
    account = _account(_parse(user))
    if os.geteuid() != 0 and not (account.uid == os.getuid() and account.gid == os.getgid()):
        raise UserNotPermitted(
            f"the supervisor runs as uid {os.geteuid()} and cannot start processes "
            f"as uid {account.uid}, gid {account.gid}",
            field="user",
        )
    return account


def exists(name: str) -> bool:
    """Whether there is an account of that name."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _parse(user: str | User) -> User:
    if isinstance(user, User):
        if (user.name is None) == (user.uid is None):
            raise InvalidUser("user needs either a name or a uid", field="user")
        if user.name is not None and not user.name.strip():
            raise InvalidUser("user.name is blank", field="user.name")
        return user
    if not user.strip():
        raise InvalidUser("user is blank", field="user")
    if _UID.fullmatch(user):
        return User(uid=_id(user))
    if match := _UID_GID.fullmatch(user):
        return User(uid=_id(match[1]), gid=_id(match[2]))
    return User(name=user)


def _id(digits: str) -> int:
    value = int(digits)
    if value > _LARGEST_ID:
        raise InvalidUser(f"{digits} is too large for a uid or gid", field="user")
    return value


def _account(user: User) -> Account:
    if user.name is not None:
        try:
            entry = pwd.getpwnam(user.name)
        # A NUL byte is a ValueError and a lone surrogate a UnicodeEncodeError
        # (itself a ValueError): no account has such a name.
        except (KeyError, ValueError) as error:
            raise UserNotFound(f"there is no user {user.name!r}", field="user") from error
    else:
        assert user.uid is not None
        try:
            entry = pwd.getpwuid(user.uid)
        except KeyError:
            gid = user.uid if user.gid is None else user.gid
            return Account(user.uid, gid, (), {})
    environment = {
        "HOME": entry.pw_dir,
        "USER": entry.pw_name,
        "LOGNAME": entry.pw_name,
        "SHELL": entry.pw_shell or "/bin/sh",
    }
    if user.gid is not None:
        return Account(entry.pw_uid, user.gid, (), environment)
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return Account(entry.pw_uid, entry.pw_gid, groups, environment)
