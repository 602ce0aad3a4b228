"""Registering many files: it tells how far it is, can be stopped, and leaves nothing behind that is not registered."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from connector.datasets import registration, registry
from connector.datasets.registration import Registration
from connector.datasets.sources import hive, source_files
from connector.datasets.sources.to_parquet import disk_full
from connector.engine.pool.error_codes import error_of
from connector.engine.pool.protocol import Job
from connector.errors import (
    Absent,
    AlreadyExists,
    ConnectorError,
    Invalid,
    PathRefused,
    SourceUnreadable,
    Unavailable,
    WrongState,
)
from connector.events import RequestRefused
from connector.infra.database.database import run_statement
from connector.management.datasets import view
from connector.store.tables import Agreement
from tests.support import data
from tests.support.owner import Owner, owning

pytestmark = pytest.mark.asyncio(loop_scope="module")
MANY = 300


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def owner(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Owner]:
    async with owning(tmp_path_factory.mktemp("registering"), None) as running:
        yield running


@pytest.fixture(scope="module")
def many(owner: Owner) -> Path:
    """A directory of many small files."""
    top = owner.folder / "data" / "many"
    for number in range(MANY):
        place = top / f"day={number % 3}" / f"{number:04}.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": [number]}), place)
    return top


def _asked(name: str, path: Path) -> Registration:
    return Registration(name=name, path=str(path))


SECRET = "canary-of-an-owner"
WITH_LOGIN = (  # as somebody types them who does not know that the operator has named the database
    f"postgres://reader:{SECRET}@db.example.org/registry",
    f"postgresql://reader:{SECRET}@db.example.org/registry/public/patients",
    f"postgres://reader:a/{SECRET}@db.example.org/registry",
    f"postgres:///reader:{SECRET}@db.example.org/registry",
    f"postgres:/reader:{SECRET}@db.example.org/registry",
    f"postgres://registry/public/reader:{SECRET}@db.example.org",
    f"postgres://{SECRET}@db.example.org/registry/public/patients",
    f"postgresql://db.example.org/registry?user=reader&password={SECRET}",
    f"s3://key:{SECRET}@bucket/table.parquet",
    f"s3://key:a/{SECRET}@bucket/table.parquet",
    f"https://key:{SECRET}@s3.example.org/bucket/table.parquet",
    f"reader:{SECRET}@db.example.org/registry",
    f"reader:a/{SECRET}@db.example.org/registry",
    f"reader:{SECRET}%40db.example.org/registry",
    f"postgres://reader:{SECRET}%40registry/public/patients",
    f"postgres://reader:{SECRET}/public/patients",
    f"postgres:/reader:{SECRET}/public/patients",
    f"s3://key:{SECRET}/bucket/table.parquet",
    f"postgres://registry/public/patients?sslpassword={SECRET}",
    f"s3://bucket/table.parquet?user=reader&pwd={SECRET}",
    f"password={SECRET} host=db dbname=registry",
    f"host=db PASSWORD = {SECRET}",
    f"postgres://host=/run/db password={SECRET}",
    f"jdbc:postgresql://db.example.org/registry?user=reader&pwd={SECRET}",
    f"jdbc:oracle:thin:reader/{SECRET}/registry",
)
WITHOUT = {  # what it is refused by instead
    "/data/10:30@ward.parquet": "path_refused",
    "snapshot@1/table.parquet": "path_refused",
    "data:2024/10:30@ward.parquet": "path_refused",
    "/data/my password=3/": "path_refused",
    "s3://bucket/10:30@ward.parquet": "bucket_not_allowed",
    "s3://bucket/my password=3/": "bucket_not_allowed",
    "postgres://registry/public/of@ward": "database_unknown",
    "postgres://registry/public/a:b@c": "database_unknown",
}


@pytest.mark.parametrize("path", WITH_LOGIN)
@pytest.mark.parametrize("kind", ["", "postgres"])
async def test_a_password_in_a_path_is_repeated_and_kept_nowhere(
    owner: Owner, caplog: pytest.LogCaptureFixture, path: str, kind: str
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(Invalid, match="expected a path without a user's name and password") as raised:
        await owner.add("typed", path, kind)
    assert raised.value.code == "path_has_login"
    _check_untold(owner, raised.value, caplog.text)


@pytest.mark.parametrize(
    "asked",
    [
        Registration(name=WITH_LOGIN[0], path="typed"),
        Registration(name="typed", path="t.parquet", kind=WITH_LOGIN[0]),
        Registration(name="typed", path="s3://bucket/t.parquet", options={"store": WITH_LOGIN[9]}),
        Registration(name=f"password={SECRET} host=db", path="typed"),
        Registration(name="typed", path="t.parquet", kind=f"reader:{SECRET}%40registry"),
    ],
    ids=["name", "kind", "store", "words", "encoded"],
)
async def test_nor_is_one_that_stands_where_another_word_is_to_be(
    owner: Owner, caplog: pytest.LogCaptureFixture, asked: Registration
) -> None:
    with pytest.raises(Invalid) as raised:
        await owner.registry.register(asked, by="test")
    _check_untold(owner, raised.value, caplog.text)


async def test_no_refusal_could_repeat_an_address_with_its_password() -> None:
    told = Invalid(f"came {WITH_LOGIN[0]!r}", given=WITH_LOGIN[0])
    assert told.message == "came 'postgres://***@db.example.org/registry'"
    assert told.facts == {"given": "postgres://***@db.example.org/registry"}


def _check_untold(owner: Owner, error: ConnectorError, logged: str) -> None:
    """The password is in no answer, no state of a registration, no log and no database."""
    recent = [(one.asked.name, one.asked.path, one.error) for one in owner.registry.under_way.recent()]
    assert SECRET not in f"{error!r} {error.problem()} {recent} {logged}"
    assert not [part for part in owner.folder.glob("owner.db*") if SECRET.encode() in part.read_bytes()]


@pytest.mark.parametrize("path", list(WITHOUT))
async def test_a_file_a_table_or_an_object_may_have_such_signs_in_its_name(owner: Owner, path: str) -> None:
    with pytest.raises(Invalid) as raised:
        await owner.add("signs", path)
    assert raised.value.code == WITHOUT[path]


class Stuck:
    """An engine that converts, and then never comes to an end with a profile."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    async def profile(self, *_: Any, told: Callable[[str, int], None]) -> Mapping[str, Any]:
        told(registration.COUNTING, 1)
        self.begun.set()
        await asyncio.Event().wait()
        return {}

    async def convert(
        self,
        kind: str,
        files: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
        target: str,
        *,
        told: Any,
        brief: bool,
    ) -> Mapping[str, Any]:
        await asyncio.to_thread(pq.write_table, pa.table({"a": [1]}), target)
        return {}


