"""Registry of datasets: register, describe, renew, remove. Others see a dataset only when it has an offer.

A registration first reads everything (pinned files, schema, statistics, digests) and then stores all rows in one
transaction. A refusal leaves only its record in the log.
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
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

from connector.datasets import source_browser, version_retention
from connector.datasets.external import Outside
from connector.datasets.file_access import check_files_unchanged, run_at_files
from connector.datasets.owned_files import OwnedFolder, remove
from connector.datasets.registration import (
    CONVERTING,
    STORING,
    ColumnNote,
    Description,
    Registration,
    RegistrationProgress,
    RunningRegistrations,
    check_no_login,
    registration_stopped,
)
from connector.datasets.source_browser import SourceFolder
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
    ConnectorError,
    EngineFailed,
    Invalid,
    Limited,
    QueryInvalid,
    SourceUnreadable,
    Unavailable,
    WrongState,
    redact_name,
)
from connector.events import (
    DatasetDescribed,
    DatasetRegistered,
    DatasetRemoved,
    DatasetVersioned,
    Event,
    RawDataViewed,
    RequestRefused,
    listed,
)
from connector.store import UNKNOWN, Store, Transaction
from connector.store.tables import DatasetVersion, RegisteredDataset
from connector.telemetry import logger
from policies.contracts.contract import Column, TableSchema

_NAME = re.compile(r"^[a-z][a-z0-9_]{0,62}$")
_LOOKS = 100
_LOOKED_MAX = 1_000  # files that are looked at for a page
_TOLD_MAX = 10
ROWS_SHOWN, COLUMNS_SHOWN, CELL_MAX = 20, 50, 80  # of a file before it is registered; a cell's in characters
_log = logger("datasets")
ReportProgress = Callable[[str, int], None]
"""Callback for progress: the stage, and the number of files that are done in it."""


class Engine(Protocol):
    """What the registry needs of a worker process. This module does not load the engine."""

    async def profile(
        self, kind: str, files: Sequence[Mapping[str, Any]], options: Mapping[str, Any], *, told: ReportProgress
    ) -> Mapping[str, Any]:
        """Return `schema` ([{name, type}]), `rows`, `bytes`, `columns` (statistics) and `digests` (SHA-256 of each
        file)."""
        ...

    async def convert(
        self,
        kind: str,
        files: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
        target: str,
        *,
        told: ReportProgress,
        brief: bool = False,
    ) -> Mapping[str, Any]:
        """Write the files as one Parquet file and return the report for the owner. `brief`: within a minute."""
        ...

    async def first_rows(
        self, kind: str, files: Sequence[Mapping[str, Any]], options: Mapping[str, Any], *, rows: int
    ) -> FirstRows:
        """Return the first rows, within a minute."""
        ...


@dataclass(frozen=True, slots=True)
class FirstRows:
    """The first rows of a source: names and types of all columns; the first `COLUMNS_SHOWN` cells of each row as text.

    A cell has at most `CELL_MAX` characters, so that no value takes more of this process. None: no value.
    """

    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str | None, ...], ...]


@dataclass(frozen=True, slots=True)
class _SourceReading:
    """Everything that is read of a source before anything is stored."""

    kind: str
    options: Mapping[str, Any]
    files: tuple[FileRef, ...]
    profile: Mapping[str, Any]
    report: Mapping[str, Any] | None
    secret: bytes
    made: Path | None = None  # the converted file
    others: Sequence[str] = ()  # files of the directory with other endings, which are left out

    @property
    def digest(self) -> str:
        """Return the version: HMAC-SHA-256 over kind, options, schema and the files' digests.

        Keyed, because consumers see it: with a plain digest, a consumer who knows all of a file but one value could try
        values until the digest matches.
        """
        parts = [self.kind, dict(self.options), self.profile["schema"], list(self.profile["digests"])]
        return "hmac-sha256:" + hmac.new(self.secret, json.dumps(parts, sort_keys=True).encode(), "sha256").hexdigest()


_T = TypeVar("_T")
Effects = Callable[[RegisteredDataset, DatasetVersion, DatasetVersion], Awaitable[list[dict[str, str]]]]
_Stored = tuple[RegisteredDataset, DatasetVersion]


class Registry:
    """The datasets of one owner.

    `roots`: allowed directories of files. `private`: the connector's own places. `secret`: the key of version digests.
    """

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
        self._owned_folder = OwnedFolder(converted)
        self._removals: set[asyncio.Task[None]] = set()
        self._outside = outside  # object stores and databases
        self.effects: Effects = _no_effects  # what a new version changes for offers and agreements
        self.under_way = RunningRegistrations()
        self.looking: asyncio.Task[None] | None = None  # task of `_report_own_files`
        store.bus.subscribe(self._on_event)

    async def start(self) -> None:
        """Remove files of ended processes: drafts, and converted files that are no longer read."""
        if self._outside is not None:
            await asyncio.to_thread(self._outside.sweep)
        if left := await asyncio.to_thread(self._owned_folder.list_left_over):
            wanted = await self._store.read(version_retention.list_wanted_files)
            await asyncio.to_thread(remove, [path for path in left if path.name not in wanted])
        self.looking = asyncio.create_task(self._report_own_files())

    async def _report_own_files(self) -> None:
        """Log datasets whose files are the connector's own, from before such registrations were refused.

        Reads no owner's disk, and runs in the background, as there may be very many datasets.
        """

        def ours(page: Sequence[_Stored]) -> list[str]:
            if not find_within(self._private, chain.from_iterable(_owner_paths(version.source) for _, version in page)):
                return []
            return [row.name for row, version in page if find_within(self._private, _owner_paths(version.source))]

        after = ""
        with suppress(Unavailable):  # the next start looks
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
        """Release the files of this process. The next start removes those that are no longer read."""
        self._owned_folder.close()
        if self.looking is not None:
            self.looking.cancel()

    async def register(
        self, asked: Registration, *, by: str, accept: bool = False
    ) -> tuple[RegisteredDataset, DatasetVersion]:
        """Register a dataset and its first version. A refused or stopped registration leaves only a log record.

        A removed dataset of this name may have versions that consumers have queried: the new version is checked against
        them like a renewal. `accept`: register although it differs from them by few units.
        """
        async with self._begin(asked, by) as progress:
            known = await self._check_free(asked)
            asked = await self._with_kind(asked)
            check_options(asked.kind, asked.options)
            async with self._read_source(asked, progress) as read:
                affected: list[dict[str, str]] = []
                if known:
                    row, version = self._row(asked, read), _draft_version(self._id(asked), asked, read, now=time.time())
                    affected = await self.effects(row, known[0], version)
                    _check_fits(asked.name, affected, accept=accept)
                return await self._store_version(progress, read, lambda tx: self._insert(tx, asked, read, affected, by))

    async def renew(
        self, name: str, path: str, *, by: str, accept: bool = False
    ) -> tuple[RegisteredDataset, DatasetVersion]:
        """Read the dataset again, as a new version. The schema must stay the same, so that agreements can be kept.

        `path`: empty for the last path. `accept`: store the version although it does not fit offers or agreements.
        """
        row, old = await self.get(name)
        asked = Registration(
            name=row.name,
            path=path or old.source["asked_path"],
            kind=old.source["asked_kind"],
            options=old.source["asked_options"],
        )
        before = {column["name"]: column["type"] for column in old.schema}
        async with self._begin(asked, by) as progress, self._read_source(asked, progress, before) as read:
            under = await self._store.read(lambda tx: version_retention.list_asked_digests(tx, row.id))
            affected = await self.effects(row, old, _draft_version(row.id, asked, read, now=time.time()))
            if read.profile["schema"] != old.schema:
                raise WrongState(
                    f"the schema of {name!r} changed: {_difference(old.schema, read.profile['schema'])}; register it "
                    "under a new name, or give its columns the names and types that they had. Where groups are given, "
                    "whoever asked this dataset can subtract what he has from what he is answered under that name",
                    code="schema_changed",
                    problems=affected,
                )
            _check_fits(name, affected, accept=accept)
            changes = _changes(old.profile, read.profile) | ({"affected": affected} if affected else {})

            def work(tx: Transaction) -> _Stored:
                _check_not_overtaken(tx, row.id, old, under)
                return self._update_version(tx, row.id, asked, read, changes, by)

            return await self._store_version(progress, read, work)

    async def get(self, key: str) -> tuple[RegisteredDataset, DatasetVersion]:
        """Return a dataset by name or id, with its current version."""

        def work(tx: Transaction) -> tuple[RegisteredDataset, DatasetVersion]:
            row = tx.datasets.of(key)
            return row, tx.datasets.get_current(row)

        return await self._store.read(work)

    async def is_unchanged(self, version: DatasetVersion) -> bool | None:
        """Return whether the files are still as registered; if not, each read is refused.

        Returns None where it is not known now: for objects in a store, very many files, or a disk that does not answer.
        """
        source = version.source
        if remote_source(source["kind"]) is not None or len(source["files"]) > _LOOKED_MAX:
            return None
        try:
            return await check_files_unchanged(source["files"])
        except Unavailable:
            return None

    async def page(self, *, after: str = "", limit: int = 100) -> list[tuple[RegisteredDataset, DatasetVersion]]:
        """Return datasets ordered by id, with their current versions."""
        return await self._store.read(
            lambda tx: [(row, tx.datasets.get_current(row)) for row in tx.datasets.page(after=after, limit=limit)]
        )

    async def browse(self, path: str) -> SourceFolder:
        """Return the entries of a folder under the source roots, or the roots for an empty path.

        Raises: PathRefused.
        """
        if not path:
            return source_browser.list_roots(self._roots)
        work = partial(source_browser.list_folder, path, roots=self._roots, private=self._private)
        return await self._run_on_disk(path, work)

    async def look(self, asked: Registration, *, by: str) -> FirstRows:
        """Return the first rows of what would be registered. The view is recorded before anything is read."""
        check_no_login(asked.path)
        asked = await self._with_kind(asked)
        check_options(asked.kind, asked.options)
        await self._record_view(asked, by=by)
        return await self._read_first_rows(asked, rows=ROWS_SHOWN, shown=asked.path)

    async def _record_view(self, asked: Registration, *, by: str) -> None:
        """Record a view of a file, by its name without its folders: these may be values of columns."""
        detail = {"view": "file", "file": asked.path.rstrip("/").rpartition("/")[2], "file_kind": asked.kind}
        await self._store.write(lambda tx: tx.publish(RawDataViewed(actor=by, detail=detail)))

    async def check_readable(self, path: str, kind: str) -> None:
        """Check that a file is of the kind, by reading its first rows. They go no further.

        Raises: SourceUnreadable, PathRefused.
        """
        await self._read_first_rows(Registration(name="", path=path, kind=kind), rows=ROWS_SHOWN, shown="the file")

    async def _read_first_rows(self, asked: Registration, *, rows: int, shown: str) -> FirstRows:
        kind, made = asked.kind, None
        options, files = await self._find_files(kind, asked)
        try:
            with _explain_unreadable(kind, shown):
                if source(kind).CONVERTED:
                    made = await self._new_file()
                    await self._convert(kind, options | {BEFORE: {}}, files, made, _ignore_progress, brief=True)
                    kind, options, files = self._find_converted(made)
                return await self._engine.first_rows(kind, [file.to_json() for file in files], options, rows=rows)
        finally:
            if made is not None:
                await asyncio.to_thread(remove, [made])

    def _find_converted(self, made: Path) -> tuple[str, dict[str, Any], tuple[FileRef, ...]]:
        """Return kind, options and the pinned file of a conversion."""
        options = read_options("parquet", {})
        found = source("parquet").find(str(made), roots=(self._folder,), options=options)
        return "parquet", options, tuple(replace(file, ours=True) for file in found)

    async def describe(self, key: str, about: Description, *, by: str) -> tuple[RegisteredDataset, DatasetVersion]:
        """Replace the texts on a dataset. Its data, version, offers and agreements stay as they are."""

        def work(tx: Transaction) -> tuple[RegisteredDataset, DatasetVersion]:
            row = tx.datasets.of(key)
            said = {**asdict(about), "keywords": list(about.keywords), "title": about.title or row.name}
            changed = [name for name, value in said.items() if getattr(row, name) != value]
            for name in changed:
                setattr(row, name, said[name])
            if changed:
                tx.publish(DatasetDescribed(actor=by, dataset=row.id, version=row.version, detail={"changed": changed}))
            return row, tx.datasets.get_current(row)

        return await self._store.write(work)

    async def describe_columns(
        self, key: str, notes: Mapping[str, ColumnNote], *, by: str
    ) -> tuple[RegisteredDataset, DatasetVersion]:
        """Replace what is said about these columns; an empty note is removed. Other columns keep theirs.

        Raises: Invalid for a column that the dataset has not.
        """

        def work(tx: Transaction) -> tuple[RegisteredDataset, DatasetVersion]:
            row = tx.datasets.of(key)
            version = tx.datasets.get_current(row)
            known = {column["name"] for column in version.schema}
            if others := sorted(set(notes) - known):
                raise Invalid(
                    f"expected columns of {row.name!r}, got {', '.join(map(redact_name, others[:_TOLD_MAX]))}; load "
                    "the page again",
                    code="column_unknown",
                )
            new = {name: note for name, note in row.column_notes.items() if name not in notes and name in known}
            new |= {name: asdict(note) for name, note in notes.items() if note != ColumnNote()}
            if new != row.column_notes:
                row.column_notes = new
                detail = {"changed": ["column_notes"]}
                tx.publish(DatasetDescribed(actor=by, dataset=row.id, version=row.version, detail=detail))
            return row, version

        return await self._store.write(work)

    async def remove(self, key: str, *, by: str) -> None:
        """Remove a dataset and its converted files. Refused while it has an offer or an agreement in force."""

        def work(tx: Transaction) -> None:
            row = tx.datasets.of(key)
            if tx.datasets.list_offers_in_force([row.id]):
                raise WrongState(f"{row.name!r} has offers in force; withdraw them first")
            if any(agreement.ended_at is None for agreement, _ in tx.agreements.iterate_by_dataset(row.id)):
                raise WrongState(f"{row.name!r} has agreements in force; revoke them first")
            version_retention.mark_unasked(tx, tx.datasets.get_current(row))
            tx.datasets.remove(row)
            tx.publish(DatasetRemoved(actor=by, dataset=row.id, version=row.version))

        await self._store.write(work)
        await self._wait_for_removals()

    def _on_event(self, event: Event) -> None:
        """Remove files of a replaced or removed version, whichever process on this database stored the change."""
        if isinstance(event, DatasetRemoved | DatasetVersioned):
            task = asyncio.get_running_loop().create_task(self._remove_unneeded(event.dataset))
            self._removals.add(task)
            task.add_done_callback(self._removals.discard)

    async def _remove_unneeded(self, dataset_id: str) -> None:
        """Remove files that are no longer read. Open reads continue; the next start removes what fails now."""
        try:
            names = await self._store.read(partial(version_retention.list_unneeded_files, dataset_id=dataset_id))
            await asyncio.to_thread(remove, [self._folder / name for name in names])
        except (ConnectorError, OSError) as error:
            _log.error("not_removed", dataset=dataset_id, reason=str(error))

    async def _wait_for_removals(self) -> None:
        """Wait for the removal of replaced files, so that they are gone when the caller gets the answer."""
        if self._removals:
            await asyncio.wait(tuple(self._removals))

    async def _check_free(self, asked: Registration) -> Sequence[DatasetVersion]:
        """Return the versions of a removed dataset of this name, the newest first.

        Raises: AlreadyExists where the name is taken.
        """

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
    async def _begin(self, asked: Registration, by: str) -> AsyncIterator[RegistrationProgress]:
        """Track a registration, and record it in the log where it fails."""
        try:
            _check_name(asked.name)
            check_no_login(asked.path)
            with self.under_way.begin(asked, by=by) as progress:
                yield progress
        except (ConnectorError, asyncio.CancelledError) as error:
            await self._record_refusal(
                asked.name, error if isinstance(error, ConnectorError) else registration_stopped(), by
            )
            raise

    async def _store_version(
        self, progress: RegistrationProgress, read: _SourceReading, work: Callable[[Transaction], _Stored]
    ) -> _Stored:
        """Store a version. A cancelled caller does not interrupt the commit."""
        progress.set_state(STORING, progress.files)
        writing = asyncio.ensure_future(self._store.write(work))
        try:
            row, version = await asyncio.shield(writing)
        except asyncio.CancelledError:
            row, version = await writing
        if read.made is not None and read.made.name not in version_retention.file_names(
            [version]
        ):  # the version keeps an older file of the same bytes
            await asyncio.to_thread(remove, [read.made])
        await self._wait_for_removals()
        return row, version

    @asynccontextmanager
    async def _read_source(
        self, asked: Registration, progress: RegistrationProgress, before: Mapping[str, str] | None = None
    ) -> AsyncIterator[_SourceReading]:
        """Read everything that will be stored. Files that were made for it are removed if the block fails.

        They stay if it is unknown whether the version was stored: the next start decides. `before`: the column types of
        the previous version.
        """
        kind = asked.kind
        options, files = await self._find_files(kind, asked)
        others = await self._find_others(kind, asked.path)
        progress.files = len(files)
        report, made = None, None
        try:
            if source(kind).CONVERTED:
                made = await self._new_file()
                progress.set_state(CONVERTING)
                with _explain_unreadable(kind, asked.path):
                    report = await self._convert(
                        kind, options | {BEFORE: before or {}}, files, made, progress.set_state
                    )
                kind, options, files = self._find_converted(made)
            with _explain_unreadable(kind, asked.path):
                profile = await self._engine.profile(
                    kind, [file.to_json() for file in files], options, told=progress.set_state
                )
            yield _SourceReading(kind, options, files, profile, report, self._secret, made, others)
        except BaseException as error:
            if made is not None and not _may_be_stored(error, progress):
                await asyncio.to_thread(remove, [made])
            raise

    async def _new_file(self) -> Path:
        try:
            return await asyncio.to_thread(self._owned_folder.new, ".parquet")
        except OSError as error:
            raise disk_full() from error

    async def _find_files(self, kind: str, asked: Registration) -> tuple[dict[str, Any], tuple[FileRef, ...]]:
        """Return all options, and the files, unchanged for at least one tick of the file clock."""
        options = read_options(kind, asked.options)
        if (elsewhere := remote_source(kind)) is not None:
            if self._outside is None:
                raise Invalid(f"this connector reads nothing from {kind}; name a file", code="source_unknown")
            return await elsewhere.bring(asked.path, options=options, from_=self._outside)
        begun = time.time_ns()
        files = await self._run_on_disk(asked.path, partial(self._find_at, kind, asked.path, options))
        before: tuple[FileRef, ...] = ()
        for _ in range(_LOOKS):
            if not has_fresh_file(files, since_ns=begun, before=before):
                return options, files
            await asyncio.sleep(LOOK_SECONDS)
            before, since, begun = files, begun, time.time_ns()
            files = await self._run_on_disk(asked.path, partial(self._find_again, before, since))
        raise SourceUnreadable(
            f"expected files that nobody is writing, came some that change all the time under {asked.path!r}",
            code="source_busy",
        )

    async def _with_kind(self, asked: Registration) -> Registration:
        """Return the registration with its kind: the given one, or a guess from the path."""
        return (
            asked
            if asked.kind
            else replace(asked, kind=await self._run_on_disk(asked.path, partial(guess_kind, asked.path)))
        )

    async def _run_on_disk(self, path: str, work: Callable[[], _T]) -> _T:
        """Run `work` on an owner's disk. Each `OSError` becomes the answer to the registration of `path`."""
        with path_refusals(path):
            return await run_at_files((), work)

    def _find_at(self, kind: str, path: str, options: Mapping[str, Any]) -> tuple[FileRef, ...]:
        return refuse_own_files(self._private, source(kind).find(path, roots=self._roots, options=options))

    def _find_again(self, before: tuple[FileRef, ...], since: int) -> tuple[FileRef, ...]:
        return refuse_own_files(self._private, renew_fresh_refs(before, roots=self._roots, since_ns=since))

    async def _find_others(self, kind: str, path: str) -> list[str]:
        if remote_source(kind) is not None:
            return []
        return await self._run_on_disk(path, partial(others_under, path, suffixes=source(kind).SUFFIXES))

    async def _convert(
        self,
        kind: str,
        options: Mapping[str, Any],
        files: tuple[FileRef, ...],
        target: Path,
        told: ReportProgress,
        *,
        brief: bool = False,
    ) -> Mapping[str, Any]:
        named = [file.to_json() for file in files]
        try:
            return await self._engine.convert(kind, named, options, str(target), told=told, brief=brief)
        finally:
            if remote_source(kind) is not None:  # a draft of this process
                await asyncio.to_thread(remove, [Path(file.path) for file in files])

    def _id(self, asked: Registration) -> str:
        return asked.id or f"urn:hanse:{self._owner}:{asked.name}"

    def _row(self, asked: Registration, read: _SourceReading, *, now: float = 0.0) -> RegisteredDataset:
        about = asked.about
        return RegisteredDataset(
            id=self._id(asked),
            name=asked.name,
            title=about.title or asked.name,
            description=about.description,
            keywords=list(about.keywords),
            theme=about.theme,
            license=about.license,
            citation=about.citation,
            contact=about.contact,
            column_notes={},
            version=read.digest,
            created_at=now,
        )

    def _insert(
        self, tx: Transaction, asked: Registration, read: _SourceReading, affected: list[dict[str, str]], by: str
    ) -> tuple[RegisteredDataset, DatasetVersion]:
        if tx.datasets.find(asked.name) is not None or tx.datasets.find(self._id(asked)) is not None:
            raise AlreadyExists(f"a dataset {asked.name!r} is registered; take another name")
        row = self._row(asked, read, now=tx.now)
        version = _pin_version(tx, row.id, asked, read)
        if affected:
            version.source = version.source | {"changes": {"affected": affected}}
        tx.datasets.add(row)
        detail = {"rows": read.profile["rows"], "columns": len(version.schema), "files": len(read.files)} | _files(read)
        tx.publish(DatasetRegistered(actor=by, dataset=row.id, version=row.version, detail=detail))
        return row, version

    def _update_version(
        self,
        tx: Transaction,
        dataset_id: str,
        asked: Registration,
        read: _SourceReading,
        changes: dict[str, Any],
        by: str,
    ) -> tuple[RegisteredDataset, DatasetVersion]:
        row = tx.datasets.of(dataset_id)
        if row.version != read.digest:
            version_retention.mark_unasked(tx, tx.datasets.get_current(row))
        version = _pin_version(tx, row.id, asked, read, held=version_retention.list_readable(tx, row))
        version.source = version.source | {"changes": changes}
        before, row.version = row.version, read.digest
        detail = {"before": before, "rows": read.profile["rows"]} | _files(read)
        tx.publish(DatasetVersioned(actor=by, dataset=row.id, version=row.version, detail=detail))
        return row, version

    async def _record_refusal(self, name: str, error: ConnectorError, by: str) -> None:
        """Record a refusal in the log, or in the process log if it is unavailable."""
        refused = RequestRefused(
            actor=by,
            outcome="refused",
            code=error.code,
            reason=error.message,
            detail={"request": "register dataset", "name": redact_name(name)},
        )
        try:
            await self._store.write(lambda tx: tx.publish(refused))
        except Unavailable as why:
            _log.error("refusal_not_recorded", code=error.code, reason=error.message, why=why.message)


