"""JupyterHub's client side without its database.

`jupyterhub.services.auth` needs one function of `jupyterhub.scopes`, which loads `jupyterhub.orm`, SQLAlchemy and
Alembic: 25 MB and half a second for code that only the hub runs. `load()` gives it empty stand-ins meanwhile.
Only for processes that run notebook servers and nothing of the hub; tests/singleuser/test_marimo_contract.py holds it.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

_DATABASE = ("jupyterhub.orm", "sqlalchemy", "sqlalchemy.exc")


class _StandIn(ModuleType):
    """Has whatever is imported from it, and it is of no use."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> type[Exception]:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {})


def load() -> None:
    """Import `jupyterhub.services.auth`. Does nothing special where the database side is loaded already."""
    if any(name in sys.modules for name in (*_DATABASE, "jupyterhub.scopes")):
        return
    stand_ins = {name: _StandIn(name) for name in _DATABASE}
    sys.modules.update(stand_ins)
    try:
        importlib.import_module("jupyterhub.services.auth")
    finally:
        # whoever imports them later, a notebook for example, gets the real ones
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
