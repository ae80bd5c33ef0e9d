"""The OpenAPI document and the human page: valid, complete, and true."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import httpx
import jsonschema_rs
import pytest
from schemathesis.specs.openapi import definitions

from api import openapi
from api.problems import (
    STATUS,
    AmbiguousLength,
    HeadTooLarge,
    HostRefused,
    Internal,
    MalformedHttp,
    OriginRefused,
    PeerRefused,
    RequestError,
    TooManyConnections,
    Unauthorized,
)
from api.routes import PREFIX, ROUTES, Route
from supervisor import OutputLimits, ProcessRecord, SupervisorConfig, SupervisorError, errors

from .conftest import Daemon
from .wire import parse_events

DOCUMENT = openapi.document()
OPERATIONS = [pytest.param(route, id=f"{route.method} {route.path}") for route in ROUTES]


class Page(HTMLParser):
    """The text of all cells of all tables, by row, and the tags that are left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src") and value]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def references(part: Any) -> Iterator[str]:
    """All `$ref`s in a part of the document."""
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def validator(schema: Any) -> jsonschema_rs.Validator:
    """A validator of a schema that refers to the document's components."""
    whole = {"components": DOCUMENT["components"], **schema}
    return jsonschema_rs.validator_for(whole)


def test_the_document_is_valid_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    definitions.OPENAPI_31_VALIDATOR.validate(DOCUMENT)
    # And that validator does notice what is wrong.
    with pytest.raises(jsonschema_rs.ValidationError):
        definitions.OPENAPI_31_VALIDATOR.validate({**DOCUMENT, "paths": []})


def test_every_schema_of_the_document_is_valid_json_schema() -> None:
    assert DOCUMENT["components"]["schemas"]
    for name, schema in DOCUMENT["components"]["schemas"].items():
        jsonschema_rs.meta.validate(schema)
        assert schema.get("description") or schema.get("enum"), name


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    used = set(references(DOCUMENT))
    assert used == {f"#/components/schemas/{name}" for name in schemas}


def documented_errors(operation: Any) -> set[tuple[str, int]]:
    """The codes of an operation and their statuses."""
    return {
        (code, int(status))
        for status, response in operation["responses"].items()
        for code in response["description"].replace("`", "").split(", ")
        if int(status) >= 400
    }


ANYWHERE = set.intersection(
    *(
        documented_errors(operation)
        for item in DOCUMENT["paths"].values()
        for operation in item.values()
    )
)


def test_what_may_come_anywhere_is_documented_everywhere() -> None:
    errors = {
        MalformedHttp,
        AmbiguousLength,
        Unauthorized,
        HostRefused,
        OriginRefused,
        PeerRefused,
        HeadTooLarge,
        Internal,
        TooManyConnections,
    }
    assert {(error.code, STATUS[error]) for error in errors} == ANYWHERE


@pytest.mark.parametrize("route", OPERATIONS)
def test_every_route_is_documented(route: Route) -> None:
    operation = DOCUMENT["paths"][PREFIX + route.path][route.method.lower()]
    assert operation["summary"] == route.summary
    assert ("requestBody" in operation) == (route.request is not None)
    assert str(route.status) in operation["responses"]
    own = {(error.code, STATUS[error]) for error in route.errors}
    assert documented_errors(operation) == own | ANYWHERE
    parameters = {parameter["name"] for parameter in operation.get("parameters", [])}
    expected_parameters = {
        *route.parameters,
        *(("pid_or_name", "handle") if "{" in route.path else ()),
    }
    assert parameters == expected_parameters


