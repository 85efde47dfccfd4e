"""What `marimohub policy` works with: the hub's database and warehouse, whether the hub runs or not."""

from __future__ import annotations

import os
import pwd
import time
from functools import cached_property
from typing import Any

from jupyterhub import scopes

from marimohub import rows, subjects
from marimohub.auth import roles
from marimohub.governance.subject import Subject
from marimohub.governing import Governor
from marimohub.snapshots.cache import SnapshotCache
from marimohub.startup import StartupError, prepare_data_dir


class Desk:
    """The hub that a configuration describes, from outside.

    Args:
        hub: a MarimoHub with its configuration loaded, not started.

    Raises:
        StartupError: it has no usable database yet.
    """

    def __init__(self, hub: Any) -> None:
        if not hub.data_path.is_dir():
            raise StartupError(f"There is no data folder {hub.data_path}. Start the hub once first.")
        os.umask(0o077)
        # what another user than the hub's made here, the hub could not use
        prepare_data_dir(hub.data_path)
        hub.init_db()
        # the roles in the database name them
        scopes.define_custom_scopes({**roles.SCOPES, **hub.custom_scopes})
        self.hub = hub
        self.database = hub.database
        self.governor = Governor(self.database, time.time, enabled=hub.governance == "policy")
        with self.database.transaction(write=False) as session:
            self.workspace_id = rows.workspace_id(session, "default")

    def close(self) -> None:
        """Give the connections back."""
        self.hub.db.close()
        self.database.close()

    def subject(self, name: str) -> Subject:
        """A person.

        Raises:
            NoPerson
        """
        return subjects.subject_of(subjects.find_person(self.hub.db, name), {})

    @property
    def author(self) -> str:
        """Who is told to have done what is done here."""
        try:
            user = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            user = str(os.getuid())
        return f"command line ({user})"

    @cached_property
    def snapshots(self) -> SnapshotCache:
        """The hub's own snapshots; several processes may use them at once."""
        cache: SnapshotCache = self.hub.snapshot_cache(self.hub.warehouse_file, collects=False)
        return cache
