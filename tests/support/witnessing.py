"""A data space whose members are each other's witnesses, and an operator who rewrites its own log."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanse.audit.witnesses import write_policy
from sqlalchemy import create_engine, text

from connector.audit import merkle, signed_note
from connector.audit.export import write
from connector.audit.log import Filter
from connector.audit.record import Record
from connector.audit.signed_note import Signer
from connector.identity.keys import load_log_key
from connector.store import Store
from connector.witness.notes import Cosigner, read_checkpoint
from tests.support.ports import free_range
from tests.support.processes import Process, catalogue_process
from tests.support.waiting import eventually

NAMES = ("north", "south", "west", "forge")


@dataclass(frozen=True, slots=True)
class WitnessedSpace:
    """A catalogue and four members, running."""

    catalogue: Process
    members: dict[str, Process]

    def witnesses(self, name: str) -> list[dict[str, Any]]:
        """What a member's connector says of its witnesses."""
        found: list[dict[str, Any]] = asked(self.members[name], "/audit/witnesses")["witnesses"]
        return found

    def all_vouch(self, name: str) -> bool:
        found = self.witnesses(name)
        return len(found) == len(NAMES) and all(one["state"] == "cosigned" for one in found)

    def policy(self, name: str, *, least: int = 2) -> bytes:
        """An auditor's policy for a member's log: its key, the catalogue, and `least` members."""
        found = asked(self.members[name], "/audit/witnesses")
        return write_policy(found["log"], found["witnesses"], least=least).encode()


def asked(process: Process, path: str) -> Any:
    client = process.api()
    try:
        return client.get(path)
    finally:
        client.close()


def export(process: Process, path: Path) -> Path:
    """The whole log of a member as an evidence file."""
    client = process.api()
    path.write_bytes(client.call("GET", "/audit/export"))
    client.close()
    return path


def grow(process: Process, count: int = 3) -> None:
    """Add records to a member's log."""
    for _ in range(count):
        asked(process, "/audit/events?limit=1")


@contextmanager
def witnessed_space(directory: Path, **settings: str) -> Iterator[WitnessedSpace]:
    """Start a catalogue and four members, admit them, and wait until all are witnesses of each other."""
    first = free_range(1 + 2 * len(NAMES))
    catalogue = catalogue_process(directory / "catalogue", first, LOG_JSON="true")
    of_the_space = {"TRUST_ANCHOR": catalogue.participant, "REGISTER_MAX_AGE": "1", "LOG_JSON": "true", **settings}
    members = {
        name: Process(
            name,
            directory / name,
            first + 1 + 2 * place,
            first + 2 + 2 * place,
            settings=dict(of_the_space),
            forked=True,
        )
        for place, name in enumerate(NAMES)
    }
    catalogue.forked = True
    space = WitnessedSpace(catalogue, members)
    try:
        for process in (catalogue, *members.values()):
            process.start(wait=False)
        for process in (catalogue, *members.values()):
            process.wait()
        operator = catalogue.api()
        for name, member in members.items():
            about = {"id": member.participant, "name": name, "role": "owner", "url": member.base.partition("/dsp")[0]}
            operator.post("/members", about)
        operator.close()
        for name in members:
            eventually(lambda name=name: space.all_vouch(name), seconds=120)
        yield space
    finally:
        for process in (catalogue, *members.values()):
            process.kill()


def stop(process: Process) -> None:
    """End a member as an operator does, before its files are changed."""
    assert process.running is not None
    process.running.send_signal(signal.SIGTERM)
    process.running.wait()
    process.running = None


def copy_state(process: Process, to: Path) -> Path:
    """A copy of a stopped member's database and head file."""
    to.mkdir()
    for path in (*process.directory.glob("connector.db*"), process.directory / "log.head"):
        shutil.copy2(path, to)
    return to


def put_state(process: Process, copy: Path) -> None:
    """Put a copy back, as an operator does who restores a backup of everything."""
    for path in process.directory.glob("connector.db*"):
        path.unlink()
    for path in copy.iterdir():
        shutil.copy2(path, process.directory)


def rewrite(process: Process, change: Callable[[list[Record]], list[Record]]) -> None:
    """Change a stopped member's log as its operator could: all hashes, tiles, heads and the head file fit, and the
    log's own key has signed them."""
    engine = create_engine(f"sqlite:///{process.directory / 'connector.db'}")
    with engine.begin() as database:
        rows = database.execute(text("SELECT idx, ts, kind, body, salt FROM audit_event ORDER BY idx")).all()
        records = change([Record(*row) for row in rows])
        [note] = database.execute(text("SELECT note FROM audit_checkpoint ORDER BY size DESC LIMIT 1")).one()
        signer = Signer(signed_note.read_name(note), load_log_key(process.directory / "keys", new=False))
        tiles = merkle.append(lambda *_: None, 0, [merkle.leaf_hash(record.leaf) for record in records])
        root = merkle.root(lambda level, n: tiles.get((level, n)), len(records))
        note = signed_note.checkpoint(signer, size=len(records), root=root)
        for table in ("audit_tile", "audit_checkpoint", "audit_cosignature", "audit_pending"):
            database.execute(text(f"DELETE FROM {table}"))
        database.execute(text("DELETE FROM audit_event WHERE idx >= :size"), {"size": len(records)})
        for record in records:
            values = {"body": record.text, "idx": record.idx}
            database.execute(text("UPDATE audit_event SET body = :body WHERE idx = :idx"), values)
        for (level, n), data in tiles.items():
            values = {"level": level, "n": n, "data": data}
            database.execute(text("INSERT INTO audit_tile (level, n, data) VALUES (:level, :n, :data)"), values)
        head = {"size": len(records), "note": note, "now": 0.0}
        database.execute(
            text("INSERT INTO audit_checkpoint (size, note, created_at) VALUES (:size, :note, :now)"), head
        )
    engine.dispose()
    (process.directory / "log.head").write_text(note)


def forged_export(process: Process, path: Path, *, cosigners: Sequence[Cosigner] = ()) -> Path:
    """An evidence file that a stopped member's operator makes from its database, with what it has of cosignatures and
    those of `cosigners`, who look at nothing."""
    store = Store(f"sqlite:///{process.directory / 'connector.db'}")

    def work(tx: Any) -> None:
        name = signed_note.read_name(tx.audit.read_checkpoint().note)
        with path.open("wb") as file:
            key = load_log_key(process.directory / "keys", new=False)
            write(file, tx, signer=Signer(name, key), which=Filter())

    def cosign(tx: Any) -> None:
        head = read_checkpoint(tx.audit.read_checkpoint().note)
        for one in cosigners:
            tx.audit.put_cosignature(head.size, witness="liar", lines=one.cosign(head, now=time.time()), now=tx.now)

    asyncio.run(store.write(cosign))
    store.read_now(work)
    store.close()
    return path


def log_lines(process: Process) -> str:
    return (process.directory / "log").read_text()
