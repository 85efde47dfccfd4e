"""The notebooks people can start from: blank, data exploration, data quality.

Each template is a real marimo notebook in this folder. It stands alone: it needs marimo, duckdb, polars and altair,
nothing of MarimoHub, and finds the warehouse snapshot through the environment variable MARIMOHUB_SNAPSHOT.
The hub only reads the files as text, so marimo is not imported here.
"""

import re
from dataclasses import dataclass
from importlib import metadata, resources

_TITLE = "NOTEBOOK_TITLE"
_VERSION = "MARIMO_VERSION"
_NAME = re.compile(r"[a-zA-Z0-9_]+", re.ASCII)


@dataclass(frozen=True)
class Template:
    """One choice of the New Notebook dialog; `file` is the notebook's file name in this folder."""

    key: str
    title: str
    description: str
    file: str


class UnknownTemplate(LookupError):
    """No template has this key. `message` is for the user, `key` what was asked for."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.message = f"There is no notebook template “{key}”. Choose one of: {', '.join(TEMPLATES)}."
        super().__init__(self.message)


def _template(key: str, title: str, description: str) -> tuple[str, Template]:
    return key, Template(key, title, description, f"{key}.py")


TEMPLATES: dict[str, Template] = dict(
    [
        _template("blank", "Blank", "An empty notebook, already connected to the warehouse."),
        _template(
            "data_exploration",
            "Data Exploration",
            "Browse the warehouse's tables: preview rows, profile columns, draw charts and query with SQL.",
        ),
        _template(
            "data_quality",
            "Data Quality",
            "Check a table for missing values, duplicates, odd ranges and stale data, with a pass or fail verdict.",
        ),
    ]
)


def title_of(name: str) -> str:
    """The heading for a notebook: "weekly_sales" → "Weekly sales"."""
    words = name.replace("_", " ").split()
    title = " ".join(words) or name
    return title[0].upper() + title[1:]


def render(key: str, name: str) -> str:
    """Return the text of a new notebook called `name`, exactly as the installed marimo would save it.

    Raises UnknownTemplate for a key that is not in TEMPLATES, and ValueError for a name outside [a-zA-Z0-9_]+
    (the hub checks names before; here it keeps a name from becoming code).
    """
    template = TEMPLATES.get(key)
    if template is None:
        raise UnknownTemplate(key)
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a notebook name: {name!r}")
    text = resources.files(__name__).joinpath(template.file).read_text(encoding="utf-8")
    return text.replace(_VERSION, metadata.version("marimo")).replace(_TITLE, title_of(name))
