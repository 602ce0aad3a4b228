"""A data space as its participant's connector shows it: find, agree, stream, ask.

space = hanse.connect("http://127.0.0.1:8081", token)
for entry in space.search("breast cancer"):
    print(entry.path, entry.sentences)
flights = space.agree("north/flights", purpose="dpv:ScientificResearch")
for batch in flights.stream(columns=["distance", "dep_delay"], where="distance > 500"):
    ...
space.query('SELECT count(*) AS n FROM "north".flights', purpose="dpv:ScientificResearch").to_pandas()
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlencode

from hanse import _wire, flow
from hanse._http import Api
from hanse._wire import Request
from hanse.errors import AccessExpired, AccessRevoked, BadInput, Broken, HanseError, NotFound
from hanse.flow import Access, Call, segment
from hanse.stream import Stream

T = TypeVar("T")

_RENEW_BEFORE = 60.0
_IDLE_SECONDS = 120.0  # a query may work this long without a batch; the owner's own limit is usually shorter


@dataclass(frozen=True, slots=True)
class Entry:
    """A dataset that the catalogue found. `raw` is all that it said."""

    path: str  # participant/dataset: what `agree` takes
    name: str
    participant: str
    title: str
    description: str
    columns: tuple[str, ...]
    sentences: tuple[str, ...]  # the offers in plain words
    raw: Mapping[str, Any] = field(repr=False)


class Space:
    """A connection to one participant's connector."""

    def __init__(self, url: str, token: str, *, seconds: float = 30.0) -> None:
        self.api = Api(url, token, seconds=seconds)

    def me(self) -> dict[str, Any]:
        """Who the connector speaks for, and what this token may do."""
        return dict(self.api.get("/self"))

    def search(
        self, words: str = "", *, column: str | Sequence[str] = (), limit: int = 20, **filters: str | Sequence[str]
    ) -> list[Entry]:
        """Datasets of the whole data space, best first. `filters`: theme, participant, purpose, keyword, ..."""
        columns = [column] if isinstance(column, str) else list(column)
        found = self.api.get("/search", q=words, column=columns, size=limit, **filters)
        return [_entry(hit) for hit in found.get("results", [])]

    def agree(self, name: str, *, purpose: str = "", offer: str = "", timeout: float = 60.0) -> Dataset:
        """Access to a dataset, under an agreement that still holds or one that is negotiated now.

        Refused (NegotiationFailed, ...) where the owner does not agree; NegotiationPending where nobody there has
        answered within `timeout` seconds: call again later, the negotiation stays open.
        """
        wanted = flow.name_of(name)
        steps = flow.agree(wanted, purpose=purpose, offer=offer, seconds=timeout, now=time.monotonic)
        return Dataset(self, self.drive(steps))

    def query(
        self,
        sql: str,
        *,
        purpose: str = "",
        mode: str = "",
        limits: Mapping[str, Any] | None = None,
        idle_seconds: float = _IDLE_SECONDS,
    ) -> Stream:
        """One SQL question over datasets of any owners that we have agreements with, named `"owner".dataset`.

        Each owner answers its part under its own agreement. `Stream.owners` says what each sent.
        """
        body = _query_body(sql, purpose=purpose, mode=mode, limits=limits)
        headers = {**self.api.headers, "content-type": "application/json"}
        request = Request("POST", f"{self.api.base}/queries", headers, json.dumps(body).encode(), idle_seconds)
        return Stream(_wire.ask(request))

    def explain(self, sql: str, *, purpose: str = "", mode: str = "", analyze: bool = False) -> dict[str, Any]:
        """What would run where and what would travel; with `analyze` it runs, and the figures are real."""
        body = _query_body(sql, purpose=purpose, mode=mode, limits=None)
        call = Call("POST", "/queries", body={**body, "explain": "analyze" if analyze else True}, seconds=_IDLE_SECONDS)
        return dict(self.api.do(call))

    def drive(self, steps: Any) -> Any:
        """Carry out a flow's calls, one after the other; its result."""
        try:
            call = next(steps)
            while True:
                try:
                    answer = self.api.do(call)
                except HanseError as error:
                    call = steps.throw(error)
                else:
                    call = steps.send(answer)
        except StopIteration as done:
            return done.value

    def close(self) -> None:
        self.api.close()

    def __enter__(self) -> Space:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Dataset:
    """A dataset that we may read now: its agreement, its terms, its rows."""

    def __init__(self, space: Space, access: Access) -> None:
        self._space = space
        self._access = access
        self._address: Mapping[str, Any] = {}

    @property
    def name(self) -> str:
        """`participant/dataset`."""
        return str(self._access.name)

    @property
    def sql_name(self) -> str:
        """As SQL names it."""
        return f'"{self._access.name.participant}".{self._access.name.dataset}'

    @property
    def agreement_id(self) -> str:
        return self._access.agreement_id

    @property
    def transfer_id(self) -> str:
        return self._access.transfer_id

    @property
    def purpose(self) -> str:
        return self._access.purpose

    def agreement(self) -> dict[str, Any]:
        """The agreement, with its sentences in plain words."""
        return dict(self._space.api.get(f"/agreements/{segment(self.agreement_id)}"))

    def stream(
        self,
        *,
        columns: Sequence[str] = (),
        where: str = "",
        batch_rows: int | None = None,
        codec: str = "",
        idle_seconds: float = _IDLE_SECONDS,
    ) -> Stream:
        """The rows that the agreement shows, straight from the owner, batch by batch, in constant memory.

        Refused before the first batch, or in the middle of the stream (AccessRevoked, QuotaSpent, AccessExpired).
        """
        if isinstance(columns, str):
            raise BadInput(f"expected columns as a list such as [{columns!r}], came a single text")
        wanted = {
            "columns": ",".join(columns),
            "where": where,
            "purpose": self.purpose,
            "batch_rows": batch_rows,
            "codec": codec,
        }
        query = urlencode({name: value for name, value in wanted.items() if value})
        return self._read("GET", f"?{query}" if query else "", idle_seconds=idle_seconds)

    def query(self, sql: str, *, idle_seconds: float = _IDLE_SECONDS) -> Stream:
        """One SELECT at this owner, under this agreement alone."""
        body = {"sql": sql, "purpose": self.purpose, "agreement": self.agreement_id}
        return self._read("POST", "/query", body=json.dumps(body).encode(), idle_seconds=idle_seconds)

    def _read(self, method: str, path: str, *, body: bytes = b"", idle_seconds: float) -> Stream:
        """Ask the owner's data plane; a ticket that has just ended is renewed once."""
        for fresh in (False, True):
            endpoint, ticket = self._ticket(fresh=fresh)
            headers = {"authorization": f"Bearer {ticket}"} | ({"content-type": "application/json"} if body else {})
            request = Request(method, f"{endpoint}{path}", headers, body, idle_seconds)
            try:
                return Stream(_wire.ask(request))
            except AccessExpired as error:
                if fresh or error.code != "ticket_expired":
                    raise
        raise AssertionError("unreachable: the second attempt returns or raises")

    def _ticket(self, *, fresh: bool) -> tuple[str, str]:
        """The owner's endpoint and a ticket that lasts; the connector renews it when it is near its end."""
        if fresh or float(self._address.get("expires") or 0) - time.time() < _RENEW_BEFORE:
            try:
                self._address = self._space.api.get(f"/transfers/{segment(self.transfer_id)}/address")
            except NotFound as error:
                raise AccessRevoked(f"{self.name}: the transfer is over; agree again", code=error.code) from error
        try:
            return str(self._address["endpoint"]).rstrip("/"), str(self._address["ticket"])
        except KeyError:
            raise Broken("expected endpoint and ticket in a data address, came another form") from None


def _entry(hit: Mapping[str, Any]) -> Entry:
    offers = [offer for offer in hit.get("offers", []) if isinstance(offer, dict)]
    sentences = [str(text) for offer in offers for text in offer.get("sentences", [])]
    participant, name = str(hit.get("participant", "")), str(hit.get("name", ""))
    return Entry(
        path=str(hit.get("path") or f"{participant}/{name}"),
        name=name,
        participant=participant,
        title=str(hit.get("title", "")),
        description=str(hit.get("description", "")),
        columns=tuple(map(str, hit.get("columns", []))),
        sentences=tuple(sentences),
        raw=hit,
    )


def _query_body(sql: str, *, purpose: str, mode: str, limits: Mapping[str, Any] | None) -> dict[str, Any]:
    body = {"sql": sql, "purpose": purpose, "mode": mode, "limits": dict(limits) if limits else None}
    return {name: value for name, value in body.items() if value}
