"""Continues with a database that an operator restored from a copy: `hanse connector restored`. Not the start after a
crash: that is `server.running`.

The copy does not know what happened later: which agreements were revoked, how much of their quotas and budgets was
used, which offers were withdrawn and which tokens ended. So all of these end, and must be agreed, offered and issued
again. Other parties may hold a longer log under the log's key, so the log continues under a new key.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from connector.audit.log import Sequencer, check_key
from connector.audit.signed_note import Signer, next_origin
from connector.dsp.states import PROVIDER
from connector.errors import WrongState
from connector.events import DatabaseRestored, TokenRevoked
from connector.identity import keys
from connector.server import alone
from connector.services import Services, build
from connector.setting_types import make_folder
from connector.settings import Settings
from connector.store import Transaction
from connector.store.migrate import is_missing, redact_password, upgrade
from connector.telemetry import set_up_logging

_CODE, _REASON = "database_restored", "the provider's database was restored from a copy; negotiate again"


@dataclass(frozen=True, slots=True)
class RecoveryResult:
    """The numbers of ended and withdrawn objects, the size of the log, and its new verifier key."""

    agreements: int
    negotiations: int
    offers: int
    tokens: int
    size: int
    vkey: str


def place(settings: Settings) -> str:
    """The database and data directory that are affected, for the confirmation."""
    return f"the database {redact_password(settings.database)} with the data directory {settings.data_dir.resolve()}"


async def go_on(settings: Settings, *, lost_log_key: bool = False) -> RecoveryResult:
    """End agreements, negotiations, offers and tokens, record that, and change the log's key.

    After a failure half-way, run it again; a start before that is refused. Raises: WrongState while a process serves
    this database, or without a connector's data; LogBroken if the log was signed with another key, unless
    `lost_log_key`.
    """
    set_up_logging(level=settings.log_level, as_json=settings.log_json)
    _check_there(settings, database=not is_missing(settings.database))
    begun = time.time()
    make_folder(settings.data_dir / "keys", "HANSE_DATA_DIR", mode=0o700)  # before anything is ended
    with alone(settings):
        before, _ = upgrade(settings.database)
        _check_there(settings, database=bool(before))
        parts = build(settings)
        try:
            return await _go_on(parts, lost_log_key=lost_log_key)
        finally:
            await parts.net.close()
            parts.store.close()
            _give_to_owner(settings.data_dir, since=begun)


def _check_there(settings: Settings, *, database: bool) -> None:
    """Check that a connector's data exists; with wrong settings, a new one would be created. Raises: WrongState."""
    folder = settings.data_dir
    if not database and not any((folder / name).exists() for name in ("log.head", "keys/log.key")):
        raise WrongState(
            f"expected the database of a connector, or its keys/log.key or log.head in HANSE_DATA_DIR, got neither in "
            f"{place(settings)}; run this with the settings that the connector is served with"
        )


def _give_to_owner(directory: Path, *, since: float) -> None:
    """If root ran this, give the created files to the directory's owner, so that the connector can read them."""
    owner = directory.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    for path in directory.rglob("*"):
        with suppress(OSError):
            about = path.lstat()
            if about.st_uid == 0 and about.st_ctime >= since - 1:  # file systems have coarser clocks
                os.lchown(path, owner.st_uid, owner.st_gid)


async def _go_on(parts: Services, *, lost_log_key: bool) -> RecoveryResult:
    """1. check that no process serves the database and that it is ours; 2. end everything; 3. record it, signed with
    the next key; 4. make that key the log's key, and its head the newest known head."""
    folder, name = parts.settings.data_dir / "keys", parts.signer.name
    after = Signer(name, keys.load_next_log_key(folder))
    before = "" if lost_log_key else parts.signer.vkey
    if not await parts.store.read(partial(_is_signed_by, signer=after)):  # otherwise only step 4 is missing
        after = Signer(next_origin(name), after.key)  # witnesses know the former log by its name
        await parts.store.read(_check_not_served)  # 1
        if not lost_log_key:
            before = await parts.store.read(partial(_signer_of, parts=parts))
    size = await parts.store.read(lambda tx: tx.audit.read_size())
    offers = await _withdraw_offers(parts)  # 2
    negotiations = await _end_negotiations(parts)
    agreements = await _end_agreements(parts)
    tokens = await parts.store.write(partial(_end_tokens, actor=parts.participant))
    about = {"size": size, "key": before, "head": parts.log_mark.note}
    await parts.store.write(lambda tx: tx.publish(DatabaseRestored(actor=parts.participant, detail=about)))
    await Sequencer(parts.store, signer=after, takes_over=True).settle()  # 3
    keys.change_log_key(folder, before=parts.signer.vkey.split("+")[1])  # 4
    parts.log_mark.keep(await parts.log.head())
    return RecoveryResult(agreements, negotiations, offers, tokens, size, after.vkey)


def _signer_of(tx: Transaction, *, parts: Services) -> str:
    """The verifier key that signed the newest head: ours, or a former key if the copy is that old."""
    for former in parts.former:
        if _is_signed_by(tx, signer=former):
            return former.vkey
    check_key(tx, signer=parts.signer)
    return parts.signer.vkey


def _is_signed_by(tx: Transaction, *, signer: Signer) -> bool:
    newest = tx.audit.read_checkpoint()
    return newest is not None and signer.has_signed(newest.note)


def _check_not_served(tx: Transaction) -> None:
    if alive := tx.reads.list_live_runs():
        raise WrongState(
            f"{len(alive)} processes serve this database, or did a minute ago; stop them and try again in two minutes"
        )


async def _end_agreements(parts: Services) -> int:
    found = await parts.store.read(lambda tx: tx.agreements.list_not_ended(role=PROVIDER))
    for one in found:
        await parts.agreements.revoke(one, reason=_REASON, by=parts.participant, role=PROVIDER)
    return len(found)


async def _end_negotiations(parts: Services) -> int:
    """End open negotiations, as their offers may have been withdrawn since."""
    found = await parts.store.read(lambda tx: tx.negotiations.list_not_ended(role=PROVIDER))
    for one in found:
        await parts.negotiations.command(one, "terminate", by=parts.participant, code=_CODE, reason=_REASON)
    return len(found)


async def _withdraw_offers(parts: Services) -> int:
    found = await parts.store.read(lambda tx: [row.id for row in tx.datasets.list_offers(withdrawn=False, limit=None)])
    for one in found:
        await parts.offers.withdraw(one, by=parts.participant)
    return len(found)


def _end_tokens(tx: Transaction, *, actor: str) -> int:
    tx.tokens.lock_exclusively()
    rows = tx.tokens.list_all()
    for row in rows:
        tx.tokens.remove(row)
        tx.publish(TokenRevoked(actor=actor, reason=_REASON, detail={"token": row.name}))
    return len(rows)
