"""A dataset as its owner sees it: what was registered, also where something else is what is read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connector.management.datasets import view
from connector.store.tables import DatasetVersion, RegisteredDataset
from tests.connector.console.support import Console

CSV, JSON = "a,b\n1,2\n", '{"a": 1}\n'


@pytest.mark.parametrize(("kind", "line"), [("csv", CSV), ("jsonl", JSON)])
async def test_text_is_shown_as_what_was_registered(desk: Console, tmp_path: Path, kind: str, line: str) -> None:
    files = [tmp_path / "text" / f"{name}.{kind}" for name in "ab"]
    files[0].parent.mkdir()
    for file in files:
        file.write_text(line)
    owner = {"authorization": f"Bearer {await desk.token('owner', 'read')}"}
    async with desk.parts.pool:
        made = await desk.http.post(
            "/api/v1/datasets", json={"name": "text", "path": str(files[0].parent), "kind": kind}, headers=owner
        )
    shown = (await desk.http.get("/api/v1/datasets/text", headers=owner)).json()
    assert shown.pop("unchanged") is True
    assert made.json() == shown | {"unchanged": None}
    assert (shown["kind"], shown["files"], shown["rows"]) == (kind, [str(file) for file in files], 2)


async def test_a_file_that_is_not_what_was_registered_is_told_where_its_dataset_is_shown(
    desk: Console, tmp_path: Path
) -> None:
    """Its offers stand, and every read is refused: only the refusals told."""
    file = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"n": [1, 2, 3]}), file)
    owner = {"authorization": f"Bearer {await desk.token('owner', 'read')}"}
    async with desk.parts.pool:
        made = await desk.http.post("/api/v1/datasets", json={"name": "numbers", "path": str(file)}, headers=owner)
    assert made.status_code == 201
    told = "is not what was registered, or is gone"
    for spoil, unchanged in (
        (lambda: None, True),
        (lambda: pq.write_table(pa.table({"n": [4]}), file), False),
        (file.unlink, False),
    ):
        spoil()
        assert (await desk.http.get("/api/v1/datasets/numbers", headers=owner)).json()["unchanged"] is unchanged
        assert (told in (await desk.get("/datasets/numbers", "read")).text) is not unchanged


def test_a_table_is_shown_as_what_was_registered() -> None:
    """Its draft, which the report tells of, has gone."""
    path, draft = "postgres://lake/public/people", {"path": "/data/prepared/draft", "name": "draft"}
    source = {
        "kind": "parquet", "files": [{"path": "/data/prepared/x.parquet"}], "report": {"files": [draft]},
        "asked_kind": "postgres", "asked_path": path,
    }  # fmt: skip
    profile = {"rows": 1, "bytes": 1, "columns": {}}
    row = RegisteredDataset(
        id="p", name="p", title="", description="", keywords=[], theme="", license="", citation="", contact="",
        column_notes={}, version="v", created_at=0,
    )  # fmt: skip
    shown = view(row, DatasetVersion(source=source, profile=profile, schema=[]), raw=True)
    assert (shown.kind, shown.files, shown.note) == ("postgres", [path], "")
    named = view(
        row,
        DatasetVersion(source=source, profile=profile, schema=[{"name": "File_Row_Number", "type": "BIGINT"}]),
        raw=True,
    )
    assert "a column is called File_Row_Number" in named.note
