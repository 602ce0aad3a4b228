"""Calling counterparties: lenient replies, versions, addresses that are not called."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any

import pytest

from connector.dsp.protocol_client import ProtocolClient, segment
from connector.errors import MessageInvalid, PeerBusy, PeerNonsense, PeerRefused, Unavailable
from connector.infra.net import resolver
from connector.infra.net.http_client import AddressGuard, Reply
from tests.support.minted import minting
from tests.support.own_name import changed

ROOT = "https://198.51.100.7"


class Wire:
    """Answers with what it is given, and keeps what it was asked."""

    def __init__(self, *replies: Reply) -> None:
        self.guard = AddressGuard(allow=("198.51.100.0/24",))
        self.replies = list(replies)
        self.asked: list[tuple[str, str, Mapping[str, str], bytes | None]] = []

    async def call(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        max_bytes: int | None = None,
    ) -> Reply:
        self.asked.append((method, url, headers or {}, body))
        return self.replies.pop(0)


def peer(*replies: Reply) -> tuple[ProtocolClient, Wire]:
    wire = Wire(*replies)
    return ProtocolClient(wire=wire, mint=minting("Bearer for {}")), wire


def versions(*entries: Any) -> Reply:
    return Reply(200, {}, json.dumps({"protocolVersions": entries}).encode())


ACKS = [
    (200, b"", None),
    (204, b"", None),
    (201, b'{"state": "REQUESTED"}', {"state": "REQUESTED"}),
    (202, b"not json", None),
    (200, b"  \n", None),
    (200, b"[" * 1000, None),
]


@pytest.mark.parametrize(("status", "body", "document"), ACKS)
async def test_any_2xx_is_an_acknowledgement(status: int, body: bytes, document: Any) -> None:
    calling, wire = peer(Reply(status, {}, body))
    answer = await calling.post(f"{ROOT}/x", {"a": "é"}, audience="did:web:p")
    assert (answer.accepted, answer.document) == (True, document)
    method, _, headers, sent = wire.asked[0]
    assert (method, headers["Authorization"], sent) == ("POST", "Bearer for did:web:p", '{"a":"é"}'.encode())


async def test_a_refusal_carries_the_reason_that_was_given() -> None:
    error = {"@type": "TransferError", "code": "x", "reason": ["no", {"@value": "never"}]}
    calling, _ = peer(Reply(400, {}, json.dumps(error).encode()))
    answer = await calling.get(f"{ROOT}/x", audience="p")
    assert (answer.accepted, answer.code, answer.reason) == (False, "x", "no; never")
    calling, _ = peer(Reply(403, {}, b"<html>"))
    with pytest.raises(PeerRefused, match="403"):
        await calling.fetch("GET", f"{ROOT}/x", audience="p")


@pytest.mark.parametrize("status", [429, 503])
async def test_a_refusal_for_now_is_one_for_those_who_ask_us_too(status: int) -> None:
    calling, _ = peer(Reply(status, {}, b'{"reason": "signed before this connector started"}'))
    with pytest.raises(PeerBusy, match=f"answered {status}.*signed before") as refused:
        await calling.fetch("POST", f"{ROOT}/x", audience="p", message={})
    assert refused.value.status == 503


async def test_the_version_document_leads_to_the_base_and_is_asked_for_once() -> None:
    entries = ({"version": "2024-1", "path": "/old", "binding": "HTTPS"},
               {"version": "2025-1", "path": "/dsp/", "binding": "HTTPS"})  # fmt: skip
    calling, wire = peer(versions(*entries))
    for _ in range(3):
        assert await calling.base_of(f"{ROOT}/") == f"{ROOT}/dsp"
    assert [(method, url) for method, url, _, _ in wire.asked] == [("GET", f"{ROOT}/.well-known/dspace-version")]
    assert wire.asked[0][2] == {}, "the version document is asked for without a token"


STRANGE = [
    versions(),
    versions({"version": "2024-1", "path": "/old", "binding": "HTTPS"}),
    versions({"version": "2025-1", "path": "/x", "binding": "MQTT"}),
    versions({"version": "2025-1", "path": "@evil.example/x", "binding": "HTTPS"}),
    versions("2025-1"),
    Reply(200, {}, b"[]"),
    Reply(200, {}, b'{"protocolVersions": 7}'),
    Reply(404, {}, b""),
]


@pytest.mark.parametrize("reply", STRANGE)
async def test_where_no_version_of_ours_is_spoken_we_stop(reply: Reply) -> None:
    calling, _ = peer(reply)
    with pytest.raises(PeerNonsense, match="expected Dataspace Protocol 2025-1"):
        await calling.base_of(ROOT)


@pytest.mark.parametrize(
    ("address", "usable"),
    [
        ("https://198.51.100.7/dsp", "https://198.51.100.7/dsp"),
        ("https://198.51.100.7/dsp/", "https://198.51.100.7/dsp"),
        ("https://198.51.100.7:8443", "https://198.51.100.7:8443"),
        ("http://198.51.100.7/dsp", None),  # plain http was not allowed
        ("https://10.0.0.1/dsp", None),
        ("https://[::1]/dsp", None),
        ("https://169.254.169.254/latest", None),
        ("https://198.51.100.7/dsp?x=1", None),
        ("https://198.51.100.7/dsp#x", None),
        ("https://user@198.51.100.7/dsp", None),
        ("https://198.51.100.7:99999/", None),
        ("https:///dsp", None),
        ("ftp://198.51.100.7", None),
        ("/dsp", None),
        ("https://198.51.100.7/" + "x" * 3_000, None),
        ("https://198.51.100.7/ä", None),
    ],
)
async def test_which_callback_addresses_are_taken(address: str, usable: str | None) -> None:
    calling, wire = peer()
    if usable is None:
        with pytest.raises(MessageInvalid):
            await calling.check(address)
    else:
        assert await calling.check(address) == usable
    assert wire.asked == [], "checking calls nobody"


@pytest.mark.parametrize("address", ["http://them.example/dsp", "https://[::1/", "https://user@them.example", "/dsp"])
async def test_what_an_address_is_not_is_told_before_anybody_looks_it_up(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(resolver, "socket", changed(socket, getaddrinfo=None))  # who calls it fails
    with pytest.raises(MessageInvalid, match="expected"):
        await peer()[0].check_theirs(address)


@pytest.mark.parametrize("host", ["10.0.0.1", "nowhere.invalid"])
async def test_what_came_of_looking_up_their_address_is_not_for_them(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    def look_up(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(resolver, "socket", changed(socket, getaddrinfo=look_up))
    for url, check in ((f"https://{host}", peer()[0].check_theirs), (f"https://{host}/?x=1", peer()[0].check_sink)):
        with pytest.raises(MessageInvalid) as caught:
            await check(url)
        expected = f"the address '{url}' cannot be called from here; give a publicly reachable address"
        assert caught.value.message == expected
        assert caught.value.private


async def test_where_no_name_server_answers_their_address_may_be_good_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(resolver, "socket", changed(socket, getaddrinfo=look_up))
    with pytest.raises(Unavailable):
        await peer()[0].check_theirs("https://them.example/dsp")


@pytest.mark.parametrize(
    ("identifier", "written"),
    [("urn:uuid:1", "urn:uuid:1"), ("a/b", "a%2Fb"), ("a b?c#d", "a%20b%3Fc%23d"), ("..", ".."), ("ä", "%C3%A4")],
)
def test_an_identifier_is_one_segment_of_a_path(identifier: str, written: str) -> None:
    assert segment(identifier) == written
