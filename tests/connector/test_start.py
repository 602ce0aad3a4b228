"""What a connector finds when it starts beside records of its own: its keys, and its log."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from connector.audit.signed_note import read_head
from connector.datasets import registry
from connector.datasets.registration import Registration
from connector.errors import PathRefused, WrongState
from connector.events import ServiceStarted
from connector.server import warn_of_former_identity
from connector.services import Services, build
from connector.settings import Settings
from connector.store import Transaction
from connector.store.tables import Agreement, DatasetVersion, RegisteredDataset
from tests.support import migrated
from tests.support.own_name import changed


def started(folder: Path, **settings: Any) -> Services:
    """The parts of a connector, where nothing runs. `parts.store` must be closed."""
    if not folder.exists():
        folder.mkdir()
        migrated.sqlite(folder / "connector.db")
    return build(Settings(**{"name": "north", "data_dir": folder, "flight_port": 1} | settings))


def _used(tx: Transaction, version: str) -> None:
    tx.publish(ServiceStarted(actor="did:web:north.example"))
    about = {"source": {}, "schema": [], "profile": {}, "created_at": tx.now}
    tx.datasets.add(DatasetVersion(dataset_id="urn:hanse:north:air", digest=version, **about))


@pytest.mark.parametrize("version", ["sha256:1", "hmac-sha256:1"])
async def test_a_key_that_records_were_made_with_is_not_made_anew(tmp_path: Path, version: str) -> None:
    parts = started(tmp_path / "north")
    await parts.store.write(lambda tx: _used(tx, version))
    parts.store.close()
    shutil.copytree(tmp_path / "north" / "keys", tmp_path / "keys")
    names = sorted(path.name for path in (tmp_path / "keys").iterdir())
    refused = []
    for name in names:
        (tmp_path / "north" / "keys" / name).unlink()
        try:
            started(tmp_path / "north").store.close()
        except WrongState as error:
            assert str(tmp_path / "north" / "keys" / name) in error.message  # noqa: PT017  # of each, which
            assert not (tmp_path / "north" / "keys" / name).exists()
            refused.append(name)
        shutil.copy2(tmp_path / "keys" / name, tmp_path / "north" / "keys" / name)
    assert names == [
        "flight.secret", "instance.secret", "log.key", "mask.secret", "participant.pem", "version.secret",
        "witness.key", "witness.mldsa44",
    ]  # fmt: skip
    keyed = version.startswith("hmac-")
    assert refused == ["log.key", "mask.secret", "participant.pem", *(["version.secret"] if keyed else [])]


@pytest.mark.parametrize("other", [{"public_url": "https://clinic.example"}, {"name": "south"}])
async def test_the_log_keeps_its_name_where_the_connector_has_another_one(
    tmp_path: Path, other: dict[str, str]
) -> None:
    """Its verifier key has the name in it: an auditor's former key and files were told to be another log's."""
    parts = started(tmp_path / "north", public_url="https://north.example")
    await parts.store.write(lambda tx: tx.publish(ServiceStarted(actor="did:web:north.example")))
    await parts.log.sequencer.settle()
    parts.store.close()
    after = started(tmp_path / "north", **({"public_url": "https://north.example"} | other))
    await after.store.write(lambda tx: tx.publish(ServiceStarted(actor="did:web:north.example")))
    await after.log.sequencer.settle()
    head = await after.log.head()
    after.store.close()
    assert after.log.vkey == parts.log.vkey
    assert read_head(head)[:2] == ("north.example/audit/north", 2)


async def test_agreements_that_were_signed_as_another_participant_are_told(tmp_path: Path) -> None:
    """To their other sides nothing holds any more, and here all of them were shown as in force."""
    before, now = "did:web:north.example", "did:web:clinic.example"

    def sign(tx: Transaction) -> None:
        about = {"dataset_id": "d", "address": "https://lab.example", "policy": {}, "digest": "", "finalized": True}
        for key, role, us, ended in (("a", "provider", before, None), ("b", "consumer", before, None),
                                     ("c", "provider", now, None), ("d", "provider", before, 1.0)):  # fmt: skip
            sides = dict(zip(("provider", "consumer"), (us, "did:web:lab.example"), strict=True))
            sides = sides if role == "provider" else {"provider": sides["consumer"], "consumer": us}
            row = Agreement(id=key, role=role, negotiation_id=key, signed_at=1.0, ended_at=ended, **sides, **about)
            tx.agreements.add(row)

    parts = started(tmp_path / "north", public_url="https://clinic.example")
    try:
        await parts.store.write(sign)
        with capture_logs() as logs:
            await warn_of_former_identity(parts)
    finally:
        parts.store.close()
    assert [(line["agreements"], line["signed_as"], line["now"]) for line in logs] == [(2, before, now)]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("north/keys/participant.pem", "csv"),
        ("north/connector.db", "csv"),
        ("admin.token", "csv"),
        ("link.csv", "csv"),
        ("connections.yaml", "jsonl"),
        (".", "hive"),
        ("north/received/whole/1.arrows", "parquet"),
    ],
)
async def test_what_is_the_connectors_own_is_no_data_although_it_lies_under_a_root(
    tmp_path: Path, path: str, kind: str
) -> None:
    """Whoever may register data would have its private key, and an administrator's token, for the asking."""
    secrets = {"admin_token_file": tmp_path / "admin.token", "connections": tmp_path / "connections.yaml"}
    parts = started(tmp_path / "north", source_roots=(tmp_path,), **secrets)
    for place in (*secrets.values(), tmp_path / "rows.parquet", tmp_path / "north/prepared/1.parquet",
                  tmp_path / "north/received/whole/1.arrows"):  # fmt: skip
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    (tmp_path / "link.csv").symlink_to(tmp_path / "admin.token")
    try:
        with pytest.raises(PathRefused, match="the connector's own"):
            await parts.registry.register(Registration(name="d", path=str(tmp_path / path), kind=kind), by="owner")
    finally:
        parts.store.close()