def test_nothing_else_is_documented() -> None:
    documented = {
        (method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item
    }
    assert documented == {(route.method, PREFIX + route.path) for route in ROUTES}
    identifiers = [
        operation["operationId"]
        for item in DOCUMENT["paths"].values()
        for operation in item.values()
    ]
    assert len(set(identifiers)) == len(identifiers)


@pytest.mark.parametrize("route", OPERATIONS)
async def test_every_route_is_served(daemon: Daemon, route: Route) -> None:
    path = route.path.replace("{pid_or_name}", "nobody")
    answer = await daemon.client.request(route.method, path)
    # Whatever the answer is, it comes from the route: nobody is not there, a body is missing.
    if answer.status_code != route.status:
        assert answer.json()["code"] in {error.code for error in route.errors}


async def test_what_is_served_is_the_document_and_the_page(daemon: Daemon) -> None:
    answer = await daemon.client.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == json.loads(json.dumps(DOCUMENT))
    answer = await daemon.client.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text == openapi.page()


def test_every_error_class_has_a_status_and_a_code_of_its_own() -> None:
    def leaves(kind: type[Exception]) -> Iterator[type[Exception]]:
        for child in kind.__subclasses__():
            yield child
            yield from leaves(child)

    ours = {
        error
        for root in (RequestError, SupervisorError)
        for error in leaves(root)
        if error.__module__.startswith(("api.", "supervisor."))
    }
    # A category of which only its subclasses are raised, and one that no request can raise.
    assert ours - set(STATUS) <= {errors.OutOfResources, errors.StateDirUnusable}
    codes = [error.code for error in STATUS]
    assert len(set(codes)) == len(codes)
    for code in codes:
        assert code == code.upper()
        assert code.replace("_", "").isalpha()


def test_only_where_nothing_has_happened_may_a_client_try_again() -> None:
    again = {error.code for error, status in STATUS.items() if status in (502, 503, 504)}
    assert again == {
        "OUT_OF_PROCESSES",
        "OUT_OF_DESCRIPTORS",
        "OUT_OF_MEMORY",
        "SHUTTING_DOWN",
        "TOO_MANY_CONNECTIONS",
    }


def test_the_page_lists_every_route_and_every_code() -> None:
    page = Page(openapi.page())
    for route in ROUTES:
        (row,) = [row for row in page.rows if row[:2] == [route.method, PREFIX + route.path]]
        assert row[2] == route.summary
    for error, status in STATUS.items():
        (row,) = [row for row in page.rows if row[0] == error.code]
        assert row[1] == str(status)
        assert len(row[2]) > 10
        assert row[2].endswith(".")


def test_the_page_says_what_every_field_means() -> None:
    page = openapi.page()
    for link in Page(page).links:
        assert not link.startswith("#") or f"<h3 id={link[1:]}>" in page
    for field in ProcessRecord.__struct_fields__:
        assert f"{field}: " in page


def test_the_page_loads_nothing() -> None:
    page = Page(openapi.page())
    assert not {"script", "img", "link", "iframe", "form", "object"} & set(page.tags)
    assert [link for link in page.links if not link.startswith("#")] == [f"{PREFIX}/openapi.json"]
    assert "url(" not in openapi.page()


class Checker:
    """Checks every answer against what the document says of its operation."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int]] = set()

    async def __call__(self, answer: httpx.Response) -> None:
        """As an httpx event hook."""
        path = answer.request.url.path
        method = answer.request.method.lower()
        operation = next(
            item[method]
            for template, item in DOCUMENT["paths"].items()
            if method in item and _matches(template, path)
        )
        response = operation["responses"][str(answer.status_code)]
        self.seen.add((operation["operationId"], answer.status_code))
        body = await answer.aread()
        if "content" not in response:
            assert body == b""
            return
        ((media_type, content),) = response["content"].items()
        assert answer.headers["content-type"].partition(";")[0] == media_type
        if media_type == "application/json":
            validator(content["schema"]).validate(answer.json())
        elif media_type == "text/event-stream":
            events = parse_events(body)
            assert events
            for event in events:
                if event.name == "eof":
                    assert event.data == {}
                else:
                    validator({"oneOf": content["x-events"]}).validate(event.data)


def _matches(template: str, path: str) -> bool:
    parts = list(zip(template.split("/"), path.split("/"), strict=False))
    return len(template.split("/")) == len(path.split("/")) and all(
        expected.startswith("{") or expected == actual for expected, actual in parts
    )


async def test_the_answers_of_a_session_are_as_documented(daemon: Daemon) -> None:
    check = Checker()
    daemon.client.event_hooks["response"] = [check]
    client = daemon.client
    body = {"command": "cat", "stdin_mode": "pipe", "user": {"uid": 0}, "env": {"A": "1"}}
    body |= {"working_dir": "/", "args": ["-"], "stdout_mode": "capture"}
    one = f"/processes/{(await client.post('/processes', json=body)).json()['pid']}"
    await client.get("/processes")
    await client.get(one)
    await client.post(f"{one}/stdin", content=b"hello\n")
    await client.post(f"{one}/signal", json={"signal": signal.SIGCONT})
    await client.post(f"{one}/signal", json={"signal": 1000})
    await client.post(f"{one}/signal", json={"signal": "x"})
    await client.post(f"{one}/signal", content=b"{}")
    await client.post(f"{one}/freeze")
    await client.post(f"{one}/thaw")
    await client.get(f"{one}/usage")
    await client.get("/usage")
    await client.get(one, params={"handle": 0})
    await client.get(one, params={"handle": "x"})
    await client.post(f"{one}/stdin/close")
    await client.post(f"{one}/stdin", content=b"more\n")
    for stream in ("stdout", "stderr", "output"):
        await client.get(f"{one}/{stream}/follow")
        await client.get(f"{one}/{stream}")
        await client.get(f"{one}/{stream}/raw")
    await client.get(f"{one}/output/frames")
    await client.get(f"{one}/stdout/raw", headers={"range": "bytes=1000-"})
    await client.delete(one)
    await client.get(one)
    await client.get("/processes/nobody")
    script = "echo out; echo err >&2; kill -9 $$"
    await client.post("/processes/run", json={"command": "sh", "args": ["-c", script]})
    await client.post("/processes/run", json={"command": "sleep", "args": ["9"], "timeout": 0.1})
    await client.post("/processes/run", json={"command": "/nowhere/nothing"})
    await client.post("/processes", json={"command": ""})
    await client.post("/processes", content=b"{")
    await client.post("/processes", json={})
    await client.post(
        "/processes", content=bytes(5_000_000), headers={"content-type": "application/json"}
    )
    await client.get("/processes", headers={"origin": "http://evil.example"})
    await client.get("/health")
    await client.get("/info")
    operations = {
        operation["operationId"]: item
        for item in DOCUMENT["paths"].values()
        for operation in item.values()
    }
    # Every operation has been seen to succeed that can.
    can = set(operations)
    if daemon.supervisor.capabilities.cgroups is None:
        can -= {"processes_freeze", "processes_thaw"}
    assert {name for name, status in check.seen if status < 300} == can
    assert {status for _, status in check.seen} == {
        200,
        201,
        204,
        400,
        403,
        404,
        409,
        413,
        415,
        416,
        422,
    }


class TestWithSmallLogs:
    """A log that loses most of what is written."""

    @pytest.fixture
    def config(self) -> SupervisorConfig:
        return SupervisorConfig(output=OutputLimits(unspilled_bytes=4096))

    async def test_a_gap_is_as_documented(self, daemon: Daemon) -> None:
        answer = await daemon.client.post("/processes", json={"command": "seq", "args": ["99999"]})
        process = daemon.supervisor.by_pid(answer.json()["pid"])
        await process.wait()
        daemon.client.event_hooks["response"] = [Checker()]
        for stream in ("stdout/follow", "output/follow", "stdout"):
            answer = await daemon.client.get(f"/processes/{process.pid}/{stream}")
            assert '"missing_bytes":' in answer.text
