"""Schemathesis against the live daemon: no defect, and no answer that the document does not know.

The daemon is a process of its own. Schemathesis invents commands; so that
they are harmless, its PATH leads to three programs only, and so that not all
of them fail, three out of four invented commands are replaced by one of those
and some invented pids by real ones.
"""

from __future__ import annotations

import gc
import re
import shutil
import signal
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import schemathesis
import trio
from schemathesis import Case
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure
from schemathesis.core.transport import Response
from schemathesis.engine import events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder
from schemathesis.engine.run import TESTING_PHASES
from schemathesis.hooks import HookContext, unregister
from schemathesis.openapi import from_dict
from schemathesis.openapi.checks import RejectedPositiveData

from .conftest import PATIENCE_SECONDS
from .faults.callers import sockets_of
from .heavy import amount
from .test_server import command
from .wire import connect

SEED = 9501
EXAMPLES_PER_OPERATION = amount(40, heavy=100)
SEQUENCES = amount(50, heavy=150)
# In sequences of calls that follow from each other. Of how many calls they are
# depends on the answers, so there are as many rounds as it takes, but not more than:
LEAST_STATEFUL_CASES = amount(600, heavy=2000)
ROUNDS = 20
# Over all phases.
LEAST_CASES = amount(2500, heavy=4500)

PROGRAMS = ("true", "echo", "cat")
START = "POST /api/v1/processes"
RUN = "POST /api/v1/processes/run"
ONE = "/api/v1/processes/{pid_or_name}"

CONFIG: dict[str, Any] = {
    "seed": SEED,
    "continue-on-failure": True,
    "request-timeout": 20,
    "generation": {
        "max-examples": EXAMPLES_PER_OPERATION,
        "deterministic": True,
        "no-shrink": True,
        "database": "none",
    },
    "phases": {"stateful": {"generation": {"max-examples": SEQUENCES}}},
    # All checks are on but for what is said here.
    "checks": {
        "positive_data_acceptance": {
            # 400, because a schema cannot say that a command, a user or a
            # directory exists, that a string holds no NUL, that a signal
            # exists, or that a process is running and reads its stdin. What
            # the schema can say has other codes: 413, 415 and 422 stay failures.
            # 416, because it cannot say how much output there is.
            "expected-statuses": ["2xx", "400", "403", "404", "409", "416"]
        },
        # What is deleted is the process; its record and its output stay.
        "use_after_free": {"enabled": False},
    },
    "operations": [
        {
            # GET and DELETE of this path mean the process named "run", so
            # they are allowed though documented under {pid_or_name}.
            "include-name": RUN,
            "checks": {"allow_header_conformance": {"enabled": False}},
        }
    ],
}


def _document(client: httpx.Client) -> dict[str, Any]:
    """The daemon's document, and what OpenAPI 3.1 cannot say or Schemathesis wants said otherwise."""
    document: dict[str, Any] = client.get("/openapi.json").json()
    operations = _operations(document)
    for operation in operations.values():
        # The events of a stream, each of which is what Schemathesis takes the
        # schema of a stream for.
        for response in operation["responses"].values():
            stream = response.get("content", {}).get("text/event-stream")
            if stream is not None:
                stream["schema"] = {
                    "type": "object",
                    "required": ["data"],
                    "properties": {
                        "data": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "contentSchema": {"anyOf": [*stream["x-events"], {"maxProperties": 0}]},
                        },
                        "event": {"enum": ["message", "output", "gap", "eof"]},
                    },
                }
    for name in (START, RUN):
        operations[name]["requestBody"]["content"]["application/json"]["examples"] = {
            "short": {"value": {"command": "true"}},
            "long": {
                "value": {"command": "echo", "args": ["hello"], "env": {"A": "1"}, "user": "0"}
            },
        }
    # What can be done with a process that has just been started.
    operations[START]["responses"]["201"]["links"] = {
        operation["operationId"]: {
            "operationId": operation["operationId"],
            "parameters": {
                "path.pid_or_name": "$response.body#/pid",
                "query.handle": "$response.body#/handle",
            },
        }
        for name, operation in operations.items()
        if ONE in name
    }
    return document


