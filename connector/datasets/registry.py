"""Datasets: register, describe, version, remove. Nothing is visible to others before an offer is attached.

Registering reads everything first (files pinned, schema, statistics, digests) and stores one row set in one
transaction at the end: a refusal leaves nothing behind but its record in the log.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

from connector.datasets import version_retention
from connector.datasets.external import Outside
from connector.datasets.file_access import check_files_unchanged, run_at_files
from connector.datasets.owned_files import Making, remove
from connector.datasets.registration import (
    CONVERTING,
    STORING,
    Registering,
    Registration,
    UnderWay,
    check_no_login,
    halted,
)
from connector.datasets.sources import BEFORE, check_options, guess_kind, read_options, remote_source, source
from connector.datasets.sources.path_errors import path_refusals
from connector.datasets.sources.source_files import (
    LOOK_SECONDS,
    FileRef,
    are_unchanged,
    find_within,
    has_fresh_file,
    others_under,
    refuse_own_files,
    renew_fresh_refs,
)
from connector.datasets.sources.to_parquet import disk_full
from connector.errors import (
    AlreadyExists,
    BadInput,
    Busy,
    Conflict,
    EngineFailed,
    HanseError,
    Limited,
    QueryInvalid,
    SourceUnreadable,
    redact_name,
)
from connector.events import DatasetRegistered, DatasetRemoved, DatasetVersioned, Event, RequestRefused, listed
from connector.store import UNKNOWN, Store, Transaction
from connector.store.tables import DatasetVersion, RegisteredDataset
from connector.telemetry import logger
from policies.contracts.contract import Column, TableSchema

_NAME = re.compile(r"^[a-z][a-z0-9_]{0,62}$")
_LOOKS = 100
_LOOKED_MAX = 1_000  # files that are looked at for a page
_TOLD_MAX = 10
_log = logger("datasets")
Told = Callable[[str, int], None]
"""Hears how far a long piece of work is: the stage, and the files that are done in it."""


class Engine(Protocol):
    """What the registry asks of a worker process; nothing here opens the engine."""

    async def profile(
        self, kind: str, files: Sequence[Mapping[str, Any]], options: Mapping[str, Any], *, told: Told
    ) -> Mapping[str, Any]:
        """`schema` ([{name, type}]), `rows`, `bytes`, `columns` (statistics) and `digests` (SHA-256, one a file)."""
        ...

    async def convert(
        self, kind: str, files: Sequence[Mapping[str, Any]], options: Mapping[str, Any], target: str, *, told: Told
    ) -> Mapping[str, Any]:
        """Write the files as one Parquet file; the report for the owner."""
        ...


@dataclass(frozen=True, slots=True)
class _Read:
    """Everything that was read about a source before anything is stored."""

    kind: str
    options: Mapping[str, Any]
    files: tuple[FileRef, ...]
    profile: Mapping[str, Any]
    report: Mapping[str, Any] | None
    secret: bytes
    made: Path | None = None  # the file of ours that it was converted to
    others: Sequence[str] = ()  # files of the directory that are left out for their endings

    @property
    def digest(self) -> str:
        """The version: HMAC-SHA-256 over kind, options, schema and the files' digests.

        Keyed, because others are told: who knows all of a file but one value would try values until a plain digest of
        the file is the same.
        """
        parts = [self.kind, dict(self.options), self.profile["schema"], list(self.profile["digests"])]
        return "hmac-sha256:" + hmac.new(self.secret, json.dumps(parts, sort_keys=True).encode(), "sha256").hexdigest()


_T = TypeVar("_T")
Effects = Callable[[RegisteredDataset, DatasetVersion, DatasetVersion], Awaitable[list[dict[str, str]]]]
_Stored = tuple[RegisteredDataset, DatasetVersion]


class Registry:
    """The datasets of one owner. `roots` are the directories that files may come from, `private` what of these is ours,
    `secret` keys their versions."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        *,
        name: str,
        roots: Sequence[Path],
        converted: Path,
        secret: bytes,
        private: Sequence[Path] = (),
        outside: Outside | None = None,
    ) -> None:
        self._secret = secret
        self._store = store
        self._engine = engine
        self._owner = name
        self._roots = tuple(roots)
        self._private = tuple(private)
        self._folder = converted  # where converted files are kept
        self._making = Making(converted)
        self._letting_go: set[asyncio.Task[None]] = set()
        self._outside = outside  # object stores and databases
        self.effects: Effects = _no_effects  # what a new version does to offers and agreements
        self.under_way = UnderWay()
        self.looking: asyncio.Task[None] | None = None  # for datasets that should be none
        store.bus.subscribe(self._heard)

    async def start(self) -> None:
        """Remove what processes that are gone have left: drafts, and converted files that nobody reads any more."""
        if self._outside is not None:
            await asyncio.to_thread(self._outside.sweep)
        if left := await asyncio.to_thread(self._making.left):
            wanted = await self._store.read(version_retention.wanted)
            await asyncio.to_thread(remove, [path for path in left if path.name not in wanted])
        self.looking = asyncio.create_task(self._look_for_ours())

    async def _look_for_ours(self) -> None:
        """Tell of datasets of before such were refused whose files are the connector's own; without a look at owners'
        disks, and beside what is served, as there may be very many."""

        def ours(page: Sequence[_Stored]) -> list[str]:
            if not find_within(self._private, chain.from_iterable(_named_by(version.source) for _, version in page)):
                return []
            return [row.name for row, version in page if find_within(self._private, _named_by(version.source))]

        after = ""
        with suppress(Busy):  # the next start looks
            while page := await self.page(after=after):
                for name in await asyncio.to_thread(ours, page):
                    _log.error(
                        "the connector's own is a dataset",
                        dataset=name,
                        reason="its files are keys, records, or what is kept in HANSE_DATA_DIR; withdraw its offers, "
                        "revoke its agreements, remove it, and take what others may have read for known to them",
                    )
                after = page[-1][0].id

    def close(self) -> None:
        """Let go of the files here; those that nobody reads are removed at the next start."""
        self._making.close()
        if self.looking is not None:
            self.looking.cancel()

    async def register(
        self, asked: Registration, *, by: str, accept: bool = False
    ) -> tuple[RegisteredDataset, DatasetVersion]:
        """Register a dataset and its first version. What is refused or stopped is in the log and nowhere else.

        One that was removed has versions that others may have asked: it is held against these, as a new one of them.
        `accept`: although it differs from them by few.
        """
        async with self._begun(asked, by) as one:
            known = await self._check_free(asked)
            asked = await self._with_kind(asked)
            check_options(asked.kind, asked.options)
            async with self._read(asked, one) as read:
                affected: list[dict[str, str]] = []
                if known:
                    row, version = self._row(asked, read), _draft(self._id(asked), asked, read, now=time.time())
                    affected = await self.effects(row, known[0], version)
                    _check_fits(asked.name, affected, accept=accept)
                return await self._stored(one, read, lambda tx: self._insert(tx, asked, read, affected, by))

    async def renew(
        self, name: str, path: str, *, by: str, accept: bool = False
    ) -> tuple[RegisteredDataset, DatasetVersion]:
        """Read the dataset anew, as a new version; the schema must stay, or agreements could not be kept.

        `path` empty: from where it came the last time. `accept`: although it does not fit offers or agreements.
        """
        row, old = await self.get(name)
        asked = Registration(
            name=row.name,
            path=path or old.source["asked_path"],
            kind=old.source["asked_kind"],
            options=old.source["asked_options"],
        )
        before = {column["name"]: column["type"] for column in old.schema}
        async with self._begun(asked, by) as one, self._read(asked, one, before) as read:
            under = await self._store.read(lambda tx: version_retention.asked_under(tx, row.id))
            affected = await self.effects(row, old, _draft(row.id, asked, read, now=time.time()))
            if read.profile["schema"] != old.schema:
                raise Conflict(
                    f"the schema of {name!r} changed: {_difference(old.schema, read.profile['schema'])}; register it "
                    "under a new name, or give its columns the names and types that they had. Where groups are given, "
                    "whoever asked this dataset can subtract what he has from what he is answered under that name",
                    code="schema_changed",
                    problems=affected,
                )
            _check_fits(name, affected, accept=accept)
            changes = _changes(old.profile, read.profile) | ({"affected": affected} if affected else {})

            def work(tx: Transaction) -> _Stored:
                _check_still(tx, row.id, old, under)
                return self._renewed(tx, row.id, asked, read, changes, by)

            return await self._stored(one, read, work)

    async def get(self, key: str) -> tuple[RegisteredDataset, DatasetVersion]:
        """A dataset by name or id, with its current version."""

        def work(tx: Transaction) -> tuple[RegisteredDataset, DatasetVersion]:
            row = tx.datasets.of(key)
            return row, tx.datasets.get_current(row)

        return await self._store.read(work)

    async def is_unchanged(self, version: DatasetVersion) -> bool | None:
        """Whether its files are still what was registered: else every read is refused. None where that is not to be had
        now: of objects in a store, of very many files, from a disk that says nothing."""
        source = version.source
        if remote_source(source["kind"]) is not None or len(source["files"]) > _LOOKED_MAX:
            return None
        try:
            return await check_files_unchanged(source["files"])
        except Busy:
            return None

    async def page(self, *, after: str = "", limit: int = 100) -> list[tuple[RegisteredDataset, DatasetVersion]]:
        """Datasets in order of their id, with their current versions."""
        return await self._store.read(
            lambda tx: [(row, tx.datasets.get_current(row)) for row in tx.datasets.page(after=after, limit=limit)]
        )

    async def remove(self, key: str, *, by: str) -> None:
        """Forget a dataset, and remove what it was converted to. Refused while an offer or agreement stands on it."""

        def work(tx: Transaction) -> None:
            row = tx.datasets.of(key)
            if tx.datasets.list_offers_in_force([row.id]):
                raise Conflict(f"{row.name!r} has offers in force; withdraw them first")
            if any(agreement.ended_at is None for agreement, _ in tx.agreements.iterate_by_dataset(row.id)):
                raise Conflict(f"{row.name!r} has agreements in force; revoke them first")
            version_retention.pass_over(tx, tx.datasets.get_current(row))
            tx.datasets.remove(row)
            tx.publish(DatasetRemoved(actor=by, dataset=row.id, version=row.version))

        await self._store.write(work)
        await self._gone()

    def _heard(self, event: Event) -> None:
        """Files go with their version, whichever process on this database has stored another or none."""
        if isinstance(event, DatasetRemoved | DatasetVersioned):
            task = asyncio.get_running_loop().create_task(self._let_go(event.dataset))
            self._letting_go.add(task)
            task.add_done_callback(self._letting_go.discard)

    async def _let_go(self, dataset_id: str) -> None:
        """Reads that have opened a file go on with it. What cannot be removed now is at the next start."""
        try:
            names = await self._store.read(partial(version_retention.let_go, dataset_id=dataset_id))
            await asyncio.to_thread(remove, [self._folder / name for name in names])
        except (HanseError, OSError) as error:
            _log.error("not_removed", dataset=dataset_id, reason=str(error))

    async def _gone(self) -> None:
        """Wait for the files of what was just stored in place of them, so that whoever is answered finds none."""
        if self._letting_go:
            await asyncio.wait(tuple(self._letting_go))

    async def _check_free(self, asked: Registration) -> Sequence[DatasetVersion]:
        """AlreadyExists where the name is taken; the versions of one that had it and was removed, the newest first."""

        def work(tx: Transaction) -> tuple[RegisteredDataset | None, Sequence[DatasetVersion]]:
            taken = tx.datasets.find(asked.name) or tx.datasets.find(self._id(asked))
            return taken, tx.datasets.list_versions(self._id(asked))

        taken, known = await self._store.read(work)
        if taken is not None:
            raise AlreadyExists(
                f"a dataset {asked.name!r} is registered; take another name, or add a version to it "
                f"(`hanse dataset update {asked.name}`)"
            )
        return known

    @asynccontextmanager
    async def _begun(self, asked: Registration, by: str) -> AsyncIterator[Registering]:
        """A registration under way; one that does not come to its end is in the log."""
        try:
            _check_name(asked.name)
            check_no_login(asked.path)
            with self.under_way.begin(asked, by=by) as one:
                yield one
        except (HanseError, asyncio.CancelledError) as error:
            await self._refused(asked.name, error if isinstance(error, HanseError) else halted(), by)
            raise

    async def _stored(self, one: Registering, read: _Read, work: Callable[[Transaction], _Stored]) -> _Stored:
        """What is being stored is stored whole, whoever leaves meanwhile."""
        one.reached(STORING, one.files)
        writing = asyncio.ensure_future(self._store.write(work))
        try:
            row, version = await asyncio.shield(writing)
        except asyncio.CancelledError:
            row, version = await writing
        if read.made is not None and read.made.name not in version_retention.names(
            [version]
        ):  # it has a file of the same bytes
            await asyncio.to_thread(remove, [read.made])
        await self._gone()
        return row, version

    @asynccontextmanager
    async def _read(
        self, asked: Registration, one: Registering, before: Mapping[str, str] | None = None
    ) -> AsyncIterator[_Read]:
        """What there is to be stored; files of ours that were made for it are gone if the block fails, unless nobody
        knows whether it is stored: then they stay, and the next start looks. `before`: the types of the version before,
        by column."""
        kind = asked.kind
        options, files = await self._found(kind, asked)
        others = await self._others(kind, asked.path)
        one.files = len(files)
        report, made = None, None
        try:
            if source(kind).CONVERTED:
                made = await self._room()
                one.reached(CONVERTING)
                with _to_its_end(kind, asked.path):
                    report = await self._converted(kind, options | {BEFORE: before or {}}, files, made, one.reached)
                kind, options = "parquet", read_options("parquet", {})
                found = source(kind).find(str(made), roots=(self._folder,), options=options)
                files = tuple(replace(file, ours=True) for file in found)
            with _to_its_end(kind, asked.path):
                profile = await self._engine.profile(
                    kind, [file.to_json() for file in files], options, told=one.reached
                )
            yield _Read(kind, options, files, profile, report, self._secret, made, others)
        except BaseException as error:
            if made is not None and not _may_be_stored(error, one):
                await asyncio.to_thread(remove, [made])
            raise

    async def _room(self) -> Path:
        try:
            return await asyncio.to_thread(self._making.new, ".parquet")
        except OSError as error:
            raise disk_full() from error

    async def _found(self, kind: str, asked: Registration) -> tuple[dict[str, Any], tuple[FileRef, ...]]:
        """The options with all values, and the files, at rest for at least a step of the clock that dates them."""
        options = read_options(kind, asked.options)
        if (elsewhere := remote_source(kind)) is not None:
            if self._outside is None:
                raise BadInput(f"this connector reads nothing from {kind}; name a file", code="source_unknown")
            return await elsewhere.bring(asked.path, options=options, from_=self._outside)
        begun = time.time_ns()
        files = await self._of_disk(asked.path, partial(self._at, kind, asked.path, options))
        before: tuple[FileRef, ...] = ()
        for _ in range(_LOOKS):
            if not has_fresh_file(files, since_ns=begun, before=before):
                return options, files
            await asyncio.sleep(LOOK_SECONDS)
            before, since, begun = files, begun, time.time_ns()
            files = await self._of_disk(asked.path, partial(self._again, before, since))
        raise SourceUnreadable(
            f"expected files that nobody is writing, came some that change all the time under {asked.path!r}",
            code="source_busy",
        )

    async def _with_kind(self, asked: Registration) -> Registration:
        """The same with its kind: what was asked for, or the kind that the path looks like."""
        return (
            asked
            if asked.kind
            else replace(asked, kind=await self._of_disk(asked.path, partial(guess_kind, asked.path)))
        )

    async def _of_disk(self, path: str, work: Callable[[], _T]) -> _T:
        """What `work` finds on an owner's disk. Every `OSError` of it is the answer to the registration of `path`."""
        with path_refusals(path):
            return await run_at_files((), work)

    def _at(self, kind: str, path: str, options: Mapping[str, Any]) -> tuple[FileRef, ...]:
        return refuse_own_files(self._private, source(kind).find(path, roots=self._roots, options=options))

    def _again(self, before: tuple[FileRef, ...], since: int) -> tuple[FileRef, ...]:
        return refuse_own_files(self._private, renew_fresh_refs(before, roots=self._roots, since_ns=since))

    async def _others(self, kind: str, path: str) -> list[str]:
        if remote_source(kind) is not None:
            return []
        return await self._of_disk(path, partial(others_under, path, suffixes=source(kind).SUFFIXES))

    async def _converted(
        self, kind: str, options: Mapping[str, Any], files: tuple[FileRef, ...], target: Path, told: Told
    ) -> Mapping[str, Any]:
        try:
            return await self._engine.convert(kind, [file.to_json() for file in files], options, str(target), told=told)
        finally:
            if remote_source(kind) is not None:  # a draft of ours
                await asyncio.to_thread(remove, [Path(file.path) for file in files])

    def _id(self, asked: Registration) -> str:
        return asked.id or f"urn:hanse:{self._owner}:{asked.name}"

    def _row(self, asked: Registration, read: _Read, *, now: float = 0.0) -> RegisteredDataset:
        about = asked.about
        return RegisteredDataset(
            id=self._id(asked),
            name=asked.name,
            title=about.title or asked.name,
            description=about.description,
            keywords=list(about.keywords),
            theme=about.theme,
            license=about.license,
            version=read.digest,
            created_at=now,
        )

    def _insert(
        self, tx: Transaction, asked: Registration, read: _Read, affected: list[dict[str, str]], by: str
    ) -> tuple[RegisteredDataset, DatasetVersion]:
        if tx.datasets.find(asked.name) is not None or tx.datasets.find(self._id(asked)) is not None:
            raise AlreadyExists(f"a dataset {asked.name!r} is registered; take another name")
        row = self._row(asked, read, now=tx.now)
        version = _pinned(tx, row.id, asked, read)
        if affected:
            version.source = version.source | {"changes": {"affected": affected}}
        tx.datasets.add(row)
        detail = {"rows": read.profile["rows"], "columns": len(version.schema), "files": len(read.files)} | _files(read)
        tx.publish(DatasetRegistered(actor=by, dataset=row.id, version=row.version, detail=detail))
        return row, version

    def _renewed(
        self, tx: Transaction, dataset_id: str, asked: Registration, read: _Read, changes: dict[str, Any], by: str
    ) -> tuple[RegisteredDataset, DatasetVersion]:
        row = tx.datasets.of(dataset_id)
        if row.version != read.digest:
            version_retention.pass_over(tx, tx.datasets.get_current(row))
        version = _pinned(tx, row.id, asked, read, held=version_retention.held(tx, row))
        version.source = version.source | {"changes": changes}
        before, row.version = row.version, read.digest
        detail = {"before": before, "rows": read.profile["rows"]} | _files(read)
        tx.publish(DatasetVersioned(actor=by, dataset=row.id, version=row.version, detail=detail))
        return row, version

    async def _refused(self, name: str, error: HanseError, by: str) -> None:
        """In the log. Where nothing can be written there, in the process's own: who asked hears of the first fault."""
        refused = RequestRefused(
            actor=by,
            outcome="refused",
            code=error.code,
            reason=error.message,
            detail={"request": "register dataset", "name": redact_name(name)},
        )
        try:
            await self._store.write(lambda tx: tx.publish(refused))
        except Busy as why:
            _log.error("refusal_not_recorded", code=error.code, reason=error.message, why=why.message)


