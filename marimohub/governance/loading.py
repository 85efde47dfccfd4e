"""From the text of a policy to a `Policy`, or to everything that is wrong with the text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from marimohub.governance import conditions
from marimohub.governance.documents import Node, read
from marimohub.governance.errors import PolicyInvalid
from marimohub.governance.kinds import check_scalar, fits_attribute
from marimohub.governance.model import (
    ATTRIBUTE_TYPES,
    BUILT_IN,
    EVERYONE,
    PROTECTIVE,
    ROLES,
    UNITS,
    AttributeType,
    Classification,
    Clearance,
    ColumnRule,
    Filter,
    Grant,
    Mask,
    MaskRule,
    Policy,
    Scalar,
    Who,
)
from marimohub.governance.names import Pattern, fold, parse_column
from marimohub.governance.reader import Reader

T = TypeVar("T")

KEYS = ("version", "levels", "tags", "attributes", "clearance", "tables", "views", "grants", "masks", "filters")
WHO_KEYS = ("roles", "groups", "users", "attributes", "clearance", "everyone")
SIMPLE_MASKS = ("null", "hash", "year", "email_domain", "hide")
MAX_FILL = 100


def parse(text: str) -> Policy:
    """The policy that a YAML text says; PolicyInvalid with all its problems, each with its place and line."""
    root = read(text)
    reader = Reader()
    policy = _Loading(reader).policy(root)
    if reader.problems:
        raise PolicyInvalid(sorted(reader.problems, key=lambda problem: problem.line))
    return policy


class _Loading:
    """Reads the parts of one policy; what is wrong is noted in the reader, and something harmless taken instead."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.levels: tuple[str, ...] = ()
        self.tags: dict[str, str] = {}
        self.attributes: dict[str, AttributeType] = {}
        self.names: set[str] = set()

    def policy(self, root: Node) -> Policy:
        """The whole of it."""
        reader = self.reader
        parts = reader.mapping(root, "", KEYS, required=("version", "levels", "tables"))
        version = parts.get("version")
        if version is not None and (version.value != 1 or isinstance(version.value, bool)):
            reader.note(version, "version", "must be 1")
        if "levels" in parts:
            self.levels = tuple(reader.texts(parts["levels"], "levels"))
        if "tags" in parts:
            self.tags = {
                tag: str(node.value) if node.value is not None else ""
                for tag, node in reader.mapping(parts["tags"], "tags").items()
            }
        if "attributes" in parts:
            self._attributes(parts["attributes"])
        if not self.levels:
            return Policy(("",))
        return Policy(
            levels=self.levels,
            tags=self.tags,
            attributes=self.attributes,
            clearance=self._list(parts, "clearance", self._clearance),
            tables=self._tables(parts.get("tables")),
            views=tuple(self._patterns(parts["views"], "views", empty=True)) if "views" in parts else (),
            grants=self._list(parts, "grants", self._grant),
            masks=self._list(parts, "masks", self._mask_rule),
            filters=self._list(parts, "filters", self._filter),
        )

    def _list(self, parts: dict[str, Node], key: str, one: Callable[[Node, str], T | None]) -> tuple[T, ...]:
        if key not in parts:
            return ()
        items = self.reader.items(parts[key], key, empty=True)
        found = [one(item, f"{key}[{number}]") for number, item in enumerate(items)]
        return tuple(item for item in found if item is not None)

    def _attributes(self, node: Node) -> None:
        for name, entry in self.reader.mapping(node, "attributes").items():
            where = f"attributes.{name}"
            if name in BUILT_IN:
                self.reader.note(entry, where, f"{name} is built in and cannot be declared: choose another name")
            elif not conditions.ATTRIBUTE_NAME.fullmatch(name):
                self.reader.note(entry, where, "a name has lower-case letters, digits and _, and begins with a letter")
            parts = self.reader.mapping(entry, where, ("type", "list"), required=("type",))
            kind = self.reader.one_of(parts["type"], f"{where}.type", ATTRIBUTE_TYPES) if "type" in parts else None
            is_list = self.reader.boolean(parts["list"], f"{where}.list") if "list" in parts else False
            self.attributes[name] = AttributeType(kind or "text", is_list)

    def _level(self, node: Node, where: str) -> str | None:
        return self.reader.one_of(node, where, self.levels)

    def _tags_of(self, node: Node, where: str, empty: bool = True) -> tuple[str, ...]:
        found = self.reader.texts(node, where, empty=empty)
        for tag in found:
            if tag not in self.tags:
                self.reader.note(node, where, f"the tag {tag!r} is not among `tags:`; add it there or correct it")
        return tuple(found)

    def _patterns(self, node: Node, where: str, empty: bool = False) -> list[Pattern]:
        found: list[Pattern] = []
        for number, text in enumerate(self.reader.texts(node, where, empty=empty)):
            place = f"{where}[{number}]" if node.kind == "list" else where
            pattern = self.reader.attempt(node, place, lambda text=text: Pattern.parse(text))  # type: ignore[misc]
            if pattern is not None:
                found.append(pattern)
        return found

    def _tables(self, node: Node | None) -> tuple[Classification, ...]:
        found: dict[Pattern, Classification] = {}
        for name, entry in (self.reader.mapping(node, "tables") if node is not None else {}).items():
            where = f"tables.{name}"
            pattern = self.reader.attempt(entry, where, lambda name=name: Pattern.parse(name))  # type: ignore[misc]
            parts = self.reader.mapping(entry, where, ("level", "tags", "columns"), none=True)
            level = self._level(parts["level"], f"{where}.level") if "level" in parts else None
            tags = self._tags_of(parts["tags"], f"{where}.tags") if "tags" in parts else ()
            columns: dict[str, ColumnRule] = {}
            for column, rule in (
                self.reader.mapping(parts["columns"], f"{where}.columns").items() if "columns" in parts else ()
            ):
                if fold(column) in columns:
                    self.reader.note(
                        rule, f"{where}.columns.{column}", "this column is there already: upper and lower case are one"
                    )
                columns[fold(column)] = self._column(rule, f"{where}.columns.{column}")
            if pattern is None:
                continue
            if pattern in found:
                self.reader.note(entry, where, f"is there already, as {found[pattern].where.removeprefix('tables.')}")
            rest = columns.pop("*", None)
            found[pattern] = Classification(
                pattern, level or self.levels[-1], tags, tuple(columns.items()), rest, where, entry.line
            )
        return tuple(found.values())

    def _column(self, node: Node, where: str) -> ColumnRule:
        parts = self.reader.mapping(node, where, ("level", "tags"), none=True)
        level = self._level(parts["level"], f"{where}.level") if "level" in parts else None
        return ColumnRule(level, self._tags_of(parts["tags"], f"{where}.tags") if "tags" in parts else ())

    def _clearance(self, node: Node, where: str) -> Clearance | None:
        parts = self.reader.mapping(node, where, ("level", *WHO_KEYS), required=("level",))
        level = self._level(parts.pop("level"), f"{where}.level") if "level" in parts else None
        who = self._who(node, where, parts, nested=False)
        return Clearance(level, who) if level is not None and who is not None else None

    def _who(
        self, node: Node, where: str, parts: dict[str, Node] | None = None, nested: bool = True, spared: bool = False
    ) -> Who | None:
        """Whom a rule is about. `nested`: clearance may be asked for; `spared`: everybody makes no sense."""
        reader = self.reader
        found = reader.mapping(node, where, WHO_KEYS) if parts is None else parts
        if not found:
            reader.note(node, where, "names nobody: write roles, groups, users, attributes, or everyone: true")
            return None
        if "everyone" in found:
            if found["everyone"].value is not True or len(found) > 1:
                reader.note(found["everyone"], f"{where}.everyone", "must be true, and stand alone")
            elif spared:
                reader.note(found["everyone"], f"{where}.everyone", "the rule would be for nobody: remove the rule")
            return EVERYONE
        sets: dict[str, frozenset[str]] = {}
        for key in ("roles", "groups", "users"):
            if key in found:
                sets[key] = frozenset(reader.texts(found[key], f"{where}.{key}"))
        for role in sorted(sets.get("roles", frozenset()) - set(ROLES)):
            reader.note(found["roles"], f"{where}.roles", f"{role!r} is no role: the roles are {', '.join(ROLES)}")
        level = None
        if "clearance" in found and not nested:
            reader.note(found["clearance"], f"{where}.clearance", "cannot be asked for inside `clearance:` itself")
        elif "clearance" in found:
            level = self._level(found["clearance"], f"{where}.clearance")
        values = ()
        if "attributes" in found:
            values = self._wanted(found["attributes"], f"{where}.attributes")
        return Who(False, sets.get("roles"), sets.get("groups"), sets.get("users"), values, level)

    def _wanted(self, node: Node, where: str) -> tuple[Any, ...]:
        found: list[tuple[str, tuple[Scalar, ...]]] = []
        for name, entry in self.reader.mapping(node, where, empty=False).items():
            declared = self.attributes.get(name)
            if declared is None:
                self.reader.note(entry, f"{where}.{name}", f"{name!r} is not among `attributes:`")
                continue
            values: list[Scalar] = []
            for item in self.reader.items(entry, f"{where}.{name}"):
                if fits_attribute(item.value, declared):
                    values.append(item.value)
                else:
                    self.reader.note(item, f"{where}.{name}", f"{item.value!r} is not of the type {declared.type}")
            found.append((name, tuple(values)))
        return tuple(found)

    def _name(self, parts: dict[str, Node], where: str) -> str:
        name = self.reader.text(parts["name"], f"{where}.name") if "name" in parts else None
        if name is not None and name in self.names:
            self.reader.note(
                parts["name"], f"{where}.name", f"the name {name!r} is taken: grants, masks and filters share one list"
            )
        self.names.add(name or "")
        return name or ""

    def _whom(self, parts: dict[str, Node], where: str) -> tuple[Who, Who | None]:
        for_ = self._who(parts["for"], f"{where}.for") if "for" in parts else EVERYONE
        except_ = self._who(parts["except"], f"{where}.except", spared=True) if "except" in parts else None
        return for_ or EVERYONE, except_

    def _grant(self, node: Node, where: str) -> Grant | None:
        parts = self.reader.mapping(node, where, ("name", "to", "tables", "columns"), required=("name", "to", "tables"))
        name = self._name(parts, where)
        to = self._who(parts["to"], f"{where}.to") if "to" in parts else None
        tables = self._patterns(parts["tables"], f"{where}.tables") if "tables" in parts else []
        columns: tuple[str, ...] | None = None
        if "columns" in parts:
            columns = tuple(fold(column) for column in self.reader.texts(parts["columns"], f"{where}.columns"))
            if "*" in columns:
                self.reader.note(parts["columns"], f"{where}.columns", "leave `columns` out to grant all of them")
            if not all(pattern.exact for pattern in tables):
                self.reader.note(parts["columns"], f"{where}.columns", "only together with tables that are all exact")
        return None if to is None else Grant(name, to, tuple(tables), columns, where, node.line)

    def _mask_rule(self, node: Node, where: str) -> MaskRule:
        keys = ("name", "tags", "columns", "levels", "mask", "for", "except")
        parts = self.reader.mapping(node, where, keys, required=("name", "mask"))
        name = self._name(parts, where)
        if not {"tags", "columns", "levels"} & set(parts):
            self.reader.note(node, where, "selects nothing: write tags, columns or levels")
        columns = []
        for text in self.reader.texts(parts["columns"], f"{where}.columns") if "columns" in parts else []:
            column = self.reader.attempt(
                parts["columns"],
                f"{where}.columns",
                lambda text=text: parse_column(text),  # type: ignore[misc]
            )
            if column is not None:
                columns.append((fold(column[0]), fold(column[1]), fold(column[2])))
        levels = self.reader.texts(parts["levels"], f"{where}.levels") if "levels" in parts else []
        for level in levels:
            if level not in self.levels:
                self.reader.note(parts["levels"], f"{where}.levels", f"{level!r} is not among `levels:`")
        tags = self._tags_of(parts["tags"], f"{where}.tags", empty=False) if "tags" in parts else ()
        mask = self._mask(parts["mask"], f"{where}.mask") if "mask" in parts else None
        for_, except_ = self._whom(parts, where)
        return MaskRule(
            name,
            mask or Mask("hide"),
            frozenset(tags),
            frozenset(columns),
            frozenset(levels),
            for_,
            except_,
            where,
            node.line,
        )

    def _mask(self, node: Node, where: str) -> Mask | None:
        reader = self.reader
        if node.kind == "scalar":
            kind = "null" if node.value is None and not node.empty else node.value
            return Mask(str(kind)) if reader.choice(node, where, kind, SIMPLE_MASKS, PROTECTIVE) else None
        parts = reader.mapping(node, where, ("partial", "constant", "bucket"))
        if len(parts) != 1:
            reader.note(node, where, "must be one mask, such as hash or {partial: {first: 1, last: 2}}")
            return None
        ((kind, value),) = parts.items()
        if kind == "constant":
            return Mask("constant", value=reader.scalar(value, f"{where}.constant", check_scalar))
        if kind == "partial":
            fields = reader.mapping(value, f"{where}.partial", ("first", "last", "fill"))
            first, last = (
                reader.count(fields[key], f"{where}.partial.{key}") if key in fields else 0 for key in ("first", "last")
            )
            if first + last == 0:
                reader.note(value, f"{where}.partial", "first and last are both 0: use {constant: ...} instead")
            fill = reader.text(fields["fill"], f"{where}.partial.fill") if "fill" in fields else "***"
            if len(fill or "") > MAX_FILL:
                reader.note(value, f"{where}.partial.fill", f"has more than {MAX_FILL} characters")
            return Mask("partial", first=first, last=last, fill=fill or "***")
        fields = reader.mapping(value, f"{where}.bucket", ("size", "unit"))
        if len(fields) != 1:
            reader.note(value, f"{where}.bucket", "must have either size (for numbers) or unit (for dates)")
        elif "unit" in fields:
            return Mask("bucket", unit=reader.one_of(fields["unit"], f"{where}.bucket.unit", UNITS))
        else:
            return Mask("bucket", size=reader.size(fields["size"], f"{where}.bucket.size"))
        return None

    def _filter(self, node: Node, where: str) -> Filter | None:
        keys = ("name", "tables", "for", "except", "where")
        parts = self.reader.mapping(node, where, keys, required=("name", "tables", "where"))
        name = self._name(parts, where)
        tables = self._patterns(parts["tables"], f"{where}.tables") if "tables" in parts else []
        for_, except_ = self._whom(parts, where)
        if "where" not in parts:
            return None
        types = {**self.attributes, **BUILT_IN}
        condition = conditions.read_condition(self.reader, types, parts["where"], f"{where}.where")
        return None if condition is None else Filter(name, tuple(tables), for_, except_, condition, where, node.line)