@pytest.fixture
def stuck(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> Stuck:
    engine = Stuck()
    monkeypatch.setattr(owner.registry, "_engine", engine)
    return engine


UNREAD = {  # how a worker ended, what the owner is told, and with which code
    "engine_failed": ("it is damaged, or has a value or a form that the engine does not know", "source_unreadable"),
    "query_invalid": ("it is damaged, or has a value or a form that the engine does not know", "query_invalid"),
    "worker_crashed": ("on which the process that read it ended", "source_unreadable"),
    "memory_limit": ("needs more memory than a worker may take; write it with fewer columns", "memory_limit"),
    "time_limit": ("takes longer than a registration may", "time_limit"),
}


@pytest.mark.parametrize("code", list(UNREAD))
async def test_data_that_cannot_be_read_is_told_as_data_and_not_as_a_question(
    owner: Owner, many: Path, stuck: Stuck, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    async def ended(*_: Any, told: Any) -> Mapping[str, Any]:
        raise error_of(code, {})

    monkeypatch.setattr(stuck, "profile", ended)
    said, told = UNREAD[code]
    with pytest.raises(SourceUnreadable, match=f"came '.*many', .*{said}") as raised:
        await owner.add("unread", many)
    assert (raised.value.code, "query" in raised.value.message) == (told, False)


async def test_a_profile_tells_its_stages_and_files(owner: Owner, many: Path) -> None:
    told: list[tuple[str, int]] = []
    job = Job(kind="profile", relations={"t": data.relation("hive", many, owner.folder / "data")})
    profile = await owner.pool.ask(job, on_progress=lambda stage, done: told.append((stage, done)))
    assert profile["rows"] == MANY
    assert list(dict(told)) == [registration.CHECKING, registration.COUNTING, registration.DIGESTING]
    assert all(0 <= done < MANY for _, done in told)


async def test_what_was_registered_says_so(owner: Owner, many: Path) -> None:
    await owner.registry.register(_asked("whole", many), by="ann")
    found = owner.registry.under_way.find("whole")
    assert found is not None
    assert (found.state, found.files, found.done, found.by) == (registration.REGISTERED, MANY, MANY, "ann")
    assert found.task is None
    with pytest.raises(SourceUnreadable):
        await owner.registry.register(_asked("broken", _text(owner, "broken.parquet", "no")), by="ann")
    broken = owner.registry.under_way.find("broken")
    assert broken is not None
    assert broken.error is not None
    assert (broken.state, broken.error.code) == (registration.REFUSED, "not_parquet")


async def test_a_registration_that_is_stopped_in_its_worker_leaves_nothing(owner: Owner, many: Path) -> None:
    registry = owner.registry
    running = asyncio.ensure_future(registry.register(_asked("halted", many), by="ann"))
    while (one := registry.under_way.find("halted")) is None or one.state == registration.FINDING:
        await asyncio.sleep(0)
    assert await registry.under_way.stop("halted")
    with pytest.raises(WrongState) as raised:
        await running
    assert (raised.value.code, one.state, one.files) == ("registration_stopped", registration.STOPPED, MANY)
    with pytest.raises(Absent):
        await registry.get("halted")
    records = await owner.store.read(lambda tx: [row.body for row in tx.audit.list_pending(1000)])
    assert [body["code"] for body in records if body["detail"].get("name") == "halted"] == ["registration_stopped"]
    assert not await registry.under_way.stop("halted")
    assert (await owner.add("halted", many)).profile["rows"] == MANY


async def test_a_conversion_that_does_not_become_a_dataset_leaves_no_file(owner: Owner, stuck: Stuck) -> None:
    registry, path = owner.registry, _text(owner, "s.csv", "a\n1\n")
    before = set(_prepared(owner))
    running = asyncio.ensure_future(registry.register(_asked("text", path), by="ann"))
    await stuck.begun.wait()
    assert set(_prepared(owner)) > before
    with pytest.raises(WrongState) as raised:
        await registry.register(_asked("text", path), by="bob")
    assert raised.value.code == "registration_runs"
    assert await registry.under_way.stop("text")
    with pytest.raises(WrongState):
        await running
    assert set(_prepared(owner)) == before


async def test_a_refused_conversion_leaves_no_file(owner: Owner) -> None:
    before = set(_prepared(owner))
    with pytest.raises(SourceUnreadable):
        await owner.add("lines", _text(owner, "lines.jsonl", '{"a": 1}\nnot json\n'))
    assert set(_prepared(owner)) == before


async def test_one_text_file_can_be_two_datasets(owner: Owner) -> None:
    path = _text(owner, "shared.csv", "a,b\n1,x\n2,y\n")
    first, second = await owner.add("first", path), await owner.add("second", path)
    assert (await owner.rows(first)).equals(await owner.rows(second))


async def test_only_files_that_changed_are_pinned_anew(owner: Owner) -> None:
    place, roots = owner.folder / "data" / "fresh", [owner.folder / "data"]
    place.mkdir()
    for name in "abc":
        pq.write_table(pa.table({"a": [1]}), place / f"{name}.parquet")
    old = source_files.files_under(str(place), roots=roots, suffixes=hive.SUFFIXES)
    since = max(max(ref.mtime_ns, ref.ctime_ns) for ref in old) + 10**9
    assert not source_files.has_fresh_file(old, since_ns=since)
    later = since + 10**9
    os.utime(place / "b.parquet", ns=(later, later))
    seen = source_files.files_under(str(place), roots=roots, suffixes=hive.SUFFIXES)
    assert source_files.has_fresh_file(seen, since_ns=since)
    os.utime(place / "a.parquet")  # not looked at: it was at rest when we looked
    again = source_files.renew_fresh_refs(seen, roots=roots, since_ns=since)
    assert [one is other for one, other in zip(again, seen, strict=True)] == [True, False, True]
    (place / "b.parquet").unlink()
    with pytest.raises(PathRefused):
        source_files.renew_fresh_refs(seen, roots=roots, since_ns=since)


async def test_files_of_other_endings_are_left_out_with_a_note(owner: Owner) -> None:
    """A folder of `part-2.parq` alone was missing, with its value of the partition, and nobody was told."""
    top = owner.folder / "data" / "endings"
    for name in ("k=1/a.parquet", "k=1/part-0", "k=2/b.parq", "k=2/_SUCCESS", "k=2/.b.parq.crc"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"a": [1]}), top / name)
    first = view(*await owner.registry.register(_asked("endings", top), by="ann"), raw=True)
    assert first.rows == 1
    assert re.search(r"endings.*: 2, .*'k=1/part-0'", first.note)
    for name in ("k=1/part-0", "k=2/b.parq"):
        (top / name).rename(top / f"{name}.parquet")
    second = view(*await owner.registry.renew("endings", "", by="ann"), raw=True)
    assert (second.rows, second.note) == (3, "")