async def test_what_is_the_connectors_own_is_no_data_by_another_name_either(tmp_path: Path) -> None:
    """A key that lies where a secret is mounted, one of two names, the key in a certificate's file, a database beside
    the data: all were let through."""
    vault = tmp_path / "vault"
    vault.mkdir()
    certificate, database = tmp_path / "tls.pem", tmp_path / "log.db"
    certificate.touch()
    migrated.sqlite(database)
    parts = started(
        tmp_path / "north", source_roots=(tmp_path,), tls_certificate=certificate, database_url=f"sqlite:///{database}"
    )
    keys = tmp_path / "north" / "keys"
    (keys / "participant.pem").rename(vault / "p.csv")
    (keys / "participant.pem").symlink_to(vault / "p.csv")
    (tmp_path / "one.csv").hardlink_to(keys / "log.key")
    try:
        for path in (vault / "p.csv", vault, tmp_path / "one.csv", certificate, database):
            with pytest.raises(PathRefused, match="the connector's own"):
                await parts.registry.register(Registration(name="d", path=str(path), kind="csv"), by="owner")
    finally:
        parts.store.close()


async def test_a_file_that_becomes_a_link_to_the_connectors_own_is_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was just written is looked at twice: the second time it led to the key."""
    parts = started(tmp_path / "north", source_roots=(tmp_path,))
    rows = tmp_path / "rows.csv"
    rows.write_text("a\n1\n")
    ahead = time.time() + 3600  # as of a file that is being written, however long the machine takes to look at it
    os.utime(rows, (ahead, ahead))

    async def meanwhile(_: float) -> None:
        rows.unlink()
        rows.symlink_to(tmp_path / "north" / "keys" / "participant.pem")

    monkeypatch.setattr(registry, "asyncio", changed(asyncio, sleep=meanwhile))
    try:
        with pytest.raises(PathRefused, match="the connector's own"):
            await parts.registry.register(Registration(name="d", path=str(rows), kind="csv"), by="owner")
    finally:
        parts.store.close()


async def test_a_dataset_of_before_that_is_the_connectors_own_is_told_at_a_start(tmp_path: Path) -> None:
    parts = started(tmp_path / "north", source_roots=(tmp_path,))

    def stored(tx: Transaction) -> None:
        for name, asked, files in (
            ("key", "north/keys/participant.pem", [{"path": f"{tmp_path}/north/prepared/1.parquet", "ours": True}]),
            ("head", ".", [{"path": f"{tmp_path}/north/log.head"}]),
            ("rows", "rows.csv", [{"path": f"{tmp_path}/north/prepared/2.parquet", "ours": True}]),
        ):
            source = {"asked_path": str(tmp_path / asked), "files": files, "report": None}
            about = dict.fromkeys(("title", "description", "theme", "license"), "") | {"keywords": []}
            tx.datasets.add(RegisteredDataset(id=name, name=name, version="v", created_at=0.0, **about))
            tx.datasets.add(DatasetVersion(dataset_id=name, digest="v", source=source, schema=[], profile={},
                                           created_at=0.0))  # fmt: skip

    try:
        await parts.store.write(stored)
        with capture_logs() as logs:
            await parts.registry.start()
            assert parts.registry.looking is not None
            await parts.registry.looking
    finally:
        parts.registry.close()
        parts.store.close()
    assert [line["dataset"] for line in logs] == ["head", "key"]