def _named_by(source: Mapping[str, Any]) -> Iterator[str]:
    """Where the owner's files of a version lie, and what it was registered by; what was made of that is ours."""
    yield os.path.abspath(source.get("asked_path", ""))
    yield from (file["path"] for file in source.get("files", ()) if not file.get("ours"))


def published_schema(version: DatasetVersion) -> TableSchema:
    """The schema of a version as policies see it."""
    return TableSchema(tuple(Column(column["name"], column["type"]) for column in version.schema))


@contextmanager
def _to_its_end(kind: str, path: str) -> Iterator[None]:
    """What the engine cannot read is said of the data, to an owner who asked no question."""
    try:
        yield
    except (EngineFailed, Limited, QueryInvalid) as error:
        if (said := _UNREAD.get(error.code)) is None:
            raise
        sentence = f"expected {kind} data that can be read to its end, came {path!r}, {said}"
        raise SourceUnreadable(sentence, code=None if isinstance(error, EngineFailed) else error.code) from error


_DAMAGED = (
    "of which the engine cannot read some: it is damaged, or has a value or a form that the engine does not know; "
    "write it again, and if it is sound, with plainer types or another program"
)
_UNREAD = {
    "engine_failed": _DAMAGED,
    "query_invalid": _DAMAGED,
    "worker_crashed": "on which the process that read it ended: it is damaged, or needs more memory than there is; "
    "write it again, or try again",
    "memory_limit": "which needs more memory than a worker may take; write it with fewer columns, or in smaller row "
    "groups, batches or lines, or let the operator raise HANSE_WORKER_MEMORY_MB",
    "time_limit": "which takes longer than a registration may; write it in several datasets",
}


