"""What a connector finds when it starts beside records of its own: its keys, and its log."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from connector.errors import Conflict
from connector.events import ServiceStarted
from connector.parts import Services, build
from connector.settings import Settings
from connector.store import Transaction
from connector.store.tables import DatasetVersion
from tests.support import migrated


def started(folder: Path) -> Services:
    """The parts of a connector, where nothing runs. `parts.store` must be closed."""
    if not folder.exists():
        folder.mkdir()
        migrated.sqlite(folder / "connector.db")
    return build(Settings(name="north", data_dir=folder, flight_port=1))


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
        except Conflict as error:
            assert str(tmp_path / "north" / "keys" / name) in error.message  # noqa: PT017  # of each, which
            assert not (tmp_path / "north" / "keys" / name).exists()
            refused.append(name)
        shutil.copy2(tmp_path / "keys" / name, tmp_path / "north" / "keys" / name)
    assert names == ["flight.secret", "instance.secret", "log.key", "mask.secret", "participant.pem", "version.secret"]
    keyed = version.startswith("hmac-")
    assert refused == ["log.key", "mask.secret", "participant.pem", *(["version.secret"] if keyed else [])]
