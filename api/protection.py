"""The daemon's own process: more descriptors, less of a victim for the kernel, closed to its children.

None of it is for the children: they get back what the daemon was started with,
except that they go ahead of a daemon that may not step behind them.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pwd
import resource
from contextlib import suppress
from typing import NamedTuple

from supervisor.descriptors import beyond_the_limit, reserve_of

_logger = logging.getLogger(__name__)

_OOM_SCORE_ADJ = "/proc/self/oom_score_adj"
# Behind everything else that takes memory, but not spared if it takes nearly all
# of it itself (oom_badness in mm/oom_kill.c): -1000 could leave the kernel nobody.
_PROTECTED = -999
# As if each child had taken half of all memory.
_AHEAD = 500
_HIGHEST = 1000
_PR_SET_DUMPABLE = 4


class Inherited(NamedTuple):
    """What the children are to start with.

    Attributes:
      umask: in octal.
      oom_score_adj: as in proc_pid_oom_score_adj(5).
      descriptor_limits: soft and hard RLIMIT_NOFILE.
      own_oom_score_adj: what the daemon itself was started with.
    """

    umask: str
    oom_score_adj: int
    descriptor_limits: tuple[int, int]
    own_oom_score_adj: int

    def restore(self) -> None:
        """Be again what the daemon was started as.

        Raises:
          OSError: that is not permitted.
        """
        os.umask(int(self.umask, 8))
        # Before the limit: more may be open than that allows.
        with beyond_the_limit(), open(_OOM_SCORE_ADJ, "w") as file:
            file.write(str(self.own_oom_score_adj))
        resource.setrlimit(resource.RLIMIT_NOFILE, self.descriptor_limits)


def protect() -> Inherited:
    """Protect this process, as far as it may. Before it has threads or children."""
    own, childs = _protect_from_oom()
    inherited = Inherited(_umask(), childs, _raise_descriptor_limit(), own)
    _drop_groups()
    _hide()
    return inherited


def _umask() -> str:
    umask = os.umask(0o077)
    os.umask(umask)
    return f"{umask:03o}"


def _protect_from_oom() -> tuple[int, int]:
    """Step behind the children for the OOM killer; the score that was, and the one for those.

    Below what it was started with takes CAP_SYS_RESOURCE, which containers seldom
    have. Then it is the children that step forward.
    """
    with open(_OOM_SCORE_ADJ) as file:
        inherited = int(file.read())
    if inherited <= _PROTECTED:
        return inherited, inherited
    try:
        with open(_OOM_SCORE_ADJ, "w") as file:
            file.write(str(_PROTECTED))
    except PermissionError:
        return inherited, min(inherited + _AHEAD, _HIGHEST)
    return inherited, inherited


def _raise_descriptor_limit() -> tuple[int, int]:
    """Raise the soft limit to the hard one, but for what `beyond_the_limit` needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard - reserve_of(hard), hard))
    return soft, hard


def _drop_groups() -> None:
    """Have root's own supplementary groups and no more, so that children inherit no others."""
    if os.geteuid() == 0:
        # Fails where there is no such account, or in a user namespace that forbids it.
        with suppress(KeyError, PermissionError):
            account = pwd.getpwuid(0)
            os.setgroups(os.getgrouplist(account.pw_name, account.pw_gid))


def _hide() -> None:
    """Let nobody of the same user read the memory and the environment here, or trace it (PR_SET_DUMPABLE(2const)).

    Only privilege opens them then. It also means that the daemon dumps no core.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        _logger.warning("the daemon can be traced by its user: %s", os.strerror(number))
