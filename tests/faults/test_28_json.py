"""Case 28: JSON of every kind, by hypothesis: each decoder, and each route over a real socket.

Besides, tests/test_requests.py has the known kinds one by one, and
tests/test_schemathesis.py what the document allows and forbids.
"""

from __future__ import annotations

import http.client
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api import direct, processes
from api.problems import InvalidRequest, MalformedJson
from api.requests import MAX_JSON_BYTES, decode_json
from api.routes import ROUTES
from api.schemas import RunRequest, SignalRequest
from supervisor import ProcessSpec

from ..heavy import amount
from ..test_server import command, serving
from .callers import JSON, STATUS_OF, ask, request

EXAMPLES = amount(300, heavy=3000)
_fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

DECODERS: dict[type[msgspec.Struct], msgspec.json.Decoder[Any]] = {
    ProcessSpec: direct._start_decoder,
    RunRequest: direct._run_decoder,
    SignalRequest: processes._signal_decoder,
}
NAMES = sorted({name for struct in DECODERS for name in struct.__struct_fields__})

# Numbers and texts that json.dumps would not write.
_tokens = st.sampled_from(
    [
        "NaN",
        "-Infinity",
        "1e400",
        "-1e400",
        "1" * 400,
        "0x10",
        "01",
        "1.",
        "-0",
        '"\\ud800"',
        '"\\u0000"',
        '"\\udfff\\ud800"',
        '"\x01"',
        "'x'",
        "[" * 5000 + "]" * 5000,
        '{"a":' * 5000 + "1" + "}" * 5000,
        "",
    ]
)
_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["pipe", "closed", "capture", "discard", "kill", "keep", "block", "true"])
)
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
_members = st.tuples(
    st.sampled_from(NAMES) | st.text(max_size=8), _values.map(json.dumps) | _tokens
)


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """JSON of the right shape and of any other, with repeated names, and then perhaps damaged."""
    members = draw(st.lists(_members, max_size=6))
    if draw(st.booleans()):
        members.insert(0, ("command", '"true"'))
        members.insert(0, ("signal", "15"))
    whole = "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in members) + "}"
    data = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]) if draw(st.booleans()) else st.just(b""))
    data += whole.encode("utf-8", "surrogatepass")
    match draw(st.sampled_from(["none", "none", "cut", "insert", "replace", "encoding"])):
        case "cut":
            data = data[: draw(st.integers(0, len(data)))]
        case "insert":
            place = draw(st.integers(0, len(data)))
            data = data[:place] + draw(st.binary(min_size=1, max_size=4)) + data[place:]
        case "replace" if data:
            place = draw(st.integers(0, len(data) - 1))
            data = data[:place] + draw(st.binary(min_size=1, max_size=1)) + data[place + 1 :]
        case "encoding":
            encoding = draw(st.sampled_from(["utf-16", "utf-16-le", "utf-32", "utf-7"]))
            data = whole.encode(encoding, "surrogatepass" if encoding != "utf-7" else "replace")
        case _:
            pass
    return data


_bodies = st.binary(max_size=60) | texts()


def test_every_decoder_of_the_api_is_fuzzed() -> None:
    wanted = {route.request for route in ROUTES if isinstance(route.request, type)}
    assert wanted == set(DECODERS)


@pytest.mark.parametrize("struct", DECODERS)
def test_a_decoder_gives_its_struct_or_one_of_two_errors(struct: type[msgspec.Struct]) -> None:
    outcomes: set[type] = set()

    @_fuzz
    @given(_bodies)
    def check(data: bytes) -> None:
        try:
            decoded = decode_json(data, DECODERS[struct])
        except (MalformedJson, InvalidRequest) as error:
            outcomes.add(type(error))
            return
        outcomes.add(struct)
        assert type(decoded) is struct

    check()
    assert outcomes == {MalformedJson, InvalidRequest, struct}


def check_answer(answer: http.client.HTTPResponse) -> bytes:
    """The body; fails unless it is a success, or an error as documented, but not of the daemon's own."""
    body = answer.read()
    assert answer.status < 500, body
    if answer.status >= 400:
        content = json.loads(body)
        assert STATUS_OF[content["code"]] == answer.status
        assert content["error"]
    return body


def _post_everything(url: str) -> set[tuple[str, int]]:
    """Post what hypothesis finds to each route that takes JSON; the statuses by path.

    Signals are for a process that has ended.
    """
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    seen: set[tuple[str, int]] = set()

    @_fuzz
    @given(st.sampled_from(["/processes", "/processes/run", "/processes/{}/signal"]), _bodies)
    def check(path: str, body: bytes) -> None:
        connection.request(
            "POST", "/api/v1" + path.format(pid), body, {"content-type": "application/json"}
        )
        answer = connection.getresponse()
        seen.add((path, answer.status))
        check_answer(answer)

    try:
        connection.request(
            "POST",
            "/api/v1/processes",
            b'{"command": "true"}',
            {"content-type": "application/json"},
        )
        pid = json.loads(connection.getresponse().read())["pid"]
        connection.request("DELETE", f"/api/v1/processes/{pid}")
        connection.getresponse().read()
        check()
    finally:
        connection.close()
    return seen


async def test_every_body_gets_an_answer_with_a_code_or_a_success(tmp_path: Path) -> None:
    # The only command that is found.
    true = shutil.which("true")
    assert true is not None
    (tmp_path / "true").symlink_to(true)
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    async with command("--bind", "127.0.0.1:0", environment=environment) as daemon:
        url = f"http://{(await daemon.logged('serving'))['addresses'][0]}"
        seen = await trio.to_thread.run_sync(_post_everything, url)
        assert {("/processes", 201), ("/processes/run", 200), ("/processes", 422)} <= seen
        assert ("/processes/{}/signal", 422) in seen
        daemon.process.terminate()
        assert await daemon.exited() == 0
        assert daemon.complaints == []


async def test_a_body_as_large_and_as_deep_as_can_be_is_refused_at_once() -> None:
    n = MAX_JSON_BYTES
    bodies = [
        b"[" * n,
        b'{"":' * (n // 4),
        b'["' + b'","' * (n // 3 - 2) + b'"',
        b'{"command": -' + b"9" * (n - 100) + b"}",
        b'{"command": "' + b"\\u0000" * (n // 6 - 10) + b'"}',
    ]
    async with serving() as (daemon, url):
        for body in bodies:
            for path in ("/processes", "/processes/run", "/processes/1/signal"):
                assert len(body) <= n
                with trio.fail_after(10):
                    answer = await ask(url, request("POST", path, JSON, body=body))
                assert answer.code in ("MALFORMED_JSON", "INVALID_REQUEST", "NUL_BYTE", "NOT_FOUND")
        assert daemon.complaints == []
