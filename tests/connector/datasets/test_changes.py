"""A file that is not what was registered is refused, also when it changes in mid-read; files that do not fit together
are named. Registration copes with many files, many columns and strange types."""

from __future__ import annotations

import mmap
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from connector.errors import SourceUnreadable, VersionChanged
from tests.support import data
from tests.support.owner import Owner, owning

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def owner(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Owner]:
    async with owning(tmp_path_factory.mktemp("changes"), None) as running:
        yield running


def _appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def _flipped(path: Path) -> None:
    """In place, the same size, and the time of change set back."""
    was = path.stat()
    with path.open("r+b") as file:
        file.seek(200)
        file.write(bytes([file.read(1)[0] ^ 1]))
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def _mapped(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[200] ^= 1


def _replaced(path: Path) -> None:
    """By another file of the same bytes and times: what was checked is not what is there."""
    draft = path.with_suffix(".new")
    draft.write_bytes(path.read_bytes())
    was = path.stat()
    os.utime(draft, ns=(was.st_atime_ns, was.st_mtime_ns))
    draft.replace(path)


CHANGES: dict[str, Callable[[Path], None]] = {
    "appended": _appended,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "touched": lambda path: path.touch(),
    "flipped with its time set back": _flipped,
    "written through a mapping": _mapped,
    "replaced by rename": _replaced,
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("name", list(CHANGES))
async def test_a_changed_file_is_refused(owner: Owner, name: str) -> None:
    label = "a_" + name.replace(" ", "_")
    path = data.parquet(owner.folder / "data" / f"{label}.parquet", 1000)
    version = await owner.add(label, path)
    assert (await owner.rows(version)).num_rows == 1000
    CHANGES[name](path)
    with pytest.raises(VersionChanged):
        await owner.rows(version)


@pytest.mark.parametrize(
    "name", ["appended", "truncated", "flipped with its time set back", "written through a mapping"]
)
async def test_a_file_that_changes_in_mid_read_ends_the_read_as_changed(owner: Owner, name: str) -> None:
    label = "m_" + name.replace(" ", "_")
    path = owner.folder / "data" / f"{label}.parquet"
    pq.write_table(data.table(400_000), path, row_group_size=20_000, compression="none")
    version = await owner.add(label, path)
    seen: list[int] = []

    async def read() -> None:
        async with owner.pool.run(owner.job(version, "SELECT * FROM t", batch_bytes=2**18)) as result:
            async for frame in result:
                if not seen:
                    CHANGES[name](path)
                seen.append(frame.rows)

    with pytest.raises(VersionChanged):
        await read()
    assert seen


DIFFERENT = {
    "type": (pa.table({"a": pa.array([1], pa.int32()), "b": ["x"]}), "a is int32 and not int64"),
    "missing": (pa.table({"a": [1]}), "b is missing"),
    "more": (pa.table({"a": [1], "b": ["x"], "c": [1]}), "c is there beside"),
}


def _arrow(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {"parquet": pq.write_table, "arrow": _arrow}


@pytest.mark.parametrize("ending", list(WRITERS))
@pytest.mark.parametrize("name", list(DIFFERENT))
async def test_the_file_that_differs_is_named_and_how(owner: Owner, name: str, ending: str) -> None:
    other, told = DIFFERENT[name]
    top = owner.folder / "data" / f"d_{name}_{ending}"
    top.mkdir()
    for number in range(3):
        WRITERS[ending](other if number == 2 else pa.table({"a": [1], "b": ["x"]}), top / f"part-{number}.{ending}")
    with pytest.raises(SourceUnreadable, match=told) as raised:
        await owner.add(top.name, top, kind="arrow_ipc" if ending == "arrow" else "")
    assert (raised.value.code, raised.value.facts["file"]) == ("schemas_differ", f"part-2.{ending}")


@pytest.mark.parametrize("ending", list(WRITERS))
@pytest.mark.parametrize("names", [["a", "a"], ["a", "A"], ["straße", "STRASSE"]])
async def test_columns_of_one_name_are_refused(owner: Owner, names: list[str], ending: str) -> None:
    path = owner.folder / "data" / f"twice.{ending}"
    WRITERS[ending](pa.table([pa.array([1]), pa.array([2])], names=names), path)
    with pytest.raises(SourceUnreadable) as raised:
        await owner.add("twice", path)
    assert raised.value.code == "columns_repeated"


@pytest.mark.parametrize("ending", list(WRITERS))
@pytest.mark.parametrize("names", [["", "x"], ["", ""], ["", "C0"], ["v1", ""]])
async def test_a_column_without_a_name_is_refused(owner: Owner, names: list[str], ending: str) -> None:
    path = owner.folder / "data" / f"unnamed.{ending}"
    WRITERS[ending](pa.table([pa.array([1]), pa.array([2])], names=names), path)
    with pytest.raises(
        SourceUnreadable, match=rf"columns with names, came one without in 'unnamed\.{ending}'; name it"
    ):
        await owner.add("unnamed", path)


async def test_a_thousand_columns_no_rows_and_strange_types_are_registered(owner: Owner) -> None:
    place = owner.folder / "data"
    pq.write_table(pa.table({f"c{number}": [number] for number in range(1000)}), place / "wide.parquet")
    version = await owner.add("wide", place / "wide.parquet")
    assert (len(version.schema), (await owner.rows(version, "SELECT c999 FROM t"))["c999"].to_pylist()) == (1000, [999])
    strange = pa.table(
        {
            "coded": pa.array(["a", "b"]).dictionary_encode(),
            "money": pa.array([1, 2]).cast(pa.decimal128(30, 4)),
            "when": pa.array([0, 1], pa.timestamp("us", "Europe/Berlin")),
            "nested": [{"x": [{"y": 1}]}, None],
            "it's größe": [1, 2],
        }
    )
    for name, table in (("strange", strange), ("none", strange.slice(0, 0))):
        pq.write_table(table, place / f"{name}.parquet")
        version = await owner.add(name, place / f"{name}.parquet")
        assert version.profile["rows"] == table.num_rows
        assert (await owner.rows(version))["it's größe"].to_pylist() == table["it's größe"].to_pylist()
