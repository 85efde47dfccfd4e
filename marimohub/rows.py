"""Finding workspaces and notebooks in the database by the names that requests bring."""

from __future__ import annotations

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from marimohub.names import is_well_formed
from marimohub.notebook_errors import NotFound, NoWorkspace
from marimohub.orm import Notebook, Workspace


def workspace_id(session: Session, name: str) -> int:
    """The id of a workspace.

    Raises:
        NoWorkspace: there is none of that name.
    """
    # PostgreSQL refuses NUL in a parameter, and a lone surrogate
    found = session.scalar(select(Workspace.id).where(Workspace.name == name)) if name.isprintable() else None
    if found is None:
        raise NoWorkspace(name)
    return found


def by_key(workspace_id: int, name: str) -> Select[Notebook]:
    """The notebook of this name in any spelling of upper and lower case."""
    return select(Notebook).where(Notebook.workspace_id == workspace_id, Notebook.name_key == name.lower())


def find(session: Session, workspace_id: int, name: str) -> Notebook:
    """The notebook of exactly this name.

    Raises:
        NotFound: there is none.
    """
    notebook = session.scalar(by_key(workspace_id, name)) if is_well_formed(name) else None
    if notebook is None or notebook.name != name:
        raise NotFound(name)
    return notebook
