"""Renderings of an entry and which one a viewer gets. The only module that decides what is visible. Pure.

An entry may have offers for the public, for members, for named members, and for members with a role or a country. Each
audience gets its own rendering (`EntryView`) with the offers it may see. The index has one document per rendering, so
that hits, counts and facets reveal nothing that is for others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from catalogue.api.access import MEMBERS, OPERATOR, PUBLIC, Viewer
from catalogue.crawl.entry import CatalogueEntry
from catalogue.crawl.freshness import EXPIRED, WITHDRAWN, entry_state
from catalogue.crawl.offer_terms import SOME, CatalogueOffer, Party, build_matcher
from catalogue.search.facets import EntryView
from catalogue.store.tables import CrawlState, Json, Member
from catalogue.store.tables import EntryRow as Row

_GENERAL = (PUBLIC, MEMBERS, OPERATOR)  # views of many
_NAMED_MAX = 100  # members that one entry may name; more are treated as if no offer were for them
_DID_MAX = 1024


_NO_PARTIES: Mapping[str, Party] = MappingProxyType({})


def party_of(member: Member) -> Party:
    """A member as offers ask about it."""
    return Party(member.id, member.role, member.country)


def list_views(
    row: Row, member: Member | None, source: CrawlState | None, parties: Mapping[str, Party] = _NO_PARTIES
) -> list[EntryView]:
    """Every rendering of an entry; empty if it is withdrawn or expired or its owner is not an active member.

    `parties`: the members by DID.
    """
    if member is None or source is None or (state := _state(row, member, source)) is None:
        return []
    entry = CatalogueEntry.from_json(row.content)
    named = _list_named(entry, parties)
    return [_card(entry, named, *one, row, member, state) for one in _groups(entry, [*_GENERAL, *named], parties)]


def view_for(viewer: Viewer, row: Row, member: Member | None, source: CrawlState | None) -> EntryView | None:
    """The rendering for a viewer; None if the viewer may not see the entry."""
    if member is None or source is None or (state := _state(row, member, source)) is None:
        return None
    entry = CatalogueEntry.from_json(row.content)
    parties = {viewer.id: Party(viewer.id, viewer.role, viewer.country)} if viewer.kind == MEMBERS else _NO_PARTIES
    named = _list_named(entry, parties)
    for view in views_of(viewer):
        for one in _groups(entry, [view] if view in _GENERAL or view in named else [], parties):
            return _card(entry, named, *one, row, member, state)
    return None


def views_of(viewer: Viewer) -> tuple[str, ...]:
    """The views that a viewer may have, the most special first."""
    if viewer.kind == MEMBERS:
        return (viewer.id, MEMBERS)
    return (viewer.kind,)


def reduce_to_audience(content: Json) -> Json:
    """The content of a tombstone:

    the audiences that saw the entry, without members chosen by their facts. Idempotent.
    """
    names = {*content.get("audience", ()), *(name for offer in content.get("offers", ()) for name in offer["audience"])}
    named = sorted(name for name in names - {PUBLIC, MEMBERS, SOME} if len(name) <= _DID_MAX)
    return {
        "participant": content.get("participant", ""),
        "audience": [*sorted(names & {PUBLIC, MEMBERS}), *named[:_NAMED_MAX]],
    }


def is_selective(content: Json) -> bool:
    """Whether an entry has offers for members chosen by their facts (SOME)."""
    return any(SOME in offer["audience"] for offer in content["offers"])


def has_seen(content: Json, viewer: Viewer) -> bool:
    """Whether a viewer could see an entry while it was listed, from its content or its tombstone's content."""
    kept = reduce_to_audience(content)
    mine = viewer.kind == MEMBERS and viewer.id == kept["participant"]
    return mine or viewer.is_operator or any(map(viewer.sees, kept["audience"]))


def _state(row: Row, member: Member, source: CrawlState) -> str | None:
    """The entry's state; None if it is hidden from all viewers."""
    state = entry_state(source.state, misses=row.misses, withdrawn=row.withdrawn_at is not None)
    return None if member.status != "active" or state in (EXPIRED, WITHDRAWN) else state


def _card(
    entry: CatalogueEntry,
    named: list[str],
    offers: tuple[CatalogueOffer, ...],
    views: tuple[str, ...],
    row: Row,
    member: Member,
    state: str,
) -> EntryView:
    return EntryView(
        entry=entry,
        offers=offers,
        state=state,
        owner=member.name,
        owner_title=member.title,
        country=member.country,
        first_seen=row.first_seen,
        modified_at=row.modified_at,
        last_seen=row.last_seen,
        views=views,
        hidden_from=tuple(named) if MEMBERS in views else (),
    )


def _groups(
    entry: CatalogueEntry, views: Iterable[str], parties: Mapping[str, Party]
) -> list[tuple[tuple[CatalogueOffer, ...], tuple[str, ...]]]:
    """Each set of offers that some of these views have, with those views. It costs what the offers name, and what the
    views have: a hundred offers may each name the same hundred members."""
    viewers = {view: _viewer(view) for view in views}
    wanted = {name for viewer in viewers.values() for name in viewer.audiences}
    places: dict[str, list[int]] = {}  # of the offers, by whom they are for
    for place, offer in enumerate(entry.offers):
        for name in wanted.intersection(offer.audience):
            places.setdefault(name, []).append(place)
    chosen = {place: build_matcher(offer) for place, offer in enumerate(entry.offers) if SOME in offer.audience}
    groups: dict[tuple[int, ...], list[str]] = {}
    for view, viewer in viewers.items():
        mine = {place for name in viewer.audiences for place in places.get(name, ())}
        if (party := parties.get(view)) is not None:
            mine |= {place for place, fits in chosen.items() if fits(party)}
        if viewer.is_operator or view == entry.participant:
            mine = set(range(len(entry.offers)))
        elif not mine and not viewer.audiences.intersection(entry.audience):
            continue
        groups.setdefault(tuple(sorted(mine)), []).append(view)
    return [(tuple(entry.offers[place] for place in group), tuple(found)) for group, found in groups.items()]


def _viewer(view: str) -> Viewer:
    """The viewer whose first view is this one."""
    return Viewer(view) if view in _GENERAL else Viewer(MEMBERS, view)


def _list_named(entry: CatalogueEntry, parties: Mapping[str, Party]) -> list[str]:
    """Members with a rendering of their own: the owner where it sees more than others, whom an offer names, and those
    of the `parties` for whom one is by what they are."""
    audiences = set(entry.audience).union(*(offer.audience for offer in entry.offers))
    named = [entry.participant, *sorted(audiences - {*_GENERAL, SOME, entry.participant})[:_NAMED_MAX]]
    chosen = [build_matcher(offer) for offer in entry.offers if SOME in offer.audience]
    others = parties.keys() - set(named) if chosen else ()
    return [*named, *sorted(did for did in others if any(fits(parties[did]) for fits in chosen))]
