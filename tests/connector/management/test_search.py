"""Search through the catalogue: what its answers become here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from connector.errors import ConnectorError, Invalid, PeerNonsense, PeerRefused
from connector.infra.net.http_client import Reply
from connector.management import search


class Says:
    """A network where a catalogue gives one answer."""

    def __init__(self, status: int, body: Any) -> None:
        self._reply = Reply(status, {}, body if isinstance(body, bytes) else json.dumps(body).encode())

    async def call(self, method: str, url: str, **_: Any) -> Reply:
        assert (method, url) == ("GET", "http://catalogue/api/v1/search?q=x")
        return self._reply


async def ask(status: int, body: Any) -> dict[str, Any]:
    net: Any = Says(status, body)
    nobody: Any = None
    return await search.ask(net, nobody, "q=x", catalogue_url="http://catalogue/", operator="")


async def test_an_answer_is_passed_on() -> None:
    assert await ask(200, {"results": []}) == {"results": []}


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b"[" * 60_000], ids=["none", "nonsense", "a list", "nested"])
async def test_an_answer_that_is_no_object_is_told_as_that(body: bytes) -> None:
    with pytest.raises(PeerNonsense, match="expected JSON from the catalogue"):
        await ask(200, body)


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (400, {"code": "bad_input", "detail": "narrow the search"}, Invalid, "the catalogue says: narrow the search"),
        (403, {"code": "not_a_member", "detail": "members only"}, PeerRefused, "the catalogue says: members only"),
        (500, ["?"], PeerNonsense, "came status 500"),
    ],
)
async def test_a_question_that_it_does_not_take_is_for_its_asker_to_mend(
    status: int, body: Any, kind: type[ConnectorError], said: str
) -> None:
    with pytest.raises(kind, match=said) as refused:
        await ask(status, body)
    assert type(refused.value) is kind
    assert not isinstance(body, dict) or refused.value.code == body["code"]


async def test_who_is_no_member_there_sees_what_everybody_does() -> None:
    class Strict:
        async def call(self, _: str, __: str, *, headers: dict[str, str] | None = None) -> Reply:
            status, body = (401, {"detail": "not admitted"}) if headers else (200, {"results": ["public"]})
            return Reply(status, {}, json.dumps(body).encode())

    class Signs:
        async def mint(self, operator: str) -> str:
            return f"for {operator}"

    net: Any = Strict()
    identity: Any = Signs()
    found = await search.ask(net, identity, "q=x", catalogue_url="http://catalogue/", operator="did:web:op")
    assert found == {"results": ["public"]}
