"""Keeps a member's credentials in line with its membership, in the transaction that changes the member.

An admission asks for a membership credential, a suspension suspends all credentials, a lifted one restores them, and a
removal or a change of what a credential says revokes them for good. Signs and sends nothing: `delivery` does.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from catalogue.issuer.profiles import VC11, CredentialKind
from catalogue.store import CatalogueTransaction
from catalogue.store.issuances import ACTIVE, REVOKED, SUSPENDED
from catalogue.store.tables import Issuance, Member

HOLDER_PID = "membership"  # the same at each renewal, which replaces the credential before it at the holder


def ask_for_membership(tx: CatalogueTransaction, holder: str, types: Sequence[str]) -> None:
    """Ask for the first of the issuer's types for a member; without types there is no issuer."""
    if types:
        tx.issuances.add(new_issuance(holder, HOLDER_PID, [CredentialKind(types[0], VC11).id], now=tx.now))


def follow_change(tx: CatalogueTransaction, member: Member, *, differs: bool, types: Sequence[str]) -> None:
    """Follow a change of a member. `differs`: its credentials say something else than the register now."""
    if differs:
        _revoke(tx, member.id, "what the credential says of the member has changed")
    if member.status != "active":
        tx.issuances.change_state(member.id, before=(ACTIVE,), after=SUSPENDED)
        return
    tx.issuances.change_state(member.id, before=(SUSPENDED,), after=ACTIVE)
    if not tx.issuances.count_holding(member.id, tx.now) and not tx.issuances.count_open(member.id):
        ask_for_membership(tx, member.id, types)


def follow_removal(tx: CatalogueTransaction, holder: str) -> None:
    """End all credentials of a member that is removed."""
    _revoke(tx, holder, "the membership ended")


def _revoke(tx: CatalogueTransaction, holder: str, problem: str) -> None:
    tx.issuances.change_state(holder, before=(ACTIVE, SUSPENDED), after=REVOKED)
    tx.issuances.give_up(holder, problem=problem)


def new_issuance(holder: str, holder_pid: str, wanted: Sequence[str], *, now: float, token: str = "") -> Issuance:
    """A request that is due for its delivery at once."""
    return Issuance(
        id=uuid.uuid4().hex,
        holder=holder,
        holder_pid=holder_pid,
        wanted=list(wanted),
        status="RECEIVED",
        token=token,
        created_at=now,
        attempts=0,
        next_at=now,
        problem="",
    )
