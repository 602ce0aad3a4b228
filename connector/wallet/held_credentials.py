"""The credentials that we hold: checks one before it is stored, and finds those that a verifier may see.

A credential is stored if a key of its issuer signed it and it is about us. An ended one is not presented any more.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence

from connector.errors import Invalid, Unproven
from connector.events import CredentialStored
from connector.identity.credentials.credential import CREDENTIAL_MAX, Credential, read_credential
from connector.identity.credentials.scopes import Scope
from connector.identity.did import DidResolver
from connector.identity.signed_jwt import ReadJwt, read_jwt, verify_jwt
from connector.store import Store, Transaction
from connector.store.tables import HeldCredential
from connector.wallet.credential_requests import check_delivery, note_delivery

_HELD_MAX = 1_000


async def store_credential(store: Store, resolver: DidResolver, text: str, *, did: str, by: str) -> HeldCredential:
    """Check a credential about us (`did`) and store it; the same one again changes nothing.

    Raises: Invalid if it is not about us, not valid now, or not signed by its issuer; Unavailable if that cannot be
    checked now.
    """
    credential = await check_credential(resolver, text, did=did)
    (row,) = await store_checked(store, [credential], by=by)
    return row


async def check_credential(resolver: DidResolver, text: object, *, did: str) -> Credential:
    """A credential about us, signed by its issuer. Raises: Invalid, Unavailable."""
    try:
        credential = read_credential(text, holder=did, now=time.time())
        await verify_jwt(
            credential.jwt, credential.issuer, purpose="assertionMethod", what="the credential", resolver=resolver
        )
    except Unproven as error:
        raise Invalid(error.message, private=error.private) from error
    return credential


async def store_checked(
    store: Store, credentials: Sequence[Credential], *, by: str, holder_pid: str = ""
) -> list[HeldCredential]:
    """Store checked credentials, all or none. `holder_pid`: our id of the request that they answer.

    Each replaces what its issuer delivered for that request before with the same types in the same data model.

    Raises: Invalid if there are too many.
    """

    def work(tx: Transaction) -> list[HeldCredential]:
        if tx.held_credentials.count() + len(credentials) > _HELD_MAX:
            raise Invalid(f"expected at most {_HELD_MAX} credentials in the store; remove ended ones first")
        rows = [_row(credential, holder_pid, now=tx.now) for credential in credentials]
        _remove_replaced(tx, credentials, holder_pid)
        for row in rows:
            tx.held_credentials.store(row)
            detail = {"issuer": row.issuer, "types": row.types, "expires": row.expires, "credential": row.name}
            tx.publish(CredentialStored(actor=by, detail=detail))
        if holder_pid:
            check_delivery(tx, by, holder_pid)
            note_delivery(tx, holder_pid, "ISSUED")
        return rows

    return await store.write(work)


def _remove_replaced(tx: Transaction, credentials: Sequence[Credential], holder_pid: str) -> None:
    """Remove what a delivery replaces. Credentials of the same delivery do not replace each other."""
    if not holder_pid:
        return
    new = {(credential.issuer, *_kind(credential.types, credential.jwt)) for credential in credentials}
    for issuer in {credential.issuer for credential in credentials}:
        for before in tx.held_credentials.list_delivered(issuer, holder_pid):
            if (issuer, *_kind(before.types, _read_held(before))) in new:
                tx.held_credentials.remove(before)


def _kind(types: Sequence[str], jwt: ReadJwt) -> tuple[tuple[str, ...], bool]:
    return tuple(sorted(types)), jwt.is_vc11


def _read_held(row: HeldCredential) -> ReadJwt:
    return read_jwt(row.jwt, what="a credential", longest=CREDENTIAL_MAX)


def _row(credential: Credential, holder_pid: str, *, now: float) -> HeldCredential:
    return HeldCredential(
        id=hashlib.sha256(credential.jwt.text.encode()).hexdigest(),
        name=credential.id[:255],
        issuer=credential.issuer,
        types=list(credential.types),
        expires=credential.expires,
        jwt=credential.jwt.text,
        holder_pid=holder_pid,
        stored_at=now,
    )


async def find_presentable(store: Store, scopes: Iterable[Scope], *, now: float) -> list[ReadJwt]:
    """The credentials within the scopes that have not ended, in the order in which they were stored."""
    wanted = tuple(scopes)
    rows = await store.read(lambda tx: tx.held_credentials.list_current(now)) if wanted else ()
    return [_read_held(row) for row in rows if any(scope.covers(row.name, row.types) for scope in wanted)]
