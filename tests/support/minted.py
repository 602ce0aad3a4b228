"""Authorization headers of a fake identity."""

from __future__ import annotations

from collections.abc import Awaitable, Callable


def minting(form: str = "") -> Callable[[str], Awaitable[str]]:
    """A `mint` that gives `form` with the audience in place of `{}`."""

    async def mint(audience: str) -> str:
        return form.format(audience)

    return mint
