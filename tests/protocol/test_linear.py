"""Whoever sends twice as much may cost us twice as much, never four times: what strangers send is read in about linear
time. Told by the ratio of two sizes in one run, whatever the machine."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from contextlib import suppress
from statistics import median
from typing import Any

import pytest

from catalogue.crawl.entry import read_dataset
from connector.dataplane.http.schemas import parse_envelope
from connector.dsp import agreement_terms, messages
from connector.errors import ConnectorError, harmless
from connector.identity import did, self_issued_token
from policies.errors import PolicyError
from policies.odrl import reader

_TIMES, _ROUNDS = 5, 3
_RATIO = 4  # of the sizes
_MOST = 9.0  # of the times: something linear takes 4 of them, something quadratic 16
CONTEXT = "https://w3id.org/dspace/2025/1/context.jsonld"


def message(offer: Any = (), context: Any = (), **more: Any) -> bytes:
    wire = {"@context": [CONTEXT, *context], "@type": "ContractRequestMessage", "consumerPid": "c",
            "callbackAddress": "https://c.example", "offer": offer, **more}  # fmt: skip
    return json.dumps(wire).encode()


def offer(**rules: Any) -> dict[str, Any]:
    return {"@id": "o", "@type": "Offer", "target": "t", **rules}


def constraint(value: Any = "1") -> dict[str, Any]:
    return {"leftOperand": "count", "operator": "lteq", "rightOperand": value}


def many(count: int, of: str = "a") -> list[str]:
    return [f"{of}{index}" for index in range(count)]


def use(count: int, **more: Any) -> dict[str, Any]:
    return {"action": ["use"] * count, **more}


def twice(count: int) -> bytes:
    return ("{" + "".join(f'"{name}":0,' for name in many(count)) + f'"a{count - 1}":0}}').encode()


def prefixes(count: int) -> list[dict[str, str]]:
    return [dict.fromkeys(many(count, "p"), "urn:x:")]


def prefix(length: int) -> list[dict[str, str]]:
    return [{"p": f"urn:{'x' * length}:"}]


MESSAGES: dict[str, Callable[[int], bytes]] = {
    "a member given twice": lambda n: twice(8 * n),
    "prefixes and values": lambda n: message([1] * n, prefixes(n)),
    "prefixes and offers": lambda n: message([{}] * n, prefixes(n)),
    "members under one long prefix": lambda n: message(offer(), prefix(20 * n), **dict.fromkeys(many(n, "p:"), 0)),
    "names of an offer under one long prefix": lambda n: message(offer(permission=[use(1), {"action": many(n, "p:")}]),
                                                                 prefix(20 * n)),
    "types under one long prefix": lambda n: message(offer(), prefix(20 * n), **{"@type": many(n, "p:")}),
    "actions and constraints": lambda n: message(offer(permission=[use(n, constraint=[constraint()] * n)])),
    "actions and values": lambda n: message(offer(permission=[use(n, constraint=[constraint(many(n))])])),
    "actions and duties": lambda n: message(offer(permission=[use(n, duty=[{"action": "inform"}] * n)])),
    "actions of a duty": lambda n: message(offer(permission=[use(1, duty=[use(n, constraint=[constraint()] * n)])])),
    "rules": lambda n: message(offer(permission=[use(1, constraint=[constraint(str(i))]) for i in range(n // 2)])),
    "one or the other": lambda n: message(offer(permission=[use(1, constraint=[{"xone": [constraint()] * n}])])),
    "targets": lambda n: message(offer(permission=[use(1, target=one) for one in many(n)])),
    "ids": lambda n: message(offer(permission=[use(1, **{"@id": one}) for one in many(n)])),
    "lists in lists": lambda n: message(offer(permission=[{"@list": [{"@list": [use(1)]}] * n}])),
    "reasons": lambda n: message(offer(), reason=["://" * n] * 20),
    "properties of an address": lambda n: message(
        offer(), dataAddress={"endpointType": "t", "endpointProperties": [{"name": "n", "value": "v"}] * n}
    ),
}  # fmt: skip


def dataset(**more: Any) -> dict[str, Any]:
    return {"@id": "urn:d", "hasPolicy": [offer(permission=[use(1)])], "distribution": [{"format": "f"}], **more}


DATASETS: dict[str, Callable[[int], dict[str, Any]]] = {
    "accents": lambda n: dataset(title="a" + "\u0301\u0316" * n, **{"dct:description": "a\u0f73" + "\u0f73" * n}),
    "columns": lambda n: dataset(**{"hanse:columns": [{"name": one} for one in many(n)]}),
    "members of ours": lambda n: dataset(**{f"https://w3id.org/hanse/{one}/columns": 0 for one in many(n)}),
    "keywords": lambda n: dataset(**{"dcat:keyword": many(n)}),
    "languages": lambda n: dataset(**{"dct:language": many(n, "de-")}),
    "offers": lambda n: dataset(hasPolicy=[offer(permission=[use(1)])] * n),
    "actions and constraints": lambda n: dataset(
        hasPolicy=[offer(permission=[use(n // 8, constraint=[constraint()] * (n // 16))])]
    ),
    "purposes": lambda n: dataset(hasPolicy=[offer(permission=[use(1, constraint=[
        {"leftOperand": "purpose", "operator": "isAnyOf", "rightOperand": many(n // 2)}])])]),
}  # fmt: skip

KEY = {"kty": "EC", "crv": "P-256", "x": "x", "y": "y"}
OTHERS: dict[str, tuple[Callable[[int], Any], Callable[[Any], object]]] = {
    "a query's members": (lambda n: twice(n), parse_envelope),
    "a query's text": (lambda n: json.dumps({"sql": "select" * 100 * n}).encode(), parse_envelope),
    "words with addresses": (lambda n: "https://a\x00" * n, harmless),
    "a token": (lambda n: "." * (8 * n), lambda text: self_issued_token.claimed_issuer(text, audience="did:web:us")),
    "keys of a document": (
        lambda n: {"assertionMethod": many(n, "#"),
                   "verificationMethod": [{"id": one, "publicKeyJwk": KEY} for one in many(n, "#")]},
        lambda document: did._read_document(document, "did:web:them"),
    ),
}  # fmt: skip


def judged(body: bytes) -> None:
    """A request as it is read and compared before anything is stored."""
    asked = messages.read(body, messages.ContractRequestMessage, messages.TransferRequestMessage)
    assert isinstance(asked, messages.ContractRequestMessage)
    read = agreement_terms.read_offer(asked.offer or {})
    reader.digest(read)
    agreement_terms.received_offer_wire(read, target="t", compared_with={})


def seconds(work: Callable[[Any], object], given: Any) -> float:
    began = time.thread_time()
    with suppress(ConnectorError, PolicyError):
        work(given)
    return time.thread_time() - began


def assert_linear(work: Callable[[Any], object], small: Any, large: Any) -> None:
    """Medians of one run each; a round that something else has disturbed is had again."""
    ratios = []
    gc.disable()
    try:
        for _ in range(_ROUNDS):
            pairs = [(seconds(work, small), seconds(work, large)) for _ in range(_TIMES)]
            ratios.append(median(two for _, two in pairs) / max(median(one for one, _ in pairs), 20e-6))
            if ratios[-1] < _MOST:
                return
    finally:
        gc.enable()
    pytest.fail(f"{_RATIO} times as much takes {', '.join(f'{ratio:.1f}' for ratio in ratios)} times as long")


@pytest.mark.parametrize("make", MESSAGES.values(), ids=MESSAGES)
def test_messages_are_read_in_linear_time(make: Callable[[int], bytes]) -> None:
    assert_linear(judged, make(300), make(300 * _RATIO))


@pytest.mark.parametrize("make", DATASETS.values(), ids=DATASETS)
def test_datasets_of_others_are_read_in_linear_time(make: Callable[[int], dict[str, Any]]) -> None:
    assert_linear(lambda raw: read_dataset(raw, participant="did:web:them"), make(1_000), make(1_000 * _RATIO))


@pytest.mark.parametrize(("make", "work"), OTHERS.values(), ids=OTHERS)
def test_whatever_else_strangers_send_is_read_in_linear_time(
    make: Callable[[int], Any], work: Callable[[Any], object]
) -> None:
    assert_linear(work, make(400), make(400 * _RATIO))


def test_a_name_stands_for_no_more_than_a_name_may_have() -> None:
    """Of memory, too: each name would be as long as the IRI of its prefix."""
    for context in (prefix(300), prefixes(101)):
        with pytest.raises(messages.MessageInvalid, match="prefixes"):
            messages.read(message(offer(), context), messages.ContractRequestMessage)
        with pytest.raises(PolicyError, match="prefixes"):
            reader.read({"@context": context, **offer(permission=[use(1)])})
