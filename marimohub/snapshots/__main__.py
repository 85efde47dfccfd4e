"""The helper process: `python -m marimohub.snapshots copy SRC DST` and `… sample DST`.

A copy needs a process that never opened the live file with DuckDB, and takes too long for the hub's event loop.
Exit status 0, or 1 with one sentence on stderr; with --json also one line of JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from types import FrameType

from marimohub.snapshots.errors import SnapshotError


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m marimohub.snapshots")
    commands = parser.add_subparsers(dest="command", required=True)
    copy = commands.add_parser("copy", help="copy a DuckDB file consistently while another process writes to it")
    copy.add_argument("source", metavar="SRC")
    copy.add_argument("destination", metavar="DST")
    copy.add_argument("--deadline", type=float, default=60.0, metavar="S", help="seconds; default %(default)s")
    copy.add_argument(
        "--no-sync",
        dest="sync",
        action="store_false",
        help="do not wait for the disk; a power failure may tear the copy",
    )
    sample = commands.add_parser("sample", help="build the sample warehouse")
    sample.add_argument("destination", metavar="DST")
    for command in (copy, sample):
        command.add_argument("--json", action="store_true", help="report as one line of JSON on stdout")
        command.add_argument(
            "--until-stdin-closes", action="store_true", help="stop, leaving nothing, when stdin is closed"
        )
    return parser.parse_args(arguments)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(1)


def _watch_stdin() -> None:
    """The caller holds the other end of stdin: when it dies, so does this process, by the usual clean-up."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _arguments(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    if options.until_stdin_closes:
        threading.Thread(target=_watch_stdin, daemon=True).start()
    try:
        if options.command == "copy":
            from marimohub.snapshots.source import copy

            result = copy(options.source, options.destination, deadline=options.deadline, sync=options.sync)
            report = {**vars(result), "path": str(result.path)}
            text = f"{result.path}: {result.size} bytes in {result.seconds:.2f} s ({result.method})"
        else:
            from marimohub.snapshots.sample import build

            report = build(options.destination, lambda line: print(line, file=sys.stderr, flush=True))
            text = f"{options.destination}: {sum(report.values())} rows"
    except SnapshotError as error:
        if options.json:
            print(json.dumps({"error": {"type": type(error).__name__, "message": error.message}}), flush=True)
        print(error.message, file=sys.stderr)
        return 1
    print(json.dumps(report) if options.json else text, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
