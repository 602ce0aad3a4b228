"""One class per message of the protocol, read leniently and written strictly. Pure: no database, no network.

`read(body)` takes the compact form of the 2025-1 context, prefixed names, and expanded JSON-LD; unknown members are
ignored. `to_wire()` writes the one form that the published schemas accept and the context expands as meant.

`read_document` checks members by hand. Only tests use the JSON schemas in `dsp/schemas`, to check `to_wire()`;
the contexts in it give `jsonld` the terms.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from connector import urls
from connector.dsp import jsonld
from connector.dsp.jsonld import CONTEXT, Json
from connector.errors import MessageInvalid, harmless
from policies.odrl.strictjson import list_of

ID_MAX = 255
_TEXT_MAX = 2_000
_REASONS_MAX = 20
_PROPERTIES_MAX, _ADDRESS_MAX = 50, 16 * 2**10  # of a data address; characters of all of it
_ENDPOINT_MAX = 8_000  # characters: as much as servers take; signed ones of stores have tokens of thousands
_PURPOSE = "http://www.w3.org/ns/odrl/2/purpose"
EDC = "https://w3id.org/edc/v0.0.1/ns/"  # the prefix of Eclipse EDC's property names, which it may leave out
EDC_HTTP = "HttpData"  # EDC's type of an HTTP address
_PREFIXED = ("baseUrl", "authKey", "authCode")  # properties of such an address (EDC, HttpDataAddressSchema)
_EDC_CONTEXT = "https://w3id.org/edc/dspace/v0.0.1"
_ENDPOINT_NAMES = ("endpoint", "baseUrl")  # properties in which EDC states the endpoint

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
    """The address at which data is read, or to which it is pushed. `properties`: pairs of name and value."""

    endpoint_type: str
    endpoint: str = ""
    properties: tuple[tuple[str, str], ...] = ()

    def get(self, name: str) -> str:
        """The value of a property; empty where it has none."""
        return dict(self.properties).get(name, "")

    @property
    def http(self) -> str:
        """The HTTP base: the property `http` of an address for another transport, else the endpoint."""
        return (self.get("http") or self.endpoint).rstrip("/")

    def to_wire(self) -> Json:
        wire: Json = {"@type": "DataAddress", "endpointType": self.endpoint_type}
        if self.endpoint:
            wire["endpoint"] = self.endpoint
        if self.properties:
            wire["endpointProperties"] = [
                {"@type": "EndpointProperty", "name": name, "value": value} for name, value in self._list_properties()
            ]
        return wire

    def _list_properties(self) -> Iterator[tuple[str, str]]:
        """The properties. EDC reads those of its own type of address with its prefix only."""
        yield from self.properties
        if self.endpoint_type == EDC_HTTP:
            yield from ((f"{EDC}{name}", value) for name, value in self.properties if name in _PREFIXED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Any message of the protocol. `id` is the message's own; a repeated delivery has the same one."""

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
        """Compact JSON-LD, valid against the schema of this message, without empty members."""
        wire: Json = {"@context": [CONTEXT], "@type": self.kind}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, DataAddress):
                value = value.to_wire()
            if value not in ("", (), None):
                wire[_WIRE.get(entry.name, entry.name)] = list(value) if isinstance(value, tuple) else value
        return wire


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMessage(Message):
    """A message of a negotiation or transfer, with the pids of both sides."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("consumer_pid", "provider_pid")
    consumer_pid: str = ""
    provider_pid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageWithReason(ProcessMessage):
    """A message that may carry a code and reasons."""

    code: str = ""
    reason: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractRequestMessage(ProcessMessage):
    """A first request (with `callback_address`), or a counter-offer (with `provider_pid`): never both."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("consumer_pid", "offer")
    offer: Json | None = None
    callback_address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractOfferMessage(ProcessMessage):
    """A provider's first offer (with `callback_address`), or its answer (with `consumer_pid`): never both."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("provider_pid", "offer")
    offer: Json | None = None
    callback_address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractAgreementMessage(ProcessMessage):
    REQUIRED: ClassVar[tuple[str, ...]] = ("consumer_pid", "provider_pid", "agreement")
    agreement: Json | None = None


class ContractAgreementVerificationMessage(ProcessMessage):
    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractNegotiationEventMessage(ProcessMessage):
    REQUIRED: ClassVar[tuple[str, ...]] = ("consumer_pid", "provider_pid", "event_type")
    event_type: str = ""

    @property
    def step(self) -> str:
        return f"{self.kind}:{self.event_type}"


class ContractNegotiationTerminationMessage(MessageWithReason):
    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractNegotiation(ProcessMessage):
    """The reply with a negotiation's state."""

    state: str = ""


