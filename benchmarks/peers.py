"""Peers: where they are looked for, and how they are installed. All are optional."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from .daemons import SandboxAgent
from .setting import Foreign

VARIABLE = "CRECHE_BENCHMARK_PEERS"
"""The environment variable that names the directory of the peers."""

_SANDBOX_AGENT = ("@sandbox-agent/cli-linux-x64", "0.4.2")
_PYTHON_PEERS = ("supervisor==4.3.0", "circus==0.19.0")


def directory_of(given: str | None) -> Path | None:
    """The directory of the peers: as given, or as the environment says."""
    named = given or os.environ.get(VARIABLE)
    return None if named is None else Path(named)


def find_sandbox_agent(directory: Path | None) -> SandboxAgent | None:
    """The one that `install` has put there, or one on the PATH."""
    if directory is not None:
        program = directory / "node_modules" / _SANDBOX_AGENT[0] / "bin" / "sandbox-agent"
        if program.is_file():
            return SandboxAgent(program.absolute())
    on_path = shutil.which("sandbox-agent")
    return None if on_path is None else SandboxAgent(Path(on_path))


def find_foreign(directory: Path | None) -> tuple[Foreign, ...]:
    """supervisord and circus, where `install` has put them."""
    if directory is None or not (python := directory / "venv" / "bin" / "python").is_file():
        return ()
    return tuple(Foreign(name, str(python.absolute())) for name in ("supervisord", "circus"))


def install(directory: Path) -> None:
    """Put every peer into `directory`, with npm and pip, and nowhere else.

    Raises:
      subprocess.CalledProcessError, FileNotFoundError: a peer is not to be had.
    """
    directory.mkdir(parents=True, exist_ok=True)
    name, version = _SANDBOX_AGENT
    npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    subprocess.run([*npm, "--prefix", str(directory), f"{name}@{version}"], check=True)
    # What its script after the installation would do.
    (directory / "node_modules" / name / "bin" / "sandbox-agent").chmod(0o755)
    subprocess.run([sys.executable, "-m", "venv", str(directory / "venv")], check=True)
    pip = [str(directory / "venv" / "bin" / "pip"), "install", "-q"]
    subprocess.run([*pip, *_PYTHON_PEERS], check=True)
