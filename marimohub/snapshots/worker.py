"""The helper process of governed snapshots: `python -m marimohub.snapshots.worker TASK`.

One line of JSON on stdin says what to do; lines of JSON on stdout say how far it is, and in the end what came out:
`{"progress": 3}`, `{"result": {…}}` or `{"error": {"type", "message"}}`. When stdin closes, whoever asked is gone, and
this process ends too. Each task is a process of its own: see mask_process for why.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from marimohub.snapshots.errors import SnapshotError, is_no_space

NICENESS = 10  # people's clicks and cells go before


def _tasks(name: str) -> Callable[[dict[str, Any], Callable[[int], None]], dict[str, Any]]:
    # imported here: process B must not even hold the code that opens raw data
    if name == "build":
        from marimohub.snapshots.build_process import build

        return build
    if name == "update":
        from marimohub.snapshots.update_process import update

        return update
    if name == "copy":
        return _copy
    from marimohub.snapshots import mask_process

    return {"mask": mask_process.mask_tables, "count": mask_process.count_rows}[name]


def _copy(spec: dict[str, Any], progress: Callable[[int], None]) -> dict[str, Any]:
    """Copy the warehouse and look at the copy: `source`, `raw` (the copy), `deadline` (seconds), and limits.

    Returns:
        what `describe` does, `version`, and `started` (ISO 8601).
    """
    from marimohub.snapshots.source import copy

    started = datetime.now(UTC).isoformat(timespec="seconds")
    result = copy(spec["source"], spec["raw"], deadline=spec["deadline"], sync=False)
    progress(1)
    from marimohub.snapshots.describe_process import describe

    return {**describe(spec, progress), "version": result.version, "started": started}


def _of_system(error: OSError) -> dict[str, str]:
    """What the system refused, without the path."""
    if is_no_space(error):
        return {
            "type": "NoSpace",
            "message": "There is no room to build a snapshot. Make room on the hub's disk and try again.",
        }
    why = error.strerror or type(error).__name__
    return {"type": "HelperFailed", "message": f"The snapshot could not be made: {why}. Try again."}


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _end_with_caller() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)  # the caller's clean-up takes the folder away


def main(name: str) -> int:
    """Run one task; returns the exit status."""
    # no buffering of stdin: the thread that watches it reads the descriptor
    spec = json.loads(_read_line())
    threading.Thread(target=_end_with_caller, daemon=True).start()
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    try:
        _say({"result": _tasks(name)(spec, lambda done: _say({"progress": done}))})
    except SnapshotError as error:
        _say({"error": {"type": type(error).__name__, "message": error.message}})
        return 1
    except OSError as error:
        _say({"error": _of_system(error)})
        return 1
    return 0


def _read_line() -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        chunk = os.read(0, 65536)
        if not chunk:
            break
        line += chunk
    return bytes(line)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
