"""A data space as its participant's connector shows it: find, agree, stream, query.

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
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack
from urllib.parse import urlencode

from hanse import agreement as agreement_steps
from hanse._transport import http_stream
from hanse._transport.api import Api, post_small
from hanse._transport.cancellation import Waits
from hanse._transport.http_stream import HttpReply, HttpRequest
from hanse._transport.pages import list_pages
from hanse._transport.person import Token
from hanse._transport.read_renewal import ReadRenewal
from hanse.agreement import Call, TransferAccess, quote_segment
from hanse.audit.read_receipts import Receipts
from hanse.errors import AccessRevoked, BadInput, Broken, Busy, HanseError, NotFound, Refused
from hanse.explanation import Explained
from hanse.notebook.found import Entries, Entry, Rows, read_entry
from hanse.notebook.html_view import clip, facts_table, hide_login
from hanse.notebook.short_cache import ShortCache
from hanse.options import HfOptions, LoaderOptions, RayOptions, SparkOptions, TorchOptions, check_options, require_extra
from hanse.plan import DueBlocks, Plan
from hanse.retry import IDLE_SECONDS, SECONDS, Patience
from hanse.stream import Stream

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]  # it ships no types
    import polars
    import pyarrow as pa

    from hanse.loaders import Loader
    from hanse.loaders.torch.batches import Batches

T = TypeVar("T")

_RENEW_BEFORE = 60.0
_RENEWAL_SECONDS = 5.0  # for the owner's answer, while the reader waits
_QUEUE_PATIENCE = 60.0  # seconds in which a query is retried while too many run
_PAGE_MAX = 100  # results in one page of the catalogue
_FOUND_MAX = 10_000  # results of one search
_QUERY_MAX = 4096  # characters of a query string: servers and proxies refuse longer ones
_HEAD_MAX = 10_000  # rows that `head` returns
BYTES_MAX = 2 * 2**30  # memory of rows that are kept as a whole, unless a caller allows more
_KEPT_SECONDS = 30.0
_AGREEMENT_SHOWN = ("id", "role", "dataset", "counterparty", "state")
_PENDING_SHOWN = ("id", "dataset", "counterparty", "purpose", "state")
_NO_ROWS = ("aggregate_only", "aggregate_shape", "action_not_agreed")
_QUERY_ADVICE = (
    "ask for figures with dataset.query() or space.query(), such as SELECT <column>, count(*) ... GROUP BY <column>; "
    "dataset.contract() lists what is allowed"
)
_FORM = "application/x-www-form-urlencoded"


class Space:
    """A connection to one participant's connector."""

    def __init__(self, url: str, token: Token, *, seconds: float = 30.0) -> None:
        self._connect = partial(Api, url, token, seconds=seconds)
        self._api, self._process = self._connect(), os.getpid()
        self._paths = ShortCache[list[str]](seconds=_KEPT_SECONDS)

    def __repr__(self) -> str:
        """Show the address, never the token."""
        return f"<Space {clip(hide_login(self._connect.args[0]), 200)}>"

    def _repr_html_(self) -> str:
        """Show the address and where to begin. It asks the connector nothing."""
        facts = (
            ("find", "space.search('words')"),
            ("agree", "space.agree('owner/dataset', purpose=...)"),
            ("query", "space.query('SELECT ...', purpose=...)"),
        )
        return facts_table(f"Space {hide_login(self._connect.args[0])}", facts)

    @property
    def api(self) -> Api:
        """The management API. A forked process gets its own connections."""
        if self._process != os.getpid():
            self._api, self._process = self._connect(), os.getpid()
        return self._api

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the address and the token: protect the bytes as you protect the token."""
        return partial(Space, *self._connect.args, **self._connect.keywords), ()

    def me(self) -> dict[str, Any]:
        """Return the participant of the connector, and what this token may do.

        Raises:
            HanseError: Unauthenticated, Unreachable.
        """
        return dict(self.api.get("/self"))

    def search(
        self, words: str = "", *, column: str | Sequence[str] = (), limit: int = 20, **filters: str | Sequence[str]
    ) -> Entries:
        """Return datasets of the whole data space, best first, whose title, name, columns or description have the
        words.

        `column`: a column that each dataset has, or several. `filters`: each a value, or several as
        alternatives: owner, theme, purpose, policy, keyword, country, license, format, state.

        Each dataset is returned once. Of more than a hundred, some may be missing that change while the pages are read.

        Raises:
            BadInput: a filter is unknown, or `limit` is out of range.

        Example:
            space.search("breast cancer", country="DE", limit=5)
        """
        if not isinstance(limit, int) or not 1 <= limit <= _FOUND_MAX:
            raise BadInput(f"expected a limit of 1 to {_FOUND_MAX}, got {limit!r}; more words or filters find fewer")
        query = {"q": words, "column": [column] if isinstance(column, str) else list(column), **filters}
        found: dict[str, Entry] = {}
        for page in count(1):
            answer = self.api.get("/search", **query, size=min(limit, _PAGE_MAX), page=page)
            entries = [read_entry(hit) for hit in answer.get("results", [])]
            found |= {str(entry.raw.get("id", entry.path)): entry for entry in entries}  # a change can move them
            if not entries or len(found) >= limit or page >= answer.get("pages", 1):
                break
        return Entries(list(found.values())[:limit])

    def datasets(self, *, owner: str = "", limit: int = 1000) -> Entries:
        """Return the datasets of the data space that this participant may see; with `owner` only that participant's.

        Raises:
            BadInput: `limit` is not from 1 to 10,000.

        Example:
            space.datasets(owner="north")
        """
        filters = {"owner": owner} if owner else {}
        return self.search(limit=limit, **filters)

    def agreements(self, *, role: Literal["", "consumer", "provider"] = "", limit: int = 1000) -> Rows:
        """Return this participant's agreements, newest first; with `role` only those in which it has that role.

        Raises:
            BadInput: `limit` is not from 1 to 10,000.

        Example:
            space.agreements(role="consumer")
        """
        query = {"role": role} if role else {}
        return Rows(self._list("/agreements", limit, **query), "agreement", _AGREEMENT_SHOWN)

    def pending(self, *, limit: int = 1000) -> Rows:
        """Return the negotiations that wait for a decision of a person at this connector. `sentences` has the terms.

        Raises:
            BadInput: `limit` is not from 1 to 10,000.

        Example:
            for row in space.pending(): print(row["id"], row["sentences"])
        """
        return Rows(self._list("/negotiations", limit, waiting_for_us="true"), "negotiation", _PENDING_SHOWN)

    def __getitem__(self, name: str) -> Dataset:
        """Return a dataset that was agreed on before and whose transfer is started: the newest. It requests nothing of
        the owner but its catalog; `agree` negotiates.

        Raises:
            NotFound: there is no such dataset, or no access to it yet.

        Example:
            space["north/flights"].head()
        """
        if not isinstance(name, str):
            raise BadInput(f"expected a dataset as <participant>/<dataset> such as north/flights, got {name!r}")
        return Dataset(self, self.drive(agreement_steps.find_access(agreement_steps.parse_name(name))))

    __iter__ = None  # else Python would try space[0], space[1], ...
    __contains__ = None

    def _ipython_key_completions_(self) -> list[str]:
        """Return the names that a notebook offers after `space["`; none while the connector cannot be asked."""
        try:
            return list(self._paths.get(lambda: [entry.path for entry in self.datasets()]))
        except HanseError:
            return []

    def _list(self, path: str, limit: int, **query: Any) -> list[dict[str, Any]]:
        if type(limit) is not int or not 1 <= limit <= _FOUND_MAX:
            raise BadInput(f"expected a limit of 1 to {_FOUND_MAX}, got {limit!r}")
        return list_pages(self.api, path, most=limit, **query)

    def agree(
        self, name: str, *, purpose: str = "", offer: str = "", timeout: float = 60.0, again: bool = False
    ) -> Dataset:
        """Return access to a dataset, under an agreement that is in force or a newly negotiated one.

        `timeout`: seconds to wait for the owner. `again`: negotiate again after a rejection for this purpose.

        Raises:
            Refused: the owner does not agree (NegotiationFailed, ...), now or earlier.
            NegotiationPending: the owner has not answered in time. Call again later; the negotiation stays open.
            ApprovalNeeded: a person at the reader's own connector has to approve.

        Example:
            flights = space.agree("north/flights", purpose="dpv:ScientificResearch")
        """
        parameters = agreement_steps.parse_name(name)
        steps = agreement_steps.agree(
            parameters, purpose=purpose, offer=offer, seconds=timeout, now=time.monotonic, again=again
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
        """Run one SQL query over datasets of any owners under your agreements, named `"owner".dataset`.

        Each owner answers its part under its own agreement. `Stream.owners` lists what each sent.

        `limits`: the most that the query may take of `seconds`, `rows` and `bytes`.
        `epsilon`: for answers with noise, what each owner's answer may cost of its agreement's privacy budget.
        `query_id`: sixteen hex digits of your choice, for `progress` from another thread.
        `partial`: answer without owners that are down or late, if that has a meaning; `Stream.missing` lists them.
        `patience`: seconds to retry while the connector runs too many queries (Busy, `queries_max`).

        Raises:
            HanseError: BadInput, Refused, Busy, ...; while the stream is read also StreamIncomplete and others.

        Example:
            space.query('SELECT count(*) AS n FROM "north".flights').to_pandas()
        """
        body = _query_body(
            sql, purpose=purpose, mode=mode, limits=limits, epsilon=epsilon, query_id=query_id, partial=partial
        )
        headers = {**self.api.headers, "content-type": "application/json"}
        request = HttpRequest(
            "POST", f"{self.api.base}/queries", headers, json.dumps(body).encode(), idle_seconds, ours=True
        )
        return Stream(_retry_queued(lambda: http_stream.open_stream(request), patience))

    def fetch(self, transfer_id: str) -> Iterator[bytes]:
        """Yield the data under a started transfer from an owner with another kind of connector, as its endpoint sends
        it. The reader's own connector calls the endpoint. Data of Hanse owners is read with `Dataset.stream`.
        Under a push transfer, yield what was pushed to the reader's own connector.

        Raises:
            BadInput: for a Hanse owner (`use_stream`), and beyond the connector's limit.
            Unreachable: the data ends early.

        Example:
            with open("rows.csv", "wb") as file:
                file.writelines(space.fetch(dataset.transfer_id))
        """
        for block, _ in self.api.blocks(f"/transfers/{quote_segment(transfer_id)}/data"):
            yield block

    def progress(self, query_id: str) -> dict[str, Any]:
        """Return the state of a running or recent query, the owners that answered, and those that are pending.

        Raises:
            NotFound: there is no such query.
        """
        return dict(self.api.get(f"/queries/{quote_segment(query_id)}"))

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
        """Return what would run where and what would be sent. With `analyze` the query runs, and the figures are real.
        `patience`: as in `query`.

        Raises:
            HanseError: as `query`.
        """
        body = _query_body(sql, purpose=purpose, mode=mode, limits=limits, epsilon=epsilon, partial=partial)
        call = Call("POST", "/queries", body={**body, "explain": "analyze" if analyze else True}, seconds=IDLE_SECONDS)
        return Explained(_retry_queued(lambda: self.api.do(call), patience))

    def drive(self, steps: Any) -> Any:
        """Carry out the calls of a flow one after the other; return its result."""
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
    """A dataset under an agreement: its terms and its rows."""

    def __init__(self, space: Space, access: TransferAccess) -> None:
        self._space = space
        self._access = access
        self._address: Mapping[str, Any] = {}
        self._columns = ShortCache[list[str]](seconds=_KEPT_SECONDS)
        self._schema: ShortCache[pa.Schema] = ShortCache(seconds=_KEPT_SECONDS)

    def __repr__(self) -> str:
        """Show the dataset and the purpose."""
        return f"<Dataset {clip(self.name)}, purpose {clip(self.purpose) or 'not declared'}>"

    def _repr_html_(self) -> str:
        """Show name, purpose and agreement as a small table. It asks no connector."""
        facts = (
            ("purpose", self.purpose or "not declared"),
            ("agreement", self.agreement_id),
            ("in SQL", self.sql_name),
            ("terms", "dataset.agreement(), dataset.contract()"),
        )
        return facts_table(f"Dataset {self.name}", facts)

    @property
    def name(self) -> str:
        """`participant/dataset`."""
        return str(self._access.name)

    @property
    def sql_name(self) -> str:
        """The name in SQL, quoted because it may be a keyword (`json`). If the owner's ids contain another name than
        the one in the data space, its identifier is used: that other name may belong to another participant."""
        name, access = self._access.name, self._access
        is_own_name = access.dataset_id.startswith(f"urn:hanse:{name.participant}:") or not access.provider
        return f'"{name.participant if is_own_name else access.provider}"."{name.dataset}"'

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
        """The dataset and agreement that errors name."""
        return self.name, self.agreement_id

    @property
    def _receipts(self) -> Receipts:
        """Reports each read to the reader's own connector."""
        api = self._space.api
        about = {"agreement": self.agreement_id, "transfer": self.transfer_id}
        return Receipts(api.url, api.token, about)

    @contextmanager
    def _name_in_errors(self) -> Iterator[None]:
        """Add dataset and agreement to any error that is raised in this block."""
        try:
            yield
        except HanseError as error:
            error.about(*self._about)
            raise

    def agreement(self) -> dict[str, Any]:
        """Return the agreement, with its sentences in plain words. Raises: HanseError."""
        return dict(self._space.api.get(f"/agreements/{quote_segment(self.agreement_id)}"))

    def contract(self) -> dict[str, Any]:
        """Return what may be read, by the owner: under `contracts` for each action `columns` (name, type, mask).
        Raises: HanseError."""
        return dict(self._space.api.get(f"/agreements/{quote_segment(self.agreement_id)}/contract"))

    @property
    def columns(self) -> list[str]:
        """The columns that the agreement shows, by the owner; kept for some seconds. `contract()` has types and masks.

        Raises:
            HanseError: Unreachable, AccessRevoked, ...
        """
        return list(self._columns.get(self._load_columns))

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the rows; kept for some seconds. No row is read, unless the owner cannot divide the
        dataset: then one.

        Raises:
            Refused: the agreement shows no rows; the message has what to do.
        """
        return self._schema.get(self._load_schema)

    def head(self, n: int = 5, *, columns: Sequence[str] = (), where: str = "") -> pa.Table:
        """Return the first `n` rows as an Arrow table. No other rows are sent or counted.

        Raises:
            BadInput: `n` is not from 1 to 10,000, or columns or condition do not fit.
            Refused: the agreement shows no rows; the message has what to do.

        Example:
            flights.head(3, columns=["distance"]).to_pandas()
        """
        if type(n) is not int or not 1 <= n <= _HEAD_MAX:
            raise BadInput(f"expected 1 to {_HEAD_MAX:,} rows, got {n!r}; stream() reads more")
        selection = _check_selection(columns, where)
        named = _column_parameters(selection["columns"])
        parameters = {**named, "where": where, "purpose": self.purpose, "limit_rows": n}
        with self._advise_query():
            answer = self._open_rows(parameters, idle_seconds=IDLE_SECONDS)
            return Stream(answer, about=self._about, receipts=self._receipts).to_arrow(bytes_max=BYTES_MAX)

    def to_pandas(
        self,
        *,
        columns: Sequence[str] = (),
        where: str = "",
        bytes_max: int | None = BYTES_MAX,
        patience: float = SECONDS,
        **options: Any,
    ) -> pandas.DataFrame:
        """Return the rows as a pandas frame, all of them in memory.

        `bytes_max`: the most memory that the rows may take as Arrow, 2 GiB unless given; None for no limit. pandas
        needs about as much again. `options`: those of `pyarrow.Table.to_pandas`.

        Raises:
            ModuleNotFoundError: pandas is not installed; the message has the extra. Nothing is read then.
            BadInput: the rows take more memory. The rows that were received count for the agreement's quota.
            Refused: the agreement shows no rows; the message has what to do.

        Example:
            flights.to_pandas(columns=["distance"], where="distance > 500")
        """
        with require_extra("pandas"):  # before any row is read
            import pandas  # noqa: F401  # used by Arrow

        rows = self._read_whole(columns=columns, where=where, bytes_max=bytes_max, patience=patience)
        return rows.to_pandas(**options)

    def to_polars(
        self,
        *,
        columns: Sequence[str] = (),
        where: str = "",
        bytes_max: int | None = BYTES_MAX,
        patience: float = SECONDS,
    ) -> polars.DataFrame:
        """Return the rows as a polars frame, all of them in memory: the memory of Arrow where the types allow it.

        `bytes_max` and errors as in `to_pandas`.

        Example:
            flights.to_polars(columns=["distance"])
        """
        with require_extra("polars"):
            import polars  # noqa: F401  # used by the stream

        return self._read_whole(columns=columns, where=where, bytes_max=bytes_max, patience=patience).to_polars()

    def _read_whole(self, *, columns: Sequence[str], where: str, bytes_max: int | None, patience: float) -> Stream:
        """Return a stream that keeps all rows. Raises: HanseError."""
        with self._advise_query():
            stream = self.stream(columns=columns, where=where, patience=patience)
            stream.to_arrow(bytes_max=bytes_max)
        return stream

    def _load_columns(self) -> list[str]:
        try:
            shown = [str(column["name"]) for one in self.contract()["contracts"] for column in one["columns"]]
        except (KeyError, TypeError):
            raise Broken(f"expected contracts with columns of {self.name}, got another form") from None
        return list(dict.fromkeys(shown))

    def _load_schema(self) -> pa.Schema:
        with self._advise_query():
            try:
                return self.plan().schema
            except HanseError as error:
                if error.code != "not_divisible":
                    raise
            return self.head(1).schema

    @contextmanager
    def _advise_query(self) -> Iterator[None]:
        """Add to a refusal of rows in this block that figures may be had by a query."""
        try:
            yield
        except Refused as error:
            if error.code in _NO_ROWS and _QUERY_ADVICE not in str(error):
                error.args = (f"{error}; {_QUERY_ADVICE}",)
            raise

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
        """Return the rows that the agreement shows, straight from the owner, batch by batch, in constant memory.

        A lost connection, a restart of the owner or an expired ticket does not end the stream: reading resumes after
        the last row, for up to `patience` seconds without a row. A silence of `idle_seconds` (or of the patience if
        that is shorter) counts as a lost connection, and so does a batch that trickles.

        Raises:
            Refused: before the first batch or in the middle (AccessRevoked, QuotaSpent, AccessExpired).
            Conflict: the owner has another version by then.

        Example:
            for batch in flights.stream(columns=["distance"], where="distance > 500"): ...
        """
        selection = _check_selection(columns, where)
        parameters = {
            **_column_parameters(selection["columns"]),
            "where": where,
            "purpose": self.purpose,
            "batch_rows": batch_rows,
            "codec": codec,
        }
        return self._resumable_stream(
            lambda: {**parameters, "blocks": "all"}, idle_seconds=idle_seconds, patience=patience
        )

    def plan(self, *, columns: Sequence[str] = (), where: str = "", patience: float = 0.0) -> Plan:
        """Return the blocks of these rows, to be divided among readers. It sends no row.

        `patience`: seconds to retry while a connector is unreachable.

        Raises:
            BadInput: columns or condition do not fit, or a column name is not unique.
        """
        body = {**_check_selection(columns, where), "purpose": self.purpose}

        waiting = Patience(patience, idle=60.0)

        def request_plan() -> Any:
            return self._with_ticket(
                lambda endpoint, ticket: post_small(f"{endpoint}/streams", ticket, body, seconds=waiting.silence)
            )

        with self._name_in_errors():
            plan = Plan.read(waiting.retry(request_plan), columns=columns, where=where)
            if twice := sorted({name for name in plan.schema.names if plan.schema.names.count(name) > 1}):
                raise BadInput(
                    f"expected each column once, because most libraries keep one column a name; got {twice} repeatedly"
                )
        return plan

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
        """Return blocks of a plan in the given order, in one stream, from the beginning or after a cursor
        (`Stream.place`). More blocks than an owner accepts in one request take several requests, each a read of its
        own.

        `before`: rows of the first block that lie before the cursor; without it that block's rows are not counted.
        `waits`: lets another thread end what this stream waits for.

        Raises:
            Broken: other blocks are received, or other numbers of rows than an exact plan states.
        """
        parameters = {
            **_column_parameters(plan.columns),
            "where": plan.where,
            "purpose": self.purpose,
            "batch_rows": batch_rows,
            "codec": codec,
            "snapshot": plan.snapshot,
            "shown": plan.shown,
        }

        due = DueBlocks(plan, blocks, before=before if after else 0)
        return self._resumable_stream(
            lambda: {**parameters, "blocks": ",".join(map(str, due.next_request))},
            idle_seconds=idle_seconds,
            patience=patience,
            schema=plan.schema,
            due=due,
            snapshot=plan.snapshot,
            start={"cursor": after} if after else None,
            waits=waits,
        )

    # `hanse.options` defines and checks the options of the next five methods.

    def loader(self, **options: Unpack[LoaderOptions]) -> Loader:
        """Return batches for training, in a fixed order, divided among readers, with a state to resume from: a
        `Loader`.

        Options: `columns`, `where` (which rows), `batch_size`, `drop_last`, `seed`, `window`, `epoch` (in which order),
        `part`, `parts` (which reader of how many), `prefetch_bytes`, `codec`, `patience` (seconds without a row),
        `progress` (a bar).

        Raises:
            BadInput: an option is unknown or does not fit.
        """
        check_options(options, LoaderOptions)
        from hanse.loaders import Loader

        return Loader(self, **options)

    def to_torch(self, **options: Unpack[TorchOptions]) -> Batches:
        """Return a PyTorch IterableDataset of batches: `hanse.loaders.torch.batches.dataset`.

            DataLoader(flights.to_torch(batch_size=256, seed=7), batch_size=None, num_workers=0)

        Options: those of `loader`, with a default `batch_size` of 256, and `rank` and `world` in place of `part` and
        `parts`; `shapes` and `blobs` (how columns become tensors), or `form` (a function of an Arrow batch); `state` (a
        merged state to resume from).

        Raises:
            BadInput: an option is unknown or does not fit.
        """
        check_options(options, TorchOptions)
        with require_extra("torch"):
            from hanse.loaders.torch import batches

        return batches.dataset(self, **options)

    def to_hf(self, **options: Unpack[HfOptions]) -> Any:
        """Return a streaming Hugging Face dataset: `hanse.loaders.hf.dataset`.

        Options: `columns`, `where`, `seed`, `epoch`, `patience`, as in `loader`; `world` (the number of ranks over
        which `split_dataset_by_node` will split it).

        Raises:
            BadInput: an option is unknown or does not fit.
        """
        check_options(options, HfOptions)
        with require_extra("hf"):
            from hanse.loaders import hf

        return hf.dataset(self, **options)

    def to_ray(self, **options: Unpack[RayOptions]) -> Any:
        """Return a Ray dataset: `hanse.loaders.ray.dataset`.

        Options: `columns`, `where`, `patience`, as in `loader`; `tasks` (at most that many; 0: as many as Ray asks
        for).

        Raises:
            BadInput: an option is unknown or does not fit.
        """
        check_options(options, RayOptions)
        with require_extra("ray"):
            from hanse.loaders import ray

        return ray.dataset(self, **options)

    def to_spark(self, session: Any, **options: Unpack[SparkOptions]) -> Any:
        """Return a Spark data frame: `hanse.loaders.spark.frame`.

        Options: `columns`, `where`, `patience`, as in `loader`; `partitions` (at most that many).

        Raises:
            BadInput: an option is unknown or does not fit.
        """
        check_options(options, SparkOptions)
        with require_extra("spark"):
            from hanse.loaders import spark

        return spark.frame(session, self, **options)

    def _resumable_stream(
        self,
        parameters_of: Callable[[], Mapping[str, Any]],
        *,
        idle_seconds: float,
        patience: float,
        schema: pa.Schema | None = None,
        due: DueBlocks | None = None,
        snapshot: str = "",
        start: Mapping[str, Any] | None = None,
        waits: Waits | None = None,
    ) -> Stream:
        """Return a stream that resumes after its last place, from `start` on. `parameters_of` makes a request's
        parameters.

        If the `due` blocks of a plan are known, it also waits before its first row.
        """
        last = {"snapshot": snapshot}

        def open_at(place: Mapping[str, Any] | None) -> HttpReply:
            parameters = dict(parameters_of())
            if place is not None:
                parameters |= {"after": place["cursor"], "snapshot": last["snapshot"]}
            answer = self._open_rows(parameters, idle_seconds=waiting.silence, waits=waits)
            before = snapshot if place is None else last["snapshot"]  # the version of the rows so far, if there are any
            last["snapshot"] = before or answer.headers.get("hanse-snapshot", "")
            return answer

        waiting = Patience(patience, idle=idle_seconds, sleep=time.sleep if waits is None else waits.pause)

        def begin() -> Stream:
            return Stream(
                open_at(start),
                reopen=open_at,
                patience=waiting,
                schema=schema,
                due=due,
                snapshot=snapshot,
                start=start,
                about=self._about,
                receipts=self._receipts,
            )

        with self._name_in_errors():
            return begin() if due is None else waiting.retry(begin)

    def query(self, sql: str, *, epsilon: float | None = None, idle_seconds: float = IDLE_SECONDS) -> Stream:
        """Run one SELECT at this owner, under this agreement alone.

        `epsilon`: for answers with noise, what this one may cost of the agreement's privacy budget; by default
        a tenth of it. A higher cost means less noise. The end record states what was spent.

        Raises:
            HanseError: Refused, QuotaSpent, BadInput, ...

        Example:
            flights.query(f"SELECT count(*) AS n FROM {flights.sql_name}").to_arrow()
        """
        body: dict[str, Any] = {"sql": sql, "purpose": self.purpose, "agreement": self.agreement_id}
        if epsilon is not None:
            body["epsilon"] = epsilon
        answer = self._open_stream("POST", "/query", body=json.dumps(body).encode(), idle_seconds=idle_seconds)
        return Stream(answer, about=self._about, receipts=self._receipts)

    def _open_rows(
        self, parameters: Mapping[str, Any], *, idle_seconds: float, waits: Waits | None = None
    ) -> HttpReply:
        """Request rows; in a body if the parameters are too long for an address."""
        query = urlencode({name: value for name, value in parameters.items() if value not in (None, "")})
        if len(query) <= _QUERY_MAX:
            return self._open_stream("GET", f"?{query}", idle_seconds=idle_seconds, waits=waits)
        body = query.encode()
        return self._open_stream("POST", "", body=body, media=_FORM, idle_seconds=idle_seconds, waits=waits)

    def _open_stream(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        media: str = "application/json",
        idle_seconds: float,
        waits: Waits | None = None,
    ) -> HttpReply:
        """Request a stream from the owner's data plane."""

        def act(endpoint: str, ticket: str) -> HttpReply:
            headers = {"authorization": f"Bearer {ticket}"} | ({"content-type": media} if body else {})
            headers |= {"hanse-job": job} if (job := self._space.api.job) else {}
            expires = float(self._address.get("expires") or 0)
            request = HttpRequest(method, f"{endpoint}{path}", headers, body, idle_seconds)
            answer = http_stream.open_stream(request, waits)
            if not (read := answer.headers.get("hanse-read", "")):
                return answer
            return replace(answer, renew=ReadRenewal(partial(self._renew_read, read), expires))

        return self._with_ticket(act)

    def _renew_read(self, read: str) -> float:
        """Give the owner a fresh ticket for a running read; return when the ticket ends (UTC seconds)."""
        endpoint, ticket = self._ticket(fresh=True)
        post_small(f"{endpoint}/reads/{quote_segment(read)}/renew", ticket, {}, seconds=_RENEWAL_SECONDS)
        return float(self._address.get("expires") or 0)

    def _with_ticket(self, act: Callable[[str, str], T]) -> T:
        """Call `act` with endpoint and ticket; renew a ticket once that has expired or was replaced."""
        for fresh in (False, True):
            try:
                return act(*self._ticket(fresh=fresh))
            except HanseError as error:
                if fresh or error.code not in ("ticket_expired", "ticket_replaced", "lease_expired"):
                    error.about(*self._about)
                    raise
        raise AssertionError("unreachable: the second attempt returns or raises")

    def _ticket(self, *, fresh: bool) -> tuple[str, str]:
        """Return the owner's endpoint and a ticket; the connector renews it shortly before it expires."""
        if fresh or float(self._address.get("expires") or 0) - time.time() < _RENEW_BEFORE:
            try:
                self._address = self._space.api.get(f"/transfers/{quote_segment(self.transfer_id)}/address")
            except NotFound as error:
                raise AccessRevoked(
                    f"{self.name}: the transfer has ended; call agree() again", code=error.code
                ) from error
        try:
            return str(self._address["endpoint"]).rstrip("/"), str(self._address["ticket"])
        except KeyError:
            raise Broken("expected endpoint and ticket in a data address, got another form") from None