def _operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The operations of a document by method and path."""
    return {
        f"{method.upper()} {path}": operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }


def _pick(value: object) -> int:
    """A number that is the same in every run for the same value."""
    return zlib.crc32(repr(value).encode("utf-8", "surrogatepass"))


@contextmanager
def _hooks(client: httpx.Client) -> Iterator[Counter[tuple[str, int]]]:
    """A block in which some of what is invented is made real; counts answers by operation and status."""
    statuses: Counter[tuple[str, int]] = Counter()
    readers: list[str] = []  # Pids of what runs until its stdin is closed.
    others: list[str] = []

    def gone(pid: str) -> None:
        if pid in readers:
            readers.remove(pid)
            others.append(pid)

    def living() -> str:
        while readers and client.get(f"/processes/{readers[-1]}").json()["status"] != "running":
            others.append(readers.pop())
        if not readers:
            answer = client.post("/processes", json={"command": "cat", "stdin_mode": "pipe"})
            readers.append(str(answer.raise_for_status().json()["pid"]))
        return readers[-1]

    def map_body(context: HookContext, body: Any) -> Any:
        if isinstance(body, dict) and isinstance(body.get("command"), str):
            choice = _pick(body) % 4
            if choice < len(PROGRAMS):
                body = {**body, "command": PROGRAMS[choice]}
                if PROGRAMS[choice] == "cat" and body.get("stdin_mode", "closed") == "closed":
                    body["stdin_mode"] = "pipe"
        elif isinstance(body, dict) and type(body.get("signal")) is int and _pick(body) % 2:
            body = {**body, "signal": signal.SIGCONT}
        return body

    def map_path_parameters(context: HookContext, path_parameters: Any) -> Any:
        if isinstance(path_parameters, dict) and "pid_or_name" in path_parameters:
            choice = _pick(path_parameters) % 4
            if choice < 2:
                return {**path_parameters, "pid_or_name": living()}
            if choice == 2 and others:
                return {**path_parameters, "pid_or_name": others[-1]}
        return path_parameters

    def map_query(context: HookContext, query: Any) -> Any:
        # A good handle is nobody's, so it would be the end of most cases.
        if (
            isinstance(query, dict)
            and isinstance(query.get("handle"), int)
            and 0 <= query["handle"] < 10**18
            and _pick(query) % 4
        ):
            query = {name: value for name, value in query.items() if name != "handle"}
        return query

    def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
        # Nothing else would ever end what is followed, and so the follow.
        pid = str(case.path_parameters.get("pid_or_name"))
        follows = case.path.endswith("/follow") or "follow" in (case.query or {})
        if follows and pid in readers:
            client.delete(f"/processes/{pid}").raise_for_status()
            gone(pid)

    def after_call(context: HookContext, case: Case[Any], response: Response) -> None:
        label, status = case.operation.label, response.status_code
        statuses[label, status] += 1
        if label == START and status == 201:
            record = response.json()
            (readers if record["stdin_writable"] else others).append(str(record["pid"]))
        elif label == f"DELETE {ONE}" and status == 204:
            gone(str(case.path_parameters["pid_or_name"]))

    def filter_failure(
        context: HookContext, failure: Failure, case: Case[Any], response: Response
    ) -> bool:
        # To JSON Schema, but not to us, 1.0 is an integer.
        return not (
            isinstance(failure, RejectedPositiveData)
            and response.status_code == 422
            and re.search(rb"Expected `int( \| null)?`, got `float`", response.content)
        )

    hooks = (map_body, map_path_parameters, map_query, before_call, after_call, filter_failure)
    try:
        for hook in hooks:
            schemathesis.hook(hook)
        yield statuses
    finally:
        for hook in hooks:
            unregister(hook)


class Findings(NamedTuple):
    """What Schemathesis has done and found.

    Attributes:
      cases: how many requests were made and checked, by phase.
      phases: how each phase has ended.
      failures: every failed check and every error, in words.
      statuses: how often each operation was answered with each status.
      in_vain: operations that never succeeded.
    """

    cases: Counter[str]
    phases: dict[str, str]
    failures: list[str]
    statuses: Counter[tuple[str, int]]
    in_vain: set[str]


def _explore(url: str) -> Findings:
    """Run all phases."""
    cases: Counter[str] = Counter()
    phases: dict[str, str] = {}
    failures: list[str] = []
    with httpx.Client(base_url=f"{url}/api/v1", trust_env=False) as client:
        document = _document(client)
        operations = set(_operations(document))
        if client.get("/info").json()["capabilities"]["cgroups"] is None:
            operations -= {f"POST {ONE}/freeze", f"POST {ONE}/thaw"}
        with _hooks(client) as statuses:
            for event in _rounds(document, url, cases):
                match event:
                    case events.ScenarioFinished(recorder=recorder, phase=name):
                        cases[name.value] += len(recorder.cases)
                        failures += _failures(recorder)
                    case events.PhaseFinished(phase=phase, status=status):
                        if phase.name in TESTING_PHASES and status.value != "skip":
                            phases.setdefault(phase.name.value, status.value)
                    case events.NonFatalError(value=error) | events.FatalError(exception=error):
                        failures.append(repr(error))
                    case _:
                        pass
    succeeded = {label for label, status in statuses if status < 300}
    return Findings(cases, phases, failures, statuses, operations - succeeded)


def _rounds(
    document: dict[str, Any], url: str, cases: Counter[str]
) -> Iterator[events.EngineEvent]:
    """The events of all phases, and of the last one again until it has had enough cases."""
    settings: dict[str, Any] = {"base-url": url, **CONFIG}
    for number in range(ROUNDS):
        config = SchemathesisConfig.from_dict(settings)
        yield from from_schema(from_dict(document, config=config)).execute()
        if cases["stateful"] >= LEAST_STATEFUL_CASES:
            return
        others = {name: {"enabled": False} for name in ("examples", "coverage", "fuzzing")}
        settings |= {
            "seed": SEED + 1 + number,
            "phases": {**CONFIG["phases"], **others},
            "generation": {**CONFIG["generation"], "deterministic": False},
        }


def _failures(recorder: ScenarioRecorder) -> Iterator[str]:
    """The failed checks of one scenario, with request and answer."""
    for case_id, checks in recorder.checks.items():
        for check in checks:
            if check.failure_info is None:
                continue
            text = f"{check.name}: {check.failure_info.failure}"
            if (seen := recorder.interactions.get(case_id)) is not None:
                text += f"\n{seen.request.method} {seen.request.uri} {seen.request.body!r}"
                if seen.response is not None:
                    text += f"\n{seen.response.status_code} {seen.response.content!r}"
            yield text


async def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    for program in PROGRAMS:
        found = shutil.which(program)
        assert found is not None
        (tmp_path / program).symlink_to(found)
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    options = ("--bind", "127.0.0.1:0", "--parked-launchers", "0")
    async with command(*options, environment=environment) as daemon:
        url = f"http://{(await daemon.logged('serving'))['addresses'][0]}"
        sockets = sockets_of(daemon.process.pid)
        findings = await trio.to_thread.run_sync(_explore, url)
        gc.collect()  # Schemathesis leaves its connections to the collector.
        assert findings.failures == []
        # All phases have run, and not in vain.
        assert findings.phases == dict.fromkeys(
            ("examples", "coverage", "fuzzing", "stateful"), "success"
        )
        assert findings.cases["stateful"] >= LEAST_STATEFUL_CASES
        assert findings.cases.total() >= LEAST_CASES
        assert findings.in_vain == set()
        assert max(status for _, status in findings.statuses) < 500
        # The daemon has noticed nothing either, and has forgotten all connections.
        async with await connect(url) as connection:
            with trio.fail_after(PATIENCE_SECONDS):
                while sockets_of(daemon.process.pid) > sockets + 1:
                    await connection.request("GET", "/health")
        daemon.process.terminate()
        assert await daemon.exited() == 0
        assert daemon.complaints == []
