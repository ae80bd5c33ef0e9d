"""The public surface: documented, typed, and one way only between the packages."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import supervisor
from supervisor.errors import SupervisorError

_ROOT = Path(__file__).parent.parent
_PUBLIC = sorted(supervisor.__all__)


@pytest.mark.parametrize("name", _PUBLIC)
def test_a_public_name_is_documented_and_typed(name: str) -> None:
    thing = getattr(supervisor, name)
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return  # A type alias.
    assert inspect.getdoc(thing)
    functions = [thing] if inspect.isfunction(thing) else []
    if inspect.isclass(thing):
        for attribute, member in vars(thing).items():
            member = member.fget if isinstance(member, property) else member
            if inspect.isfunction(member) and not attribute.startswith("_"):
                assert inspect.getdoc(member), f"{name}.{attribute}"
                functions.append(member)
    for function in functions:
        parameters = set(inspect.signature(function).parameters) - {"self"}
        assert parameters | {"return"} <= set(function.__annotations__), function


def test_every_error_has_a_code_of_its_own() -> None:
    errors = [thing for thing in vars(supervisor).values() if _is_error(thing)]
    codes = [error.code for error in errors]
    assert len(set(codes)) == len(codes)
    for error in errors:
        assert error.code == error.code.upper()


def _is_error(thing: object) -> bool:
    return inspect.isclass(thing) and issubclass(thing, SupervisorError)


def test_the_supervisor_never_imports_the_api() -> None:
    for path in (_ROOT / "supervisor").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in ("api", "quart", "hypercorn"), path
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & {"api"}, path
