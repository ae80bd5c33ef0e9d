"""The program as built."""

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import FOLDER

# --- The program as built


@pytest.mark.parametrize(
    "name", ["launcher-x86_64", "launcher-aarch64", "keeper-x86_64", "keeper-aarch64"]
)
def test_program_is_small_static_and_without_executable_stack(name: str) -> None:
    if not (FOLDER / name).exists():
        pytest.skip("not built")
    image = (FOLDER / name).read_bytes()
    table, size, count = struct.unpack_from("<32xQ14xHH", image)
    segments = dict(
        struct.unpack_from("<II", image, table + index * size) for index in range(count)
    )
    interpreter, stack, executable = 3, 0x6474E551, 1
    assert len(image) < 16_384
    assert interpreter not in segments
    assert not segments[stack] & executable


@pytest.mark.parametrize("program", ["launcher", "keeper"])
def test_source_compiles_without_a_warning(tmp_path: Path, program: str) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a compiler")
    strict = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wundef", "-Werror", "-pedantic")
    command = [
        compiler,
        "-std=c11",
        "-O2",
        "-ffreestanding",
        *strict,
        "-c",
        str(FOLDER / f"{program}.c"),
        "-o",
        str(tmp_path / "program.o"),
    ]
    subprocess.run(command, check=True)


def test_build_by_hand_proves_what_it_builds() -> None:
    environment = {**os.environ, "CRECHE_LAUNCHER_CC": "tcc"}
    result = subprocess.run(
        [sys.executable, FOLDER / "build.py"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "can only be 'zig'" in result.stderr