class ContractNegotiationError(MessageWithReason):
    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRequestMessage(Message):
    """A request for a transfer. `data_address`: for push formats only. `purpose`: the one declared purpose, if any.

    `from_edc`: the message has EDC's context. EDC cannot declare a purpose.
    """

    REQUIRED: ClassVar[tuple[str, ...]] = ("consumer_pid", "agreement_id", "format", "callback_address")
    consumer_pid: str = ""
    agreement_id: str = ""
    format: str = ""
    data_address: DataAddress | None = None
    callback_address: str = ""
    purpose: str = ""
    from_edc: bool = False

    def to_wire(self) -> Json:
        # `super()` without arguments does not work in a dataclass with slots.
        wire = Message.to_wire(self)
        del wire["from_edc"]
        return wire


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferStartMessage(ProcessMessage):
    """A start, or a consumer's resume. `data_address`: only in a provider's start of a pull transfer."""

    data_address: DataAddress | None = None


class TransferCompletionMessage(ProcessMessage):
    __slots__ = ()


class TransferSuspensionMessage(MessageWithReason):
    __slots__ = ()


class TransferTerminationMessage(MessageWithReason):
    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferProcess(ProcessMessage):
    """The reply with a transfer's state."""

    state: str = ""


class TransferError(MessageWithReason):
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
    """The message in a body, of one of the `expected` classes.

    Raises:
        MessageInvalid: it is no such message; names the member that is missing or wrong.
    """
    return read_document(jsonld.parse(body), *expected)


def read_document(document: Any, *expected: type[M]) -> M:
    """As `read`, from parsed JSON."""
    node = jsonld.node_of(document)
    prefixes = jsonld.prefixes_of(node)
    kind = _class_of(node, prefixes, {each.__name__: each for each in expected})
    members = jsonld.members(node, prefixes)
    if _PURPOSE in members:
        members["odrl:purpose"] = members[_PURPOSE]
    values = {entry.name: _read_field(entry.name, members, prefixes) for entry in fields(kind)}
    if kind is TransferRequestMessage:
        values["from_edc"] = _EDC_CONTEXT in list_of(node.get("@context"))
    message = kind(**{name: value for name, value in values.items() if value is not None})
    for name in kind.REQUIRED:
        if not getattr(message, name):
            raise MessageInvalid(f"expected {_WIRE.get(name, name)} in a {kind.__name__}, got none")
    return message


def _class_of(node: Json, prefixes: Mapping[str, str], expected: Mapping[str, type[M]]) -> type[M]:
    named = jsonld.types(node, prefixes)
    for name in named:
        if name in expected:
            return expected[name]
    raise MessageInvalid(f"expected @type {' or '.join(expected)}, got {', '.join(named)[:200] or 'none'}")


def _read_field(name: str, members: Json, prefixes: Mapping[str, str]) -> Any:
    """The value of a field, or None where the message has none."""
    wire = _WIRE.get(name, name)
    if (raw := members.get(wire)) is None:
        return None
    if name == "reason":
        return _read_reasons(raw)
    if name == "filter":
        return tuple(list_of(raw))
    value = jsonld.single(raw)
    if name in ("offer", "agreement"):
        return _read_object(value, wire)
    if name == "data_address":
        return check_data_address(_read_address(_read_object(value, wire), prefixes))
    text = _read_text(value, wire, longest=ID_MAX if name in _IDS else _TEXT_MAX)
    return jsonld.local(text, prefixes) if name in ("event_type", "state", "format") else text


