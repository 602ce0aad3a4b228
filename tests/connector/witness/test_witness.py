"""The witness: each answer of C2SP tlog-witness, its state on both databases, and floods."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import Any

import httpx2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI

from connector.audit import merkle, signed_note
from connector.audit.signed_note import Signer
from connector.errors import Unproven
from connector.infra.net.http_client import AddressGuard, HttpClient
from connector.store import Store
from connector.witness.known_logs import KnownLogs, PolicyLines
from connector.witness.notes import ED25519, Cosigner, keep_cosignatures, read_checkpoint, read_key
from connector.witness.routes import router
from connector.witness.witness import Answer, Witness, write_request

LOG = Signer("north.example/audit/north", Ed25519PrivateKey.from_private_bytes(sha256(b"log").digest()))
COSIGNER = Cosigner("south.example/witness", Ed25519PrivateKey.from_private_bytes(sha256(b"w").digest()))


class ForeignLog:
    """A log in memory, whose operator may have more than one history."""

    def __init__(self, signer: Signer = LOG) -> None:
        self.signer = signer
        self.leaves: list[bytes] = []

    def grow(self, count: int, *, history: str = "true") -> ForeignLog:
        start = len(self.leaves)
        self.leaves += [merkle.leaf_hash(f"{history} {n}".encode()) for n in range(start, start + count)]
        return self

    def _read(self) -> Any:
        tiles = merkle.append(lambda *_: None, 0, self.leaves)
        return lambda level, n: tiles.get((level, n))

    def head(self, size: int | None = None) -> str:
        size = len(self.leaves) if size is None else size
        return signed_note.checkpoint(self.signer, size=size, root=merkle.root(self._read(), size))

    def request(self, old: int, size: int | None = None) -> bytes:
        size = len(self.leaves) if size is None else size
        proof = merkle.consistency_proof(self._read(), old, size) if 0 < old < size else []
        return write_request(old, proof, self.head(size))


def known(*keys: str) -> KnownLogs:
    net = HttpClient(AddressGuard(), timeout=1, max_bytes=1)

    async def nobody(_: bool) -> list[Any]:
        return []

    lines = PolicyLines(logs=tuple(read_key(key, ED25519) for key in keys))
    return KnownLogs(net, nobody, own="did:web:south.example", more=lines)


def witness_on(store: Store, seen: list[str] | None = None, refused: list[Answer] | None = None) -> Witness:
    return Witness(
        store,
        COSIGNER,
        known(LOG.vkey),
        count=(seen if seen is not None else []).append,
        record=lambda tx, log, head, answer: (refused if refused is not None else []).append(answer),
    )


async def test_a_log_that_grows_is_cosigned_and_the_state_survives_a_restart(store: Store) -> None:
    log = ForeignLog().grow(3)
    for old, more in ((0, 0), (3, 300), (303, 1)):
        answer = await witness_on(store).add_checkpoint(log.grow(more).request(old))
        assert (answer.status, answer.outcome) == (200, "cosigned")
        head = read_checkpoint(log.head())
        assert keep_cosignatures(head, answer.body, COSIGNER.keys) == answer.body
    again = await witness_on(store).add_checkpoint(log.request(304))
    assert (again.status, again.outcome, again.body) == (200, "repeated", answer.body)


async def test_each_refusal_has_the_status_of_the_specification(store: Store) -> None:
    seen: list[str] = []
    witness, log = witness_on(store, seen), ForeignLog().grow(10)
    assert (await witness.add_checkpoint(log.request(0, 5))).status == 200
    late = await witness.add_checkpoint(log.request(4))
    assert (late.status, late.body, late.media_type) == (409, "5\n", "text/x.tlog.size")
    behind = await witness.add_checkpoint(log.request(0, 3))
    assert (behind.status, behind.body) == (409, "5\n")
    for name, body, status in (
        ("malformed", b"hello", 400),
        ("malformed", write_request(11, [], log.head()), 400),
        ("unknown_log", ForeignLog(Signer("other.example/log", LOG.key)).grow(1).request(0), 404),
        ("not_signed", ForeignLog(Signer(LOG.name, Ed25519PrivateKey.generate())).grow(1).request(0), 403),
        ("bad_signature", log.request(5).replace(b"\n10\n", b"\n11\n"), 403),
        ("inconsistent", ForeignLog().grow(4).grow(6, history="false").request(5), 422),
        ("inconsistent", write_request(5, [], log.head()), 422),
        ("fork", ForeignLog().grow(5, history="false").request(5), 422),
    ):
        answer = await witness.add_checkpoint(body)
        assert (answer.status, answer.outcome) == (status, name)
    assert seen[:3] == ["cosigned", "other_size", "behind"]
    assert (await witness.add_checkpoint(log.request(5))).status == 200  # nothing of that has changed its state


async def test_a_refused_history_is_recorded_once_an_hour(store: Store) -> None:
    refused: list[Answer] = []
    witness = witness_on(store, refused=refused)
    assert (await witness.add_checkpoint(ForeignLog().grow(5).request(0))).status == 200
    for _ in range(3):
        assert (await witness.add_checkpoint(ForeignLog().grow(5, history="false").request(5))).status == 422
    assert [one.outcome for one in refused] == ["fork"]


async def test_the_key_that_a_log_had_first_stays_its_key(store: Store) -> None:
    assert (await witness_on(store).add_checkpoint(ForeignLog().grow(5).request(0))).status == 200
    other = Signer(LOG.name, Ed25519PrivateKey.generate())
    replaced = Witness(store, COSIGNER, known(other.vkey))
    answer = await replaced.add_checkpoint(ForeignLog(other).grow(5).request(0))
    assert (answer.status, answer.outcome) == (403, "other_key")


async def test_two_processes_at_once_cosign_one_history(store: Store) -> None:
    """Of two histories that go on from one head, one is cosigned, whichever process gets which."""
    for round_ in range(10):
        signer = Signer(f"log{round_}.example/x", LOG.key)
        one, other = ForeignLog(signer).grow(4), ForeignLog(signer).grow(4)
        first, second = (Witness(store, COSIGNER, known(signer.vkey)) for _ in range(2))
        assert (await first.add_checkpoint(one.request(0))).status == 200
        one.grow(3)
        other.grow(3, history="false")
        found = await asyncio.gather(first.add_checkpoint(one.request(4)), second.add_checkpoint(other.request(4)))
        assert sorted(answer.status for answer in found) in ([200, 409], [200, 422])


async def test_a_flood_of_one_log_is_held_up_before_the_database(sqlite_store: Store) -> None:
    seen: list[str] = []
    witness, body = witness_on(sqlite_store, seen), ForeignLog().grow(5).request(0)
    await asyncio.gather(*(witness.add_checkpoint(body) for _ in range(200)))
    assert seen.count("too_many") >= 100


async def test_the_newest_head_is_given_with_both_signatures(sqlite_store: Store) -> None:
    witness, log = witness_on(sqlite_store), ForeignLog().grow(5)
    lines = (await witness.add_checkpoint(log.request(0))).body

    def hash_of(origin: str) -> str:
        return sha256(origin.encode()).hexdigest()

    assert await witness.newest(hash_of(LOG.name), hash_of=hash_of) == log.head() + lines
    assert await witness.newest(hash_of("another"), hash_of=hash_of) is None


async def test_over_http_a_size_has_exactly_the_type_of_the_specification(sqlite_store: Store) -> None:
    """Clients compare the whole header: with a charset they would take the answer for another one."""

    async def published() -> str:
        return ""

    async def admit(header: str | None) -> None:
        raise Unproven("expected a token")

    app = FastAPI()
    app.include_router(router(witness_on(sqlite_store), published=published, admit=admit))
    log = ForeignLog().grow(3)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://witness.test") as http:
        first = await http.post("/witness/v1/add-checkpoint", content=log.request(0))
        late = await http.post("/witness/v1/add-checkpoint", content=log.grow(1).request(1))
    assert first.status_code == 200
    assert (late.status_code, late.text, late.headers["content-type"]) == (409, "3\n", "text/x.tlog.size")
