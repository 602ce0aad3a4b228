"""A log in a store: fixed key and salts, so that what it writes is the same in every run."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from connector.audit.export import blocks, export
from connector.audit.log import AuditLog, Filter, Sequencer
from connector.audit.note import Signer
from connector.events import AgreementConcluded, ReadEnded, ReadRefused, ReadStarted
from connector.store import Store, Transaction

SIGNER = Signer("north.example/audit/north", Ed25519PrivateKey.from_private_bytes(sha256(b"golden").digest()))


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
