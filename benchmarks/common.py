"""What all benchmarks share: short runs, percentiles, memory of a process tree, and the lines that tell the result."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def quick() -> bool:
    """Whether `QUICK=1` asks for a short run (for CI)."""
    return os.environ.get("QUICK", "") not in ("", "0")


def emit(name: str, value: float) -> None:
    """Print one result as `name value`; whoever compares runs reads these lines."""
    shown = f"{value:.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.2f}"
    print(f"{name} {shown}", flush=True)


def note(text: str) -> None:
    """Print context for people, on stderr, so that stdout holds the figures alone."""
    print(text, file=sys.stderr, flush=True)


def percentile(values: Sequence[float], q: float) -> float:
    """The smallest of `values` that at least `q` (0 to 100) percent of them do not exceed (nearest rank).

    Raises:
        ValueError: there are no values, or `q` is out of range.
    """
    if not values or not 0 <= q <= 100:
        raise ValueError("percentile needs values and 0 <= q <= 100")
    return sorted(values)[max(math.ceil(q / 100 * len(values)) - 1, 0)]


def pss_mb(pid: int, children: bool = True) -> float:
    """Proportional set size in MiB of a process and, unless `children` is false, of all its descendants.

    Shared pages are counted once over the tree, which is what a forked server really costs.

    Raises:
        ProcessLookupError: there is no such process.
    """
    own = _pss_kib(pid)
    if own is None:
        raise ProcessLookupError(pid)
    others = descendants(pid) if children else []
    return (own + sum(_pss_kib(child) or 0 for child in others)) / 1024


def descendants(pid: int) -> list[int]:
    """Ids of all processes below `pid`, as of now."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # the command name may hold spaces and brackets: count from the last bracket
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = parents.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _pss_kib(pid: int) -> int | None:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        # gone meanwhile
        return None
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    # a zombie has no memory
    return 0