def _read_text(value: Any, wire: str, *, longest: int) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        raise MessageInvalid(f"expected {wire} as one text of 1 to {longest} characters")
    return value


def _read_object(value: Any, wire: str) -> Json:
    if not isinstance(value, dict):
        raise MessageInvalid(f"expected {wire} as one object")
    return value


def _read_reasons(raw: Any) -> tuple[str, ...]:
    """Reasons of any JSON type, as at most 20 bounded texts."""
    items = list_of(raw)[:_REASONS_MAX]
    return tuple(harmless(item if isinstance(item, str) else json.dumps(item))[:_TEXT_MAX] for item in items)


def _read_address(value: Json, prefixes: Mapping[str, str]) -> DataAddress:
    """Read an address. EDC writes no member `endpoint`: its endpoint is a property."""
    properties = _read_properties(value)
    kind = _read_text(jsonld.single(value.get("endpointType")), "endpointType", longest=_TEXT_MAX)
    endpoint = jsonld.single(value.get("endpoint", ""))
    stated = (endpoint, *(dict(properties).get(name) for name in _ENDPOINT_NAMES))
    return DataAddress(
        endpoint_type=jsonld.absolute(kind, prefixes),
        endpoint=next((each for each in stated if isinstance(each, str) and each), ""),
        properties=properties,
    )


def _read_properties(value: Json) -> tuple[tuple[str, str], ...]:
    """The properties of an address with bare names. A name that also comes with EDC's prefix keeps its bare value."""
    found = []
    for entry in list_of(value.get("endpointProperties")):
        node = _read_object(entry, "endpointProperties")
        name, content = jsonld.single(node.get("name")), jsonld.single(node.get("value"))
        found.append((_read_text(name, "name", longest=_TEXT_MAX), content if isinstance(content, str) else ""))
    bare = {name for name, _ in found}
    return tuple((name.removeprefix(EDC), text) for name, text in found if not _is_again(name, bare))


def _is_again(name: str, bare: Set[str]) -> bool:
    return name.startswith(EDC) and name.removeprefix(EDC) in bare


def check_data_address(address: DataAddress) -> DataAddress:
    """Return the address; MessageInvalid if its endpoint is no URL, or if it is too large to be stored."""
    size = len(address.endpoint) + sum(len(name) + len(value) for name, value in address.properties)
    for got, most, what in (
        (len(address.endpoint), _ENDPOINT_MAX, "characters in its endpoint"),
        (len(address.properties), _PROPERTIES_MAX, "endpointProperties"),
        (size, _ADDRESS_MAX, "characters, endpoint and endpointProperties together"),
    ):
        if got > most:
            raise MessageInvalid(f"expected a dataAddress of at most {most} {what}, got {got}")
    try:
        for endpoint in {address.endpoint, address.http} - {""}:
            urls.check_endpoint(endpoint)
    except ValueError as error:
        raise MessageInvalid(f"dataAddress: {error}") from None
    return address


def read_data_address(wire: Json) -> DataAddress | None:
    """A data address from another participant; None for an empty object, MessageInvalid for an invalid address."""
    return check_data_address(_read_address(wire, {})) if wire else None


def address_of(wire: Json) -> DataAddress | None:
    """A data address from our database; None for an empty object."""
    return _read_address(wire, {}) if wire else None


def status_of(document: Any) -> ProcessMessage | None:
    """The process object in a reply; None where there is no such object. An unreadable reply is no error."""
    try:
        return read_document(document, ContractNegotiation, TransferProcess)
    except MessageInvalid:
        return None


def read_problem(body: bytes) -> tuple[str, str]:
    """Code and reason of a counterparty's error reply, as short texts; empty where the reply has none."""
    try:
        node = jsonld.node_of(jsonld.parse(body))
        found = jsonld.members(node, jsonld.prefixes_of(node))
    except MessageInvalid:
        return "", ""
    code = found.get("code")
    texts = [*(_read_reasons(found["reason"]) if found.get("reason") else ()), found.get("detail")]
    reason = "; ".join(harmless(text) for text in texts if isinstance(text, str) and text)[:_TEXT_MAX]
    return harmless(code)[:ID_MAX] if isinstance(code, str) else "", reason
