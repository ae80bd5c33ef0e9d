"""The HTTP APIs that daemons speak: how each is asked for the same thing."""

from __future__ import annotations

import json
from collections.abc import Sequence

from msgspec import Struct

from .wire import body_of, encode_request

_ENDED = frozenset({"exited", "signaled", "oom_killed"})


class Dialect(Struct, frozen=True):
    """One API.

    Attributes:
      processes: the path of all processes; one of them is addressed below it.
      id_field: what of the answer to a start addresses the process.
      output: the path of its output as it comes, below that of the process.
      output_so_far: the path of its output up to now.
      output_ends: whether the answer with the output as it comes ends with the process.
      health: a path that answers when the daemon is ready.
      switches_users: whether a start can name a user.
    """

    processes: str
    id_field: str
    output: str
    output_so_far: str
    output_ends: bool
    health: str
    switches_users: bool

    def start(self, command: Sequence[str], *, user: str | None = None) -> bytes:
        """The request to start a command."""
        return encode_request("POST", self.processes, _body(command, user))

    def run(self, command: Sequence[str]) -> bytes:
        """The request to run a command to its end and tell what came of it."""
        return encode_request("POST", f"{self.processes}/run", _body(command, None))

    def list(self) -> bytes:
        """The request for all processes."""
        return encode_request("GET", self.processes)

    def get(self, identity: str) -> bytes:
        """The request for one process."""
        return encode_request("GET", f"{self.processes}/{identity}")

    def follow(self, identity: str) -> bytes:
        """The request for the output of one process, from its beginning and live."""
        return encode_request("GET", f"{self.processes}/{identity}/{self.output}")

    def read_output(self, identity: str) -> bytes:
        """The request for the output of one process up to now."""
        return encode_request("GET", f"{self.processes}/{identity}/{self.output_so_far}")

    def identity(self, started: bytes) -> str:
        """What addresses the process, from the answer to its start."""
        return str(json.loads(body_of(started))[self.id_field])

    def has_ended(self, gotten: bytes) -> bool:
        """Whether the process has, from the answer to a `get`."""
        return json.loads(body_of(gotten))["status"] in _ENDED


def _body(command: Sequence[str], user: str | None) -> dict[str, object]:
    body: dict[str, object] = {"command": command[0], "args": list(command[1:])}
    if user is not None:
        body["user"] = user
    return body


CONTRACT = Dialect(
    processes="/api/v1/processes",
    id_field="pid",
    output="output/follow",
    output_so_far="output",
    output_ends=True,
    health="/api/v1/health",
    switches_users=True,
)
"""Tensorlake's, which Creche speaks."""

SANDBOX_AGENT = Dialect(
    processes="/v1/processes",
    id_field="id",
    output="logs?follow=true",
    output_so_far="logs",
    output_ends=False,
    health="/v1/health",
    switches_users=False,
)
"""Rivet sandbox-agent's. Its logs can be followed, but the answer does not end with the process."""
