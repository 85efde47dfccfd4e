"""Level and tags of every column of a table, with what generated columns inherit from those they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from marimohub.governance.model import MaskRule, Policy
from marimohub.governance.names import fold
from marimohub.governance.predicates import parse_generation
from marimohub.snapshots.schema import Table

_generation = lru_cache(maxsize=1000)(parse_generation)


@dataclass(frozen=True)
class Classified:
    """A column's level and tags. `own_*` are without what it inherits; `names` are its own and its sources'."""

    level: str
    tags: frozenset[str]
    own_level: str
    own_tags: frozenset[str]
    name: tuple[str, str, str]
    names: frozenset[tuple[str, str, str]]

    def selected(self, rule: MaskRule) -> bool:
        """Whether a rule picks the column by a tag or by name, its own or an inherited one."""
        return bool(rule.tags & self.tags or rule.columns & self.names)

    def selected_itself(self, rule: MaskRule) -> bool:
        """Whether a rule picks the column by what the policy says of the column itself, its level included."""
        return bool(rule.tags & self.own_tags) or self.name in rule.columns or self.own_level in rule.levels


def classify(policy: Policy, table: Table) -> dict[str, Classified | str]:
    """By folded name: how a column is classified, or in a sentence why it is not."""
    entry = policy.classification(table.schema, table.name)
    if entry is None:
        return {fold(column.name): "the policy does not name the table" for column in table.columns}
    place = (fold(table.schema), fold(table.name))
    found: dict[str, Classified | str] = {}
    for column, parts in _sources(table).items():
        own = entry.column(column)
        if own is None:
            found[column] = "the policy does not name the column"
            continue
        level, tags, names = own[0], set(own[1]), {(*place, column)}
        for part in parts:
            inherited = entry.column(part)
            if inherited is None:
                found[column] = "it is made of a column that the policy does not name"
                break
            level = max(level, inherited[0], key=policy.rank)
            tags |= inherited[1]
            names.add((*place, part))
        else:
            found[column] = Classified(level, frozenset(tags), *own, (*place, column), frozenset(names))
    return found


def _sources(table: Table) -> dict[str, set[str]]:
    """The columns that each column is made of, directly or not, by folded names."""
    everything = {fold(column.name) for column in table.columns}
    direct: dict[str, set[str]] = {}
    for column in table.columns:
        name = fold(column.name)
        direct[name] = set()
        if column.generation is not None:
            parts = _generation(column.generation)
            direct[name] = (everything if parts is None or parts - everything else parts) - {name}
    found: dict[str, set[str]] = {}
    for name, parts_ in direct.items():
        seen, pending = set(parts_), list(parts_)
        while pending:
            new = direct[pending.pop()] - seen
            seen |= new
            pending.extend(new)
        found[name] = seen - {name}
    return found
