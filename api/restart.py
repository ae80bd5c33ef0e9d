"""Becoming another version of this program, without an end for anything that runs.

The daemon executes itself anew, in the same process. Its processes stay its
children, and it finds them again as if it had been killed (see
`supervisor.survival`). It keeps its place in whatever started it, and its
listening socket, on which nobody is refused meanwhile.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from typing import NoReturn

from .protection import Inherited

_logger = logging.getLogger(__name__)

_VARIABLE = "CRECHE_LISTENER"


def take_listener(environment: MutableMapping[str, str]) -> int | None:
    """The listening socket of the program that this one was, if it was one."""
    descriptor = environment.pop(_VARIABLE, None)
    if descriptor is None or not descriptor.isdecimal():
        return None
    os.set_inheritable(int(descriptor), False)
    return int(descriptor)


def restart(listener: int, inherited: Inherited) -> NoReturn:
    """Execute this program anew, with the same arguments. If that fails, end, as if killed.

    Args:
      listener: a descriptor of the listening socket.
      inherited: what this program was started with, and so is the next.
    """
    try:
        inherited.restore()
        os.set_inheritable(listener, True)
        os.execve(sys.executable, sys.orig_argv, {**os.environ, _VARIABLE: str(listener)})
    except OSError:
        _logger.exception("cannot execute %s", sys.orig_argv)
        # Whoever leaves the supervisor in an orderly way ends its processes.
        os._exit(1)
