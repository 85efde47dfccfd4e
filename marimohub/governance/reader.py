"""Typed access to the nodes of a policy's text: what is wrong is noted with its place, and reading goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from marimohub.governance.documents import Node
from marimohub.governance.errors import PolicyError, Problem
from marimohub.governance.model import Scalar

T = TypeVar("T")

MAX_PROBLEMS = 100
MAX_COUNT = 1000


class Reader:
    """Collects problems; its methods give what a node holds, or something harmless if it holds something else."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def note(self, node: Node, where: str, message: str) -> None:
        """Something is wrong at a node."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(where, message, line=node.line))

    def attempt(self, node: Node, where: str, read: Callable[[], T]) -> T | None:
        """What the function gives; None, and noted, if it raises PolicyError."""
        try:
            return read()
        except PolicyError as error:
            self.note(node, where, error.message)
            return None

    def mapping(
        self,
        node: Node,
        where: str,
        keys: Iterable[str] | None = None,
        required: Iterable[str] = (),
        none: bool = False,
        empty: bool = True,
    ) -> dict[str, Node]:
        """A mapping with these keys and no others (None: any); with `none`, nothing at all is an empty one."""
        if none and node.kind == "scalar" and node.value is None:
            return {}
        if node.kind != "mapping":
            self.note(node, where, f"must be a mapping (name: value), and is {_shown(node)}")
            return {}
        if not node.pairs and not empty:
            self.note(node, where, "is empty")
        allowed = None if keys is None else tuple(keys)
        for key, value in node.pairs.items():
            if allowed is not None and key not in allowed:
                place = f"{where}.{key}" if where else key
                self.note(value, place, f"unknown key {key!r}: the keys here are {', '.join(allowed)}")
        for key in required:
            if key not in node.pairs:
                self.note(node, where, f"{key} is missing")
        return {key: value for key, value in node.pairs.items() if allowed is None or key in allowed}

    def items(self, node: Node, where: str, empty: bool = False) -> list[Node]:
        """The items of a list, of which there must be one unless `empty`."""
        if node.kind != "list":
            self.note(node, where, f"must be a list ([a, b]), and is {_shown(node)}")
            return []
        if not node.items and not empty:
            self.note(node, where, "is an empty list: name something or remove the key")
        return node.items

    def texts(self, node: Node, where: str, empty: bool = False) -> list[str]:
        """A list of different texts."""
        found: dict[str, None] = {}
        for number, item in enumerate(self.items(node, where, empty)):
            text = self.text(item, f"{where}[{number}]")
            if text is not None and text in found:
                self.note(item, f"{where}[{number}]", f"{text!r} is there twice")
            if text is not None:
                found[text] = None
        return list(found)

    def text(self, node: Node, where: str) -> str | None:
        """A text that is not empty."""
        if node.kind != "scalar" or not isinstance(node.value, str) or not node.value:
            quotes = ": put it in quotes" if node.kind == "scalar" and node.value not in (None, "") else ""
            self.note(node, where, f"must be text, and is {_shown(node)}{quotes}")
            return None
        return node.value

    def boolean(self, node: Node, where: str) -> bool:
        """true or false, and nothing that only means one of them."""
        if not isinstance(node.value, bool):
            self.note(node, where, f"must be true or false, and is {_shown(node)}")
            return False
        return node.value

    def count(self, node: Node, where: str) -> int:
        """A number from 0 on."""
        if isinstance(node.value, bool) or not isinstance(node.value, int) or not 0 <= node.value <= MAX_COUNT:
            self.note(node, where, f"must be a whole number from 0 to {MAX_COUNT}, and is {_shown(node)}")
            return 0
        return node.value

    def size(self, node: Node, where: str) -> int | float:
        """A number above 0."""
        value = node.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-300 < value < 2**63:
            self.note(node, where, f"must be a number above 0 (and below 2^63), and is {_shown(node)}")
            return 1
        return value

    def scalar(self, node: Node, where: str, check: Callable[[Scalar], None]) -> Scalar:
        """A text, number or boolean that the function does not refuse."""
        if node.kind != "scalar" or node.value is None:
            self.note(node, where, f"must be text, a number, true or false, and is {_shown(node)}")
            return ""
        value: Scalar = node.value
        self.attempt(node, where, lambda: check(value))
        return value

    def one_of(self, node: Node, where: str, choices: Iterable[str]) -> str | None:
        """One of these texts."""
        return node.value if self.choice(node, where, node.value, choices, choices) else None

    def choice(self, node: Node, where: str, value: Any, choices: Iterable[str], shown: Iterable[str]) -> bool:
        """Whether a value is one of the choices; if not, it is noted together with what could be."""
        if isinstance(value, str) and value in tuple(choices):
            return True
        self.note(node, where, f"must be one of {', '.join(shown)}, and is {_shown(node)}")
        return False


def _shown(node: Node) -> str:
    """What a node is, for a message."""
    if node.kind != "scalar":
        return f"a {node.kind}"
    if node.value is None:
        return "empty" if node.empty else "null"
    text = repr(node.value) if isinstance(node.value, str) else str(node.value).lower()
    return text if len(text) <= 60 else text[:57] + "..."
