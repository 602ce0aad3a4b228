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
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar, Unpack
from urllib.parse import urlencode

from hanse import agreement as agreement_steps
from hanse._transport import http_stream
from hanse._transport.api import Api, post_small
from hanse._transport.cancellation import Waits
from hanse._transport.http_stream import HttpReply, HttpRequest
from hanse.agreement import Access, Call, segment
from hanse.audit.read_receipts import Receipts
from hanse.errors import AccessRevoked, BadInput, Broken, Busy, HanseError, NotFound
from hanse.explanation import Explained
from hanse.options import HfOptions, LoaderOptions, RayOptions, SparkOptions, TorchOptions, check_options, require_extra
from hanse.plan import Due, Plan
from hanse.retry import IDLE_SECONDS, SECONDS, Patience
from hanse.stream import Stream

if TYPE_CHECKING:
    import pyarrow as pa

    from hanse.loaders import Loader
    from hanse.loaders.torch.batches import Batches

T = TypeVar("T")

_RENEW_BEFORE = 60.0
_QUEUE_PATIENCE = 60.0  # seconds that a question is asked again while too many run
_PAGE_MAX = 100  # results that the catalogue gives at once,
_FOUND_MAX = 10_000  # and altogether
_QUERY_MAX = 4096  # letters in an address: with more, servers and proxies on the way refuse it
_FORM = "application/x-www-form-urlencoded"


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
        self._made = partial(Api, url, token, seconds=seconds)
        self._api, self._process = self._made(), os.getpid()

    def __repr__(self) -> str:
        """What a notebook shows: where, and never the token."""
        return f"<Space {self._made.args[0]}>"

    @property
    def api(self) -> Api:
        """The management API. A forked process gets connections of its own."""
        if self._process != os.getpid():
            self._api, self._process = self._made(), os.getpid()
        return self._api

    def __reduce__(self) -> tuple[Any, ...]:
        """As a worker elsewhere makes it anew. What is pickled holds the token: keep it as you keep that."""
        return partial(Space, *self._made.args, **self._made.keywords), ()

    def me(self) -> dict[str, Any]:
        """Who the connector speaks for, and what this token may do."""
        return dict(self.api.get("/self"))

    def search(
        self, words: str = "", *, column: str | Sequence[str] = (), limit: int = 20, **filters: str | Sequence[str]
    ) -> list[Entry]:
        """Datasets of the whole data space, best first, whose title, name, columns, description, ... have the words.

        `column`: a column that each has, or several. `filters`, each a value or several of which one is enough: owner,
        theme, purpose, policy, keyword, country, license, format, state. The catalogue refuses others (BadInput).
        Each dataset comes once; of more than a hundred, what changes while they are collected may be missing.
        """
        if not isinstance(limit, int) or not 1 <= limit <= _FOUND_MAX:
            raise BadInput(f"expected a limit of 1 to {_FOUND_MAX}, got {limit!r}; more words or filters find fewer")
        asked = {"q": words, "column": [column] if isinstance(column, str) else list(column), **filters}
        found: dict[str, Entry] = {}
        for page in count(1):
            answer = self.api.get("/search", **asked, size=min(limit, _PAGE_MAX), page=page)
            here = [_entry(one) for one in answer.get("results", [])]
            found |= {str(one.raw.get("id", one.path)): one for one in here}  # a change moves them between pages
            if not here or len(found) >= limit or page >= answer.get("pages", 1):
                break
        return list(found.values())[:limit]

    def agree(
        self, name: str, *, purpose: str = "", offer: str = "", timeout: float = 60.0, again: bool = False
    ) -> Dataset:
        """Access to a dataset, under an agreement that still holds or one that is negotiated now.

        Refused (NegotiationFailed, ...) where the owner does not agree; NegotiationPending where nobody there has
        answered within `timeout` seconds: call again later, the negotiation stays open. ApprovalNeeded where it is
        somebody here who has to. What somebody has said no to, for this purpose, is asked for anew with `again` only.
        """
        wanted = agreement_steps.name_of(name)
        steps = agreement_steps.agree(
            wanted, purpose=purpose, offer=offer, seconds=timeout, now=time.monotonic, again=again
        )
        return Dataset(self, self.drive(steps))

    def query(
        self,
        sql: str,
        *,
        purpose: str = "",
        mode: str = "",
        limits: Mapping[str, Any] | None = None,
        epsilon: float | None = None,
        idle_seconds: float = IDLE_SECONDS,
        query_id: str = "",
        partial: bool = False,
        patience: float = _QUEUE_PATIENCE,
    ) -> Stream:
        """One SQL question over datasets of any owners that we have agreements with, named `"owner".dataset`.

        Each owner answers its part under its own agreement. `Stream.owners` says what each sent. `limits`: the most
        that it may take of `seconds`, `rows` and `bytes`. `epsilon`: where answers carry noise, what each owner's may
        cost of its agreement's budget. `query_id`: sixteen hex digits of your choice, to call `progress` with from
        another thread meanwhile. `partial`: where owners are down or late, the answer about the others, if that means
        something; `Stream.missing` lists who is missing. `patience`: for how many seconds it is asked again where too
        many questions run at the connector (Busy, `queries_max`).
        """
        body = _query_body(
            sql, purpose=purpose, mode=mode, limits=limits, epsilon=epsilon, query_id=query_id, partial=partial
        )
        headers = {**self.api.headers, "content-type": "application/json"}
        request = HttpRequest(
            "POST", f"{self.api.base}/queries", headers, json.dumps(body).encode(), idle_seconds, ours=True
        )
        return Stream(_in_turn(lambda: http_stream.open_stream(request), patience))

    def progress(self, query_id: str) -> dict[str, Any]:
        """How a running or recent question fares: its state, the owners that answered, and those it waits for."""
        return dict(self.api.get(f"/queries/{segment(query_id)}"))

    def explain(
        self,
        sql: str,
        *,
        purpose: str = "",
        mode: str = "",
        limits: Mapping[str, Any] | None = None,
        epsilon: float | None = None,
        analyze: bool = False,
        partial: bool = False,
        patience: float = _QUEUE_PATIENCE,
    ) -> Explained:
        """What would run where and what would travel; with `analyze` it runs, and the figures are real. `patience`: as
        of `query`."""
        body = _query_body(sql, purpose=purpose, mode=mode, limits=limits, epsilon=epsilon, partial=partial)
        call = Call("POST", "/queries", body={**body, "explain": "analyze" if analyze else True}, seconds=IDLE_SECONDS)
        return Explained(_in_turn(lambda: self.api.do(call), patience))

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

    def __repr__(self) -> str:
        """What a notebook shows: which dataset, and what for."""
        return f"<Dataset {self.name}, purpose {self.purpose or 'not declared'}>"

    @property
    def name(self) -> str:
        """`participant/dataset`."""
        return str(self._access.name)

    @property
    def sql_name(self) -> str:
        """As SQL names it; in quotes, as it may be a word of SQL (`json`). An owner whose ids say another name than the
        one that it has in the data space goes by its identifier: in SQL that other name may be somebody else's, too."""
        name, access = self._access.name, self._access
        named = access.dataset_id.startswith(f"urn:hanse:{name.participant}:") or not access.provider
        return f'"{name.participant if named else access.provider}"."{name.dataset}"'

    @property
    def agreement_id(self) -> str:
        return self._access.agreement_id

    @property
    def transfer_id(self) -> str:
        return self._access.transfer_id

    @property
    def purpose(self) -> str:
        return self._access.purpose

    @property
    def _about(self) -> tuple[str, str]:
        """What errors say of us."""
        return self.name, self.agreement_id

    @property
    def _receipts(self) -> Receipts:
        """Where our own connector is told what came of each read."""
        api = self._space.api
        about = {"agreement": self.agreement_id, "transfer": self.transfer_id}
        return Receipts(api.url, api.token, about)

    @contextmanager
    def _attributed(self) -> Iterator[None]:
        """Whatever is raised here says what it is about."""
        try:
            yield
        except HanseError as error:
            error.about(*self._about)
            raise

    def agreement(self) -> dict[str, Any]:
        """The agreement, with its sentences in plain words."""
        return dict(self._space.api.get(f"/agreements/{segment(self.agreement_id)}"))

    def contract(self) -> dict[str, Any]:
        """What may be read, as the owner says it: under `contracts` for each action `columns` (name, type, mask)."""
        return dict(self._space.api.get(f"/agreements/{segment(self.agreement_id)}/contract"))

    def stream(
        self,
        *,
        columns: Sequence[str] = (),
        where: str = "",
        batch_rows: int | None = None,
        codec: str = "",
        idle_seconds: float = IDLE_SECONDS,
        patience: float = SECONDS,
    ) -> Stream:
        """The rows that the agreement shows, straight from the owner, batch by batch, in constant memory.

        A lost connection, a restart of the owner and an expired ticket are borne: reading goes on after the last row
        that came, for as long as `patience` seconds without one. A silence of `idle_seconds`, or of the patience where
        that is shorter, is a lost connection, and so is next to nothing of a batch in that time. Refused before the
        first batch, or in the middle of the stream (AccessRevoked, QuotaSpent, AccessExpired); Conflict where the owner
        has another version by then.
        """
        asked = _rows(columns, where)
        wanted = {
            **_named(asked["columns"]),
            "where": where,
            "purpose": self.purpose,
            "batch_rows": batch_rows,
            "codec": codec,
        }
        return self._going_on(lambda: {**wanted, "blocks": "all"}, idle_seconds=idle_seconds, patience=patience)

    def plan(self, *, columns: Sequence[str] = (), where: str = "", patience: float = 0.0) -> Plan:
        """The blocks that these rows come in, to be shared out between readers. No row leaves for it.

        `patience`: for how many seconds a connector that cannot be reached is tried again.
        """
        body = {**_rows(columns, where), "purpose": self.purpose}

        waiting = Patience(patience, idle=60.0)

        def asked() -> Any:
            return self._ticketed(
                lambda endpoint, ticket: post_small(f"{endpoint}/streams", ticket, body, seconds=waiting.silence)
            )

        with self._attributed():
            found = Plan.read(waiting.outlast(asked), columns=columns, where=where)
            if twice := sorted({name for name in found.schema.names if found.schema.names.count(name) > 1}):
                raise BadInput(
                    f"expected each column once, as most libraries keep one of a name; got {twice} repeatedly"
                )
        return found

    def read(
        self,
        plan: Plan,
        blocks: Sequence[int],
        *,
        after: str = "",
        before: int | None = None,
        batch_rows: int | None = None,
        codec: str = "",
        idle_seconds: float = IDLE_SECONDS,
        patience: float = SECONDS,
        waits: Waits | None = None,
    ) -> Stream:
        """Blocks of a plan in the order given, in one stream, from the beginning or after a cursor (`Stream.place`).
        More than an owner takes at once are asked for one request after the other, each a read of its own.

        Broken where others come, and where they have other rows than an exact plan says. `before`: how many rows of
        the first block lie before the cursor; they are not counted where it is not said. `waits`: what
        another thread may end.
        """
        wanted = {
            **_named(plan.columns),
            "where": plan.where,
            "purpose": self.purpose,
            "batch_rows": batch_rows,
            "codec": codec,
            "snapshot": plan.snapshot,
            "shown": plan.shown,
        }

        due = Due(plan, blocks, before=before if after else 0)
        return self._going_on(
            lambda: {**wanted, "blocks": ",".join(map(str, due.asked))},
            idle_seconds=idle_seconds,
            patience=patience,
            schema=plan.schema,
            due=due,
            snapshot=plan.snapshot,
            start={"cursor": after} if after else None,
            waits=waits,
        )

    # What the next five take, and what of it is not known, `hanse.options` says.

    def loader(self, **options: Unpack[LoaderOptions]) -> Loader:
        """Batches for training, in a fixed order, shared between readers, with a state to go on from: `Loader`.

        Options: `columns`, `where` (which rows), `batch_size`, `drop_last`, `seed`, `window`, `epoch` (in which order),
        `part`, `parts` (which reader of how many), `prefetch_bytes`, `codec`, `patience` (seconds without a row),
        `progress` (a bar).
        """
        check_options(options, LoaderOptions)
        from hanse.loaders import Loader

        return Loader(self, **options)

    def to_torch(self, **options: Unpack[TorchOptions]) -> Batches:
        """A PyTorch IterableDataset of batches: `hanse.loaders.torch.batches.dataset`.

            DataLoader(flights.to_torch(batch_size=256, seed=7), batch_size=None, num_workers=4)

        Options: those of `loader`, with `batch_size` 256 where it is not given, and `rank` and `world` in place of
        `part` and `parts`; `shapes` and `blobs` (how columns become tensors), or `form` (a function of an Arrow batch);
        `state` (a merged one to go on from).
        """
        check_options(options, TorchOptions)
        with require_extra("torch"):
            from hanse.loaders.torch import batches

        return batches.dataset(self, **options)

    def to_hf(self, **options: Unpack[HfOptions]) -> Any:
        """A streaming Hugging Face dataset: `hanse.loaders.hf.dataset`.

        Options: `columns`, `where`, `seed`, `epoch`, `patience`, as of `loader`; `world` (over how many ranks
        `split_dataset_by_node` will split it).
        """
        check_options(options, HfOptions)
        with require_extra("hf"):
            from hanse.loaders import hf

        return hf.dataset(self, **options)

    def to_ray(self, **options: Unpack[RayOptions]) -> Any:
        """A Ray dataset: `hanse.loaders.ray.dataset`.

        Options: `columns`, `where`, `patience`, as of `loader`; `tasks` (at most so many; 0: as many as Ray asks for).
        """
        check_options(options, RayOptions)
        with require_extra("ray"):
            from hanse.loaders import ray

        return ray.dataset(self, **options)

    def to_spark(self, session: Any, **options: Unpack[SparkOptions]) -> Any:
        """A Spark data frame: `hanse.loaders.spark.frame`.

        Options: `columns`, `where`, `patience`, as of `loader`; `partitions` (at most so many).
        """
        check_options(options, SparkOptions)
        with require_extra("spark"):
            from hanse.loaders import spark

        return spark.frame(session, self, **options)

    def _going_on(
        self,
        asked: Callable[[], Mapping[str, Any]],
        *,
        idle_seconds: float,
        patience: float,
        schema: pa.Schema | None = None,
        due: Due | None = None,
        snapshot: str = "",
        start: Mapping[str, Any] | None = None,
        waits: Waits | None = None,
    ) -> Stream:
        """A stream that reads on after its last place, from `start` on. `asked` gives the parameters of a request.

        Where it is known what is `due`, of a plan, it waits also before its first row.
        """
        kept = {"snapshot": snapshot}

        def opened(place: Mapping[str, Any] | None) -> HttpReply:
            given = dict(asked())
            if place is not None:
                given |= {"after": place["cursor"], "snapshot": kept["snapshot"]}
            query = urlencode({name: value for name, value in given.items() if value not in (None, "")})
            if len(query) <= _QUERY_MAX:
                answer = self._asked("GET", f"?{query}", idle_seconds=waiting.silence, waits=waits)
            else:
                body, silence = query.encode(), waiting.silence
                answer = self._asked("POST", "", body=body, media=_FORM, idle_seconds=silence, waits=waits)
            before = snapshot if place is None else kept["snapshot"]  # of rows that were given, where there are any
            kept["snapshot"] = before or answer.headers.get("hanse-snapshot", "")
            return answer

        waiting = Patience(patience, idle=idle_seconds, sleep=time.sleep if waits is None else waits.pause)

        def begun() -> Stream:
            return Stream(
                opened(start),
                reopen=opened,
                patience=waiting,
                schema=schema,
                due=due,
                snapshot=snapshot,
                start=start,
                about=self._about,
                receipts=self._receipts,
            )

        with self._attributed():
            return begun() if due is None else waiting.outlast(begun)

    def query(self, sql: str, *, epsilon: float | None = None, idle_seconds: float = IDLE_SECONDS) -> Stream:
        """One SELECT at this owner, under this agreement alone.

        `epsilon`: where answers carry noise, what this one may cost of the agreement's privacy budget; a tenth of it
        where it is not given. The more it costs, the less noise. The end record says what was spent.
        """
        body: dict[str, Any] = {"sql": sql, "purpose": self.purpose, "agreement": self.agreement_id}
        if epsilon is not None:
            body["epsilon"] = epsilon
        answer = self._asked("POST", "/query", body=json.dumps(body).encode(), idle_seconds=idle_seconds)
        return Stream(answer, about=self._about, receipts=self._receipts)

    def _asked(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        media: str = "application/json",
        idle_seconds: float,
        waits: Waits | None = None,
    ) -> HttpReply:
        """Ask the owner's data plane for a stream."""

        def act(endpoint: str, ticket: str) -> HttpReply:
            headers = {"authorization": f"Bearer {ticket}"} | ({"content-type": media} if body else {})
            return http_stream.open_stream(HttpRequest(method, f"{endpoint}{path}", headers, body, idle_seconds), waits)

        return self._ticketed(act)

    def _ticketed(self, act: Callable[[str, str], T]) -> T:
        """Do something with a ticket; one that has just ended or was replaced is renewed once."""
        for fresh in (False, True):
            try:
                return act(*self._ticket(fresh=fresh))
            except HanseError as error:
                if fresh or error.code not in ("ticket_expired", "ticket_replaced", "lease_expired"):
                    error.about(*self._about)
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
            raise Broken("expected endpoint and ticket in a data address, got another form") from None


