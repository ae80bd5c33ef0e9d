"""Handlers about the daemon itself: health and info."""

from __future__ import annotations

import time
from importlib.metadata import version

from quart import Request, Response

from supervisor import Supervisor

from .processes import json_response
from .schemas import Health, Info

VERSION = version("creche")


async def health(supervisor: Supervisor, request: Request) -> Response:
    """GET /health"""
    return json_response(Health())


async def info(supervisor: Supervisor, request: Request) -> Response:
    """GET /info"""
    uptime = time.monotonic() - supervisor.opened_at
    return json_response(
        Info(VERSION, int(uptime), supervisor.running, supervisor.total, supervisor.capabilities)
    )
