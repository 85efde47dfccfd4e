"""What a notebook may be called."""

from __future__ import annotations

import re
import sys

MAX_NAME_LENGTH = 100
_PATTERN = re.compile(r"[a-zA-Z0-9_]+")

# A notebook is a module in the folder its cells import from: one called `duckdb` would break every other notebook.
_SHADOWED = {"altair", "duckdb", "marimo", "marimohub", "narwhals", "numpy", "pandas", "plotly", "polars"}
_SHADOWED |= {"pyarrow", "scipy", "scrydon", "sklearn", "sqlglot"}
_DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10))}
RESERVED_NAMES = frozenset({n.lower() for n in sys.stdlib_module_names} | _SHADOWED | _DEVICES)


class InvalidName(ValueError):
    """A notebook name that cannot be used; `message` says why."""

    code = "invalid_name"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def check_name(name: object) -> str:
    """Return `name` if a new notebook may have it.

    Raises:
        InvalidName: empty, over 100 characters, other characters than `[a-zA-Z0-9_]`, or reserved.
    """
    if not isinstance(name, str) or not name:
        raise InvalidName("Give the notebook a name.")
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidName(f"The name has {len(name)} characters; at most {MAX_NAME_LENGTH} are allowed.")
    if not _PATTERN.fullmatch(name):
        raise InvalidName("A name may only have letters (a-z, A-Z), numbers and underscores.")
    if name.lower() in RESERVED_NAMES or name.startswith("__"):
        raise InvalidName(f'"{name}" is reserved: it would hide a Python module of that name. Choose another name.')
    return name


def is_well_formed(name: str) -> bool:
    """Whether a notebook could ever have had this name; reserved names count, as the list may grow."""
    return len(name) <= MAX_NAME_LENGTH and _PATTERN.fullmatch(name) is not None


def is_notebook_name(name: str) -> bool:
    """Whether a file of this stem found in the notebooks folder is a notebook."""
    try:
        check_name(name)
    except InvalidName:
        return False
    return True
