"""`python -m benchmarks`: run all benchmarks, or those that are named, and print their tables."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import version

import msgspec

from .contest import Contender, compete, table


def _start(name: str, *options: str) -> Contender:
    return Contender(name, ("benchmarks.starter", *options))


_ANOTHER = ("--user", "nobody")
_PARKED = ("--parked", "8")
_LARGE = ("--ballast-mib", "300")

BENCHMARKS = {
    "start": (
        "start of one process, embedded",
        (
            _start("creche, neither user nor cgroup", "creche"),
            _start("creche, another user", "creche", *_ANOTHER),
            _start("creche, a cgroup", "creche", "--cgroups"),
            _start("creche, another user and a cgroup", "creche", *_ANOTHER, "--cgroups"),
            _start("creche, neither, parked launchers", "creche", *_PARKED),
            _start("creche, both, parked launchers", "creche", *_ANOTHER, "--cgroups", *_PARKED),
            _start("trio.lowlevel.open_process, neither", "trio"),
            _start("subprocess.Popen, neither", "popen"),
            _start("subprocess.Popen, another user", "popen", *_ANOTHER),
        ),
    ),
    "start-large": (
        "start as another user, by a program of 300 MiB",
        (
            _start("creche, small program", "creche", *_ANOTHER, "--cgroups"),
            _start("creche, 300 MiB", "creche", *_ANOTHER, "--cgroups", *_LARGE),
            _start("subprocess.Popen, small program", "popen", *_ANOTHER),
            _start("subprocess.Popen, 300 MiB", "popen", *_ANOTHER, *_LARGE),
        ),
    ),
}


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--rounds", type=int, default=500, help="of every contest (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    options = parser.parse_args()
    if unknown := set(options.names) - BENCHMARKS.keys():
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    machine = {
        "processors": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "creche": version("creche"),
        "trio": version("trio"),
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    everything = {}
    for name in options.names or BENCHMARKS:
        title, contenders = BENCHMARKS[name]
        results = compete(contenders, rounds=options.rounds, warm_up=options.rounds // 10)
        everything[name] = results
        print(f"\n{table(title, results)}", flush=True)
    if options.json:
        with open(options.json, "wb") as file:
            file.write(msgspec.json.encode({"machine": machine, "results": everything}))


if __name__ == "__main__":
    main()
