"""The newest head is kept beside the database, and an older database, or another one, is not gone on with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from connector.audit.head_file import HeadFile, LogBroken
from connector.audit.log import Sequencer, check_key
from connector.audit.signed_note import Signer, checkpoint
from connector.store import Store, Transaction
from connector.store.tables import AuditCheckpoint, AuditEvent, AuditPending, AuditTile
from tests.connector.audit.support import SIGNER, story

OTHER = Signer(SIGNER.name, Ed25519PrivateKey.from_private_bytes(sha256(b"other").digest()))


async def grown(
    store: Store, path: Path, *, by: int, signer: Signer = SIGNER, former: Sequence[Signer] = ()
) -> Sequencer:
    """The log, longer by so many records, with its newest head in `path`."""
    sequencer = Sequencer(store, signer=signer, head_file=HeadFile(path, signer=signer, former=former))
    await store.write(story(by))
    await sequencer.settle()
    return sequencer


def forget(tx: Transaction) -> None:
    """As in a database from before the first record."""
    for table in (AuditPending, AuditEvent, AuditTile, AuditCheckpoint):
        tx.session.query(table).delete()


async def test_a_log_that_has_grown_since_is_gone_on_with(store: Store, tmp_path: Path) -> None:
    await store.read(HeadFile(tmp_path / "head", signer=SIGNER).check)  # as before the first record
    for size, by in ((300, 300), (305, 5)):
        await grown(store, tmp_path / "head", by=by)
        head = (tmp_path / "head").read_text()
        assert SIGNER.has_signed(head)
        assert int(head.splitlines()[1]) == size
    await store.write(story(400))
    await Sequencer(store, signer=SIGNER).settle()  # by another process
    await store.read(HeadFile(tmp_path / "head", signer=SIGNER).check)


@pytest.mark.parametrize(("again", "said"), [(0, "has 0 records, not the 8"), (3, "3 records"), (9, "other records")])
async def test_one_that_is_shorter_or_another_is_not(store: Store, tmp_path: Path, again: int, said: str) -> None:
    running = await grown(store, tmp_path / "head", by=8)
    await store.write(forget)
    if again < 8:  # a database may be put back while we run
        await store.write(story(again or 1))
        with pytest.raises(LogBroken, match="hanse connector restored"):
            await running.settle()
        await store.write(forget)
    if again:
        await store.write(story(again))
        await Sequencer(store, signer=SIGNER).settle()
    with pytest.raises(LogBroken, match=said):
        await store.read(HeadFile(tmp_path / "head", signer=SIGNER).check)


async def test_what_a_former_key_has_signed_says_nothing(sqlite_store: Store, tmp_path: Path) -> None:
    await grown(sqlite_store, tmp_path / "head", by=8, signer=OTHER)
    await sqlite_store.write(forget)
    await sqlite_store.read(HeadFile(tmp_path / "head", signer=SIGNER, former=[OTHER]).check)
    await grown(sqlite_store, tmp_path / "head", by=1, former=[OTHER])
    assert SIGNER.has_signed((tmp_path / "head").read_text())


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "another key's": lambda _: checkpoint(OTHER, size=8, root=bytes(32)).encode(),
    "no head": lambda _: b"half a he",
    "empty": lambda _: b"",
    "cut": lambda head: head[:-20],
    "altered": lambda head: head.replace(b"\n8\n", b"\n2\n"),
    "no text": lambda head: head + b"\xff",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
async def test_a_head_that_is_none_is_named(
    sqlite_store: Store, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    await grown(sqlite_store, tmp_path / "head", by=8)
    (tmp_path / "head").write_bytes(damage((tmp_path / "head").read_bytes()))
    with pytest.raises(LogBroken, match=f"expected the newest signed head of our audit log in {tmp_path}/head"):
        await sqlite_store.read(HeadFile(tmp_path / "head", signer=SIGNER).check)


async def test_a_database_that_ends_with_a_former_key_is_an_older_one(sqlite_store: Store, tmp_path: Path) -> None:
    await grown(sqlite_store, tmp_path / "head", by=8)
    with pytest.raises(LogBroken, match="an older copy"):
        await sqlite_store.read(partial(check_key, signer=OTHER, former=[SIGNER]))


async def test_where_it_cannot_be_kept_the_log_goes_on(sqlite_store: Store, tmp_path: Path) -> None:
    await grown(sqlite_store, tmp_path / "missing" / "head", by=3)
    assert await sqlite_store.read(lambda tx: tx.audit.read_size()) == 3


def replaced(by: int, signer: Signer) -> Callable[[Store], Awaitable[None]]:
    """Another log in the place of the one before."""

    async def change(store: Store) -> None:
        await store.write(forget)
        await store.write(story(by))
        await Sequencer(store, signer=signer).settle()

    return change


async def taken_over(store: Store) -> None:
    """As by `hanse connector restored` of another process's."""
    while SIGNER.has_signed(await store.read(newest)):
        await store.write(story(1))  # which may be in the log before it is taken over
        await Sequencer(store, signer=OTHER, takes_over=True).settle()


def newest(tx: Transaction) -> str:
    """The newest head in the database."""
    found = tx.audit.read_checkpoint()
    assert found is not None
    return found.note


CHANGES: dict[str, Callable[[Store], Awaitable[None]]] = {
    "missing": lambda store: store.write(forget),
    "shorter": replaced(3, SIGNER),
    "longer, and another one": replaced(9, SIGNER),
    "gone on with under another key": taken_over,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_a_process_learns_while_it_rests_that_its_log_is_not_there_any_more(
    store: Store, tmp_path: Path, change: Callable[[Store], Awaitable[None]]
) -> None:
    sequencer = await grown(store, tmp_path / "head", by=8)
    running = asyncio.create_task(sequencer.run())
    await asyncio.sleep(0.1)
    await change(store)
    size = await store.read(lambda tx: tx.audit.read_size())
    await asyncio.wait_for(sequencer.lost.wait(), timeout=60)
    await running
    head = (tmp_path / "head").read_text()
    assert SIGNER.has_signed(head)
    assert "an older database" in sequencer.problem or "another key" in sequencer.problem
    await store.write(story(1))
    with pytest.raises(LogBroken):
        await sequencer.settle()
    assert (tmp_path / "head").read_text() == head
    assert await store.read(lambda tx: tx.audit.read_size()) == size
