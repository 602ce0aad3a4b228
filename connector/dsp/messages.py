"""One class per message of the protocol, read leniently and written strictly. Pure: no database, no network.

`read(body)` takes the compact form of the 2025-1 context, prefixed names, and expanded JSON-LD; unknown members are
ignored. `to_wire()` writes the one form that the published schemas accept and the context expands as meant.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from connector import urls
from connector.dsp import jsonld
from connector.dsp.jsonld import CONTEXT, Json
from connector.errors import MessageInvalid, harmless

ID_MAX = 255
_TEXT_MAX = 2_000
_REASONS_MAX = 20
_PROPERTIES_MAX, _ADDRESS_MAX = 50, 16 * 2**10  # of a data address; characters of all of it
_ENDPOINT_MAX = 8_000  # characters: as much as servers take; signed ones of stores have tokens of thousands
_PURPOSE = "http://www.w3.org/ns/odrl/2/purpose"

# Field to term; the terms are the context's, and all but these two kinds are texts.
_WIRE = {
    "id": "@id",
    "consumer_pid": "consumerPid",
    "provider_pid": "providerPid",
    "callback_address": "callbackAddress",
    "event_type": "eventType",
    "agreement_id": "agreementId",
    "data_address": "dataAddress",
    "purpose": "odrl:purpose",
}
_IDS = frozenset({"id", "consumer_pid", "provider_pid", "agreement_id", "dataset"})


@dataclass(frozen=True, slots=True)
class DataAddress:
    """Where data is, or is to be sent. `properties` are name and value, `authorization` among them."""

    endpoint_type: str
    endpoint: str = ""
    properties: tuple[tuple[str, str], ...] = ()

    def get(self, name: str) -> str:
        """The value of a property, or nothing."""
        return dict(self.properties).get(name, "")

    @property
    def http(self) -> str:
        """Where HTTP is spoken: the endpoint, unless that is of another transport and the address says where."""
        return (self.get("http") or self.endpoint).rstrip("/")

    def to_wire(self) -> Json:
        wire: Json = {"@type": "DataAddress", "endpointType": self.endpoint_type}
        if self.endpoint:
            wire["endpoint"] = self.endpoint
        if self.properties:
            wire["endpointProperties"] = [
                {"@type": "EndpointProperty", "name": name, "value": value} for name, value in self.properties
            ]
        return wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What all messages share. `id` is the message's own, by which a repeated delivery is recognised."""

    REQUIRED: ClassVar[tuple[str, ...]] = ()
    id: str = ""

    @property
    def kind(self) -> str:
        """The message's `@type`."""
        return type(self).__name__

    @property
    def step(self) -> str:
        """The message's name in the state tables."""
        return self.kind

    def to_wire(self) -> Json:
        """Compact JSON, valid against the schema of this message; what is empty is left out."""
        wire: Json = {"@context": [CONTEXT], "@type": self.kind}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, DataAddress):
                value = value.to_wire()
            if value not in ("", (), None):
                wire[_WIRE.get(entry.name, entry.name)] = list(value) if isinstance(value, tuple) else value
        return wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered(Message):
    """A message of a process, which both sides have numbered."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("consumer_pid", "provider_pid")
    consumer_pid: str = ""
    provider_pid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoned(Numbered):
    """A message that may say why."""

    code: str = ""
    reason: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractRequestMessage(Numbered):
    """A first request (with `callback_address`), or a counter-offer (with `provider_pid`): never both."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("consumer_pid", "offer")
    offer: Json | None = None
    callback_address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractOfferMessage(Numbered):
    """A provider's first word (with `callback_address`), or its answer (with `consumer_pid`): never both."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("provider_pid", "offer")
    offer: Json | None = None
    callback_address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractAgreementMessage(Numbered):
    REQUIRED: ClassVar[tuple[str, ...]] = ("consumer_pid", "provider_pid", "agreement")
    agreement: Json | None = None


class ContractAgreementVerificationMessage(Numbered):
    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractNegotiationEventMessage(Numbered):
    REQUIRED: ClassVar[tuple[str, ...]] = ("consumer_pid", "provider_pid", "event_type")
    event_type: str = ""

    @property
    def step(self) -> str:
        return f"{self.kind}:{self.event_type}"


class ContractNegotiationTerminationMessage(Reasoned):
    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractNegotiation(Numbered):
    """The reply that tells a negotiation's state."""

    state: str = ""


class ContractNegotiationError(Reasoned):
    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRequestMessage(Message):
    """`data_address` is for push formats only; `purpose` binds the transfer to one declared purpose."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("consumer_pid", "agreement_id", "format", "callback_address")
    consumer_pid: str = ""
    agreement_id: str = ""
    format: str = ""
    data_address: DataAddress | None = None
    callback_address: str = ""
    purpose: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferStartMessage(Numbered):
    """`data_address` comes with a provider's start of a pull transfer."""

    data_address: DataAddress | None = None


class TransferCompletionMessage(Numbered):
    __slots__ = ()


class TransferSuspensionMessage(Reasoned):
    __slots__ = ()


class TransferTerminationMessage(Reasoned):
    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferProcess(Numbered):
    """The reply that tells a transfer's state."""

    state: str = ""


class TransferError(Reasoned):
    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogRequestMessage(Message):
    filter: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRequestMessage(Message):
    REQUIRED: ClassVar[tuple[str, ...]] = ("dataset",)
    dataset: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogError(Message):
    code: str = ""
    reason: tuple[str, ...] = ()


