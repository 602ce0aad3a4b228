"""What bad input gets: a clear error, nothing half done behind it, and the refusal in the audit log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hanse import HanseError
from hanse._transport.api import Api

from connector.demo.story import RESEARCH
from tests.e2e.conftest import Running


@pytest.fixture
def north(running: Running) -> Api:
    return running.story.api("north")


@pytest.fixture
def data(running: Running) -> Path:
    return running.space.directory / "data" / "north"


def refusals(api: Api) -> list[dict[str, Any]]:
    kinds = ("RequestRefused", "ReadRefused", "QueryCoordinated")
    return [
        row["body"]
        for row in api.get("/audit/events", limit=200)["records"]
        if row["body"]["kind"] in kinds and row["body"]["outcome"] != "ok"
    ]


def missing(_: Path) -> str:
    return "nowhere.parquet"


def outside(data: Path) -> str:
    target = data.parent.parent / "outside.parquet"
    pq.write_table(pa.table({"a": [1]}), target)
    return str(target)


def traversal(data: Path) -> str:
    outside(data)
    return str(data / ".." / ".." / "outside.parquet")


def link_out(data: Path) -> str:
    link = data / "link.parquet"
    link.unlink(missing_ok=True)
    link.symlink_to(outside(data))
    return str(link)


def not_parquet(data: Path) -> str:
    path = data / "text.parquet"
    path.write_text("this is no Parquet file, although it is called one\n" * 100)
    return str(path)


def corrupt(data: Path) -> str:
    """A page whose compressed bytes were overwritten: found because every row is read at registration."""
    path = data / "corrupt.parquet"
    pq.write_table(
        pa.table({"a": [f"row {n}" for n in range(50_000)]}), path, compression="snappy", use_dictionary=False
    )
    broken = bytearray(path.read_bytes())
    broken[200:5_000] = b"\xff" * 4_800
    path.write_bytes(broken)
    return str(path)


def truncated(data: Path) -> str:
    path = data / "truncated.parquet"
    pq.write_table(pa.table({"a": list(range(10_000))}), path)
    path.write_bytes(path.read_bytes()[:-200])
    return str(path)


def fifo(data: Path) -> str:
    import os

    path = data / "pipe.parquet"
    if not path.exists():
        os.mkfifo(path)
    return str(path)


PATHS: dict[str, Callable[[Path], str]] = {
    "a path that does not exist": missing,
    "a path outside the allowed directories": outside,
    "a path that climbs out": traversal,
    "a symbolic link that leads out": link_out,
    "a file that is no Parquet": not_parquet,
    "a corrupt Parquet file": corrupt,
    "a truncated Parquet file": truncated,
    "a pipe": fifo,
}


@pytest.mark.parametrize("name", PATHS)
def test_a_bad_path_is_refused_and_leaves_nothing(north: Api, data: Path, name: str) -> None:
    path = PATHS[name](data)
    full = path if path.startswith("/") else str(data / path)
    with pytest.raises(HanseError) as caught:
        north.post("/datasets", {"name": "bad", "path": full})
    assert caught.value.code in ("path_refused", "source_unreadable", "not_parquet")
    assert "bad" not in {row["name"] for row in north.get("/datasets")}
    newest = refusals(north)[0]
    assert (newest["kind"], newest["code"]) == ("RequestRefused", caught.value.code)


FORMS = {
    "an unknown word": ("offer: x\ndataset: patients\nmay: [query]\ncolour: blue\n", "colour"),
    "a date without a zone": ("offer: x\ndataset: patients\nmay: [query]\nuntil: 2027-12-31T10:00:00\n", "zone"),
    "an unknown action": ("offer: x\ndataset: patients\nmay: [devour]\n", "devour"),
    "a column that is not there": (
        "offer: x\ndataset: patients\nmay: [query]\ncolumns: {hide: [shoe_size]}\n",
        "shoe_size",
    ),
    "a dataset that is not there": ("offer: x\ndataset: unicorns\nmay: [query]\n", "unicorns"),
    "a day that has passed": ("offer: x\ndataset: patients\nmay: [query]\nuntil: 2020-01-01\n", "a time in the future"),
    "no YAML": ("{[", "line"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_bad_offer_is_refused_by_name_and_leaves_nothing(north: Api, name: str) -> None:
    form, named = FORMS[name]
    before = {row["id"] for row in north.get("/offers")}
    with pytest.raises(HanseError) as caught:
        north.post("/offers", {"form": form})
    assert named in str(caught.value)
    assert {row["id"] for row in north.get("/offers")} == before
    assert refusals(north)[0]["detail"] == {"request": "publish offer"}


def test_an_unknown_participant_is_named_and_nothing_is_begun(running: Running) -> None:
    forge = running.story.api("forge")
    before = len(forge.get("/negotiations"))
    with pytest.raises(HanseError, match="atlantis"):
        forge.post("/negotiations", {"participant": "atlantis", "dataset": "patients"})
    assert len(forge.get("/negotiations")) == before


def test_a_peer_that_is_down_is_an_error_that_names_it(running: Running) -> None:
    forge, west = running.story.api("forge"), running.space.members["west"]
    running.space.kill("west")
    try:
        running.relays["west"].refuse(True)
        with pytest.raises(HanseError) as caught:
            forge.get("/catalog", participant="west")
        with pytest.raises(Exception, match="west") as asked:
            running.forge.query("SELECT count(*) AS n FROM west.planes", purpose=RESEARCH).to_arrow()
    finally:
        running.relays["west"].refuse(False)
        running.space.start("west")
        running.space.wait("west")
    assert caught.value.code == "peer_unreachable"
    assert str(west.front_port) in str(caught.value)
    assert "planes" in str(asked.value)


QUERIES = {
    "two statements": ("SELECT 1 FROM north.flights; SELECT 2 FROM north.flights", "one"),
    "not a SELECT": ("DELETE FROM north.flights", ""),
    "a file": ("SELECT * FROM read_csv('/etc/passwd')", ""),
    "a file as a table": ("SELECT * FROM '/etc/passwd'", ""),
    "settings": ("SELECT current_setting('home_directory') FROM north.flights", ""),
    "a dataset without an agreement": ("SELECT * FROM north.unicorns", "unicorns"),
    "an owner that is not there": ("SELECT * FROM atlantis.flights", "atlantis"),
    "no SQL": ("SELEKT everything", ""),
    "nothing": (" ", ""),
}


@pytest.mark.parametrize("name", QUERIES)
def test_a_bad_question_is_refused_and_recorded(running: Running, name: str) -> None:
    sql, named = QUERIES[name]
    with pytest.raises(HanseError) as caught:
        running.forge.query(sql, purpose=RESEARCH).to_arrow()
    assert named in str(caught.value)
    assert "/work" not in str(caught.value)
    if sql.strip():
        assert refusals(running.story.api("forge"))[0]["outcome"] in ("refused", "failed")
