"""The app: every route behind the guard, every error as the contract's JSON."""

from __future__ import annotations

from functools import partial

import msgspec
from hypercorn.typing import ASGIFramework
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from supervisor import Supervisor, SupervisorError

from . import openapi
from .body_end import BodyEnd
from .direct import Direct
from .guard import Guard
from .problems import RequestError, RouteNotFound, answer
from .requests import BODY_SECONDS, MAX_JSON_BYTES
from .routes import PREFIX, ROUTES, Route


def create_app(
    supervisor: Supervisor, *, token: bytes | None = None, any_host: bool = False
) -> ASGIFramework:
    """The HTTP API of a supervisor, as an ASGI app for a Trio server.

    Args:
      supervisor: whose processes these are; it must outlive the app.
      token: what requests must bear, or None for no authentication.
      any_host: whether the Host header may be anything; see `Guard`.
    """
    app = QuartTrio(__name__, static_folder=None)  # Else it looks for files.
    app.config["MAX_CONTENT_LENGTH"] = MAX_JSON_BYTES
    app.config["BODY_TIMEOUT"] = BODY_SECONDS
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    # A path is right or wrong; no redirects to a similar one.
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = False
    for error in (SupervisorError, RequestError, HTTPException, Exception):
        app.register_error_handler(error, _error_response)
    for route in ROUTES:
        # Also the direct ones, which do not arrive here: so that the answer to
        # another method on their paths is 405 with the right ones.
        _add(app, route, supervisor)
    _add_documents(app)
    direct = [
        (route.method, PREFIX + route.path, route.handler) for route in ROUTES if route.direct
    ]
    return BodyEnd(Guard(Direct(app, supervisor, direct), token, any_host=any_host))


def _add(app: QuartTrio, route: Route, supervisor: Supervisor) -> None:
    async def view(**path_parameters: str) -> Response:
        if route.direct:
            raise RouteNotFound("there is nothing at this path")
        response = await route.handler(supervisor, request, **path_parameters)
        assert isinstance(response, Response)
        return response

    app.add_url_rule(
        PREFIX + route.path.replace("{", "<").replace("}", ">"),
        f"{route.method} {route.path}",
        view,
        methods=[route.method],
    )


def _add_documents(app: QuartTrio) -> None:
    document = msgspec.json.encode(openapi.document())
    page = openapi.page()

    async def view(body: str | bytes, content_type: str) -> Response:
        return Response(body, content_type=content_type)

    json = partial(view, document, "application/json")
    human = partial(view, page, "text/html; charset=utf-8")
    app.add_url_rule(f"{PREFIX}/openapi.json", "openapi", json)
    app.add_url_rule(f"{PREFIX}/docs", "docs", human)


async def _error_response(error: Exception) -> Response:
    status, headers, body = answer(error)
    return Response(body, status, dict(headers))
