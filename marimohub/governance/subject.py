"""A person, as a policy sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from marimohub.governance.kinds import fits_attribute
from marimohub.governance.model import BUILT_IN, Policy, Scalar, Who

Value = Scalar | list[str] | list[int] | list[float] | list[bool] | list[Scalar]


@dataclass(frozen=True)
class Subject:
    """A user by name, with their role in the workspace (None: none), groups, and attributes from the hub."""

    user: str
    role: str | None = None
    groups: frozenset[str] = frozenset()
    attributes: Mapping[str, Value] = field(default_factory=dict)

    def values(self, policy: Policy, name: str) -> tuple[Scalar, ...] | None:
        """Values of an attribute, of which one that is no list has one; None: they lack it, or it is of another type.

        A list comes sorted and without repetitions, so that its order makes no difference. An empty one is a lack.
        """
        declared = policy.attribute(name)
        if declared is None:
            return None
        found: object = self.attributes.get(name)
        if name in BUILT_IN:
            found = self.user if name == "name" else list(self.groups)
        if not declared.list:
            return (found,) if isinstance(found, str | int | float) and fits_attribute(found, declared) else None
        if not isinstance(found, list | tuple | set | frozenset) or not found:
            return None
        items = [item for item in found if isinstance(item, str | int | float) and fits_attribute(item, declared)]
        return tuple(sorted(set(items))) if len(items) == len(found) else None


def clearance(policy: Policy, subject: Subject) -> str:
    """The highest level that the policy gives to the person; the lowest if it names them nowhere."""
    ranks = [policy.rank(entry.level) for entry in policy.clearance if includes(policy, entry.who, subject)]
    return policy.levels[max(ranks, default=0)]


def includes(policy: Policy, who: Who, subject: Subject, cleared: str | None = None) -> bool:
    """Whether the person is meant. `cleared` is their clearance, for those who ask for one."""
    if who.everyone:
        return True
    if who.roles is not None and subject.role not in who.roles:
        return False
    if who.users is not None and subject.user not in who.users:
        return False
    if who.groups is not None and not who.groups & subject.groups:
        return False
    if who.clearance is not None and (cleared is None or policy.rank(cleared) < policy.rank(who.clearance)):
        return False
    return all(
        any(_same(value, wanted) for value in subject.values(policy, name) or () for wanted in values)
        for name, values in who.attributes
    )


def _same(value: Scalar, wanted: Scalar) -> bool:
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def is_meant(policy: Policy, for_: Who, except_: Who | None, subject: Subject, cleared: str) -> bool:
    """Whether a rule for some and not for others is about the person."""
    return includes(policy, for_, subject, cleared) and not (
        except_ is not None and includes(policy, except_, subject, cleared)
    )
