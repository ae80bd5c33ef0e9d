"""Compiles the launcher and the keeper: hatchling's build hook, and ``python supervisor/launcher/build.py`` for developers.

After it, ``launcher-x86_64``, ``launcher-aarch64`` and the keepers beside this file are fresh or absent, never stale. The
programs of this machine must come out of it, or the build fails and says what was tried. The other machine's are built if some
compiler that is already installed can do it: both of them, or neither.

Compilers: cc, gcc, clang for this machine; ``<machine>-linux-gnu-gcc`` and clang for the other; then, for both, the ``ziglang``
package if it is installed. A compiler is believed only when its programs have proved themselves, here by running. Only when none
does, the hook asks the build frontend for ``ziglang``, which is a download of more than 80 MB. ``CRECHE_LAUNCHER_CC=zig``
demands the programs of both machines, all by ziglang: so are release wheels made.

The wheel's tag names a platform for each machine whose programs are inside. They use no libc, so they keep the promise of every
manylinux and musllinux policy; the oldest that installers still know are named, and PyPI takes them (it refuses ``linux_*``).
One wheel can hold those of both machines under a compressed tag (PEP 425): all else in it is Python.
"""

import importlib.util
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
PROGRAMS: Final = ("launcher", "keeper")
ELF_MACHINES: Final = {"x86_64": 62, "aarch64": 183}
FLAGS: Final = (
    *("-std=c11", "-Os", "-ffreestanding", "-fno-pie", "-fno-stack-protector"),
    *("-fno-unwind-tables", "-fno-asynchronous-unwind-tables"),
    # Without libc, a memcpy that the compiler thinks of by itself is a link error, not a surprise.
    *("-nostdlib", "-static", "-no-pie", "-Wl,-s", "-Wl,--build-id=none", "-Wl,-z,noexecstack"),
)

NO_ORDERS: Final = -64


class LauncherNotBuilt(Exception):
    """No compiler makes a launcher or a keeper that works; the message says which were tried and what each said."""


def zig_is_demanded() -> bool:
    """Whether the programs of both machines are wanted, by ziglang; raises LauncherNotBuilt for a setting that says neither."""
    choice = os.environ.get("CRECHE_LAUNCHER_CC", "")
    if choice not in ("", "zig"):
        raise LauncherNotBuilt(f"CRECHE_LAUNCHER_CC is {choice!r}; it can only be 'zig', or unset")
    return choice == "zig"


def this_machine() -> str | None:
    """Return the architecture whose programs can run here, if there is one."""
    machine = platform.machine()
    return machine if sys.platform == "linux" and machine in ELF_MACHINES else None