@pytest.mark.parametrize("ahead", [0, 86_400], ids=["now", "tomorrow"])
async def test_a_file_is_at_rest_when_nobody_writes_it_whatever_its_time_says(
    owner: Owner, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    path, written = owner.folder / "data" / f"dated_{ahead}.parquet", asyncio.Event()
    pq.write_table(pa.table({"a": [1, 2, 3]}), path)
    later = time.time_ns() + ahead * 10**9

    async def write() -> None:
        """The same bytes, and the same time of change of what is in it."""
        while not written.is_set():
            with path.open("r+b") as file:
                file.write(b"PAR1")
            os.utime(path, ns=(later, later))
            await asyncio.sleep(0.001)

    writing = asyncio.create_task(write())
    with monkeypatch.context() as patched:
        patched.setattr(registry, "_LOOKS", 5)
        with pytest.raises(SourceUnreadable) as raised:
            await owner.add(path.stem, path)
    written.set()
    await writing
    assert raised.value.code == "source_busy"
    assert (await owner.rows(await owner.add(path.stem, path))).num_rows == 3


async def test_a_clock_of_files_that_is_ahead_is_waited_for_no_longer_than_its_step(owner: Owner) -> None:
    now = time.time_ns()
    first = (source_files.FileRef("/a", 1, 2, 3, now, "a", now + 10**12),)
    same = (replace(first[0]),)
    assert source_files.has_fresh_file(first, since_ns=now)
    assert not source_files.has_fresh_file(same, since_ns=now, before=first)
    one = first[0]
    for changed in (replace(one, ctime_ns=one.ctime_ns + 1), replace(one, mtime_ns=now + 1), replace(one, size=4)):
        assert source_files.has_fresh_file((changed,), since_ns=now, before=first)


def _text(owner: Owner, name: str, text: str) -> Path:
    path = owner.folder / "data" / name
    path.write_text(text)
    return path


def _prepared(owner: Owner) -> list[str]:
    folder = owner.folder / "prepared"
    return [one.name for one in folder.iterdir()] if folder.exists() else []


async def test_a_dataset_with_an_agreement_in_force_is_not_removed_however_many_have_ended_since(owner: Owner) -> None:
    pq.write_table(pa.table({"id": [1]}), owner.folder / "data" / "one.parquet")
    await owner.add("one", owner.folder / "data" / "one.parquet")

    def agreed(tx: Any) -> None:
        for number in range(150):
            tx.agreements.add(
                Agreement(id=f"a{number}", role="provider", negotiation_id=f"n{number}", digest="", policy={},
                          address="", dataset_id="urn:hanse:clinic:one", provider="did:web:clinic.example",
                          consumer="did:web:lab.example", finalized=True, signed_at=float(number),
                          ended_at=float(number) or None)
            )  # fmt: skip

    def ended(tx: Any) -> None:
        tx.agreements.of("a0", role="provider").ended_at = 1.0

    await owner.store.write(agreed)
    with pytest.raises(WrongState, match="agreements in force"):
        await owner.registry.remove("one", by="test")
    await owner.store.write(ended)
    await owner.registry.remove("one", by="test")


async def test_a_dataset_that_was_removed_is_registered_again(owner: Owner) -> None:
    path = owner.folder / "data" / "again.parquet"
    pq.write_table(pa.table({"id": [1]}), path)
    before = await owner.add("again", path)
    await owner.registry.remove("again", by="test")
    with pytest.raises(Absent):
        await owner.registry.get("again")
    elsewhere = path.rename(path.with_name("elsewhere.parquet"))
    assert (await owner.add("again", elsewhere)).digest == before.digest
    _, version = await owner.registry.get("again")
    assert [file["path"] for file in version.source["files"]] == [str(elsewhere)]


async def test_who_registers_a_name_twice_or_a_version_that_does_not_fit_hears_what_to_do(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = owner.folder / "data" / "twice.parquet"
    pq.write_table(pa.table({"id": [1]}), path)
    await owner.add("twice", path)
    with pytest.raises(AlreadyExists, match=r"hanse dataset update twice"):
        await owner.add("twice", path)

    async def effects(*_: object) -> list[dict[str, str]]:
        return [{"level": "error", "message": "one person more"}]

    monkeypatch.setattr(owner.registry, "effects", effects)
    with pytest.raises(WrongState, match=r"one person more; .*--accept"):
        await owner.registry.renew("twice", "", by="test")


async def test_a_version_is_the_same_for_the_same_data_and_confirms_no_guess_at_it(
    owner: Owner, tmp_path: Path
) -> None:
    versions = []
    async with owning(tmp_path, None) as other:
        for number, one in enumerate((owner, owner, other)):
            path = one.folder / "data" / f"salaries_{number}.parquet"
            pq.write_table(pa.table({"name": ["bob"], "salary": [73412]}), path)
            versions.append((await one.add(f"salaries_{number}", path)).digest)
    assert versions[0] == versions[1] != versions[2]


async def test_the_record_of_a_version_names_its_files_by_their_digests(owner: Owner) -> None:
    path, digests = owner.folder / "data" / "named.parquet", []
    for value, add in ((1, owner.add("named", path)), (2, owner.registry.renew("named", "", by="test"))):
        pq.write_table(pa.table({"id": [value]}), path)
        digests.append(sha256(path.read_bytes()).hexdigest())
        await add
    records = await owner.store.read(lambda tx: [row.body for row in tx.audit.list_pending(1000)])
    told = [one for one in records if one.get("dataset", "").endswith(":named")]
    assert [(one["kind"], one["detail"]["sha256"]) for one in told] == [
        ("DatasetRegistered", digests[:1]),
        ("DatasetVersioned", digests[1:]),
    ]


async def test_a_full_disk_is_told_as_that_whether_the_file_finds_no_room_or_the_database(
    owner: Owner, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal finds no room in the log either, and whoever asked hears of what came first."""

    async def full(*_: Any, told: Any, brief: bool) -> Mapping[str, Any]:
        raise disk_full()

    async def profile(*_: Any, told: Any) -> Mapping[str, Any]:
        columns = [{"name": "a", "type": "BIGINT"}]
        return {"schema": columns, "rows": 1, "bytes": 1, "columns": {"a": {"min": "x" * 2**20}}, "digests": ["d"]}

    monkeypatch.setattr(stuck, "convert", full)
    monkeypatch.setattr(stuck, "profile", profile)
    await _limit(owner, pages=1)  # as many as there are
    with suppress(Unavailable):
        while True:
            await owner.store.write(lambda tx: tx.publish(RequestRefused(actor="test")))
    try:
        for name, said in {
            "full.csv": "data directory",
            "full.jsonl": "data directory",
            "full.parquet": "database",
        }.items():
            with pytest.raises(Unavailable, match=said) as raised:
                await owner.add("full", _text(owner, name, "a\n1\n" * 2**16))
            assert raised.value.code == "disk_full"
    finally:
        await _limit(owner, pages=2**31)
    with pytest.raises(Absent):
        await owner.registry.get("full")


async def _limit(owner: Owner, *, pages: int) -> None:
    def work(tx: Any) -> None:
        run_statement(tx._unit.connection, f"PRAGMA max_page_count = {pages}")

    await owner.store.write(work)


@pytest.mark.parametrize(
    ("next_", "differs"),
    [
        ("id,w,ssn\n1,1.5,x\n", r"ssn \(VARCHAR\) is new; register it under a new name"),
        ("id\n1\n", "w is gone"),
        ("id,w\n1,1\n2,9007199254740993\n", "w is BIGINT and was DOUBLE"),
        ("id,w\n1.5,2.5\n", "id is DOUBLE and was BIGINT"),
    ],
    ids=["a column more", "a column less", "more digits", "fractions"],
)
async def test_a_version_has_the_columns_and_types_of_the_one_before(
    owner: Owner, request: pytest.FixtureRequest, next_: str, differs: str
) -> None:
    """Else an agreement that only hides columns would show one that it was not signed for."""
    name = f"again_{request.node.callspec.id.replace(' ', '_')}"
    path = owner.folder / "data" / f"{name}.csv"
    path.write_text("id,w\n1,1.5\n2,2.25\n")
    first = await owner.add(name, path)
    path.write_text(next_)
    with pytest.raises(WrongState, match=differs) as refused:
        await owner.registry.renew(name, "", by="test", accept=True)
    assert refused.value.code == "schema_changed"
    assert (await owner.registry.get(name))[1].digest == first.digest
    assert (await owner.rows(first))["w"].to_pylist() == [1.5, 2.25]


WHOLE: dict[str, tuple[str, str, dict[str, Any], list[Any]]] = {
    "fractions": ("1.5", '1\n""\n-9007199254740992', {}, [1.0, None, -9007199254740992.0]),
    "points": ("1.5", "1.0\n2.0", {}, [1.0, 2.0]),
    "decimals": ("9007199254740993\n0.5", "1\n9007199254740992", {}, [Decimal("1.0"), Decimal("9007199254740992.0")]),
    "with marks": ("1.234,5", "1.234\n2", {"decimal": ",", "thousands": "."}, [1234.0, 2.0]),
}


@pytest.mark.parametrize("case", WHOLE)
async def test_a_column_of_csv_that_holds_whole_numbers_this_time_keeps_its_type(owner: Owner, case: str) -> None:
    old, new, options, values = WHOLE[case]
    name = f"whole_{case.replace(' ', '_')}"
    path = owner.folder / "data" / f"{name}.csv"
    path.write_text(f"w;x\n{old.replace(chr(10), ';a' + chr(10))};a\n")
    first = await owner.add(name, path, delimiter=";", **options)
    path.write_text(f"w;x\n{new.replace(chr(10), ';a' + chr(10))};a\n")
    _, second = await owner.registry.renew(name, "", by="test")
    assert second.schema == first.schema
    assert (await owner.rows(second))["w"].to_pylist() == values
    (told,) = [one for one in second.source["report"]["columns"] if one["name"] == "w"]
    assert ("whole numbers, kept as" in told.get("note", "")) is (case != "points")
