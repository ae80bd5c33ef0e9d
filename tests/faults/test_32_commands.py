"""Commands and directories that cannot be used: each has an answer of its own, and none leaves anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..conftest import Daemon


async def test_every_reason_has_a_code_of_its_own_and_names_its_field(
    daemon: Daemon, somewhere: Path
) -> None:
    plain = somewhere / "plain"
    plain.write_text("#!/bin/sh\n")
    orphan = somewhere / "orphan"
    orphan.write_text("#!/no/such/interpreter\n")
    orphan.chmod(0o755)
    forbidden = somewhere / "forbidden"
    forbidden.mkdir(mode=0o700)
    wrong: dict[str, tuple[int, str, dict[str, Any]]] = {
        "COMMAND_NOT_FOUND": (400, "command", {"command": "/no/such/command"}),
        "NOT_EXECUTABLE": (400, "command", {"command": str(plain)}),
        "COMMAND_IS_DIRECTORY": (400, "command", {"command": str(somewhere)}),
        "INTERPRETER_NOT_FOUND": (400, "command", {"command": str(orphan)}),
        "WORKING_DIR_NOT_FOUND": (
            400,
            "working_dir",
            {"command": "true", "working_dir": "/no/such/dir"},
        ),
        "WORKING_DIR_NOT_A_DIRECTORY": (
            400,
            "working_dir",
            {"command": "true", "working_dir": str(plain)},
        ),
        "PERMISSION_DENIED": (
            403,
            "working_dir",
            {"command": "true", "working_dir": str(forbidden), "user": "nobody"},
        ),
    }
    for path in ("/processes", "/processes/run"):
        for code, (status, field, body) in wrong.items():
            answer = await daemon.client.post(path, json=body)
            assert answer.status_code == status
            assert (answer.json()["code"], answer.json()["field"]) == (code, field)
            # Nothing that a client tries again would get better.
            assert "retry-after" not in answer.headers
    assert daemon.supervisor.processes() == []
