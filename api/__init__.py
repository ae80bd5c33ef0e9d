"""The HTTP API of the supervisor: the contract that Tensorlake's sandboxes speak."""

from .app import create_app
from .serve import serve
from .server import Server
from .settings import Settings, SettingsError, parse_settings

__all__ = ["Server", "Settings", "SettingsError", "create_app", "parse_settings", "serve"]