def _may_be_stored(error: BaseException, one: Registering) -> bool:
    """Whether nobody can say what became of a commit: its answer is lost, or nobody has waited for it."""
    left = isinstance(error, asyncio.CancelledError) and one.state == STORING
    return left or (isinstance(error, Busy) and error.code == UNKNOWN)


def _check_fits(name: str, affected: list[dict[str, str]], *, accept: bool) -> None:
    """Conflict with the first thing that stands in the way of a version, unless its owner takes it all the same."""
    if not accept and (errors := [one for one in affected if one["level"] == "error"]):
        raise Conflict(
            f"the new version of {name!r} does not fit what stands on it, or has been asked: {errors[0]['message']}; "
            f"mend the files, or take it all the same (`--accept` on the command line, `accept` in the API)",
            code="version_unfit",
            problems=affected,
        )


def _check_still(tx: Transaction, dataset_id: str, old: DatasetVersion, under: frozenset[str]) -> None:
    """Conflict where a version was not held against what is there now; nobody changes that before the transaction
    ends."""
    tx.datasets.lock(dataset_id)
    row = tx.datasets.of(dataset_id)
    if row.version != old.digest or version_retention.asked_under(tx, dataset_id) - under:
        raise Conflict(
            f"{row.name!r} has another version than the one that this was held against, or something was offered or "
            "agreed on it meanwhile; ask again",
            code="version_overtaken",
        )


