"""How a kernel comes to packages that were loaded before it was forked.

It must not look as if somebody had imported DuckDB in it already: marimo would list databases, which opens one, after
every cell, and formatters would not be registered by an import. So what notebooks import themselves is taken off the
list of loaded modules, and handed out when it is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class HandOut(MetaPathFinder):
    """Gives packages that are loaded, but not to be seen, to whoever imports them."""

    def __init__(self, packages: Iterable[str], then: dict[str, Callable[[ModuleType], None]]) -> None:
        """Hide `packages`, those that are loaded. `then` has what is to be done once one was handed out."""
        self._kept = {
            package: {name: sys.modules.pop(name) for name in list(sys.modules) if f"{name}.".startswith(f"{package}.")}
            for package in packages
            if package in sys.modules
        }
        self._then = then

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        # it stays here: asking whether there is such a package does not import it
        modules = self._kept.get(name)
        original = modules[name].__spec__ if modules is not None else None
        if original is None:
            return None
        spec = ModuleSpec(name, _Loaded(self._kept, original, self._then.get(name)), origin=original.origin)
        spec.submodule_search_locations = original.submodule_search_locations
        return spec


class _Loaded(Loader):
    def __init__(
        self,
        kept: dict[str, dict[str, ModuleType]],
        original: ModuleSpec,
        then: Callable[[ModuleType], None] | None,
    ) -> None:
        self._kept, self._original, self._then = kept, original, then

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._kept[spec.name][spec.name]

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._original  # importing has set the one from above
        for name, loaded in self._kept.pop(self._original.name).items():
            sys.modules.setdefault(name, loaded)
        if self._then is not None:
            self._then(module)
