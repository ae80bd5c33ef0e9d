"""Fixtures: a supervisor, a daemon on a real socket, and a count of everything that a test may leak."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import trio

from api import Server, create_app
from supervisor import Supervisor, SupervisorConfig, open_supervisor

from .kernel import children, descriptors, supervisors_cgroups

# A net under every wait in a test, far above anything that is expected.
PATIENCE_SECONDS = 60.0


@pytest.fixture(autouse=True)
def nothing_is_left_over() -> Iterator[None]:
    """Every test leaves no child, zombie or alive, and the descriptors, threads and cgroups as they were.

    Trio's tasks cannot outlive a test: it is a `trio.run` of its own.
    """
    before = descriptors()
    threads = _threads()
    cgroups = supervisors_cgroups()
    yield
    assert children() == set()
    assert descriptors() == before
    assert _threads() == threads
    assert supervisors_cgroups() <= cgroups


def _threads() -> set[str]:
    # Trio keeps idle worker threads for ten seconds; those are not a leak.
    return {
        thread.name for thread in threading.enumerate() if not thread.name.startswith("Trio thread")
    }


@pytest.fixture
def config() -> SupervisorConfig:
    """The supervisor's settings; a test module may override this."""
    return SupervisorConfig()


@pytest.fixture
async def supervisor(config: SupervisorConfig) -> AsyncIterator[Supervisor]:
    async with open_supervisor(config) as supervisor:
        yield supervisor


class Daemon:
    """A served supervisor.

    Attributes:
      url: where it listens, without a trailing slash.
      supervisor: whose API this is, for looking behind it.
      client: an HTTP client for it, with patience.
    """

    def __init__(self, url: str, supervisor: Supervisor, client: httpx.AsyncClient) -> None:
        self.url = url
        self.supervisor = supervisor
        self.client = client


@pytest.fixture
async def daemon(supervisor: Supervisor) -> AsyncIterator[Daemon]:
    """The whole HTTP stack on a loopback port of its own, in this event loop."""
    server = Server(create_app(supervisor), "127.0.0.1:0", graceful_seconds=0.2)
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(server.serve)
        url = f"http://{addresses[0]}"
        async with httpx.AsyncClient(
            base_url=f"{url}/api/v1", timeout=PATIENCE_SECONDS, trust_env=False
        ) as client:
            yield Daemon(url, supervisor, client)
        server.stop()


@pytest.fixture
def somewhere(tmp_path: Path) -> Path:
    """A directory that every user may enter."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    return tmp_path
