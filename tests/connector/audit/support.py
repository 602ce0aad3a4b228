"""A log in a store: fixed key and salts, so that what it writes is the same in every run."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from connector.audit import merkle, signed_note
from connector.audit.cosigning import Cosigning
from connector.audit.export import blocks, export, write
from connector.audit.log import AuditLog, Filter, Sequencer
from connector.audit.record import Record, make_record
from connector.audit.signed_note import Signer
from connector.events import AgreementConcluded, ReadEnded, ReadRefused, ReadStarted
from connector.infra.net.http_client import AddressGuard, HttpClient
from connector.store import Store, Transaction
from connector.witness.known_logs import KnownLogs, PolicyLines, SpaceMember
from connector.witness.notes import ED25519, read_key

SIGNER = Signer("north.example/audit/north", Ed25519PrivateKey.from_private_bytes(sha256(b"golden").digest()))
EVERYTHING = Filter()


def salts() -> Callable[[], bytes]:
    count = 0

    def salt() -> bytes:
        nonlocal count
        count += 1
        return sha256(f"salt {count}".encode()).digest()[:16]

    return salt


def log_over(store: Store) -> AuditLog:
    return AuditLog(store, Sequencer(store, signer=SIGNER, round_seconds=0.01, salt=salts()), vkey=SIGNER.vkey)


def story(count: int) -> Callable[[Transaction], None]:
    """A unit of work that publishes `count` events of several kinds."""

    def work(tx: Transaction) -> None:
        for i in range(count):
            event = (AgreementConcluded, ReadStarted, ReadEnded, ReadRefused)[i % 4]
            tx.publish(
                event(
                    actor=f"did:web:consumer{i % 3}.example",
                    agreement=f"urn:agreement:{i % 2}",
                    dataset="urn:hanse:north:flights",
                    outcome="refused" if event is ReadRefused else "ok",
                    reason="Zeilen über dem Limit" if event is ReadRefused else "",
                    detail={"rows": i * 1000, "share": i / 8, "columns": ["a", "b"]},
                )
            )

    return work


async def evidence(log: AuditLog, directory: Path, which: Filter | None = None) -> bytes:
    """The bytes of an evidence file."""
    return b"".join(blocks(await export(log, signer=SIGNER, which=which or Filter(), directory=directory)))


class InMemory:
    """A log of these records, as an export reads it."""

    now = 0.0

    def __init__(self, records: list[Record], signer: Signer = SIGNER) -> None:
        self.records = records
        self.tiles = merkle.append(lambda _, __: None, 0, [merkle.leaf_hash(record.leaf) for record in records])
        root = merkle.root(self.read_tile, len(records))
        self.head = signed_note.checkpoint(signer, size=len(records), root=root)

    @property
    def audit(self) -> Any:
        return self

    def read_tile(self, level: int, n: int) -> bytes | None:
        return self.tiles.get((level, n))

    def read_checkpoint(self) -> Any:
        return SimpleNamespace(note=self.head)

    def list_cosignatures(self, *, start: int) -> list[Any]:
        return []

    def walk(self, *, stop: int, equals: Mapping[str, str] = MappingProxyType({}), **_: Any) -> Iterator[Any]:
        for one in self.records[:stop]:
            if equals.items() <= json.loads(one.text).items():
                yield SimpleNamespace(idx=one.idx, ts=one.ts, kind=one.kind, body=one.text, salt=one.salt)


def reads(count: int, **changed: str) -> list[Record]:
    """Records of reads; `changed`: another actor, by number (`r4="eve"`)."""
    return [
        make_record(
            i, 1_790_000_000.5 + i, {"kind": "ReadEnded", "actor": changed.get(f"r{i}", "ada")}, i.to_bytes(16, "big")
        )
        for i in range(count)
    ]


def exported(path: Path, log: list[Record], which: Filter = EVERYTHING, *, signer: Signer = SIGNER) -> Path:
    """An evidence file of these records."""
    with path.open("wb") as file:
        write(file, InMemory(log, signer), signer=signer, which=which)
    return path


def logged(log: list[Record], idx: int, /, **changed: Any) -> dict[str, Any]:
    """A record as a connector answers with it, or something in its place."""
    held, record = InMemory(log), log[idx]
    path = merkle.inclusion_proof(held.read_tile, idx, len(log))
    return {
        "idx": idx, "ts": record.ts, "kind": record.kind, "body": json.loads(record.text), "key": SIGNER.vkey,
        "salt": base64.b64encode(record.salt).decode(), "leaf": record.leaf.decode(),
        "proof": signed_note.proof(index=idx, path=path, note=held.head), **changed,
    }  # fmt: skip


def cosigning_of(log: AuditLog) -> Cosigning:
    """Cosigning for a log that has no witness."""
    net = HttpClient(AddressGuard(), timeout=1, max_bytes=1)

    async def list_members(_: bool) -> list[SpaceMember]:
        return []

    async def mint(_: str) -> str:
        raise NotImplementedError("a log without a witness sends nothing")

    known = KnownLogs(net, list_members, own="did:web:north.example", more=PolicyLines())
    key = read_key(log.vkey, ED25519)
    return Cosigning(
        log.database, log.sequencer, known, net, key=key, mint=mint, participant="did:web:north.example", most=0
    )
