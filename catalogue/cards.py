"""Which renderings an entry has, and which one a viewer gets. The only place that decides what is visible. Pure.

An entry may have offers for everybody, for members, and for named members. Each audience gets a rendering of its own
(`Card`) that holds the offers it may see; the index keeps one document per rendering, so that neither hits nor counts
nor facets tell anybody of what is for others.
"""

from __future__ import annotations

from collections.abc import Iterator

from catalogue.access import MEMBERS, OPERATOR, PUBLIC, Viewer
from catalogue.entry import Entry
from catalogue.facets import Card
from catalogue.freshness import EXPIRED, WITHDRAWN, entry_state
from catalogue.offers import Offer
from catalogue.store.tables import Entry as Row
from catalogue.store.tables import Json, Member, Source

_NAMED_MAX = 100  # members that one entry may name; more are treated as if no offer were for them
_DID_MAX = 1024


def cards_of(row: Row, member: Member | None, source: Source | None) -> list[Card]:
    """Every rendering of an entry; none where it is withdrawn, expired or its owner is not an active member."""
    if member is None or source is None or member.status != "active":
        return []
    state = entry_state(source.state, misses=row.misses, withdrawn=row.withdrawn_at is not None)
    if state in (EXPIRED, WITHDRAWN):
        return []
    entry = Entry.from_json(row.content)
    named = _named(entry)
    groups: dict[tuple[str, ...], tuple[tuple[Offer, ...], list[str]]] = {}
    for viewer, view in _viewers(named):
        if (offers := visible(entry, viewer)) is not None:
            key = tuple(str(index) for index, offer in enumerate(entry.offers) if offer in offers)
            groups.setdefault(key, (offers, []))[1].append(view)
    return [
        Card(
            entry=entry,
            offers=offers,
            state=state,
            owner=member.name,
            owner_title=member.title,
            country=member.country,
            first_seen=row.first_seen,
            modified_at=row.modified_at,
            last_seen=row.last_seen,
            views=tuple(views),
            hidden_from=tuple(named) if MEMBERS in views else (),
        )
        for offers, views in groups.values()
    ]


def card_for(viewer: Viewer, row: Row, member: Member | None, source: Source | None) -> Card | None:
    """The rendering that a viewer gets; None where there is nothing for them to see."""
    cards = cards_of(row, member, source)
    for view in views_of(viewer):
        for card in cards:
            if view in card.views:
                return card
    return None


def views_of(viewer: Viewer) -> tuple[str, ...]:
    """The views that a viewer may have, the most special first."""
    if viewer.kind == MEMBERS:
        return (viewer.id, MEMBERS)
    return (viewer.kind,)


def visible(entry: Entry, viewer: Viewer) -> tuple[Offer, ...] | None:
    """The offers that a viewer may see; None where even the entry is not for them."""
    offers = tuple(offer for offer in entry.offers if any(map(viewer.sees, offer.audience)))
    listed = bool(offers) or any(map(viewer.sees, entry.audience)) or viewer.is_operator
    mine = viewer.id == entry.participant
    return entry.offers if mine and viewer.kind == MEMBERS else offers if listed else None


def remembered(content: Json) -> Json:
    """What a tombstone keeps of an entry's content: who saw it. Nothing is lost where it is done again."""
    names = {*content.get("audience", ()), *(name for offer in content.get("offers", ()) for name in offer["audience"])}
    named = sorted(name for name in names - {PUBLIC, MEMBERS} if len(name) <= _DID_MAX)
    return {
        "participant": content.get("participant", ""),
        "audience": [*sorted(names & {PUBLIC, MEMBERS}), *named[:_NAMED_MAX]],
    }


def saw(content: Json, viewer: Viewer) -> bool:
    """Whether a viewer saw an entry while it was listed, by the content that there was or by what is remembered."""
    kept = remembered(content)
    mine = viewer.kind == MEMBERS and viewer.id == kept["participant"]
    return mine or viewer.is_operator or any(map(viewer.sees, kept["audience"]))


def _named(entry: Entry) -> list[str]:
    """Members with a rendering of their own: the owner where it sees more than others, and whom an offer names."""
    audiences = {name for offer in entry.offers for name in offer.audience} | set(entry.audience)
    named = sorted(audiences - {PUBLIC, MEMBERS} - {entry.participant})[:_NAMED_MAX]
    return [entry.participant, *named]


def _viewers(named: list[str]) -> Iterator[tuple[Viewer, str]]:
    yield Viewer(), PUBLIC
    yield Viewer(MEMBERS), MEMBERS
    yield Viewer(OPERATOR), OPERATOR
    for name in named:
        yield Viewer(MEMBERS, name), name
