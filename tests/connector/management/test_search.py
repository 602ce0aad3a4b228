"""What the catalogue answers, asked in our own name."""

from __future__ import annotations

from typing import Any

import pytest

from connector.errors import PeerNonsense
from connector.management import search
from connector.net import Reply


class Catalogue:
    """A net on which everything answers the same."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    async def call(self, *_: Any, **__: Any) -> Reply:
        return Reply(200, {}, self.body)


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b"[" * 60_000], ids=["none", "nonsense", "a list", "nested"])
async def test_an_answer_that_is_no_object_is_told_as_that(body: bytes) -> None:
    net: Any = Catalogue(body)
    nobody: Any = None  # the catalogue is asked without a name
    with pytest.raises(PeerNonsense, match="expected JSON from the catalogue"):
        await search.ask(net, nobody, "q=a", catalogue_url="http://c.example", operator="")
