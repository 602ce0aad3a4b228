"""Whatever a path is, and whatever the system says of it, its registration has an answer: a problem, never a 500."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connector.datasets.sources import SOURCES, arrow_ipc, source_files
from connector.datasets.sources import path_errors as subject
from connector.errors import PathRefused, SourceUnreadable, Unavailable
from tests.connector.console.support import Console, opened

KINDS = ["", *SOURCES]
LONG = "n" * 256
TABLE: dict[str, Callable[[Path], str]] = {
    "a part of 256 bytes": lambda top: str(top / LONG),
    "a part of 256 bytes of 128 characters": lambda top: str(top / ("é" * 128)),
    "a long part in the middle": lambda top: str(top / LONG / "a.parquet"),
    "a path of 4,096 characters": lambda top: str(top)[:1] + "a/" * 2_047 + "a",
    "a path of 8,190 bytes": lambda top: "/" + "é/" * 2_047 + "é",
    "a link to itself": lambda top: str(top / "loop"),
    "a file below a link to itself": lambda top: str(top / "loop" / "a.parquet"),
    "a file below a file": lambda top: str(top / "a.parquet" / "b.parquet"),
    "a link to nothing": lambda top: str(top / "dangling.parquet"),
    "nothing": lambda top: str(top / "none.parquet"),
    "a pipe": lambda top: str(top / "pipe.parquet"),
    "a socket": lambda top: str(top / "socket.parquet"),
    "a device": lambda top: "/dev/null",
    "a directory without data": lambda top: str(top / "empty"),
    "a name that is no UTF-8": lambda top: os.fsdecode(bytes(top) + b"/\xff.parquet"),
    "NUL": lambda top: f"{top}/a\0b.parquet",
    "half of a letter": lambda top: f"{top}/\ud800.parquet",
    "half of a letter that stands for a byte": lambda top: f"{top}/\udcff.parquet",
    "line ends": lambda top: f"{top}/a\r\nb.parquet",
    "empty": lambda top: "",
    "blank": lambda top: " ",
    "a dot": lambda top: ".",
    "above the root": lambda top: "/..",
    "relative and long": lambda top: LONG,
    "an object with a long key": lambda top: f"s3://bucket/{LONG}",
    "an object with NUL": lambda top: "s3://bucket/a\0b",
    "a table with a long name": lambda top: f"postgres://registry/public/{LONG}",
    "a table with NUL": lambda top: "postgres://registry/public/a\0b",
    "a store alone": lambda top: "s3://",
    "a database alone": lambda top: "postgres://",
}


class Refusing:
    """An engine that no test of this file should need."""

    async def profile(self, *_: Any, **__: Any) -> Any:
        raise SourceUnreadable("this engine reads nothing")

    convert = profile


def filled(top: Path) -> None:
    top.mkdir()
    (top / "empty").mkdir()
    pq.write_table(pa.table({"a": [1]}), top / "a.parquet")
    (top / "loop").symlink_to("loop")
    (top / "dangling.parquet").symlink_to("gone")
    os.mkfifo(top / "pipe.parquet")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(top / "socket.parquet"))


@dataclass(frozen=True, slots=True)
class Owner:
    """Registers datasets over the management API of a connector that may read one directory, `top`."""

    top: Path
    desk: Console
    runner: asyncio.Runner
    headers: Mapping[str, str]

    def register(self, body: Mapping[str, Any]) -> tuple[int, Any]:
        """Status and answer."""
        said = json.dumps(body)  # with halves of letters as JSON may have them
        answer = self.runner.run(self.desk.http.post("/api/v1/datasets", content=said, headers=self.headers))
        return answer.status_code, answer.json()


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owner]:
    top = tmp_path_factory.mktemp("p") / "d"
    filled(top)
    with asyncio.Runner() as runner:
        manager = opened(top)
        desk = runner.run(manager.__aenter__())
        desk.parts.registry._engine = Refusing()
        headers = {"authorization": f"Bearer {runner.run(desk.token('owner'))}", "content-type": "application/json"}
        yield Owner(top, desk, runner, headers)
        runner.run(manager.__aexit__(None, None, None))


def check_problem(status: int, problem: Any) -> None:
    assert 400 <= status < 500, problem
    assert problem["status"] == status
    assert problem["code"] not in ("internal", "http"), problem
    assert len(problem["detail"]) > 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", TABLE.values(), ids=TABLE)
def test_a_path_that_cannot_be_registered_is_a_problem(owner: Owner, path: Callable[[Path], str], kind: str) -> None:
    body = {"name": "tried", "path": path(owner.top), "kind": kind}
    check_problem(*owner.register({key: value for key, value in body.items() if value or key == "path"}))


def test_a_new_version_from_a_path_that_is_too_long_is_a_problem(tmp_path: Path) -> None:
    async def told() -> tuple[int, Any]:
        pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
        async with opened(tmp_path) as desk, desk.parts.pool:
            owner = {"authorization": f"Bearer {await desk.token('owner')}"}
            body = {"name": "a", "path": str(tmp_path / "a.parquet")}
            assert (await desk.http.post("/api/v1/datasets", json=body, headers=owner)).status_code == 201
            page = await desk.post("/datasets/a/versions", {"path": str(tmp_path / LONG)}, "owner")
            assert (page.status_code, "at most 255 bytes" in page.text) == (400, True)
            page = await desk.post("/datasets/new", {"name": "b", "path": str(tmp_path / LONG)}, "owner")
            assert (page.status_code, "at most 255 bytes" in page.text) == (400, True)
            answer = await desk.http.post(
                "/api/v1/datasets/a/versions", json={"path": str(tmp_path / LONG)}, headers=owner
            )
            return answer.status_code, answer.json()

    status, problem = asyncio.run(told())
    check_problem(status, problem)
    assert problem["code"] == "path_refused"
    assert "at most 255 bytes between two slashes" in problem["detail"]


_PARTS = st.one_of(
    st.sampled_from(
        [".", "..", "", "~", "d", "a.parquet", "loop", "pipe.parquet", LONG, "é" * 128, "\0", "C:\\", "%2e"]
    ),
    st.text(st.characters(codec=None), max_size=12),
    st.text(st.characters(categories=["Cs", "Cc", "Cf", "Zs", "Zl"]), max_size=4),
    st.integers(1, 300).map("x".__mul__),
)
_PATHS = st.builds(
    lambda head, parts: (head + "/".join(parts))[:4_200],
    st.sampled_from(["", "/", "//", "TOP/", "s3://", "postgres://", "s3://b/", "postgres://d/", "file:///", "jdbc:"]),
    st.lists(_PARTS, max_size=6) | st.lists(_PARTS, min_size=40, max_size=60),
)


@settings(max_examples=300)
@given(path=_PATHS, kind=st.sampled_from(KINDS))
def test_random_paths_are_problems(owner: Owner, path: str, kind: str) -> None:
    body = {"name": "tried", "path": path.replace("TOP/", f"{owner.top}/", 1), "kind": kind}
    check_problem(*owner.register(body))


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_error_number_has_an_answer(number: int) -> None:
    found = subject.path_refusal(OSError(number, os.strerror(number)), "/data/a")
    assert isinstance(found, PathRefused if number not in subject._SHORT_OF_RESOURCES else Unavailable)
    assert "'/data/a'" in found.message
    assert os.strerror(number) in found.message


class Failing:
    """The module `os` as one caller sees it, of which one function fails."""

    def __init__(self, name: str, number: int) -> None:
        self._name, self._number = name, number

    def __getattr__(self, name: str) -> Any:
        return self._fail if name == self._name else getattr(os, name)

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise OSError(self._number, os.strerror(self._number))


def _failing_path(name: str, number: int) -> type[Path]:
    return type("Failing", (type(Path()),), {name: Failing("", number)._fail})


NUMBERS = [errno.EACCES, errno.EIO, errno.ESTALE, errno.EINVAL, errno.ENAMETOOLONG, errno.ETIMEDOUT]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", ["open", "fstat", "is_dir", "is_symlink", "magic"])
@pytest.mark.parametrize("kind", ["parquet", "hive", "csv", "jsonl", "arrow_ipc"])
def test_a_disk_that_fails_at_any_call_is_a_problem(
    owner: Owner, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, number: int
) -> None:
    for ending in ("csv", "jsonl", "arrow"):
        (owner.top / "empty" / f"a.{ending}").write_text("ARROW1")
    pq.write_table(pa.table({"a": [1]}), owner.top / "empty" / "a.parquet")
    if name in ("open", "fstat"):
        monkeypatch.setattr(source_files, "os", Failing(name, number))
    elif name == "magic":
        monkeypatch.setattr(arrow_ipc, "Path", _failing_path("open", number))
    else:
        monkeypatch.setattr(source_files, "Path", _failing_path(name, number))
    body = {"name": "tried", "path": str(owner.top / "empty"), "kind": kind}
    check_problem(*owner.register(body))
