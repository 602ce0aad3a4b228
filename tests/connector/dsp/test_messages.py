"""Messages: one meaning in many spellings is read, one spelling is written, and nothing else is let in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.dsp import jsonld, messages
from connector.dsp.messages import (
    CatalogError,
    CatalogRequestMessage,
    ContractAgreementMessage,
    ContractAgreementVerificationMessage,
    ContractNegotiation,
    ContractNegotiationError,
    ContractNegotiationEventMessage,
    ContractNegotiationTerminationMessage,
    ContractOfferMessage,
    ContractRequestMessage,
    DataAddress,
    DatasetRequestMessage,
    Message,
    TransferCompletionMessage,
    TransferError,
    TransferProcess,
    TransferRequestMessage,
    TransferStartMessage,
    TransferSuspensionMessage,
    TransferTerminationMessage,
)
from connector.errors import MessageInvalid
from policies.odrl import reader as policy_jsonld
from tests.support import wire_check

C, P = "urn:uuid:c", "urn:uuid:p"
DSPACE = "https://w3id.org/dspace/2025/1/"
OFFER = {"@id": "offer:1", "@type": "Offer", "target": "urn:d", "permission": [{"action": "use"}]}
AGREEMENT = {**OFFER, "@type": "Agreement", "assigner": "did:web:p", "assignee": "did:web:c",
             "timestamp": "2026-01-15T10:30:00Z"}  # fmt: skip
ADDRESS = DataAddress("https://w3id.org/idsa/v4.1/HTTP", "https://p.example/x", (("authType", "bearer"),))
PIDS = {"consumer_pid": C, "provider_pid": P}

EVERY: list[Message] = [
    ContractRequestMessage(consumer_pid=C, offer=OFFER, callback_address="https://c.example/dsp"),
    ContractRequestMessage(**PIDS, offer=OFFER),
    ContractOfferMessage(provider_pid=P, offer=OFFER, callback_address="https://p.example/dsp"),
    ContractOfferMessage(**PIDS, offer=OFFER),
    ContractAgreementMessage(**PIDS, agreement=AGREEMENT),
    ContractAgreementVerificationMessage(**PIDS, id="urn:uuid:message"),
    ContractNegotiationEventMessage(**PIDS, event_type="ACCEPTED"),
    ContractNegotiationEventMessage(**PIDS, event_type="FINALIZED"),
    ContractNegotiationTerminationMessage(**PIDS, code="policy", reason=("no",)),
    ContractNegotiationTerminationMessage(**PIDS),
    ContractNegotiation(**PIDS, state="REQUESTED"),
    ContractNegotiationError(**PIDS, code="illegal", reason=("no", "never")),
    TransferRequestMessage(
        consumer_pid=C, agreement_id="a", format="HttpData-PULL", callback_address="https://c.example"
    ),
    TransferRequestMessage(
        consumer_pid=C,
        agreement_id="a",
        format="HttpData-PUSH",
        callback_address="https://c.example",
        data_address=ADDRESS,
        purpose="https://w3id.org/dpv#ScientificResearch",
    ),
    TransferStartMessage(**PIDS, data_address=ADDRESS),
    TransferStartMessage(**PIDS),
    TransferCompletionMessage(**PIDS),
    TransferSuspensionMessage(**PIDS, code="1", reason=("back soon",)),
    TransferTerminationMessage(**PIDS, code="1"),
    TransferProcess(**PIDS, state="STARTED"),
    TransferError(**PIDS, code="x", reason=("y",)),
    CatalogRequestMessage(),
    DatasetRequestMessage(dataset="urn:d"),
    CatalogError(code="404", reason=("no such dataset",)),
]


@pytest.mark.parametrize("message", EVERY, ids=lambda message: message.step)
def test_every_message_is_written_as_its_schema_wants_and_read_back_the_same(message: Message) -> None:
    wire = message.to_wire()
    wire_check.check(wire)
    assert messages.read(json.dumps(wire), type(message)) == message


def test_a_context_beside_a_graph_is_its_messages_too() -> None:
    node = {"@type": "x:ContractNegotiationEventMessage", "x:consumerPid": C, "x:providerPid": P, "x:eventType": "OK"}
    wire = {"@context": {"x": DSPACE}, "@graph": [node]}
    assert messages.read(json.dumps(wire), ContractNegotiationEventMessage).consumer_pid == C


def test_every_type_of_the_published_schemas_has_a_class() -> None:
    known = {name for name in wire_check.schemas() if name not in ("Catalog", "Dataset")}
    assert known <= {
        name for name, kind in vars(messages).items() if isinstance(kind, type) and issubclass(kind, Message)
    }


def expanded(wire: dict[str, Any]) -> list[dict[str, Any]]:
    """A message as a JSON-LD processor expands it (members that it uses in these tests)."""
    iris = {"consumerPid", "providerPid", "agreementId"}
    found: dict[str, Any] = {"@type": [DSPACE + wire["@type"]]}
    for key, value in wire.items():
        if key == "eventType":
            found[DSPACE + key] = [{"@id": DSPACE + value}]
        elif key in iris:
            found[DSPACE + key] = [{"@id": value}]
        elif key == "format":
            found["http://purl.org/dc/terms/format"] = [{"@id": value}]
        elif key == "reason":
            found[DSPACE + key] = [{"@value": one} for one in value]
        elif not key.startswith("@"):
            found[DSPACE + key] = [{"@value": value}]
    return [found]


def prefixed(wire: dict[str, Any], prefix: str) -> dict[str, Any]:
    """A message with a prefix on everything, as older peers write it."""
    context = [wire["@context"], {prefix: DSPACE}] if prefix != "dspace" else wire["@context"]
    rest = {f"{prefix}:{key}": value for key, value in wire.items() if not key.startswith("@")}
    if "format" in wire:
        rest["dct:format"] = rest.pop(f"{prefix}:format")
    if "eventType" in wire:
        rest[f"{prefix}:eventType"] = f"{prefix}:{wire['eventType']}"
    return {"@context": context, "@type": f"{prefix}:{wire['@type']}", **rest}


PLAIN = [message for message in EVERY if not {"offer", "agreement", "dataAddress", "@id"} & set(message.to_wire())]
PLAIN = [message for message in PLAIN if message.step.partition(":")[0] not in ("CatalogRequestMessage",)]


@pytest.mark.parametrize("message", PLAIN, ids=lambda message: message.step)
def test_expanded_and_prefixed_spellings_mean_the_same(message: Message) -> None:
    wire = message.to_wire()
    spellings: list[Any] = [
        expanded(wire),
        {"@graph": expanded(wire)},
        prefixed(wire, "dspace"),
        prefixed(wire, "x"),
        {**wire, "@context": "https://w3id.org/dspace/2025/1/context.jsonld"},
        {**wire, "@type": [wire["@type"]]},
        {key: value for key, value in wire.items() if key != "@context"},
        {**wire, "unknown": {"deep": [1, 2]}, "ex:more": None},
    ]
    for spelling in spellings:
        assert messages.read(json.dumps(spelling), type(message)) == message, spelling


def test_policies_inside_expanded_messages_keep_their_meaning() -> None:
    odrl = "http://www.w3.org/ns/odrl/2/"
    wire = [
        {
            "@type": [DSPACE + "ContractOfferMessage"],
            DSPACE + "providerPid": [{"@id": P}],
            DSPACE + "consumerPid": [{"@id": C}],
            DSPACE + "offer": [
                {
                    "@id": "offer:1",
                    "@type": [odrl + "Offer"],
                    odrl + "target": [{"@id": "urn:d"}],
                    odrl + "permission": [{odrl + "action": [{"@id": odrl + "use"}]}],
                }
            ],
        }
    ]
    read = messages.read(json.dumps(wire), ContractOfferMessage)
    assert read.offer is not None
    assert policy_jsonld.read(read.offer) == policy_jsonld.read(OFFER)


def test_a_prefix_that_the_message_defines_holds_inside_its_policy_too() -> None:
    wire = {
        "@context": [*messages.ContractOfferMessage().to_wire()["@context"], {"o": "http://www.w3.org/ns/odrl/2/"}],
        "@type": "ContractOfferMessage",
        "providerPid": P,
        "consumerPid": C,
        "offer": {"@id": "offer:1", "@type": "o:Offer", "o:target": "urn:d", "o:permission": [{"o:action": "o:use"}]},
    }
    read = messages.read(json.dumps(wire), ContractOfferMessage)
    assert policy_jsonld.read(read.offer or {}) == policy_jsonld.read(OFFER)


def test_data_addresses_are_read_in_every_form() -> None:
    start = TransferStartMessage(**PIDS, data_address=ADDRESS)
    wire = start.to_wire()
    bare = {"endpointType": ADDRESS.endpoint_type, "endpoint": ADDRESS.endpoint,
            "endpointProperties": {"name": "authType", "value": "bearer"}}  # fmt: skip
    full = {
        "@type": [DSPACE + "DataAddress"],
        DSPACE + "endpointType": [{"@id": ADDRESS.endpoint_type}],
        DSPACE + "endpoint": [{"@value": ADDRESS.endpoint}],
        DSPACE + "endpointProperties": [
            {DSPACE + "name": [{"@value": "authType"}], DSPACE + "value": [{"@value": "bearer"}]}
        ],
    }
    for form in (bare, full, [full]):
        assert messages.read(json.dumps({**wire, "dataAddress": form}), TransferStartMessage) == start


EDC = "https://w3id.org/edc/v0.0.1/ns/"


@pytest.mark.parametrize(
    ("named", "endpoint", "properties"),
    [
        (
            {f"{EDC}endpoint": "https://p.example/x", f"{EDC}authorization": "t", f"{EDC}authType": "bearer"},
            "https://p.example/x",
            {"endpoint": "https://p.example/x", "authorization": "t", "authType": "bearer"},
        ),
        ({"endpoint": "https://p.example/x"}, "https://p.example/x", {"endpoint": "https://p.example/x"}),
        (
            {f"{EDC}baseUrl": "https://p.example/in", f"{EDC}authKey": "X-Api-Key", f"{EDC}authCode": "t"},
            "https://p.example/in",
            {"baseUrl": "https://p.example/in", "authKey": "X-Api-Key", "authCode": "t"},
        ),
        ({"authorization": "bare", f"{EDC}authorization": "prefixed"}, "", {"authorization": "bare"}),
        ({"https://other.example/endpoint": "https://p.example/x"}, "", {"https://other.example/endpoint": "https://p.example/x"}),
    ],
    ids=["pull", "bare", "push", "both", "another prefix"],
)  # fmt: skip
def test_data_addresses_in_the_names_of_edc(named: dict[str, str], endpoint: str, properties: dict[str, str]) -> None:
    wire = {"endpointType": "HttpData", "endpointProperties": [{"name": n, "value": v} for n, v in named.items()]}
    read = messages.read_data_address(wire)
    assert read is not None
    assert (read.endpoint, dict(read.properties)) == (endpoint, properties)
    assert messages.address_of(read.to_wire()) == read


def test_the_member_endpoint_counts_before_a_property() -> None:
    wire = {**ADDRESS.to_wire(), "endpointProperties": [{"name": f"{EDC}endpoint", "value": "https://q.example"}]}
    read = messages.read_data_address(wire)
    assert read is not None
    assert read.endpoint == ADDRESS.endpoint


def test_an_endpoint_in_a_property_is_checked_like_the_member() -> None:
    with pytest.raises(MessageInvalid, match="dataAddress"):
        messages.read_data_address(
            {
                "endpointType": "HttpData",
                "endpointProperties": [{"name": f"{EDC}baseUrl", "value": "https://u:p@h.example"}],
            }
        )


BASE = ContractRequestMessage(consumer_pid=C, offer=OFFER, callback_address="https://c.example").to_wire()
REFUSED: dict[str, Any] = {
    "no JSON": b"\xff\xfe",
    "not an object": [],
    "two objects": [BASE, BASE],
    "a number": 7,
    "another type": {**BASE, "@type": "ContractOfferMessage"},
    "no type": {key: value for key, value in BASE.items() if key != "@type"},
    "no pid": {**BASE, "consumerPid": None},
    "an empty pid": {**BASE, "consumerPid": ""},
    "a pid that is a number": {**BASE, "consumerPid": 7},
    "two pids": {**BASE, "consumerPid": ["a", "b"]},
    "a pid beyond every database": {**BASE, "consumerPid": "x" * 256},
    "a pid with NUL": {**BASE, "consumerPid": "a\0b"},
    "a lone surrogate": b'{"@type": "ContractRequestMessage", "consumerPid": "\\ud800"}',
    "an offer that is a text": {**BASE, "offer": "offer:1"},
    "not a number": b'{"@type": "ContractRequestMessage", "consumerPid": NaN}',
    "infinite": b'{"@type": "ContractRequestMessage", "consumerPid": 1e999}',
    "too deep": b"[" * 70 + b"]" * 70,
    "far too deep": b"[" * 100_000,
    "too many values": json.dumps([0] * 60_000).encode(),
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_the_message_is_refused_with_a_reason(body: Any) -> None:
    text = body if isinstance(body, bytes) else json.dumps(body)
    with pytest.raises(MessageInvalid, match="expected"):
        messages.read(text, ContractRequestMessage)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["@id", "@type", "@value", "@list", "@context", "consumerPid", "dspace:offer", "reason", "x"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_no_json_whatsoever_makes_reading_fail_in_another_way(document: Any) -> None:
    for kind in (ContractRequestMessage, TransferStartMessage, ContractNegotiationTerminationMessage):
        body = document if not isinstance(document, dict) else {"@type": kind.__name__, "consumerPid": "c", **document}
        try:
            messages.read_document(jsonld.parse(json.dumps(body)), kind)
        except MessageInvalid:
            continue


@pytest.mark.parametrize(
    ("endpoint", "properties", "refused"),
    [
        ("x" * 8_000, [], ""),
        ("x" * 8_001, [], "at most 8000 characters in its endpoint, got 8001"),
        ("x", ["v"] * 51, "at most 50 endpointProperties, got 51"),
        ("x" * 8_000, ["v" * 8_400], "at most 16384 characters, endpoint and endpointProperties together, got 16401"),
    ],
    ids=["as long as may be", "longer", "many properties", "too much of both"],
)
def test_a_data_address_that_is_too_large_is_told_by_how_much(
    endpoint: str, properties: list[str], refused: str
) -> None:
    named = [{"name": "n", "value": value} for value in properties]
    wire = {"endpointType": "t", "endpoint": endpoint, "endpointProperties": named}
    if not refused:
        assert messages.read_data_address(wire) is not None
        return
    with pytest.raises(MessageInvalid, match=refused):
        messages.read_data_address(wire)


def test_reasons_of_every_shape_become_texts() -> None:
    read = messages.read_document(
        {"@type": "TransferTerminationMessage", "consumerPid": C, "providerPid": P,
         "reason": [{"@value": "a", "@language": "en"}, {"detail": 1}, "b"]},
        TransferTerminationMessage,
    )  # fmt: skip
    assert read.reason == ("a", '{"detail": 1}', "b")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", ("", "")),
        (b"<html>", ("", "")),
        (json.dumps(EVERY[11].to_wire()).encode(), ("illegal", "no; never")),
        (b'{"detail": "problem json", "code": "c"}', ("c", "problem json")),
        (b'{"reason": null, "code": 7}', ("", "")),
        (rb'{"reason": ["\u001b[2J no"], "code": "\u202e"}', (r"\u202e", r"\u001b[2J no")),
    ],
)
def test_error_replies_are_read_as_far_as_they_say_something(body: bytes, expected: tuple[str, str]) -> None:
    assert messages.read_problem(body) == expected


@pytest.mark.parametrize(
    ("endpoint", "properties", "expected"),
    [
        ("https://p.example/data/v1/", (), "https://p.example/data/v1"),
        ("grpc+tls://p.example:9000", (("http", "https://p.example/data/v1"),), "https://p.example/data/v1"),
    ],
)
def test_an_address_of_another_transport_says_where_http_is(
    endpoint: str, properties: tuple[tuple[str, str], ...], expected: str
) -> None:
    assert DataAddress("x", endpoint, properties).http == expected


def test_a_member_that_stands_twice_is_refused_by_name() -> None:
    body = '{"@type": "ContractRequestMessage", "offer": {"permission": [], "prohibition": [{}], "prohibition": []}}'
    with pytest.raises(MessageInvalid, match="'prohibition' twice"):
        jsonld.parse(body)


@pytest.mark.parametrize(
    ("beside", "refused"),
    [
        ({"dspace:consumerPid": "other"}, True),
        ({"https://w3id.org/dspace/2025/1/consumerPid": [{"@value": "other"}]}, True),
        ({"dspace:offer": {"@type": "Offer", "@id": "other"}}, True),
        ({"dspace:consumerPid": {"@id": "one"}}, False),  # the same, said twice
        ({"id": "other", "type": "Submodel"}, False),  # beside the keywords: members of somebody's own
    ],
)
def test_a_member_under_two_spellings_says_one_thing(beside: dict[str, Any], refused: bool) -> None:
    offer = {"@type": "Offer", "@id": "offer"}
    body = {"@id": "mine", "@type": "ContractRequestMessage", "consumerPid": "one", "offer": offer, **beside}
    if refused:
        with pytest.raises(MessageInvalid, match="two spellings with different values"):
            messages.read_document(body, ContractRequestMessage)
    else:
        read = messages.read_document(body, ContractRequestMessage)
        assert (read.id, read.consumer_pid) == ("mine", "one")


def test_an_address_of_edcs_type_has_its_names_with_and_without_the_prefix() -> None:
    named = (("baseUrl", "https://a.example/sink"), ("authKey", "Authorization"), ("authCode", "t"), ("maxBytes", "9"))
    wire = messages.DataAddress("HttpData", "https://a.example/sink", named).to_wire()
    found = [(one["name"], one["value"]) for one in wire["endpointProperties"]]
    assert found == [*named, *((f"https://w3id.org/edc/v0.0.1/ns/{name}", value) for name, value in named[:3])]
    again = messages.address_of(wire)
    assert again is not None
    assert again.properties == named
