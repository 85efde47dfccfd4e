"""What is wrong with a policy, for the administrator who wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing to correct: `where` is a path such as `filters[0].where.column`; `line` counts from 1, 0 is unknown."""

    where: str
    message: str
    severity: str = "error"
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.where or 'the policy'}" + (f" (line {self.line})" if self.line else "")
        return f"{place}: {self.message}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"where": self.where, "message": self.message, "severity": self.severity, "line": self.line}


class PolicyError(Exception):
    """Something about a policy that its author can correct; `message` says what."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class PolicyInvalid(PolicyError):
    """The policy cannot be used; `problems` has everything that was found, at least one entry."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
