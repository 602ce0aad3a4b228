"""What the JSON API takes and gives: pydantic models for what comes in, plain dictionaries for what goes out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from catalogue.search.facets import FACETS, EntryView, theme_code
from catalogue.search.highlight import Segment
from catalogue.search.search_service import Hit, Results
from catalogue.store.tables import CrawlState, Issuance, IssuedCredential, Member, VisitRecord
from connector.setting_types import NAME

Json = dict[str, Any]
# Of each in a line of a list; the dataset's own address has all of it.
_DESCRIPTION_MAX, _COLUMNS_MAX, _OFFERS_MAX, _SENTENCES_MAX, _SENTENCE_MAX = 2_000, 100, 10, 10, 500


class NewMember(BaseModel):
    """A participant that asks to be a member."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(max_length=1024, description="The participant's did:web; its document must resolve.")
    name: str = Field(pattern=f"^{NAME}$", description="Short name, as SQL writes it before a dataset.")
    title: str = Field("", max_length=300, description="Name for people.")
    role: str = Field("participant", max_length=300, description="Role in the data space, e.g. research.")
    country: str = Field("", pattern=r"^([A-Z]{2})?$", description="Country of its seat (ISO 3166-1 alpha-2).")
    url: str = Field("", max_length=2000, description="Root of its public listener; empty is the DID's address.")
    status: Literal["active", "suspended"] = "active"


class ChangedMember(BaseModel):
    """Facts of a member that are to change; those left out stay."""

    model_config = ConfigDict(extra="forbid")

    title: str | None = Field(None, max_length=300)
    role: str | None = Field(None, max_length=300)
    country: str | None = Field(None, pattern=r"^([A-Z]{2})?$")
    url: str | None = Field(None, max_length=2000)
    status: Literal["active", "suspended"] | None = None
    reason: str | None = Field(None, max_length=1000, description="Why the status changes; shown to the operator.")


class CredentialWanted(BaseModel):
    """The member that is to get a new membership credential."""

    model_config = ConfigDict(extra="forbid")

    member: str = Field(max_length=1024, description="DID or short name.")


class CrawlRequest(BaseModel):
    """What a member may say when it asks for a visit: datasets that it takes back at once."""

    model_config = ConfigDict(extra="forbid")

    withdrawn: list[str] = Field(default_factory=list, max_length=1000)


def member(row: Member) -> Json:
    """A member as the operator sees it."""
    fields = ("id", "name", "title", "role", "country", "url", "status", "reason", "joined_at", "changed_at")
    return {field: getattr(row, field) for field in fields}


def source(row: CrawlState | None) -> Json:
    """What the crawler knows of a connector."""
    if row is None:
        return {"state": "new"}
    return {
        field: getattr(row, field)
        for field in ("state", "failures", "last_try", "last_ok", "next_at", "problem")
    }  # fmt: skip


def credential(row: IssuedCredential) -> Json:
    """An issued credential as the operator sees it."""
    fields = ("id", "type", "profile", "state", "issued_at", "expires_at")
    place = f"{row.list_kind}/{row.list_number}#{row.list_index}"
    return {**{field: getattr(row, field) for field in fields}, "place": place, "request": row.issuance}


def issuance(row: Issuance) -> Json:
    """A request for credentials and its delivery as the operator sees it."""
    fields = ("id", "holder_pid", "wanted", "status", "created_at", "attempts", "next_at", "problem")
    return {field: getattr(row, field) for field in fields}


def run(row: VisitRecord, name: str) -> Json:
    """One visit."""
    return {
        "member": name,
        "why": row.why,
        "started_at": row.started_at,
        "seconds": round(row.ended_at - row.started_at, 3),
        "outcome": row.outcome,
        "problem": row.problem,
        **row.counts,
        "skipped_datasets": row.skipped,
    }


def dataset(card: EntryView, *, root: str, now: float) -> Json:
    """One dataset, whole, as this viewer may see it."""
    entry = card.entry
    return {
        **summary(card, root=root, now=now),
        "description": entry.description,
        "columns": [asdict(column) for column in entry.columns],
        "language": entry.language,
        "endpoint": entry.endpoint,
        "offers": [
            {
                "id": offer.id,
                "policy": offer.policy,
                "sentences": list(offer.sentences),
                "lines": [asdict(line) for line in offer.lines],
                "classes": list(offer.classes),
                "purposes": list(offer.purposes),
                "actions": list(offer.actions),
                "until": offer.until,
                "problem": offer.problem,
            }
            for offer in card.offers
        ],
    }


def summary(card: EntryView, *, root: str, now: float) -> Json:
    """One dataset as a line of a list, which a hundred of them have room in whatever their owners write."""
    entry = card.entry
    return {
        "id": entry.id,
        "name": entry.name,
        "path": card.path,
        "title": entry.title,
        "description": _short(entry.description, _DESCRIPTION_MAX),
        "participant": card.owner,
        "participant_id": entry.participant,
        "participant_title": card.owner_title,
        "country": card.country,
        "keywords": list(entry.keywords),
        "themes": [theme_code(theme) for theme in entry.themes],
        "license": entry.license,
        "columns": [column.name for column in entry.columns[:_COLUMNS_MAX]],
        "column_count": max(entry.column_count, len(entry.columns)),
        "formats": list(entry.formats[:_OFFERS_MAX]),
        "offers": [
            {
                "id": offer.id,
                "sentences": [_short(text, _SENTENCE_MAX) for text in offer.sentences[:_SENTENCES_MAX]],
                "classes": list(offer.classes),
            }
            for offer in card.offers[:_OFFERS_MAX]
        ],
        "offer_count": len(card.offers),
        "state": card.state,
        "last_seen": card.last_seen,
        "age_seconds": max(0, round(now - card.last_seen)),
        "modified_at": card.modified_at,
        "page": page_of(entry.id, root),
    }


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 2]} …"


def page_of(dataset_id: str, root: str) -> str:
    """The address of a dataset's page here."""
    return f"{root}/datasets/{quote(dataset_id, safe=':')}"


def results(found: Results, *, root: str, now: float) -> Json:
    """One page of an answer."""
    return {
        "total": found.total,
        "page": found.question.page,
        "pages": found.pages,
        "size": found.question.size,
        "seconds": round(found.seconds, 4),
        "results": [_hit(hit, root=root, now=now) for hit in found.hits],
        "facets": {
            name: {
                "title": FACETS[name].title,
                "values": [asdict(value) for value in values],
            }
            for name, values in found.facets.items()
        },
    }


def _hit(hit: Hit, *, root: str, now: float) -> Json:
    return {
        **summary(hit.card, root=root, now=now),
        "matched_columns": hit.columns[:_COLUMNS_MAX],
        "highlights": {"title": _segments(hit.title), "description": _segments(hit.excerpt)},
    }


def _segments(segments: list[Segment]) -> list[Json]:
    return [asdict(segment) for segment in segments]
