"""Compiles the launcher: hatchling's build hook, and ``python supervisor/launcher/build.py`` for developers.

After it, ``launcher-x86_64`` and ``launcher-aarch64`` beside this file are fresh or absent, never stale. The launcher of this
machine must come out of it, or the build fails and says what was tried. The other machine's is built if some compiler that is
already installed can do it.

Compilers: cc, gcc, clang for this machine; ``<machine>-linux-gnu-gcc`` and clang for the other; then, for both, the ``ziglang``
package if it is installed. A compiler is believed only when its launcher has proved itself, here by running. Only when none
does, the hook asks the build frontend for ``ziglang``, which is a download of more than 80 MB. ``CRECHE_LAUNCHER_CC=zig``
demands both launchers, both by ziglang: so are release wheels made.

The wheel's tag names a platform for each launcher inside. The launchers use no libc, so they keep the promise of every
manylinux and musllinux policy; the oldest that installers still know are named, and PyPI takes them (it refuses ``linux_*``).
One wheel can hold both launchers under a compressed tag (PEP 425): all else in it is Python.
"""

import importlib.util
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
ELF_MACHINES: Final = {"x86_64": 62, "aarch64": 183}
FLAGS: Final = (
    *("-std=c11", "-Os", "-ffreestanding", "-fno-pie", "-fno-stack-protector"),
    *("-fno-unwind-tables", "-fno-asynchronous-unwind-tables"),
    # Without libc, a memcpy that the compiler thinks of by itself is a link error, not a surprise.
    *("-nostdlib", "-static", "-no-pie", "-Wl,-s", "-Wl,--build-id=none", "-Wl,-z,noexecstack"),
)


class LauncherNotBuilt(Exception):
    """No compiler makes a launcher that works; the message says which were tried and what each said."""


def zig_is_demanded() -> bool:
    """Whether both launchers are wanted, by ziglang; raises LauncherNotBuilt for a setting that says neither."""
    choice = os.environ.get("CRECHE_LAUNCHER_CC", "")
    if choice not in ("", "zig"):
        raise LauncherNotBuilt(f"CRECHE_LAUNCHER_CC is {choice!r}; it can only be 'zig', or unset")
    return choice == "zig"


def this_machine() -> str | None:
    """Return the architecture whose launcher can run here, if there is one."""
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


def compile_launcher(architecture: str, directory: Path) -> Path:
    """Compile into the directory with the first compiler that can; raises LauncherNotBuilt."""
    launcher = directory / f"launcher-{architecture}"
    tried = []
    for compiler in compilers(architecture):
        command = [*compiler, *FLAGS, "-o", str(launcher), str(HERE / "launcher.c")]
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
        complaint = (
            prove(launcher, architecture) if result.returncode == 0 else result.stderr.strip()
        )
        if complaint is None:
            return launcher
        tried.append(f"{' '.join(compiler)}: {complaint}")
    raise LauncherNotBuilt(
        f"cannot compile the launcher for {architecture}. Install a C compiler (gcc or clang), or the ziglang package.\n"
        + ("\n".join(tried) or "No compiler was found.")
    )


def prove(launcher: Path, architecture: str) -> str | None:
    """Return what is wrong with the launcher, if anything: it must be static, and, where it can, run and end as it should."""
    image = launcher.read_bytes()
    executable, interpreter = 2, 3
    if image[:6] != b"\x7fELF\2\1" or struct.unpack_from("<HH", image, 16) != (
        executable,
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
    reader, writer = os.pipe()
    os.close(writer)  # nobody will ever give orders: the launcher must exit 0
    try:
        result = subprocess.run(
            [launcher, str(reader), str(reader)], pass_fds=[reader], timeout=60, check=False
        )
    except OSError as error:
        return f"made an executable that does not start: {error}"
    finally:
        os.close(reader)
    return (
        None if result.returncode == 0 else f"made an executable that ends with {result.returncode}"
    )


def build() -> list[str]:
    """Compile all launchers that must or can be, put them beside this file, and return their architectures."""
    required = set(ELF_MACHINES) if zig_is_demanded() else {this_machine()}
    if None in required:
        raise LauncherNotBuilt(f"there is no launcher for {sys.platform} on {platform.machine()}")
    launchers = {architecture: HERE / f"launcher-{architecture}" for architecture in ELF_MACHINES}
    for launcher in launchers.values():
        launcher.unlink(missing_ok=True)
    built = []
    for architecture, launcher in launchers.items():
        with tempfile.TemporaryDirectory(dir=HERE) as directory:
            try:
                compile_launcher(architecture, Path(directory)).replace(launcher)
            except LauncherNotBuilt:
                if architecture in required:
                    raise
                continue
        built.append(architecture)
    return built


if __name__ == "__main__":
    try:
        print(*(HERE / f"launcher-{architecture}" for architecture in build()), sep="\n")
    except LauncherNotBuilt as error:
        sys.exit(str(error))
else:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class LauncherBuildHook(BuildHookInterface[Any]):
        """Puts the launchers into wheels and editable installs, and their platforms into the wheel's tag."""

        def dependencies(self) -> list[str]:
            """Ask for ziglang, where no installed compiler will do."""
            machine = this_machine()
            if not zig_is_demanded() and machine is not None:
                with tempfile.TemporaryDirectory() as directory:
                    try:
                        compile_launcher(machine, Path(directory))
                        return []
                    except LauncherNotBuilt:
                        pass  # asks for ziglang; if that does not help either, initialize() fails and says why
            return ["ziglang"]

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Build the launchers and put them into the wheel."""
            built = build()
            self.app.display_info(f"launcher built for {' and '.join(built)}")
            platforms = (f"manylinux_2_17_{name}.musllinux_1_1_{name}" for name in built)
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{'.'.join(platforms)}"
            build_data["artifacts"] += [f"/supervisor/launcher/launcher-{name}" for name in built]