def _owner_paths(source: Mapping[str, Any]) -> Iterator[str]:
    """Yield the registered path and the paths of the owner's files of a version, without converted files."""
    yield os.path.abspath(source.get("asked_path", ""))
    yield from (file["path"] for file in source.get("files", ()) if not file.get("ours"))


def published_schema(version: DatasetVersion) -> TableSchema:
    """Return the schema of a version in the form that policies use."""
    return TableSchema(tuple(Column(column["name"], column["type"]) for column in version.schema))


@contextmanager
def _explain_unreadable(kind: str, path: str) -> Iterator[None]:
    """Turn engine errors of a query into errors of the data: a registering owner asked no query."""
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


def _may_be_stored(error: BaseException, progress: RegistrationProgress) -> bool:
    """Return whether the result of a commit is unknown: its answer is lost, or its caller left."""
    left = isinstance(error, asyncio.CancelledError) and progress.state == STORING
    return left or (isinstance(error, Unavailable) and error.code == UNKNOWN)


def _ignore_progress(stage: str, done: int) -> None:
    """Take the progress of work that nobody waits for."""


def _check_fits(name: str, affected: list[dict[str, str]], *, accept: bool) -> None:
    """Check what a new version breaks.

    Raises: WrongState with the first error, unless the owner accepts it.
    """
    if not accept and (errors := [one for one in affected if one["level"] == "error"]):
        raise WrongState(
            f"the new version of {name!r} does not fit what stands on it, or has been asked: {errors[0]['message']}; "
            f"mend the files, or take it all the same (`--accept` on the command line, `accept` in the API)",
            code="version_unfit",
            problems=affected,
        )


