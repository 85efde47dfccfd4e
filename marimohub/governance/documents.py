"""Text of a policy as a tree of nodes with line numbers: YAML without its traps.

Scalars are read as YAML 1.2 does: `no`, `on`, `yes`, `1:30` and dates are text. Aliases, anchors, tags, merge keys,
several documents, repeated keys and keys that are not text are errors, and so are depth and size without end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from marimohub.governance.errors import PolicyInvalid, Problem

MAX_BYTES = 1_000_000
MAX_DEPTH = 30
MAX_NODES = 100_000

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_UNCLEAR = re.compile(
    r"[-+]?(?:0[0-9_]+(?:\.[0-9]*)?|0[xob][0-9a-fA-F_]+|[0-9]+_[0-9_]*|\.?(?:inf|nan))", re.IGNORECASE
)

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Node:
    """A scalar (`value` is str, int, float, bool or None), a list (`items`) or a mapping (`pairs`)."""

    kind: str
    line: int
    value: Any = None
    quoted: bool = False
    empty: bool = False
    items: list[Node] = field(default_factory=list)
    pairs: dict[str, Node] = field(default_factory=dict)
    pending: str | None = None


def read(text: str) -> Node:
    """The tree of a YAML document; PolicyInvalid if it is too large, or not of the YAML that policies may use."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise PolicyInvalid([Problem("", "the text has half of a surrogate pair, which is not a character")]) from None
    if size > MAX_BYTES:
        raise PolicyInvalid([Problem("", f"the text is larger than {MAX_BYTES} bytes")])
    try:
        root, problems = _build(yaml.parse(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        raise PolicyInvalid([Problem("", f"this is not YAML: {error.problem or error.context}", line=line)]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PolicyInvalid([Problem("", f"this is not YAML: {str(error).splitlines()[0]}")]) from None
    if problems:
        raise PolicyInvalid(problems)
    return root


def _build(events: Iterator[Any]) -> tuple[Node, list[Problem]]:
    """Nodes from the parser's events, without recursion."""
    stack: list[Node] = []
    problems: list[Problem] = []
    root: Node | None = None
    count = 0

    def refuse(message: str, line: int) -> None:
        problems.append(Problem("", message, line=line))

    for event in events:
        line = event.start_mark.line + 1
        count += 1
        if count > MAX_NODES:
            raise PolicyInvalid([Problem("", f"the policy has more than {MAX_NODES} entries", line=line)])
        if isinstance(event, yaml.AliasEvent):
            raise PolicyInvalid([Problem("", f"aliases (*{event.anchor}) cannot be used in a policy", line=line)])
        if isinstance(event, yaml.DocumentStartEvent):
            if root is not None:
                raise PolicyInvalid([Problem("", "there is a second YAML document: write one only", line=line)])
            continue
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            stack.pop()
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        if event.anchor is not None:
            raise PolicyInvalid([Problem("", f"anchors (&{event.anchor}) cannot be used in a policy", line=line)])
        if event.tag is not None:
            raise PolicyInvalid([Problem("", f"YAML tags ({event.tag}) cannot be used in a policy", line=line)])
        node = _node(event, line, refuse)
        if not stack:
            root = node
        elif not _attach(stack[-1], node, refuse):
            raise PolicyInvalid(problems)
        if node.kind != "scalar":
            stack.append(node)
            if len(stack) > MAX_DEPTH:
                raise PolicyInvalid([Problem("", f"the policy is nested more than {MAX_DEPTH} deep", line=line)])
    if root is None:
        raise PolicyInvalid([Problem("", "the policy is empty: it needs at least version, levels and tables")])
    return root, problems


def _node(event: Any, line: int, refuse: Any) -> Node:
    if isinstance(event, yaml.MappingStartEvent):
        return Node("mapping", line)
    if isinstance(event, yaml.SequenceStartEvent):
        return Node("list", line)
    if not event.implicit[0]:
        return Node("scalar", line, event.value, quoted=True)
    return Node("scalar", line, _plain(event.value, line, refuse), empty=event.value == "")


def _plain(text: str, line: int, refuse: Any) -> Any:
    """The value of an unquoted scalar."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if _UNCLEAR.fullmatch(text):
        refuse(f"{text} can be read in more than one way: put it in quotes, or write a plain decimal number", line)
        return text
    if _INTEGER.fullmatch(text):
        if len(text) > 40:
            refuse("an integer must lie between -2^127 and 2^127 - 1", line)
            return 0
        return int(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            refuse("a number must be finite", line)
        return number
    return text


def _attach(parent: Node, node: Node, refuse: Any) -> bool:
    """Put a node where the parent expects one; False if it cannot go on."""
    if parent.kind == "list":
        parent.items.append(node)
        return True
    if parent.pending is not None:
        parent.pairs[parent.pending] = node
        parent.pending = None
        return True
    if node.kind != "scalar":
        refuse("a key must be text, not a list or a mapping", node.line)
        return False
    if not isinstance(node.value, str):
        shown = "null" if node.value is None else str(node.value).lower()
        refuse(f'the key {shown} is not text: put it in quotes ("{shown}")', node.line)
        return False
    if node.value == "<<" and not node.quoted:
        refuse("merge keys (<<) cannot be used in a policy", node.line)
        return False
    if node.value in parent.pairs:
        refuse(f"the key {node.value!r} is there twice", node.line)
    parent.pending = node.value
    return True
