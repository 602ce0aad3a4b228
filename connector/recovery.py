"""Going on with a database that was put back from a copy, because somebody says so: `hanse connector restored`.

Nobody knows what happened since the copy was made: which agreements were revoked, what was used of their quotas and
budgets, which offers were withdrawn, whose tokens ended. So all of it ends, and is agreed, offered and issued anew. And
others may hold a longer history that was signed with the log's key: nothing more is signed with that one.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from connector.audit.log import Sequencer, check_key
from connector.audit.signed_note import Signer
from connector.dsp.states import PROVIDER
from connector.errors import Conflict
from connector.events import DatabaseRestored, TokenRevoked
from connector.identity import keys
from connector.server import alone
from connector.services import Services, build
from connector.setting_types import make_folder
from connector.settings import Settings
from connector.store import Transaction
from connector.store.migrate import missing, named, upgrade
from connector.telemetry import set_up_logging

_CODE, _REASON = "database_restored", "the provider's database was put back from a copy; agree anew"


@dataclass(frozen=True, slots=True)
class Done:
    """How many of each were ended or withdrawn, the size of the log that goes on, and its verifier key from now on."""

    agreements: int
    negotiations: int
    offers: int
    tokens: int
    size: int
    vkey: str


def place(settings: Settings) -> str:
    """What is gone on with, for whoever is to say so."""
    return f"the database {named(settings.database)} with the data directory {settings.data_dir.resolve()}"


async def go_on(settings: Settings, *, lost_log_key: bool = False) -> Done:
    """End what was agreed, offered and let in, record it, and change the log's key. What breaks off half-way is done
    whole by the next time; a start before that is refused as before.

    Conflict while a process serves this database, and where there is nothing to go on with. LogBroken where its log was
    signed with another key than ours, unless that one is lost.
    """
    set_up_logging(level=settings.log_level, as_json=settings.log_json)
    _check_there(settings, database=not missing(settings.database))
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
    """Conflict where no connector was: without its settings, another one would be made, and called restored."""
    folder = settings.data_dir
    if not database and not any((folder / name).exists() for name in ("log.head", "keys/log.key")):
        raise Conflict(
            f"expected the database of a connector, or its keys/log.key or log.head in HANSE_DATA_DIR, came neither in "
            f"{place(settings)}; run this with the settings that the connector is served with"
        )


def _give_to_owner(directory: Path, *, since: float) -> None:
    """What root has made in there since is its owner's, or a connector could not read it."""
    owner = directory.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    for path in directory.rglob("*"):
        with suppress(OSError):
            about = path.lstat()
            if about.st_uid == 0 and about.st_ctime >= since - 1:  # file systems have coarser clocks
                os.lchown(path, owner.st_uid, owner.st_gid)


async def _go_on(parts: Services, *, lost_log_key: bool) -> Done:
    """1. nobody else is there, and the database is ours; 2. end everything; 3. record it, signed with the next key;
    4. that one is the log's key from now on, and its head the newest that we know."""
    folder, name = parts.settings.data_dir / "keys", parts.signer.name
    after = Signer(name, keys.load_next_log_key(folder))
    before = "" if lost_log_key else parts.signer.vkey
    if not await parts.store.read(partial(_signed, signer=after)):  # as where only 4 is missing
        await parts.store.read(_nobody_serves)  # 1
        if not lost_log_key:
            before = await parts.store.read(partial(_signer_of, parts=parts))
    size = await parts.store.read(lambda tx: tx.audit.size())
    offers = await _withdraw_offers(parts)  # 2
    negotiations = await _end_negotiations(parts)
    agreements = await _end_agreements(parts)
    tokens = await parts.store.write(partial(_end_tokens, actor=parts.participant))
    about = {"size": size, "key": before, "head": parts.log_mark.note}
    await parts.store.write(lambda tx: tx.publish(DatabaseRestored(actor=parts.participant, detail=about)))
    await Sequencer(parts.store, signer=after, takes_over=True).settle()  # 3
    keys.change_log_key(folder, before=parts.signer.vkey.split("+")[1])  # 4
    parts.log_mark.keep(await parts.log.head())
    return Done(agreements, negotiations, offers, tokens, size, after.vkey)


def _signer_of(tx: Transaction, *, parts: Services) -> str:
    """The verifier key of whoever has signed the newest head: ours, or a former one where the copy is that old."""
    for one in parts.former:
        if _signed(tx, signer=one):
            return one.vkey
    check_key(tx, signer=parts.signer)
    return parts.signer.vkey


def _signed(tx: Transaction, *, signer: Signer) -> bool:
    newest = tx.audit.checkpoint()
    return newest is not None and signer.has_signed(newest.note)


def _nobody_serves(tx: Transaction) -> None:
    if alive := tx.reads.alive():
        raise Conflict(
            f"{len(alive)} processes serve this database, or did a minute ago; stop them, and try again in two minutes"
        )


async def _end_agreements(parts: Services) -> int:
    found = await parts.store.read(lambda tx: tx.agreements.not_ended(role=PROVIDER))
    for one in found:
        await parts.agreements.revoke(one, reason=_REASON, by=parts.participant, role=PROVIDER)
    return len(found)


async def _end_negotiations(parts: Services) -> int:
    """Those that are not over: what they would come to was perhaps withdrawn since."""
    found = await parts.store.read(lambda tx: tx.negotiations.not_over(role=PROVIDER))
    for one in found:
        await parts.negotiations.command(one, "terminate", by=parts.participant, code=_CODE, reason=_REASON)
    return len(found)


async def _withdraw_offers(parts: Services) -> int:
    found = await parts.store.read(lambda tx: [row.id for row in tx.datasets.offers(withdrawn=False, limit=None)])
    for one in found:
        await parts.offers.withdraw(one, by=parts.participant)
    return len(found)


def _end_tokens(tx: Transaction, *, actor: str) -> int:
    tx.tokens.alone()
    rows = tx.tokens.all()
    for row in rows:
        tx.tokens.remove(row)
        tx.publish(TokenRevoked(actor=actor, reason=_REASON, detail={"token": row.name}))
    return len(rows)
