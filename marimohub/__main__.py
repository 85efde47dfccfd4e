"""The `marimohub` command."""

from __future__ import annotations

import sys
from typing import Any


def main(argv: Any = None) -> None:
    """Run the hub, or one of its subcommands."""
    # jsonschema, which JupyterHub's event log loads, would build a grammar for internationalised addresses here: a
    # third of the hub's start, for a format that no event has. It does without where the module is not to be had.
    absent = "rfc3987_syntax" not in sys.modules
    if absent:
        sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    try:
        from marimohub.app import MarimoHub
    finally:
        if absent:
            del sys.modules["rfc3987_syntax"]
    MarimoHub.launch_instance(argv)


if __name__ == "__main__":
    main()
