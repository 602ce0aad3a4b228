"""Uploads: which files are taken, what stays of the others, and no way out of the folder."""

from __future__ import annotations

import gzip
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.requests import ClientDisconnect

from connector.datasets.registration import Registration
from connector.datasets.uploads import ARRIVING, UploadLimits, Uploads
from connector.errors import ConnectorError
from connector.events import Event, FileUploaded
from tests.support.owner import Owner

MB = 2**20
CSV = b"person,age\nann,31\nbo,42\n"


@pytest.fixture
def uploads(owner: Owner) -> Uploads:
    folder = owner.folder / "data" / "uploads"
    return Uploads(owner.store, folder, limits=UploadLimits(each=MB, total=2 * MB), check=owner.registry.check_readable)


async def pieces(content: bytes, *, step: int = 2**16) -> AsyncIterator[bytes]:
    for at in range(0, len(content), step):
        yield content[at : at + step]


def kept(uploads: Uploads) -> list[str]:
    """Files of the folder, without the locks of processes."""
    found = [path.relative_to(uploads.folder) for path in uploads.folder.rglob("*") if path.is_file()]
    return [str(path) for path in found if path.parts[0] != f".{ARRIVING}"]


def mode_and_content(path: Path) -> tuple[int, bytes]:
    return path.stat().st_mode & 0o777, path.read_bytes()


@pytest.fixture
def events(owner: Owner) -> list[Event]:
    found: list[Event] = []
    owner.store.bus.subscribe(found.append)
    return found


async def test_a_file_is_stored_checked_recorded_and_registered(
    owner: Owner, uploads: Uploads, events: list[Event]
) -> None:
    found = await uploads.take("Patients 2024.csv", pieces(CSV, step=5), by="ann")
    path = Path(found.path)
    assert (path.parent, found.kind, found.suggested) == (uploads.folder, "csv", "patients_2024")
    assert (mode_and_content(path), kept(uploads)) == ((0o600, CSV), [path.name])
    (uploaded,) = events
    assert isinstance(uploaded, FileUploaded)
    assert (uploaded.actor, uploaded.detail["file"], uploaded.detail["bytes"]) == ("ann", path.name, len(CSV))
    asked = Registration(name="patients", path=found.path, kind=found.kind)
    assert (await owner.registry.look(asked, by="ann")).rows == (("ann", "31"), ("bo", "42"))
    _, version = await owner.registry.register(asked, by="ann")
    assert version.profile["rows"] == 2


@pytest.mark.parametrize(
    "name",
    ["../../etc/cron.csv", "/etc/passwd.csv", "..\\..\\evil.csv", ".hidden.csv", "a\0b.csv", "x" * 300 + ".csv",
     "<img src=x>.csv", "-rf.csv", "Ärzte.csv", "a/../b.csv", "%2e%2e%2fa.csv", ".arriving/a.csv"],
)  # fmt: skip
async def test_a_name_cannot_lead_out_of_the_folder(uploads: Uploads, name: str) -> None:
    found = Path((await uploads.take(name, pieces(CSV), by="ann")).path)
    assert found.parent == uploads.folder
    assert len(found.name) < 130
    assert all(sign.isascii() and (sign.isalnum() or sign in "._-") for sign in found.name)
    assert not found.name.startswith(".")


async def test_a_second_file_of_a_name_replaces_nothing(uploads: Uploads) -> None:
    one, two = [(await uploads.take("a.csv", pieces(CSV), by="ann")).path for _ in range(2)]
    assert one != two
    assert len(kept(uploads)) == 2


def parquet_bomb() -> bytes:
    """One value of 512 MB in less than 1 MB of Parquet."""
    sink = pa.BufferOutputStream()
    table = pa.table({"a": pa.array(["x" * (512 * MB)], pa.large_string())})
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_statistics=False)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.exe", b"MZ", "upload_invalid"),
        ("a", CSV, "upload_invalid"),
        ("", CSV, "upload_invalid"),
        ("a.html", b"<script>", "upload_invalid"),
        ("a.csv", b"", "upload_invalid"),
        ("a.parquet", CSV, "source_unreadable"),
        ("a.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "source_unreadable"),
        ("a.arrow", CSV, "source_unreadable"),
        ("a.csv.gz", CSV, "source_unreadable"),
        ("a.csv", os.urandom(5000), "source_unreadable"),
        ("a.jsonl", b"[1, 2", ""),
        ("a.csv", b"a\n" + b"1\n" * MB, "upload_too_large"),
    ],
)
async def test_what_is_no_such_file_is_refused_recorded_and_not_kept(
    uploads: Uploads, events: list[Event], name: str, content: bytes, code: str
) -> None:
    with pytest.raises(ConnectorError) as refused:
        await uploads.take(name, pieces(content), by="ann")
    assert refused.value.code == code or not code
    assert kept(uploads) == []
    (record,) = events
    assert (record.kind, record.actor, record.code) == ("RequestRefused", "ann", refused.value.code)
    assert ARRIVING not in refused.value.message


async def test_a_parquet_bomb_ends_in_the_worker(uploads: Uploads) -> None:
    content = parquet_bomb()
    assert len(content) < MB
    with pytest.raises(ConnectorError) as refused:
        await uploads.take("bomb.parquet", pieces(content), by="ann")
    assert refused.value.code in ("memory_limit", "worker_crashed", "source_unreadable")
    assert kept(uploads) == []
    assert await uploads.take("a.csv", pieces(CSV), by="ann")  # the next one has a worker


async def test_a_gzip_of_many_lines_is_within_the_limit_of_what_is_sent(uploads: Uploads) -> None:
    found = await uploads.take("a.csv.gz", pieces(gzip.compress(b"a\n" + b"1\n" * MB)), by="ann")
    assert found.size < MB


async def test_the_folder_has_a_limit_of_its_own(owner: Owner, uploads: Uploads) -> None:
    (uploads.folder / "old.csv").write_bytes(b"1" * (2 * MB - 10))
    with pytest.raises(ConnectorError) as refused:
        await uploads.take("a.csv", pieces(CSV), by="ann")
    assert (refused.value.code, refused.value.status) == ("uploads_full", 429)


async def test_uploads_can_be_off(owner: Owner) -> None:
    off = Uploads(owner.store, owner.folder / "u", limits=UploadLimits(each=MB, total=0), check=None)  # type: ignore[arg-type]  # never called
    with pytest.raises(ConnectorError, match="HANSE_UPLOAD_MB"):
        await off.take("a.csv", pieces(CSV), by="ann")
    assert not (owner.folder / "u").exists()


async def test_a_sender_that_leaves_leaves_nothing(uploads: Uploads) -> None:
    async def leaving() -> AsyncIterator[bytes]:
        yield CSV
        raise ClientDisconnect

    with pytest.raises(ClientDisconnect):
        await uploads.take("a.csv", leaving(), by="ann")
    assert kept(uploads) == []


async def test_a_long_value_does_not_come_to_the_connector(owner: Owner) -> None:
    pq.write_table(
        pa.table({"a": ["x" * MB], "b": pa.array([None], pa.int8())}), owner.folder / "data" / "long.parquet"
    )
    asked = Registration(name="", path=str(owner.folder / "data" / "long.parquet"), kind="parquet")
    (found,) = (await owner.registry.look(asked, by="ann")).rows
    assert found == ("x" * 80, None)
