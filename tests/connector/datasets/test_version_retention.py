"""What was converted lies in files of ours as long as somebody may read it, and no longer: however its version ceases
to be the current one, and however a process ends that was making one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from connector.datasets import version_retention
from connector.errors import Absent, Unavailable
from connector.store import UNKNOWN
from connector.store.tables import Agreement, DatasetVersion
from tests.support.owner import Owner, owning

pytestmark = pytest.mark.asyncio(loop_scope="module")
ROWS = 1000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def owner(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Owner]:
    async with owning(tmp_path_factory.mktemp("kept"), None) as running:
        yield running


def write(owner: Owner, name: str, text: str, rows: int = ROWS) -> Path:
    path = owner.folder / "data" / f"{name}.csv"
    path.write_text("id,name\n" + "".join(f"{number},{text}{number}\n" for number in range(rows)))
    return path


async def update(owner: Owner, name: str, text: str) -> DatasetVersion:
    write(owner, name, text)
    return (await owner.registry.renew(name, "", by="test"))[1]


def made(owner: Owner) -> set[str]:
    return {path.name for path in (owner.folder / "prepared").iterdir()}


async def agree(owner: Owner, name: str, *, ended: float | None = None) -> None:
    row = Agreement(id=f"on-{name}", role="provider", negotiation_id=f"of-{name}", digest="", policy={}, address="",
                    dataset_id=f"urn:hanse:clinic:{name}", provider="did:web:clinic.example",
                    consumer="did:web:lab.example", finalized=True, signed_at=1.0, ended_at=ended)  # fmt: skip
    await owner.store.write(lambda tx: tx.agreements.add(row))


async def test_a_file_goes_when_another_version_has_taken_its_place_and_when_the_dataset_goes(owner: Owner) -> None:
    before = made(owner)
    first = await owner.add("alone", write(owner, "alone", "a"))
    second = await update(owner, "alone", "b")
    assert made(owner) == before | version_retention.file_names([second])
    assert version_retention.file_names([first]).isdisjoint(made(owner))
    assert (await owner.rows(second))["name"][0].as_py() == "b0"
    await owner.registry.remove("alone", by="test")
    assert made(owner) == before


async def test_an_update_of_the_same_bytes_leaves_the_file_that_is_read(owner: Owner) -> None:
    first = await owner.add("same", write(owner, "same", "a"))
    before = made(owner)
    second = await update(owner, "same", "a")
    assert (first.digest, first.source["files"], before) == (second.digest, second.source["files"], made(owner))
    assert (await owner.rows(first)).num_rows == ROWS


async def test_a_read_that_has_begun_goes_on_when_its_version_has_gone(owner: Owner) -> None:
    version = await owner.add("running", write(owner, "running", "a", rows=200_000))
    rows = 0
    async with owner.pool.run(owner.job(version, "SELECT * FROM t", batch_bytes=2**17)) as result:
        async for frame in result:
            if not rows:
                await update(owner, "running", "b")
                assert version_retention.file_names([version]).isdisjoint(made(owner))
            rows += frame.rows
    assert rows == 200_000


async def test_versions_that_a_coming_one_is_held_against_stay(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that somebody may have asked, as many as are looked at: none of before the first agreement."""
    monkeypatch.setattr(version_retention, "EARLIER_MAX", 1)
    before = made(owner)
    await owner.add("asked", write(owner, "asked", "n0"))
    versions = [await update(owner, "asked", "n1")]
    await agree(owner, "asked", ended=2.0)
    assert (
        await owner.store.read(
            lambda tx: version_retention.list_earlier(tx, tx.datasets.get_current(tx.datasets.of("asked")))
        )
        == []
    )
    versions += [await update(owner, "asked", text) for text in ("n2", "n3", "n4")]
    assert made(owner) == before | version_retention.file_names(versions[1:])
    again = await update(owner, "asked", "n3")
    assert again.source["files"] == versions[2].source["files"]
    await owner.registry.remove("asked", by="test")
    assert made(owner) == before


@pytest.mark.parametrize("updated", [False, True], ids=["registration", "update"])
async def test_a_version_of_which_nobody_knows_whether_it_is_stored_keeps_its_file(
    owner: Owner, monkeypatch: pytest.MonkeyPatch, updated: bool
) -> None:
    name = f"lost_{updated}".lower()
    path = write(owner, name, "a")
    if updated:
        await owner.add(name, path)
    write_ = owner.store.write

    async def lost(work: Any) -> Any:
        if isinstance(await write_(work), tuple):
            raise Unavailable("the database went away as it kept this; look whether it did", code=UNKNOWN)

    with monkeypatch.context() as patched:
        patched.setattr(owner.store, "write", lost)
        with pytest.raises(Unavailable):
            await (update(owner, name, "b") if updated else owner.add(name, path))
    _, version = await owner.registry.get(name)
    assert (await owner.rows(version))["name"][0].as_py() == ("b0" if updated else "a0")


MAKING = """
import sys, time
from pathlib import Path
from connector.datasets.owned_files import OwnedFolder
for folder in sys.argv[1:]:
    globals()[folder] = OwnedFolder(Path(folder))
    globals()[folder].new(".csv").write_bytes(b"half of it")
print("made", flush=True)
time.sleep(600)
"""


@contextmanager
def another(*folders: Path) -> Iterator[None]:
    """Another process is at work on a file in each folder, and is killed."""
    command = [sys.executable, "-c", MAKING, *map(str, folders)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "made\n"
            yield
        finally:
            process.kill()


async def test_a_start_removes_what_killed_processes_have_left_and_nothing_of_one_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = tmp_path / "prepared", tmp_path / "outside" / "drafts"
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / f"{'0' * 32}.csv").write_bytes(b"of an older program")

    def there() -> list[int]:
        return [len(list(folder.iterdir())) for folder in folders]

    async with owning(tmp_path, None) as first:
        assert there() == [0, 0]
        good = await first.add("good", write(first, "good", "a"))
        await first.add("gone", write(first, "gone", "a"))
        with monkeypatch.context() as patched:  # it dies before that
            patched.setattr(version_retention, "list_unneeded_files", lambda *_, **__: set())
            await first.registry.remove("gone", by="test")
        assert there() == [2, 0]
        with another(*folders):
            await first.registry.start()
            assert there() == [3, 1]
    async with owning(tmp_path, None) as second:
        assert there() == [1, 0]
        _, version = await second.registry.get("good")
        assert version.source["files"] == good.source["files"]
        assert (await second.rows(version)).num_rows == ROWS
        with pytest.raises(Absent):
            await second.registry.get("gone")
