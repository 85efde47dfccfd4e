"""Roles of a workspace (viewer, editor, admin) as JupyterHub roles with custom scopes, given by groups.

A person's role is what their scopes say, so JupyterHub's admin page, its API, an authenticator that manages groups and
`load_groups` all work as ways to give a role.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

READ = "custom:notebooks:read"
EDIT = "custom:notebooks:edit"
ADMIN = "custom:notebooks:admin"
SYNC = "custom:notebooks:sync"

SCOPES: dict[str, dict[str, Any]] = {
    READ: {"description": "See the list of notebooks"},
    SYNC: {"description": "Fetch and publish the text of a notebook under one's own lock"},
    EDIT: {"description": "Create, open, copy notebooks and delete one's own", "subscopes": [READ, SYNC]},
    ADMIN: {"description": "Delete and unlock any notebook", "subscopes": [EDIT]},
}

# `shares` holds `access:servers`
_AS_SOMEBODY_ELSE = {"access:servers", "shares", "tokens"}

ROLES = ("viewer", "editor", "admin")
GROUPS = {"viewer": "viewers", "editor": "editors", "admin": "admins"}
ROLE_SCOPES = {"viewer": READ, "editor": EDIT, "admin": ADMIN}

# What a notebook server's own token may do at the hub. Code in a notebook can get at this token, so it holds nothing
# that a colleague's notebook could misuse in the name of the person who opens it.
SERVER_TOKEN_SCOPES = {"users:activity!user", SYNC}


def load_roles() -> list[dict[str, Any]]:
    """Role definitions for `JupyterHub.load_roles`, beside those of the configuration."""
    return [
        {
            "name": f"workspace-{role}",
            "description": f"{role.capitalize()} of the notebooks",
            "scopes": [ROLE_SCOPES[role]],
            "groups": [GROUPS[role]],
        }
        for role in ROLES
    ]


def admin_scopes(scopes: Collection[str]) -> list[str]:
    """What JupyterHub's own `admin` role should hold here, from what it holds by default.

    Its administrators are administrators of the notebooks, too. They do not get into other people's servers, where
    data is shown with that person's masks, nor make tokens in other people's names. JupyterHub refuses a changed
    definition of this role, so the app sets the scopes after the roles were made.
    """
    return [*(scope for scope in scopes if scope not in {*_AS_SOMEBODY_ELSE, ADMIN}), ADMIN]


def role_of(scopes: Collection[str]) -> str | None:
    """The highest role that a set of expanded scopes amounts to, None for no access at all."""
    for role in reversed(ROLES):
        if ROLE_SCOPES[role] in scopes:
            return role
    return None
