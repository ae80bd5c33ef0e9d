"""Environments of processes, of which most have most in common: that part is encoded once."""

from __future__ import annotations

import os
from collections.abc import Mapping

from .orders import encode_environment


class BaseEnvironment:
    """Variables that many processes start with.

    Args:
      variables: by name; not to be changed any more.
    """

    __slots__ = ("encoded", "variables")

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = variables
        self.encoded = _encode(variables)


class Environment:
    """The whole environment of one process.

    Args:
      base: what it starts from.
      additions: to that, or instead of what is there.
    """

    __slots__ = ("_additions", "_base")

    def __init__(self, base: BaseEnvironment, additions: Mapping[str, str]) -> None:
        self._base = base
        self._additions = additions

    def encode(self) -> bytes:
        """The orders for all of it."""
        if self._base.variables.keys().isdisjoint(self._additions):
            return self._base.encoded + _encode(self._additions)
        return _encode({**self._base.variables, **self._additions})


def _encode(variables: Mapping[str, str]) -> bytes:
    return encode_environment([os.fsencode(f"{name}={value}") for name, value in variables.items()])
