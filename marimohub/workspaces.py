"""Ids and names of workspaces: they never change, so the database is asked for each only once."""

from __future__ import annotations

from sqlalchemy.orm import Session

from marimohub import rows
from marimohub.database import Database
from marimohub.orm import Workspace


class Workspaces:
    """Looks workspaces up. Methods but `known_id` block."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ids: dict[str, int] = {}
        self._names: dict[int, str] = {}

    def known_id(self, name: str) -> int | None:
        """The id, if it was asked for before; never waits."""
        return self._ids.get(name)

    def find(self, session: Session, name: str) -> int:
        """The id of a workspace, for `Database.read`.

        Raises:
            NoWorkspace: there is none of that name.
        """
        found = self._ids[name] = rows.workspace_id(session, name)
        return found

    def id_of(self, name: str) -> int:
        """As `find`, in a transaction of its own."""
        known = self._ids.get(name)
        if known is not None:
            return known
        with self._database.transaction(write=False) as session:
            return self.find(session, name)

    def name_of(self, workspace_id: int) -> str:
        """The name of a workspace that exists."""
        if workspace_id not in self._names:
            with self._database.transaction(write=False) as session:
                self._names[workspace_id] = session.get_one(Workspace, workspace_id).name
        return self._names[workspace_id]
