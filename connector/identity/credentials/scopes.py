"""Scopes: what a party may query of a holder's credentials, as `alias:discriminator`, with or without an operation.

Two aliases are known (Decentralized Claims 1.0, section 5.4.1.2): a credential's type, and the id of one credential.
Types are compared exactly.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

BY_TYPE = "org.eclipse.dspace.dcp.vc.type"
BY_ID = "org.eclipse.dspace.dcp.vc.id"
_OPERATIONS = ("read", "*")
_SCOPE_MAX = 512


@dataclass(frozen=True, slots=True)
class Scope:
    """A scope without its operation: `alias` is BY_TYPE or BY_ID, `name` the type or the id."""

    alias: str
    name: str

    def __str__(self) -> str:
        """The form that deployed peers expect."""
        return f"{self.alias}:{self.name}:read"

    def covers(self, credential: str, types: Collection[str]) -> bool:
        """Whether a credential with this id and these types is within the scope."""
        return self.name == credential if self.alias == BY_ID else self.name in types


def read_scope(text: str) -> Scope:
    """A scope from its text. Raises: ValueError for another alias, an empty name, or an operation that writes."""
    alias, sign, rest = text.partition(":")
    name, _, operation = rest.rpartition(":")
    if operation not in _OPERATIONS or not name:
        name = rest
    if alias not in (BY_TYPE, BY_ID) or not sign or not name or len(text) > _SCOPE_MAX or name.endswith(":write"):
        raise ValueError(f"expected a scope such as {BY_TYPE}:MembershipCredential:read, got {text[:100]!r}")
    return Scope(alias, name)