async def _no_effects(dataset: RegisteredDataset, old: DatasetVersion, new: DatasetVersion) -> list[dict[str, str]]:
    return []


def _pinned(
    tx: Transaction, dataset_id: str, asked: Registration, read: _Read, *, held: Sequence[DatasetVersion] = ()
) -> DatasetVersion:
    """The version of what was read. One of the same bytes may be there, also from before the dataset was removed.

    The file that one of those `held` was converted to stays where it is: somebody may read it now.
    """
    drafted = _draft(dataset_id, asked, read, now=tx.now)
    version = tx.datasets.get_version(dataset_id, read.digest)
    if version is None:
        tx.datasets.add(drafted)
        return drafted
    stays = read.made is not None and version in held and are_unchanged(version.source["files"])
    version.source = drafted.source | ({"files": version.source["files"]} if stays else {})
    return version


def _files(read: _Read) -> dict[str, Any]:
    """What ties a record to files, for auditors: others are told the keyed digest of them all alone."""
    return listed("sha256", read.profile["digests"])


def _draft(dataset_id: str, asked: Registration, read: _Read, *, now: float) -> DatasetVersion:
    kept = {
        "kind": read.kind,
        "options": dict(read.options),
        "files": [file.to_json() for file in read.files],
        "digests": list(read.profile["digests"]),
        "asked_path": asked.path,
        "asked_kind": asked.kind,
        "asked_options": dict(asked.options),
        "report": dict(read.report) if read.report is not None else None,
        "others": {"count": len(read.others), "first": read.others[0]} if read.others else None,
    }
    profile = {key: read.profile[key] for key in ("rows", "bytes", "columns")}
    return DatasetVersion(
        dataset_id=dataset_id,
        digest=read.digest,
        source=kept,
        schema=list(read.profile["schema"]),
        profile=profile,
        created_at=now,
    )


