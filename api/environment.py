"""What of the daemon's environment its processes see: a list of names, and never everything unasked.

The environment of a daemon holds what concerns nobody else, such as secrets that
a container was given. So processes get what every program needs, and what the
settings name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from supervisor.accounts import LOGIN_VARIABLES, look_up

_ALWAYS = ("PATH", "LANG", "LANGUAGE", "LC_*", "TZ")


def environment_of_children(
    environment: Mapping[str, str], names: Sequence[str] = ()
) -> dict[str, str]:
    """What the environment of every process starts from.

    HOME, USER, LOGNAME and SHELL are of the daemon's user, for processes that run
    as that; where it has no account, they are the daemon's own.

    Args:
      environment: the daemon's.
      names: of more variables that are passed on; `*` stands for anything.
    """
    patterns = (*_ALWAYS, *names)
    passed = {
        name: value
        for name, value in environment.items()
        if name in LOGIN_VARIABLES or any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    return {**passed, **look_up(str(os.geteuid())).environment}
