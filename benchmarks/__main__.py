"""`python -m benchmarks`: run all benchmarks, or those that are named, and print their tables."""

from __future__ import annotations

import argparse
import resource
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from . import peers, plots
from .aims import judge
from .catalogue import BENCHMARKS, ON_REQUEST
from .daemons import ByUrl, Creche
from .machine import busy_percent, describe
from .setting import Setting
from .tables import Table


def main() -> None:
    """Do what the command line says."""
    signal.signal(signal.SIGTERM, _leave)
    if sys.argv[1:2] == ["install-peers"]:
        _install_peers()
        return
    known = {**BENCHMARKS, **ON_REQUEST}
    parser = _parser()
    options = parser.parse_args()
    if unknown := set(options.names) - known.keys():
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    if options.plots is not None and not plots.is_possible():
        parser.error("plots need matplotlib: pip install '.[bench]'")
    _raise_descriptor_limit()
    directory = peers.directory_of(options.peers)
    setting = Setting(
        sandbox_agent=peers.find_sandbox_agent(directory),
        foreign=peers.find_foreign(directory),
        versions=tuple(options.checkout),
        others=tuple(options.peer),
        scale=options.scale,
    )
    machine = describe(setting)
    print("; ".join(f"{name} {value}" for name, value in machine.items()))
    results: dict[str, list[Table]] = {}
    busy: dict[str, int] = {}
    for name in options.names or BENCHMARKS:
        busy[name] = round(busy_percent())
        print(f"\n`{name}`, with {busy[name]} % of the processors busy before:", flush=True)
        results[name] = known[name](setting)
        for table in results[name]:
            print(f"\n{table.markdown()}", flush=True)
    if (verdict := judge(results)) is not None:
        print(f"\n{verdict.markdown()}")
        results["aims"] = [verdict]
    if options.json is not None:
        report: dict[str, Any] = {"machine": machine, "busy_percent": busy, "results": results}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    if options.plots is not None:
        plots.draw(results, options.plots)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure Creche against its peers, in turn, and print tables.",
        epilog="`python -m benchmarks install-peers DIR` installs the peers there, with npm and pip.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"{', '.join(BENCHMARKS)}; only if named: {', '.join(ON_REQUEST)}",
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        metavar="X",
        help="of all rounds and durations; 0.2 for a first look (%(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="also draw them, as PNG")
    parser.add_argument(
        "--peers",
        metavar="DIR",
        help=f"where `install-peers` has put them [{peers.VARIABLE}]",
    )
    parser.add_argument(
        "--peer",
        type=_by_url,
        action="append",
        default=[],
        metavar="NAME=URL",
        help="another daemon that speaks our contract and runs already",
    )
    parser.add_argument(
        "--checkout",
        type=_by_directory,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="another version of ours, with its launcher built",
    )
    return parser


def _by_directory(text: str) -> Creche:
    name, equals, directory = text.partition("=")
    if not (equals and Path(directory, "api").is_dir()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIRECTORY of a checkout")
    if not name or name.startswith("creche"):
        raise argparse.ArgumentTypeError("the name begins as that of the one it is compared with")
    return Creche(name, checkout=Path(directory).absolute())


def _by_url(text: str) -> ByUrl:
    name, equals, url = text.partition("=")
    if not (name and equals and url.startswith("http://")):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=http://HOST:PORT")
    return ByUrl(name, url)


def _install_peers() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks install-peers")
    parser.add_argument("directory", type=Path)
    peers.install(parser.parse_args(sys.argv[2:]).directory)


def _raise_descriptor_limit() -> None:
    """Thousands of live processes take several descriptors each, in every daemon alike."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(hard, 100_000)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (ValueError, PermissionError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _leave(*_: object) -> NoReturn:
    """Unwinds, so that everything that was started is ended."""
    sys.exit(143)


if __name__ == "__main__":
    main()
