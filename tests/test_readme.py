"""The README's commands and programs do what it prints."""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from .conftest import Daemon

_README = (Path(__file__).parent.parent / "README.md").read_text()


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str


_BLOCKS = [Block(*match) for match in re.findall(r"^```(\w+)\n(.*?)^```$", _README, re.M | re.S)]


def _without_numbers(text: str) -> str:
    """The text without what differs from run to run: pids and times."""
    return re.sub(r"[0-9]+", "N", text)


async def test_the_session_is_as_printed(daemon: Daemon, tmp_path: Path) -> None:
    address = daemon.url.removeprefix("http://")
    sessions = [block.text for block in _BLOCKS if block.language == "console"]
    # Continuation lines begin with "> ", output with neither mark.
    script = "".join(
        line[2:] + "\n" for line in "".join(sessions).splitlines() if line.startswith(("$ ", "> "))
    )
    script = script.replace("localhost:9501", address).replace("/tmp/", f"{tmp_path}/")
    script = script.replace(".venv/bin/creche", f"{sys.executable} -m api") + "wait\n"
    printed = "".join(
        line + "\n" for line in "".join(sessions).splitlines() if not line.startswith(("$ ", "> "))
    )
    result = await trio.run_process(["bash", "-eu"], stdin=script.encode(), capture_stdout=True)
    assert _without_numbers(result.stdout.decode()) == _without_numbers(printed)


_PROGRAMS = [
    (program.text, output.text)
    for program, output in pairwise(_BLOCKS)
    if program.language == "python"
]


@pytest.mark.parametrize(("program", "output"), _PROGRAMS)
async def test_a_program_prints_what_is_printed(daemon: Daemon, program: str, output: str) -> None:
    program = program.replace("http://localhost:9501", daemon.url)
    result = await trio.run_process([sys.executable, "-c", program], capture_stdout=True)
    assert result.stdout.decode().strip() == output.strip()


def test_there_are_programs_and_a_session() -> None:
    assert len(_PROGRAMS) == 2
    assert sum(block.language == "console" for block in _BLOCKS) == 5


def test_ci_runs_the_test_command_of_the_readme() -> None:
    commands = re.findall(r"<!-- command: (\w+) -->\n```sh\n(python3 .*)\n```", _README)
    assert [name for name, _ in commands] == ["serve", "test"]
