"""Why a server ended by itself, in sentences for its owner."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from typing import Any

UNSEEN = "Your notebook server ended while the hub was not running."


def because(status: int | None, breaches: Iterable[Mapping[str, Any]], launcher: int) -> str:
    """One or two sentences that stand alone.

    Args:
        status: the exit status, or minus a signal's number; None if nobody saw it.
        breaches: the limits that the server reached, as the guard tells them.
        launcher: the server's first process; a breach that it was killed for is the reason.
    """
    for breach in breaches:
        if launcher in (breach.get("pid"), *breach.get("pids", ())):
            return f"Your notebook server was ended. {breach['text']}"
    if status is None:
        return "Your notebook server ended unexpectedly."
    if status == 0:
        return "Your notebook server was shut down from inside."
    if status > 0:
        return f"Your notebook server ended with an error (exit status {status}). An administrator can read its log."
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"number {-status}"
    if status == -signal.SIGKILL:
        return f"Your notebook server was ended by the system ({name}), perhaps for want of memory."
    return f"Your notebook server was ended by a signal ({name})."