M = TypeVar("M", bound=Message)


def read(body: bytes | str, *expected: type[M]) -> M:
    """The message in a body. MessageInvalid says which member is missing or not what it should be."""
    return of(jsonld.parse(body), *expected)


def of(document: Any, *expected: type[M]) -> M:
    """As `read`, from JSON that is parsed already."""
    node = jsonld.node_of(document)
    prefixes = jsonld.prefixes_of(node)
    kind = _kind(node, prefixes, {one.__name__: one for one in expected})
    found = jsonld.members(node, prefixes)
    if _PURPOSE in found:
        found["odrl:purpose"] = found[_PURPOSE]
    values = {entry.name: _field(entry.name, found, prefixes) for entry in fields(kind)}
    message = kind(**{name: value for name, value in values.items() if value is not None})
    for name in kind.REQUIRED:
        if not getattr(message, name):
            raise MessageInvalid(f"expected {_WIRE.get(name, name)} in a {kind.__name__}, came none")
    return message


def _kind(node: Json, prefixes: Mapping[str, str], expected: Mapping[str, type[M]]) -> type[M]:
    named = jsonld.types(node, prefixes)
    for name in named:
        if name in expected:
            return expected[name]
    raise MessageInvalid(f"expected @type {' or '.join(expected)}, came {', '.join(named)[:200] or 'none'}")


def _field(name: str, found: Json, prefixes: Mapping[str, str]) -> Any:
    """The value of a field, or None where the message has none."""
    wire = _WIRE.get(name, name)
    if (raw := found.get(wire)) is None:
        return None
    if name == "reason":
        return _reasons(raw)
    if name == "filter":
        return tuple(jsonld.listed(raw))
    value = jsonld.single(raw)
    if name in ("offer", "agreement"):
        return _object(value, wire)
    if name == "data_address":
        return checked(_address(_object(value, wire), prefixes))
    text = _text(value, wire, longest=ID_MAX if name in _IDS else _TEXT_MAX)
    return jsonld.local(text, prefixes) if name in ("event_type", "state", "format") else text


def _text(value: Any, wire: str, *, longest: int) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        raise MessageInvalid(f"expected {wire} as one text of 1 to {longest} characters")
    return value


def _object(value: Any, wire: str) -> Json:
    if not isinstance(value, dict):
        raise MessageInvalid(f"expected {wire} as one object")
    return value


def _reasons(raw: Any) -> tuple[str, ...]:
    """Whatever somebody calls a reason, as a few bounded texts."""
    items = jsonld.listed(raw)[:_REASONS_MAX]
    return tuple(harmless(item if isinstance(item, str) else json.dumps(item))[:_TEXT_MAX] for item in items)


def _address(value: Json, prefixes: Mapping[str, str]) -> DataAddress:
    properties = []
    for entry in jsonld.listed(value.get("endpointProperties")):
        node = _object(entry, "endpointProperties")
        name, content = jsonld.single(node.get("name")), jsonld.single(node.get("value"))
        properties.append((_text(name, "name", longest=_TEXT_MAX), content if isinstance(content, str) else ""))
    kind = _text(jsonld.single(value.get("endpointType")), "endpointType", longest=_TEXT_MAX)
    endpoint = jsonld.single(value.get("endpoint", ""))
    return DataAddress(
        endpoint_type=jsonld.absolute(kind, prefixes),
        endpoint=endpoint if isinstance(endpoint, str) else "",
        properties=tuple(properties),
    )


def checked(address: DataAddress) -> DataAddress:
    """The address, if its endpoint can be one and its size may be kept as long as its transfer; else MessageInvalid."""
    size = len(address.endpoint) + sum(len(name) + len(value) for name, value in address.properties)
    for came, most, what in (
        (len(address.endpoint), _ENDPOINT_MAX, "characters in its endpoint"),
        (len(address.properties), _PROPERTIES_MAX, "endpointProperties"),
        (size, _ADDRESS_MAX, "characters, endpoint and endpointProperties together"),
    ):
        if came > most:
            raise MessageInvalid(f"expected a dataAddress of at most {most} {what}, came {came}")
    try:
        for endpoint in {address.endpoint, address.http} - {""}:
            urls.check_endpoint(endpoint)
    except ValueError as error:
        raise MessageInvalid(f"dataAddress: {error}") from None
    return address


def given(wire: Json) -> DataAddress | None:
    """A data address as somebody else gives it; None for an empty one, MessageInvalid for one that is no address."""
    return checked(_address(wire, {})) if wire else None


def address_of(wire: Json) -> DataAddress | None:
    """A data address as it was stored; None for an empty one."""
    return _address(wire, {}) if wire else None


def status_of(document: Any) -> Numbered | None:
    """A process object in a reply, if there is one: replies are read as leniently as can be."""
    try:
        return of(document, ContractNegotiation, TransferProcess)
    except MessageInvalid:
        return None


def problem_of(body: bytes) -> tuple[str, str]:
    """Code and reason of a counterparty's error reply, as short texts; empty where it says nothing readable."""
    try:
        node = jsonld.node_of(jsonld.parse(body))
        found = jsonld.members(node, jsonld.prefixes_of(node))
    except MessageInvalid:
        return "", ""
    code = found.get("code")
    texts = [*(_reasons(found["reason"]) if found.get("reason") else ()), found.get("detail")]
    reason = "; ".join(harmless(text) for text in texts if isinstance(text, str) and text)[:_TEXT_MAX]
    return harmless(code)[:ID_MAX] if isinstance(code, str) else "", reason