def _rows(columns: Iterable[str], where: str) -> dict[str, Any]:
    """Which rows are asked for, as a plan takes them. BadInput for what is no list of texts, and no text."""
    if isinstance(columns, str):
        raise BadInput(f"expected columns as a list such as [{columns!r}], got a single text")
    names = list(columns) if isinstance(columns, Iterable) else [None]
    if not all(isinstance(name, str) for name in names):
        raise BadInput(f"expected columns as a list of names such as ['age'], or [] for all, got {columns!r}")
    if not isinstance(where, str):
        raise BadInput(f"expected where as a text such as 'age > 50', got {where!r}")
    return {"columns": names, "where": where}


def _named(columns: Sequence[str]) -> dict[str, str]:
    """Columns as a request says them: as JSON where a name would be another one, or two, in a list with commas."""
    if all(name == name.strip() != "" and "," not in name for name in columns):
        return {"columns": ",".join(columns)}
    return {"column_names": json.dumps(list(columns), ensure_ascii=False)}


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


def _in_turn(ask: Callable[[], T], patience: float) -> T:
    """What `ask` returns, asked again while the connector refuses it because too many questions run: nothing was done
    for it by then."""
    waiting = Patience(patience)
    while True:
        try:
            return ask()
        except Busy as error:
            if error.code != "queries_max":
                raise
            waiting.bear(error)


def _query_body(
    sql: str, *, limits: Mapping[str, Any] | None, query_id: str = "", partial: bool, **more: Any
) -> dict[str, Any]:
    """What is not given is left out; numbers are given, whatever they are."""
    if not sql.strip():
        raise BadInput('expected a question such as SELECT count(*) AS n FROM "north".flights, got an empty text')
    body = {"sql": sql, "limits": dict(limits or {}), "id": query_id, "partial": "allow" if partial else "", **more}
    return {name: value for name, value in body.items() if value not in (None, "", {})}
