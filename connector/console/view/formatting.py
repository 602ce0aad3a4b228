"""Jinja filters and labels of the console: times, sizes, names, policy clauses, bars. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from babel.numbers import get_decimal_symbol

from connector.console.view.markdown import render_markdown
from connector.infra.html.languages import DEFAULT, translations
from connector.infra.html.wording import (
    find_phrases,
    format_age,
    format_count,
    format_day,
    format_moment,
    format_number,
    in_utc,
)
from policies.errors import PolicyError
from policies.model import Policy
from policies.odrl import reader
from policies.review.grouped_terms import TermGroup, group_terms
from policies.vocabulary import compact

DECIDED = {
    "auto": "answered automatically",
    "manual": "a person decides",
    "four_eyes": "a person decides who did not ask",
    "rules": "answered automatically if the facts permit, otherwise by a person",
}
ACTION_TITLES = {
    "query": "Ask questions in SQL",
    "stream": "Read rows as a stream",
    "train": "Train models",
    "distribute": "Pass the data on",
    "sell": "Sell the data",
    "trainGenerative": "Train generative models",
    "releaseWeights": "Publish the weights of models",
}
TEMPLATE_TITLES = {
    "open": "Open to all",
    "members-only": "Members only",
    "research-aggregate": "Research, figures about groups",
    "clean-room": "Clean room",
    "stream-30-days": "Stream for 30 days",
    "ai-training": "AI training",
    "health-data-permit": "Health data with a permit",
    "manufacturing-membership": "Manufacturing members",
}
KINDS = {
    "DatasetRegistered": "Dataset registered",
    "DatasetVersioned": "New version",
    "DatasetDescribed": "Dataset described",
    "DatasetRemoved": "Dataset removed",
    "OfferPublished": "Offer published",
    "OfferWithdrawn": "Offer withdrawn",
    "RequestRefused": "Request refused",
    "RefusalsCounted": "Further refusals",
    "NegotiationAdvanced": "Negotiation moved on",
    "DecisionNeeded": "Decision needed",
    "DecisionTaken": "Decision taken",
    "AgreementConcluded": "Agreement concluded",
    "AgreementRevoked": "Agreement revoked",
    "TransferAdvanced": "Transfer moved on",
    "ReadStarted": "Read started",
    "ReadEnded": "Read ended",
    "ReadRefused": "Read refused",
    "RawDataViewed": "Own data viewed",
    "ReadTaken": "Receipt of a read",
    "DataReceived": "Data received",
    "DataFetched": "Data fetched",
    "DataRefused": "Data refused",
    "DataRemoved": "Received data removed",
    "QueryCoordinated": "Query over owners",
    "LogRead": "Log read",
    "CheckpointRefused": "Head of another log refused",
    "CosignatureRefused": "Refused by a witness",
    "TokenIssued": "Token issued",
    "TokenRevoked": "Token revoked",
    "WebhookChanged": "Webhook changed",
    "ServiceStarted": "Connector started",
    "DatabaseRestored": "Database put back from a copy",
}
STAGES = {
    "finding": "Looking for the files",
    "converting": "Converting to Parquet",
    "checking": "Checking each file's schema",
    "counting": "Reading every row for the figures",
    "digesting": "Taking the digest of each file",
    "storing": "Storing",
}
WITNESS_STATES = {
    "cosigned": "Vouches",
    "away": "Not reached",
    "behind": "Knows more records than we have",
    "fork": "Knows another history",
    "refused": "Refuses",
}
ROLES = {"provider": "provider", "consumer": "consumer"}
USAGE = {
    "Queries": "Queries",
    "Queries today": "Queries today",
    "Rows": "Rows",
    "Bytes": "Bytes",
    "Privacy budget": "Privacy budget",
    "no limit": "no limit",
}
STATES = (
    "requested", "offered", "accepted", "agreed", "verified", "finalized", "terminated", "started", "suspended",
    "completed", "held", "active", "ended", "pending", "withdrawn", "revoked", "expired", "ok", "refused", "failed",
    "broken", "complete", "partial", "stopped", "registered", "in progress", "waiting", "planning", "asking", "merging",
    "finding", "converting", "checking", "counting", "digesting", "storing", "offline", "stale", "unreachable",
    "valid", "unknown",
)  # fmt: skip
_GOOD = ("FINALIZED", "STARTED", "COMPLETED", "active", "ok", "complete", "registered")
_BAD = ("TERMINATED", "refused", "failed", "broken", "ended", "withdrawn")


def instant(at: float) -> str:
    """Format a time for `<time datetime>` and for filters."""
    return in_utc(at).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def size(nbytes: float, language: str = DEFAULT) -> str:
    """Format a size as `812 B` or `5.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(nbytes) < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" or nbytes >= 100 else _one_digit(nbytes, unit, language)
        nbytes /= 1000
    return _one_digit(nbytes, "TB", language)


def format_duration(ms: float, language: str = DEFAULT) -> str:
    return f"{ms:.0f} ms" if ms < 1000 else _one_digit(ms / 1000, "s", language)


def _one_digit(number: float, unit: str, language: str) -> str:
    return f"{number:.1f} {unit}".replace(".", get_decimal_symbol(language))


def short(identifier: str) -> str:
    """Shorten an identifier: `north/patients`, the first digits of a UUID or digest."""
    if identifier.startswith("urn:hanse:offer:"):
        return identifier.removeprefix("urn:hanse:offer:")
    if identifier.startswith("urn:hanse:"):
        return identifier.removeprefix("urn:hanse:").replace(":", "/", 1)
    if identifier.startswith(("urn:uuid:", "sha256:", "hmac-sha256:")):
        return identifier.rpartition(":")[2][:8]
    return identifier


def party(did: str, names: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a participant's short name from the register, or its DID without the method."""
    entry = names.get(did)
    return str(entry.get("name") or did) if entry else did.removeprefix("did:web:")


def did_of(name: str, names: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the DID of the member with this short name; other text is returned unchanged."""
    return next((did for did, entry in names.items() if entry.get("name") == name), name)


def term(iri: str) -> str:
    """Compact an IRI to `dpv:ScientificResearch`; other text is returned unchanged."""
    try:
        return compact(iri)
    except PolicyError:
        return iri


def tone(state: str) -> str:
    """Return the CSS class of a state."""
    return "active" if state in _GOOD else "unreachable" if state in _BAD else "stale"


def readable(state: str, language: str = DEFAULT) -> str:
    text = state.replace("_", " ").capitalize()
    return translations(language).gettext(text) if text else ""


STOPPED = {
    ("provider", "provider"): "We stopped it; only we resume it",
    ("provider", "consumer"): "Its user paused it, and may resume it",
    ("provider", "facts"): "What is known of its user rules it out; it goes on by itself when that changes",
    ("consumer", "provider"): "Its owner stopped it; only the owner resumes it",
    ("consumer", "consumer"): "We paused it",
}


def explain_stop(role: str, by: str, language: str = DEFAULT) -> str:
    """Return who suspended a transfer and who can resume it; empty if it is not suspended."""
    text = STOPPED.get((role, by))
    return translations(language).gettext(text) if text else by


TRANSPORTS = {"http": "over HTTP", "flight": "over Arrow Flight", "push": "pushed by us"}


def transport(name: str, language: str = DEFAULT) -> str:
    """Return the label of a transport."""
    text = TRANSPORTS.get(name)
    return translations(language).gettext(text) if text else name


def page_link(path: str, asked: Mapping[str, str], page: int) -> str:
    """Return the link to a page of a list with the same filters."""
    wanted = {name: value for name, value in asked.items() if value} | ({"page": str(page)} if page > 1 else {})
    return f"{path}?{urlencode(wanted)}" if wanted else path


def path_of(prefix: str, identifier: str) -> str:
    return f"{prefix}/{quote(identifier, safe=':')}"


def grouped(wire: Mapping[str, Any] | Policy | None, language: str = DEFAULT) -> list[TermGroup]:
    """Return the terms of a policy in groups (`policies.review.grouped_terms`); none if it cannot be read."""
    try:
        return group_terms(wire if isinstance(wire, Policy) else reader.read(wire or {}), find_phrases(language))
    except PolicyError:
        return []


def share(part: float | None, whole: float | None, *, width: float = 100.0) -> str:
    """Return the length of an SVG bar; at least 1 for a positive value."""
    if not part or not whole or part <= 0:
        return "0"
    return f"{max(1.0, min(width, width * part / whole)):.1f}"


def sentence(text: str) -> str:
    """End a message with a full stop. The first word keeps its case: it may be a name or an address."""
    text = text.strip()
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."


_IN_LANGUAGES: Mapping[str, Any] = {
    "ago": format_age,
    "moment": format_moment,
    "day": format_day,
    "grouped": grouped,
    "counted": format_count,
    "number": format_number,
    "size": size,
    "lasting": format_duration,
    "readable": readable,
    "stopped": explain_stop,
    "transport": transport,
}
_IN_NONE: Mapping[str, Any] = {
    "markdown": render_markdown,
    "instant": instant,
    "short": short,
    "party": party,
    "term": term,
    "tone": tone,
    "share": share,
    "sentence": sentence,
    "asking": page_link,
    "at": lambda identifier, prefix: path_of(prefix, identifier),
}


def filters(language: str) -> dict[str, Any]:
    """Return the filters of the templates in a language."""
    return {**_IN_NONE, **{name: partial(each, language=language) for name, each in _IN_LANGUAGES.items()}}
