"""Tokens of a management API that no start has given an admin's."""

from __future__ import annotations

from collections.abc import Sequence

from connector.management.sign_on.auth import Tokens


async def issued(tokens: Tokens, name: str, scopes: Sequence[str]) -> str:
    """A token's text, from an admin's that is made where there is none."""
    await tokens.first(lambda text: None)
    return await tokens.issue(name, list(scopes), by="admin")