def compilers(architecture: str) -> Iterator[tuple[str, ...]]:
    """Yield the commands to try, best first."""
    if not zig_is_demanded():
        if architecture == this_machine():
            installed: list[tuple[str, ...]] = [("cc",), ("gcc",), ("clang",)]
        else:
            gnu = f"{architecture}-linux-gnu"
            installed = [(f"{gnu}-gcc",), ("clang", f"--target={gnu}", "-fuse-ld=lld")]
        yield from (command for command in installed if shutil.which(command[0]))
    if importlib.util.find_spec("ziglang"):
        yield (sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-none")


def compile_program(program: str, architecture: str, directory: Path) -> Path:
    """Compile into the directory with the first compiler that can; raises LauncherNotBuilt."""
    executable = directory / f"{program}-{architecture}"
    tried = []
    for compiler in compilers(architecture):
        command = [*compiler, *FLAGS, "-o", str(executable), str(HERE / f"{program}.c")]
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
        complaint = (
            prove(executable, program, architecture)
            if result.returncode == 0
            else result.stderr.strip()
        )
        if complaint is None:
            return executable
        tried.append(f"{' '.join(compiler)}: {complaint}")
    raise LauncherNotBuilt(
        f"cannot compile the {program} for {architecture}. Install a C compiler (gcc or clang), or the ziglang package.\n"
        + ("\n".join(tried) or "No compiler was found.")
    )


def compile_programs(architecture: str, directory: Path) -> list[Path]:
    """Compile all programs into the directory; raises LauncherNotBuilt."""
    return [compile_program(program, architecture, directory) for program in PROGRAMS]


def prove(executable: Path, program: str, architecture: str) -> str | None:
    """Return what is wrong with a program, if anything: it must be static, and, where it can, run and end as it should."""
    image = executable.read_bytes()
    executable_type, interpreter = 2, 3
    if image[:6] != b"\x7fELF\2\1" or struct.unpack_from("<HH", image, 16) != (
        executable_type,
        ELF_MACHINES[architecture],
    ):
        return f"made no static executable for {architecture}"
    table, size, count = struct.unpack_from("<32xQ14xHH", image)
    if interpreter in {
        struct.unpack_from("<I", image, table + index * size)[0] for index in range(count)
    }:
        return "made an executable that needs a loader"
    if architecture != this_machine():
        return None
    try:
        return {"launcher": prove_launcher, "keeper": prove_keeper}[program](executable)
    except OSError as error:
        return f"made an executable that does not start: {error}"


def prove_launcher(launcher: Path) -> str | None:
    """Run it with nobody who will ever give orders: it must say so by its exit status."""
    reader, writer = os.pipe()
    os.close(writer)
    try:
        result = subprocess.run(
            [launcher, str(reader), str(reader)], pass_fds=[reader], timeout=60, check=False
        )
    finally:
        os.close(reader)
    if result.returncode != NO_ORDERS:
        return f"made an executable that ends with {result.returncode}"
    return None


def prove_keeper(keeper: Path) -> str | None:
    """Run it with a supervisor that wants to be welcomed and nothing else: it must do so, and exit."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, its, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")  # an abstract name that is free (unix(7))
        listener.listen()
        listener.setblocking(False)
        result = subprocess.run(
            [keeper], stdin=its.fileno(), stdout=listener.fileno(), timeout=60, check=False
        )
        its.close()
        if result.returncode != 0:
            return f"made an executable that ends with {result.returncode}"
        ours.settimeout(60)
        welcome_size, end_of_file = 32, b""
        if len(ours.recv(100)) != welcome_size:
            return "made an executable that does not say welcome"
        ours.shutdown(socket.SHUT_WR)
        return None if ours.recv(100) == end_of_file else "made an executable that does not end"


def build() -> list[str]:
    """Compile all programs that must or can be, put them beside this file, and return their architectures."""
    required = set(ELF_MACHINES) if zig_is_demanded() else {this_machine()}
    if None in required:
        raise LauncherNotBuilt(f"there is no launcher for {sys.platform} on {platform.machine()}")
    for program in PROGRAMS:
        for architecture in ELF_MACHINES:
            (HERE / f"{program}-{architecture}").unlink(missing_ok=True)
    built = []
    for architecture in ELF_MACHINES:
        with tempfile.TemporaryDirectory(dir=HERE) as directory:
            try:
                for executable in compile_programs(architecture, Path(directory)):
                    executable.replace(HERE / executable.name)
            except LauncherNotBuilt:
                if architecture in required:
                    raise
                continue
        built.append(architecture)
    return built


if __name__ == "__main__":
    try:
        built = build()
        print(*(HERE / f"{program}-{name}" for name in built for program in PROGRAMS), sep="\n")
    except LauncherNotBuilt as error:
        sys.exit(str(error))
else:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class LauncherBuildHook(BuildHookInterface[Any]):
        """Puts the programs into wheels and editable installs, and their platforms into the wheel's tag."""

        def dependencies(self) -> list[str]:
            """Ask for ziglang, where no installed compiler will do."""
            machine = this_machine()
            if not zig_is_demanded() and machine is not None:
                with tempfile.TemporaryDirectory() as directory:
                    try:
                        compile_programs(machine, Path(directory))
                        return []
                    except LauncherNotBuilt:
                        pass  # asks for ziglang; if that does not help either, initialize() fails and says why
            return ["ziglang"]

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Build the programs and put them into the wheel."""
            built = build()
            self.app.display_info(f"launcher and keeper built for {' and '.join(built)}")
            platforms = (f"manylinux_2_17_{name}.musllinux_1_1_{name}" for name in built)
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{'.'.join(platforms)}"
            build_data["artifacts"] += [
                f"/supervisor/launcher/{program}-{name}" for name in built for program in PROGRAMS
            ]
