"""Takes requests for credentials and answers them: what happens inside a transaction. `delivery` sends.

A request is stored as RECEIVED. The first attempt to deliver signs the credentials and stores them, with places in
status lists, before anything is sent; further attempts send the same ones. Attempts are counted and the next one is
scheduled before each, so that a restart keeps them. A member that is not active then gets REJECTED.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from catalogue.issuer.credential_signer import CredentialSigner
from catalogue.issuer.membership import ask_for_membership, new_issuance
from catalogue.issuer.profiles import PROFILES, CredentialKind, IssuanceRequest, list_kinds
from catalogue.settings import CatalogueSettings
from catalogue.store import CatalogueTransaction
from catalogue.store.issuances import ACTIVE
from catalogue.store.tables import Issuance, IssuedCredential, Member
from connector.errors import Forbidden, Limited, Unproven
from connector.identity.did import CONTEXT

_OPEN_MAX = 32  # requests of a member whose answer is not delivered
_CURRENT_MAX = 500  # credentials of a member that have not ended
_PAUSE_FIRST, _PAUSE_MAX = 5.0, 3600.0
_ATTEMPTS_MAX = 30  # about a day
_DAY = 86_400.0
_KEPT = 30 * _DAY  # ended credentials and closed requests stay for the operator to see
_RENEWED = 0.25  # of a credential's life is left when a new one is issued
_PROBLEM_MAX = 1000


@dataclass(frozen=True, slots=True)
class CredentialParcel:
    """A CredentialMessage for a holder, and the access token that goes with it."""

    issuance: str
    holder: str
    message: dict[str, Any]
    token: str


class Issuing:
    """The issuer's decisions. Each method that takes `tx` runs in a transaction of the caller."""

    def __init__(self, signer: CredentialSigner, settings: CatalogueSettings) -> None:
        self._signer, self._settings = signer, settings
        self._life = settings.issuer_days * _DAY
        self.kinds = list_kinds(settings.issuer_types)

    def request(self, tx: CatalogueTransaction, holder: str, asked: IssuanceRequest, *, token: str = "") -> str:
        """Store a member's request and return its id. `token`: its access token, for the delivery.

        Raises: Unproven for a stranger, Forbidden for a suspended member, Limited for one that has too many.
        """
        member = tx.members.find(holder, lock=True)
        if member is None or member.id != holder:
            raise Unproven(f"{holder} is not a member")
        if member.status != "active":
            raise Forbidden("expected an active member, got one that is suspended; ask the operator of the data space")
        if tx.issuances.count_open(holder) >= _OPEN_MAX:
            raise Limited(
                f"expected at most {_OPEN_MAX} undelivered requests; take the deliveries first", retry_after=60
            )
        if tx.issuances.count_current(holder, tx.now) + len(asked.wanted) > _CURRENT_MAX:
            raise Limited(
                f"expected at most {_CURRENT_MAX} credentials that have not ended; use those", retry_after=3600
            )
        row = new_issuance(holder, asked.holder_pid, asked.wanted, now=tx.now, token=token)
        tx.issuances.add(row)
        return row.id

    def prepare(self, tx: CatalogueTransaction, issuance: str) -> CredentialParcel | None:
        """What is to be sent for a request now; None if nothing is. Counts the attempt and schedules the next one."""
        if (row := tx.issuances.find(issuance)) is None:
            return None
        member = tx.members.find(row.holder, lock=True)
        row = tx.issuances.find(issuance, lock=True)
        if row is None or row.next_at is None:
            return None
        if member is None or row.attempts >= _ATTEMPTS_MAX:
            _give_up(tx, row, f"given up after {row.attempts} attempts; {row.problem}")
            return None
        row.attempts += 1
        row.next_at = tx.now + min(_PAUSE_MAX, _PAUSE_FIRST * 2.0 ** (row.attempts - 1))
        if row.status == "RECEIVED" and (problem := self._object(row, member)):
            _reject(tx, row, problem)
            row.attempts = 1  # of this message
        issued = self._issue(tx, row, member) if row.status == "RECEIVED" else ()
        return CredentialParcel(row.id, row.holder, self._message(row, issued), row.token)

    def settle(self, tx: CatalogueTransaction, issuance: str, problem: str) -> None:
        """Store how an attempt ended; an empty `problem`: the holder has taken it."""
        row = tx.issuances.find(issuance, lock=True)
        if row is None or row.next_at is None:
            return
        if problem:
            row.problem = problem[:_PROBLEM_MAX]
            return
        if row.status == "RECEIVED":
            row.status, row.problem = "ISSUED", ""
        row.next_at, row.token = None, ""

    def renew(self, tx: CatalogueTransaction) -> None:
        """Ask for a membership credential for each active member that has none, or one that ends soon; sweep."""
        tx.issuances.sweep(tx.now - _KEPT)
        if not self._settings.issuer_types:
            return
        beyond, since = tx.now + _RENEWED * self._life, tx.now - _DAY
        for holder in tx.issuances.list_without(self._settings.issuer_types[0], beyond=beyond, since=since):
            ask_for_membership(tx, holder, self._settings.issuer_types)

    def _object(self, row: Issuance, member: Member) -> str:
        """Why a request is rejected; empty if it is not."""
        if member.status != "active":
            return f"{member.name} is {member.status}"
        unknown = [one for one in row.wanted if one not in self.kinds]
        return f"this catalogue issues {unknown[0]} no more; see HANSE_ISSUER_TYPES" if unknown else ""

    def _issue(self, tx: CatalogueTransaction, row: Issuance, member: Member) -> Sequence[IssuedCredential]:
        """The signed credentials of a request, the same ones at each attempt."""
        if issued := tx.issuances.list_issued(row.id):
            return issued
        # Lists are locked in the order of their kinds: see CatalogueTransaction.
        for kind in sorted((self.kinds[one] for one in row.wanted), key=lambda kind: kind.profile.list_kind):
            tx.issuances.add(self._sign(tx, row, kind, member))
        return tx.issuances.list_issued(row.id)

    def _sign(self, tx: CatalogueTransaction, row: Issuance, kind: CredentialKind, member: Member) -> IssuedCredential:
        number, index = tx.issuances.take_place(kind.profile.list_kind)
        made = IssuedCredential(
            id=f"urn:uuid:{uuid.uuid4()}",
            issuance=row.id,
            holder=member.id,
            type=kind.type,
            profile=kind.profile.name,
            list_kind=kind.profile.list_kind,
            list_number=number,
            list_index=index,
            issued_at=tx.now,
            expires_at=tx.now + self._life,
            state=ACTIVE,
        )
        made.jwt = self._signer.sign_credential(made, self._subject(member))
        return made

    def _subject(self, member: Member) -> dict[str, str]:
        """What a credential says of a member, besides its DID."""
        facts = {"name": member.name, "role": member.role, "country": member.country}
        return {"memberOf": self._settings.title, **{name: value for name, value in facts.items() if value}}

    def _message(self, row: Issuance, issued: Sequence[IssuedCredential]) -> dict[str, Any]:
        hub = row.holder in self._settings.issuer_hub_formats
        return {
            "@context": [CONTEXT],
            "type": "CredentialMessage",
            "issuerPid": row.id,
            "holderPid": row.holder_pid,
            "status": "REJECTED" if row.status == "REJECTED" else "ISSUED",
            "credentials": [
                {
                    "credentialType": one.type,
                    "format": PROFILES[one.profile].hub_format if hub else one.profile,
                    "payload": one.jwt,
                }
                for one in issued
            ],
        }


def _reject(tx: CatalogueTransaction, row: Issuance, problem: str) -> None:
    """Reject a request. Credentials that earlier attempts signed count no more."""
    row.status, row.problem = "REJECTED", problem
    tx.issuances.revoke_answer(row.id)


def _give_up(tx: CatalogueTransaction, row: Issuance, problem: str) -> None:
    """End a request whose answer cannot be delivered, without a message."""
    if row.status == "RECEIVED":
        _reject(tx, row, problem[:_PROBLEM_MAX])
    row.next_at, row.token = None, ""