def _check_selection(columns: Iterable[str], where: str) -> dict[str, Any]:
    """Return columns and condition as a plan request has them. Raises: BadInput for anything but a list of texts and a
    text."""
    if isinstance(columns, str):
        raise BadInput(f"expected columns as a list such as [{columns!r}], got a single text")
    names = list(columns) if isinstance(columns, Iterable) else [None]
    if not all(isinstance(name, str) for name in names):
        raise BadInput(f"expected columns as a list of names such as ['age'], or [] for all, got {columns!r}")
    if not isinstance(where, str):
        raise BadInput(f"expected where as a text such as 'age > 50', got {where!r}")
    return {"columns": names, "where": where}


def _column_parameters(columns: Sequence[str]) -> dict[str, str]:
    """Return the columns as request parameters: as JSON if a name would change in a list with commas."""
    if all(name == name.strip() != "" and "," not in name for name in columns):
        return {"columns": ",".join(columns)}
    return {"column_names": json.dumps(list(columns), ensure_ascii=False)}


def _retry_queued(ask: Callable[[], T], patience: float) -> T:
    """Call `ask`; retry while the connector refuses it because too many queries run: nothing was done by then."""
    waiting = Patience(patience)
    while True:
        try:
            return ask()
        except Busy as error:
            if error.code != "queries_max":
                raise
            waiting.pause_or_raise(error)


def _query_body(
    sql: str, *, limits: Mapping[str, Any] | None, query_id: str = "", partial: bool, **more: Any
) -> dict[str, Any]:
    """Return the request body without empty values; numbers are kept, also 0."""
    if not sql.strip():
        raise BadInput('expected a query such as SELECT count(*) AS n FROM "north".flights, got an empty text')
    body = {"sql": sql, "limits": dict(limits or {}), "id": query_id, "partial": "allow" if partial else "", **more}
    return {name: value for name, value in body.items() if value not in (None, "", {})}