def _check_not_overtaken(tx: Transaction, dataset_id: str, old: DatasetVersion, under: frozenset[str]) -> None:
    """Check that the version was compared with the current state, which is locked until the transaction ends.

    Raises: WrongState otherwise.
    """
    tx.datasets.lock(dataset_id)
    row = tx.datasets.of(dataset_id)
    if row.version != old.digest or version_retention.list_asked_digests(tx, dataset_id) - under:
        raise WrongState(
            f"{row.name!r} has another version than the one that this was held against, or something was offered or "
            "agreed on it meanwhile; ask again",
            code="version_overtaken",
        )


async def _no_effects(dataset: RegisteredDataset, old: DatasetVersion, new: DatasetVersion) -> list[dict[str, str]]:
    return []


def _pin_version(
    tx: Transaction, dataset_id: str, asked: Registration, read: _SourceReading, *, held: Sequence[DatasetVersion] = ()
) -> DatasetVersion:
    """Return the stored version of what was read. It may exist already, also from before the dataset was removed.

    If a version of `held` has the same bytes, its converted file stays in use, because it may be read now.
    """
    drafted = _draft_version(dataset_id, asked, read, now=tx.now)
    version = tx.datasets.get_version(dataset_id, read.digest)
    if version is None:
        tx.datasets.add(drafted)
        return drafted
    stays = read.made is not None and version in held and are_unchanged(version.source["files"])
    version.source = drafted.source | ({"files": version.source["files"]} if stays else {})
    return version


def _files(read: _SourceReading) -> dict[str, Any]:
    """Return the digests of the files, for auditors. Others see only the keyed digest of all files."""
    return listed("sha256", read.profile["digests"])


def _draft_version(dataset_id: str, asked: Registration, read: _SourceReading, *, now: float) -> DatasetVersion:
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
        raise Invalid(
            f"expected a dataset name of small letters, digits and _, starting with a letter, came "
            f"{redact_name(name)!r}",
            code="name_invalid",
        )


def _difference(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> str:
    """Describe how a schema differs."""
    before = {column["name"]: column["type"] for column in old}
    after = {column["name"]: column["type"] for column in new}
    told = [f"{name} is {after[name]} and was {kind}" for name, kind in before.items() if after.get(name, kind) != kind]
    told += [f"{name} is gone" for name in before if name not in after]
    told += [f"{name} ({kind}) is new" for name, kind in after.items() if name not in before]
    return "; ".join(told[:_TOLD_MAX] + [f"and {len(told) - _TOLD_MAX} more"] * (len(told) > _TOLD_MAX)) or (
        "the order of its columns"
    )


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows, bytes and column statistics that differ from the previous version."""

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