def _check_name(name: str) -> None:
    if not _NAME.match(name):
        raise BadInput(
            f"expected a dataset name of small letters, digits and _, starting with a letter, came "
            f"{redact_name(name)!r}",
            code="name_invalid",
        )


def _difference(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> str:
    """What of a schema is another, in words."""
    before = {column["name"]: column["type"] for column in old}
    after = {column["name"]: column["type"] for column in new}
    told = [f"{name} is {after[name]} and was {kind}" for name, kind in before.items() if after.get(name, kind) != kind]
    told += [f"{name} is gone" for name in before if name not in after]
    told += [f"{name} ({kind}) is new" for name, kind in after.items() if name not in before]
    return "; ".join(told[:_TOLD_MAX] + [f"and {len(told) - _TOLD_MAX} more"] * (len(told) > _TOLD_MAX)) or (
        "the order of its columns"
    )


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Rows, bytes and the figures of columns that are others than before."""

    def pair(before: Any, after: Any) -> dict[str, Any]:
        return {"before": before, "after": after}

    found: dict[str, Any] = {key: pair(old[key], new[key]) for key in ("rows", "bytes") if old[key] != new[key]}
    columns = {}
    for name, after in new["columns"].items():
        before = old["columns"].get(name, {})
        keys = [key for key in ("null_share", "distinct", "min", "max") if before.get(key) != after.get(key)]
        if keys:
            columns[name] = {key: pair(before.get(key), after.get(key)) for key in keys}
    return found | ({"columns": columns} if columns else {})
